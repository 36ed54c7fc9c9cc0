"""Metrics of a run: `metrics.jsonl`, and the same in trackers such as TensorBoard."""

import importlib.util
import json
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from data_prep.common.errors import UserError
from data_prep.common.files import write_json, write_text
from data_prep.common.messages import one_line

PROJECT = "samaritan"
"""Name of the project under which trackers list a run."""
PACKAGES = {"tensorboard": "torch.utils.tensorboard"}
"""Module that a tracker needs, where it is not of the tracker's name."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        UserError: Names the first of them.
    """
    for name in names:
        module = PACKAGES.get(name, name)
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"trackers: {name} needs the package {module.partition('.')[0]}, which is not"
                f" installed (pip install {name.replace('_', '-')}); or leave it out"
            )
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"trackers: this version of accelerate does not know {name}")


class Metrics:
    """Writes one line per logged step. Only the main process has one.

    A line that cannot be written (on a full disk, say) waits in memory and is written with the
    next one, so that the file has no gap and no half line; `sync` raises where lines still wait,
    and a checkpoint is saved only after it. TensorBoard is a copy: where it cannot be written,
    it is left alone with a warning.

    Args:
        folder: Run folder.
        step: Steps already done; later lines of an earlier try are dropped.
        trackers: Names of trackers of Accelerate.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[str] = ("tensorboard",)) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._waiting = b""
        self._warned = False
        self._trackers: dict[str, GeneralTracker] = {}
        for name in trackers:
            with self._copied(name):
                self._trackers[name] = _start(name, folder, step)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step."""
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                self._warn("metrics.jsonl", error)
            self._warned = True
        for name, tracker in list(self._trackers.items()):
            with self._copied(name):
                tracker.log(values, step=step)

    def _write(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        self._warned = False

    def sync(self) -> None:
        """Bring all lines of `metrics.jsonl` to disk.

        Raises:
            OSError: They cannot be written.
        """
        self._write()
        os.fsync(self._file)

    def close(self) -> None:
        """Write what is left, and close all of them."""
        self._write()
        os.close(self._file)
        for name, tracker in list(self._trackers.items()):
            with self._copied(name):
                tracker.finish()

    @contextmanager
    def _copied(self, name: str) -> Iterator[None]:
        """A tracker that cannot be written, now or at the time of an earlier line, is left out."""
        try:
            yield
        except OSError as error:
            self._warn(name, error)
            self._trackers.pop(name, None)

    def _warn(self, name: str, error: OSError) -> None:
        then = (
            "its lines wait in memory and are written when there is room"
            if name == self.path.name
            else "metrics.jsonl goes on"
        )
        reason = error.strerror or one_line(error)
        print(
            f"warning: {self.path.with_name(name)} cannot be written ({reason}); {then}",
            file=sys.stderr,
            flush=True,
        )


def _start(name: str, folder: Path, step: int) -> GeneralTracker:
    """A tracker of this run, which goes on after `step` where the tracker can."""
    chosen = LOGGER_TYPE_TO_CLASS[name]
    arguments = {"logging_dir": str(folder / name)} if chosen.requires_logging_directory else {}
    project, more = PROJECT, CONTINUED.get(name)
    if more is not None:
        project, arguments = more(folder, step)
    tracker: GeneralTracker = chosen(project, **arguments)
    if hasattr(tracker, "start"):  # before accelerate 1.12 they start when they are made
        tracker.start()
    return tracker


def _tensorboard(folder: Path, step: int) -> tuple[str, dict[str, Any]]:
    return "tensorboard", {"logging_dir": str(folder), "purge_step": step + 1}


def _wandb(folder: Path, step: int) -> tuple[str, dict[str, Any]]:
    """One run of W&B for a run folder, however often it is continued."""
    path = folder / "wandb.json"
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex})
    identity = json.loads(path.read_text(encoding="utf-8"))["id"]
    name = folder.resolve().name
    return PROJECT, {"dir": str(folder), "name": name, "id": identity, "resume": "allow"}


CONTINUED = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Name and arguments of trackers that can go on with what an earlier start logged."""


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
