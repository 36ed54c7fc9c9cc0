"""A segmenter that was published: fetched by its name, and checked for what it was built on.

It is the folder of one checkpoint with a `config.yaml`, so it loads as a run does. The files that
its frozen weights came from are in it only if that was asked for; else `segmenter.json` says which
they are.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from finetune.model.kept import FOLDER, kept_weights
from pretrain.encoder.weights import HUB, download
from pretrain.engine.checkpoint import Checkpoint

SEGMENTER = "segmenter"
"""Name of the trained weights in a checkpoint (`Segmenter.trained_state_dict`), and of the document
of a published one."""
FILES = [f"{SEGMENTER}.safetensors", "*.json", "config.yaml", f"{FOLDER}/*"]
"""What of a repository is fetched."""


@dataclass(frozen=True)
class Need:
    """A file that a model was built on."""

    role: str
    """`encoder` or `sam`, the option that it was given as."""
    sha256: str
    source: str
    """hf:org/name of an encoder on the Hub, the name of one of SAM's own checkpoints, or ""."""

    def document(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def find_run(run: str | Path) -> Path:
    """The folder that a run's name means.

    Args:
        run: A run folder, a published folder, or `hf:org/name` or `hf:org/name@revision`.

    Raises:
        UserError: It cannot be fetched, or the repository holds no segmenter.
    """
    if not str(run).startswith(HUB):
        return Path(run)
    makers = "segmenters published by `python -m finetune publish`"
    return download(str(run), FILES, f"{SEGMENTER}.safetensors", makers)


def require_sources(folder: Path, run: str | Path, encoder: str | None, sam: str | None) -> None:
    """Refuse to build a published model without a file that it was built on.

    Args:
        folder: Of the model.
        run: What the user calls it.
        encoder: The encoder that the user gave.
        sam: The SAM checkpoint that the user gave.

    Raises:
        UserError: Names the file and the option it is given by, or the document is damaged.
    """
    given = {"encoder": encoder, "sam": sam} | kept_weights(folder)
    for need in needs_of(folder):
        if given.get(need.role) is None and not need.source.startswith(HUB):
            name = f"{need.source}, " if need.source else ""
            raise UserError(
                f"run: {run} was built on a file that it does not hold: {name}SHA-256"
                f" {need.sha256}; its README.md says how to get it, --{need.role} FILE where it is"
            )


def needs_of(folder: Path) -> list[Need]:
    """The files that a published model was built on; none for a run, which keeps its own.

    Raises:
        UserError: The document that says so is damaged.
    """
    document: Any = Checkpoint(folder).document(SEGMENTER)
    if document is None:
        return []
    try:
        needs = [Need(**need) for need in document["needs"]]
        if all(isinstance(text, str) for need in needs for text in need.document().values()):
            return needs
    except (TypeError, KeyError):
        pass
    raise UserError(f"{folder / SEGMENTER}.json does not say what the model was built on")
