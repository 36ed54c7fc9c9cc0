"""Checkpoints of a run: whole folders or none, and the only place that knows what is in one."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.files import sha256, sync_folder, use_umask, write_json
from data_prep.common.messages import one_line

OPTIMIZER_FILE = "optimizer.pt"
BEST = "best"
"""Folder in a run: the checkpoint that was judged best, without what only resuming needs."""
FILES = "files"
"""Document of the size and SHA-256 of each other file of a checkpoint."""
PARTIAL = ".partial"
"""End of the hidden names of folders that are being written or removed."""


@dataclass
class State:
    """How far a run is; with the weights and the optimiser's state, all that resuming needs."""

    step: int = 0
    samples_seen: int = 0
    sums: list[float] = field(default_factory=list)
    """Of each logged value, over the steps since the last line of metrics."""
    summed: int = 0
    """How many steps these are."""
    bound: dict[str, Any] = field(default_factory=dict)
    """See `Stage.bound`."""
    steps: int = 0
    """Steps of the whole run; 0 in checkpoints of an earlier version."""
    passes: int = 0
    """Forward and backward passes per step; 0 in checkpoints of an earlier version."""
    machine: str = ""
    """What it ran on: with `optim.accumulate: auto` the passes are kept there."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder."""

    folder: Path

    def weights_file(self, name: str) -> Path:
        """The file of a state dict; it may not be there."""
        return self.folder / f"{name}.safetensors"

    def weights(self, name: str) -> dict[str, Tensor]:
        """A state dict.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.weights_file(name)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read weights from {path}: {error}") from None

    def document(self, name: str) -> Any:
        """A JSON document, or None if the checkpoint has none of this name.

        Raises:
            UserError: It is damaged.
        """
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {one_line(error)}") from None

    def fault(self) -> str:
        """What is wrong with its files; "" if it is whole."""
        try:
            listed = self.document(FILES)
            if listed is None:  # of an earlier version, which kept no sums
                self.state()
                for path in self.folder.glob("*.safetensors"):
                    with safe_open(path, "pt"):
                        pass
                torch.load(self.folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
                return ""
            for name, (size, checksum) in listed.items():
                path = self.folder / name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != size or sha256(path) != checksum:
                    return f"{name} is not as it was written"
        except Exception as error:  # readers of damaged files raise nearly anything
            return f"it cannot be read ({type(error).__name__})"
        return ""

    def state(self) -> State:
        """How far the run was.

        Raises:
            UserError: The document is missing or damaged.
        """
        try:
            return State(**self.document("state"))
        except TypeError:  # it is missing, or has other names
            raise UserError(f"cannot read how far the run was from {self.folder}") from None

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the optimiser's state, onto the parameters' device.

        States of another floating-point type are cast to that of the parameters.

        Raises:
            UserError: The state is damaged, of another model, or holds values that are not finite,
                which would spoil the weights in the next step.
        """
        path = self.folder / OPTIMIZER_FILE
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            for group in stored["param_groups"]:  # an earlier version had other kernels
                group |= {"fused": True, "foreach": None}
            optimizer.load_state_dict(stored)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(f"cannot read {path}: {one_line(error)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not fit the model of this recipe: {error}") from None
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if value.ndim and value.shape != parameter.shape:
                    raise UserError(f"{path} does not fit the model of this recipe: {name}")
                if not value.isfinite().all():
                    raise UserError(
                        f"{path}: {name} is not finite; remove {self.folder} to go on from the"
                        " checkpoint before"
                    )


def checkpoints_of(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run folder, the oldest first."""
    return [Checkpoint(folder) for folder in sorted((run / "checkpoints").glob("step-*"))]


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, or None."""
    found = checkpoints_of(run)
    return found[-1] if found else None


def save_checkpoint(
    run: Path,
    state: State,
    weights: Mapping[str, dict[str, Tensor]],
    documents: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write the checkpoint of a step, whole or not at all, and keep the last `keep`.

    At each instant there is a whole checkpoint, once there has been one: the new one is on the disk
    before it gets its name, and has its name before an old one loses it.

    Args:
        run: Run folder.
        weights: State dicts by name.
        documents: What is kept as JSON, by name.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: It cannot be written (a full disk, say). What was written of it is removed, which
            gives the space back; the checkpoints before it are as they were.
    """
    documents = {**documents, "state": asdict(state)}
    final = _save(run / "checkpoints", state.step, weights, documents, optimizer)
    remove_old(run, keep)
    return final


def save_best(
    run: Path, step: int, weights: Mapping[str, dict[str, Tensor]], documents: Mapping[str, Any]
) -> None:
    """Write the weights of a step as the best ones, and then remove those that were so far.

    Raises:
        UserError: They cannot be written; the best ones so far are as they were.
    """
    folder = run / BEST
    folder.mkdir(exist_ok=True)
    final = _save(folder, step, weights, documents, None)
    for other in folder.glob("step-*"):
        if other != final:
            remove_checkpoint(Checkpoint(other))


def best_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of a run that was judged best, or None where none was judged."""
    found = sorted((run / BEST).glob("step-*"))
    return Checkpoint(found[-1]) if found else None


def _save(
    parent: Path,
    step: int,
    weights: Mapping[str, dict[str, Tensor]],
    documents: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None,
) -> Path:
    """The folder of a step, whole or not at all."""
    final = parent / f"step-{step:08d}"
    temporary = parent / f".{final.name}{PARTIAL}"
    remove_leftovers(parent)
    try:
        _write(temporary, weights, documents, optimizer)
        if final.exists():  # damaged, or unseen when the run went on from the one before
            remove_checkpoint(Checkpoint(final))
        temporary.rename(final)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"{final} cannot be saved: {_reason(error)}") from error
    sync_folder(parent)
    return final


def _write(
    folder: Path,
    weights: Mapping[str, dict[str, Tensor]],
    documents: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """All files of a checkpoint, flushed to disk."""
    folder.mkdir()
    for name, tensors in weights.items():
        path = folder / f"{name}.safetensors"
        save_file(tensors, path)
        use_umask(path)  # safetensors makes it readable by its owner alone
    for name, document in documents.items():
        write_json(folder / f"{name}.json", document)
    if optimizer is not None:
        with (folder / OPTIMIZER_FILE).open("wb") as file:  # which tells a full disk, unlike a path
            torch.save(optimizer.state_dict(), file)
    sums = {path.name: (path.stat().st_size, sha256(path)) for path in folder.iterdir()}
    write_json(folder / f"{FILES}.json", sums)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _reason(error: BaseException) -> str:
    """Why a file could not be written, out of the errors of several libraries."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error)


def remove_old(run: Path, keep: int) -> None:
    """Remove all checkpoints but the last `keep`."""
    for old in checkpoints_of(run)[:-keep]:
        remove_checkpoint(old)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Remove a checkpoint that no longer counts; one in use elsewhere may be left in part."""
    # Out of sight first: a half-removed checkpoint must not look like a whole one.
    hidden = checkpoint.folder.with_name(f".{checkpoint.folder.name}{PARTIAL}")
    with suppress(OSError):  # an older one more is no reason to end a run
        checkpoint.folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what was left of checkpoints that were being written or removed in a folder."""
    for leftover in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
