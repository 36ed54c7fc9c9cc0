"""A run's folder: made, taken up again, or refused."""

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
from pretrain.engine.checkpoint import latest_checkpoint, remove_leftovers
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stop import INTERRUPTED_FILE

MAY_CHANGE = ("resume", "output", "log_every", "save_every", "keep", "data.workers", "threads")
"""Options that may differ when a run is continued; so may those of evaluators."""

PACKAGES = (
    "torch",
    "torchvision",
    "segment-anything",
    "lightly",
    "timm",
    "accelerate",
    "webdataset",
)


def prepare_folder(options: RunOptions, resolved: str) -> None:
    """Make a run's folder, or take up the run that is in it. For the main process.

    Args:
        resolved: All options of the run, as YAML.

    Raises:
        UserError: The folder has a run and `resume` is never, a run with other options, or
            something that is not a run. Nothing is changed then.
    """
    folder = options.output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "environment.json").is_file() or not (folder / "config.yaml").is_file():
            raise UserError(f"output {folder} holds files that are not a run; name another folder")
        if options.resume == "never":
            raise UserError(f"output {folder} has a run; continue it with --resume auto")
        if latest_checkpoint(folder) is not None:
            _require_same_options(folder, type(options), resolved)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for marker in ("DONE", INTERRUPTED_FILE):
        (folder / marker).unlink(missing_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    write_json(folder / "environment.json", environment())
    write_resolved_config(folder, resolved)


def _require_same_options(folder: Path, config_class: type[RunOptions], resolved: str) -> None:
    """Compare with the options a run was started with; those it does not name have defaults."""
    before = _flat(yaml.safe_load(parse_file(config_class, folder / "config.yaml")[1]))
    now = _flat(yaml.safe_load(resolved))
    for name in sorted((before.keys() | now.keys()) - {*MAY_CHANGE}):
        if before.get(name) != now.get(name) and not name.startswith("evaluators"):
            raise UserError(
                f"output {folder} was started with {name} {before.get(name)}, not {now.get(name)}; "
                "continue it with the same options or name another folder"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {
        name: value
        for key, nested in values.items()
        for name, value in _flat(nested, f"{prefix}.{key}" if prefix else str(key)).items()
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
