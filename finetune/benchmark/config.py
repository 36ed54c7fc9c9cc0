"""Options of the benchmark of stage two."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from finetune.config import check_image_size
from pretrain.sizes import check_size

Part = Literal["clicks", "rounds", "cache", "click", "startup"]


@dataclass
class BenchmarkOptions:
    """Speed and memory of stage two, as ratios from one run."""

    encoder_size: str = "vit_b"
    """Size of the encoder."""
    image_size: int = 224
    """Side of the square input in pixels, a multiple of 16."""
    parts: tuple[Part, ...] = ("clicks", "rounds", "cache", "click", "startup")
    """What is measured: simulated clicks of a training step, steps of several rounds, epochs with
    and without cached embeddings, a user's click on an encoded image, the start of `predict`."""
    click_size: int = 1024
    """Side in pixels of the masks that simulated clicks are drawn for."""
    masks: int = 32
    """How many of them a step has."""
    rounds: int = 8
    """Rounds of a training step."""
    batch_size: int = 2
    """Images of a training step, with four masks each."""
    images: int = 32
    """Images of an epoch."""
    repeats: int = 3
    """Timed calls of each kind, after one that warms up; fewer where they take over a minute."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    threads: int | None = None
    """CPU threads; null: all cores."""
    results: Path | None = Path("docs/results.md")
    """Markdown document that keeps the figures, in a section per machine; null keeps none."""

    def __post_init__(self) -> None:
        check_size(self.encoder_size, "encoder_size")
        for name in ("image_size", "click_size"):
            check_image_size(getattr(self, name), name)
        for name in ("masks", "rounds", "batch_size", "images", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.parts:
            raise UserError("parts must not be empty")
