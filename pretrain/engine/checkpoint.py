"""Checkpoints of a run: whole folders or none, and the only place that knows what is in one."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.files import sha256, use_umask, write_json

OPTIMIZER_FILE = "optimizer.pt"
FILES = "files"
"""Document of the size and SHA-256 of each other file of a checkpoint."""


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
        """A JSON document, or None if the checkpoint has none of this name."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

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
        """How far the run was."""
        return State(**self.document("state"))

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore the optimiser's state, onto the parameters' device.

        Raises:
            UserError: The state is of another model.
        """
        path = self.folder / OPTIMIZER_FILE
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            for group in saved["param_groups"]:  # an earlier version had other kernels
                group |= {"fused": True, "foreach": None}
            optimizer.load_state_dict(saved)
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} does not fit the model of this recipe: {error}") from None


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

    Args:
        run: Run folder.
        weights: State dicts by name.
        documents: What is kept as JSON, by name.

    Returns:
        The checkpoint's folder.
    """
    checkpoints = run / "checkpoints"
    final = checkpoints / f"step-{state.step:08d}"
    temporary = checkpoints / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, tensors in weights.items():
        path = temporary / f"{name}.safetensors"
        save_file(tensors, path)
        use_umask(path)  # safetensors makes it readable by its owner alone
    for name, document in {**documents, "state": asdict(state)}.items():
        write_json(temporary / f"{name}.json", document)
    torch.save(optimizer.state_dict(), temporary / OPTIMIZER_FILE)
    sums = {path.name: (path.stat().st_size, sha256(path)) for path in temporary.iterdir()}
    write_json(temporary / f"{FILES}.json", sums)
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in sorted(checkpoints.glob("step-*"))[:-keep]:
        # Out of sight first: a half-removed checkpoint must not look like a whole one.
        hidden = old.rename(checkpoints / f".{old.name}.partial")
        shutil.rmtree(hidden)
    return final


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left of checkpoints that it was writing or removing."""
    for leftover in (run / "checkpoints").glob(".*.partial"):
        shutil.rmtree(leftover)
