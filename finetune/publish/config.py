"""Options of exporting and publishing an adapted model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common.errors import UserError
from pretrain.publish.config import RunRepoOptions


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write an adapted model as a checkpoint that segment_anything loads, with equal masks.

    Adapters that can be merged into the weights they change, such as LoraAdapter, are; a model with
    others is refused. The command prints the lines of Python that load the file.
    """

    run: str
    """Run folder of finetune/train.py, or hf:org/name of one on the Hub."""
    output: Path
    """New file that ends in .pth."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run that was validated: the checkpoint that did best, or the last one. Others have the
    last one alone."""
    encoder: str | None = None
    """Where the image encoder that the run was trained on lies now, if the run does not keep it."""
    sam: str | None = None
    """Where the SAM checkpoint that the run was trained on lies now, if the run does not keep
    it."""

    def __post_init__(self) -> None:
        if self.output.suffix != ".pth":
            raise UserError(f"output: {self.output} must end in .pth")


@dataclass(frozen=True, kw_only=True)
class PublishOptions(RunRepoOptions):
    """Upload the trained weights of a run to the Hugging Face Hub, with a model card.

    Trained weights, what rebuilds the model around them and the card leave this machine, and
    nothing else of the run: no optimiser, no metrics, no path, no record key, no picture. Frozen
    weights of encoder and decoder are named by their SHA-256, and are uploaded only with
    `with_sources`; the files of a text tower always are, and its licence must allow it. Look at
    everything first with `dry_run`. Log in with `hf auth login`. Started again, it sends what has
    not arrived. The model is loaded by `--run hf:org/name`.
    """

    run: Path
    """Run folder of finetune/train.py."""
    results: Path | None = None
    """Folder that `python -m finetune evaluate` wrote for this run; its table goes into the
    card."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run that was validated: the checkpoint that did best, or the last one. Others have the
    last one alone."""
    with_sources: bool = False
    """Whether the files that frozen weights came from are uploaded too, so that nothing else is
    needed. Their licences must allow it."""
