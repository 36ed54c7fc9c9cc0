"""Options of `python -m pretrain probe`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from pretrain.sizes import PATCH


@dataclass(kw_only=True)
class ProbeOptions:
    """Judge an encoder by the labels of shard sets, beside untrained and trivial ones.

    Each image becomes one vector, the mean of its tokens. From it nearest neighbours and a linear
    classifier tell the image's class. A set with a split `test` is fitted on `train` and scored on
    `test`; any other is cross-validated. No group (patient, lesion) is ever on both sides.
    """

    encoder: str
    """The encoder: a run folder, an encoder file, a SAM checkpoint or `hf:org/name`."""
    shards: list[str]
    """Folders or URLs of shard sets with labels."""
    output: Path
    """Folder of the tables, the picture and the resolved options."""
    start_from: str = "auto"
    """Encoder to compare with, which the run started from: auto takes it from the run's config;
    none leaves it out."""
    image_size: int | None = None
    """Side in pixels of the square that images are fitted into; null: as the encoder was
    trained, or 224 for a SAM checkpoint."""
    max_images: int | None = None
    """Use about this many images of each set, whole groups drawn at random."""
    folds: int = 5
    """Parts of a set without a split `test`, of which each is scored by a fit to the others; 1
    scores a single fifth."""
    neighbours: int = 20
    """Neighbours that vote."""
    resamples: int = 1000
    """Bootstrap resamples, of groups, behind each interval."""
    seed: int = 0
    """Seed of folds, resamples and the choice of images."""
    batch_size: int = 32
    """Images encoded at once, in each process."""
    workers: int = 2
    """Processes that read and decode, for each process that encodes."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the encoder in bfloat16 where that is safe, and on a CPU where it is fast."""
    threads: int | None = None
    """CPU threads of each process; null: the machine's cores, divided among the processes."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise UserError("shards: name at least one shard set")
        if min(self.folds, self.neighbours, self.resamples, self.batch_size) < 1:
            raise UserError("folds, neighbours, resamples and batch_size must be at least 1")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; it must be 0 or more")
        if self.max_images is not None and self.max_images < 1:
            raise UserError(f"max_images is {self.max_images}; it must be at least 1, or null")
        if self.image_size is not None and (self.image_size < PATCH or self.image_size % PATCH):
            raise UserError(f"image_size {self.image_size} is not a positive multiple of {PATCH}")
