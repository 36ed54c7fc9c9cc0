"""Options of exporting and publishing an encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from data_prep.common.hub import RepoOptions
from pretrain.sizes import PATCH


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write an encoder so that another library loads it, with equal outputs.

    segment_anything gets one file, transformers (SamVisionModel) and timm (samvit_*) a folder. The
    command prints the line of Python that loads it.
    """

    encoder: str
    """A run folder, an encoder file, a SAM checkpoint, or hf:org/name on the Hub."""
    to: Literal["segment_anything", "transformers", "timm"]
    """The library."""
    output: Path
    """New file that ends in .pth (segment_anything), or new folder (transformers, timm)."""
    sam: str | None = None
    """SAM checkpoint that prompt encoder and mask decoder are taken from, for segment_anything.
    null: new ones, which nothing has trained, unless `encoder` is a SAM checkpoint itself."""
    image_size: int | None = None
    """Side in pixels of the only images that the transformers model takes; null: SAM's 1024. (The
    other libraries are given SAM's tables as they are; timm's model takes any size.)"""

    def __post_init__(self) -> None:
        if self.to == "segment_anything" and self.output.suffix != ".pth":
            raise UserError(f"output: {self.output} must end in .pth for segment_anything")
        if self.sam is not None and self.to != "segment_anything":
            raise UserError(f"sam: {self.to} gets the image encoder alone; leave --sam out")
        if self.image_size is not None and self.to != "transformers":
            raise UserError(f"image_size: is for transformers, not for {self.to}; leave it out")
        if self.image_size is not None and (self.image_size < PATCH or self.image_size % PATCH):
            raise UserError(f"image_size: {self.image_size} is not a positive multiple of {PATCH}")


@dataclass(frozen=True, kw_only=True)
class RunRepoOptions(RepoOptions):
    """What of a run is published, or written to be looked at before."""

    run: Path
    """Run folder."""
    dry_run: bool = False
    """Only write the folder that would be published, to `output`."""
    output: Path | None = None
    """New folder for dry_run; null: `publish-` and the run's name, beside the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and not self.dry_run:
            raise UserError("output: is for --dry_run true; leave it out to upload")


@dataclass(frozen=True, kw_only=True)
class PublishOptions(RunRepoOptions):
    """Upload the encoder of a run to the Hugging Face Hub, with a model card made of its records.

    Encoder, encoder.json, the card and its figures leave this machine, and nothing else of the run:
    no optimiser, no metrics, no path, no record key, and no picture unless `pictures` says so. Look
    at them first with `dry_run`. Log in with `hf auth login`. Started again, it sends what has not
    arrived.
    """

    run: Path
    """Run folder of pretrain/train.py."""
    probe: Path | None = None
    """Folder that `python -m pretrain probe` wrote; its tables and figures go into the card."""
    pictures: bool = False
    """Whether figures that may show training images (reconstructions) are published too. They are
    pictures of patients."""
