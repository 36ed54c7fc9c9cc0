"""A run's folder: what it was told, what it measured, and checkpoints that are whole or absent."""

import json
import os
import platform
import shutil
import signal
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch.utils.tensorboard import SummaryWriter

from data_prep.cli import write_resolved_config
from data_prep.errors import UserError
from data_prep.files import write_json, write_text
from pretrain.checkpoint import latest_checkpoint

Resume = Literal["never", "auto"]
INTERRUPTED = 75
"""Exit status of a run that was asked to stop and has saved: start it again with --resume auto."""

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "lightly",
    "timm",
    "accelerate",
    "webdataset",
)


def prepare_folder(folder: Path, resolved: str, resume: Resume) -> None:
    """Make a run folder, or take up the run that is in it. For the main process.

    Raises:
        UserError: the folder has a run and `resume` is never, or has something that is no run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.yaml").is_file():
            raise UserError(f"output {folder} holds files that are no run; name another folder")
        if resume == "never":
            raise UserError(f"output {folder} has a run; continue it with --resume auto")
    folder.mkdir(parents=True, exist_ok=True)
    if latest_checkpoint(folder) is None:
        # Nothing saved yet: the run starts over, and so do its records.
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    for leftover in (folder / "checkpoints").glob(".*.partial"):
        shutil.rmtree(leftover)
    (folder / "DONE").unlink(missing_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    write_resolved_config(folder, resolved)
    write_json(folder / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Versions and device, for whoever repeats the run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "packages": {package: version(package) for package in PACKAGES},
    }


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write `checkpoints/step-XXXXXXXX`, whole or not at all, and drop all but the last `keep`.

    Args:
        write: writes the checkpoint's files into the folder that it is given.
    """
    checkpoints = folder / "checkpoints"
    final = checkpoints / f"step-{step:08d}"
    temporary = checkpoints / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
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


class Metrics:
    """`metrics.jsonl`, one line a logged step, and the same as TensorBoard events.

    Args:
        folder: run folder.
        step: steps already done; later lines of an earlier try are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Rows of a run's `metrics.jsonl`; a last line cut short by a crash is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class StopRequest:
    """Remembers an interrupt, USR2 or TERM, so that the step can be finished and saved first."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
