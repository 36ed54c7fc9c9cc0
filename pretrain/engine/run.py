"""A run's folder: made, taken up again, or refused."""

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.common.parsing import parse_file
from pretrain.engine.checkpoint import (
    Checkpoint,
    checkpoints_of,
    latest_checkpoint,
    remove_checkpoint,
    remove_leftovers,
    remove_old,
)
from pretrain.engine.lock import LOCK, RunLock
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stop import DONE_FILE, INTERRUPTED_FILE

RESUMES = "resumes.jsonl"
"""When a run was continued, on what, and with which options changed."""

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "lightly",
    "timm",
    "accelerate",
    "webdataset",
)


Changes = dict[str, list[Any]]
"""Options that differ from those a run was continued with last: before and now."""


def take_folder(options: RunOptions, resolved: str, lock: RunLock) -> Changes:
    """Keep other processes from training in a run's folder, and check it again.

    Raises:
        UserError: See `check_folder` and `RunLock.take`.
    """
    lock.take(options.output)
    return check_folder(options, resolved)  # another job may have trained there until now


def check_folder(options: RunOptions, resolved: str) -> Changes:
    """Whether a run can be made in its folder, or the one that is there taken up.

    Args:
        resolved: All options of the run, as YAML.

    Raises:
        UserError: The folder has a run and `resume` is never, a run with other options, or
            something that is not a run.
    """
    folder = options.output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder")
    # What is hidden is a note of another process (see shared.py) or of the file system.
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        begun = (folder / "environment.json").is_file() and (folder / "config.yaml").is_file()
        if not begun and not (folder / LOCK).is_file():
            raise UserError(f"output {folder} holds files that are not a run; name another folder")
        if begun and options.resume == "never":
            raise UserError(f"output {folder} has a run; continue it with --resume auto")
        if latest_checkpoint(folder) is not None:
            return _changed_options(folder, options, resolved)
    return {}


def is_done(options: RunOptions, resolved: str) -> bool:
    """Whether the run is there already, and at its end, where `resume` lets it be taken up.

    Raises:
        UserError: As `check_folder`; so a run of other options is not taken for this one.
    """
    if options.resume == "never" or not (options.output / DONE_FILE).is_file():
        return False
    check_folder(options, resolved)
    return True


def prepare_folder(
    options: RunOptions, resolved: str, checkpoint: Checkpoint | None, changes: Changes
) -> None:
    """Make a run's folder, or take up the run that is in it.

    Args:
        resolved: All options of the run, as YAML.
        checkpoint: Where it goes on.
        changes: See `check_folder`.
    """
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder / "checkpoints")
    if checkpoint is not None:  # damaged newer ones must neither be kept nor taken for the newest
        for newer in checkpoints_of(folder):
            if newer.folder.name > checkpoint.folder.name:
                remove_checkpoint(newer)
    remove_old(folder, options.keep)
    for marker in (DONE_FILE, INTERRUPTED_FILE):
        (folder / marker).unlink(missing_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    if checkpoint is not None:
        _record_resume(folder, checkpoint, changes)
    write_json(folder / "environment.json", environment())
    write_resolved_config(folder, resolved)


def _changed_options(folder: Path, options: RunOptions, resolved: str) -> Changes:
    """What differs from the config of a run; what that does not name has its default.

    Raises:
        UserError: One that changes the result does.
    """
    before = flatten(yaml.safe_load(parse_file(type(options), folder / "config.yaml")[1]))
    now = flatten(yaml.safe_load(resolved))
    changed = {}
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name) or name in ("output", "resume"):
            continue
        if not name.startswith((*options.MAY_CHANGE, "evaluators")):
            raise UserError(
                f"output {folder} was started with {name} {before.get(name)}, not {now.get(name)}; "
                "continue it with the same options or name another folder"
            )
        changed[name] = [before.get(name), now.get(name)]
    return changed


def _record_resume(folder: Path, checkpoint: Checkpoint, changes: Changes) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"time": now, "from": checkpoint.folder.name, "changed": changes}
    line |= {"environment": environment()}
    with (folder / RESUMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        name: value
        for key, nested in values.items()
        for name, value in flatten(nested, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def environment() -> dict[str, Any]:
    """Versions and device, for whoever repeats the run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "packages": {package: version(package) for package in PACKAGES},
    }
