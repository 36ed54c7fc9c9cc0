"""A run's folder: what it was told, what it measured, and checkpoints that are whole or absent."""

import json
import os
import platform
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_json, write_text
from pretrain.encoder.weights import latest_checkpoint
from pretrain.engine.optim import OptimConfig

INTERRUPTED = 75
"""Exit status of a training script that was asked to stop and has saved."""
INTERRUPTED_FILE = "INTERRUPTED"
"""Present in a run folder that was so stopped: launchers do not pass the exit status on."""
MAY_CHANGE = {"resume", "output", "log_every", "save_every", "keep", "data.workers", "threads"}
"""Options that may differ when a run is continued."""


@dataclass(kw_only=True)
class RunOptions:
    """What every training run can be told."""

    output: Path
    """Run folder; made, or continued with --resume auto."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Steps, batch and optimiser."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the forward pass in bfloat16 where that is safe."""
    threads: int | None = None
    """CPU threads of each process; null: the machine's cores, divided among the processes."""
    log_every: int = 10
    """Steps between lines of metrics, which give the means over these steps."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept."""
    seed: int = 0
    """Seed of weights, order, augmentation and all that a step draws."""
    resume: Literal["never", "auto"] = "never"
    """auto continues the run in the output folder from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.save_every < 1 or self.keep < 1:
            raise UserError("log_every, save_every and keep must be 1 or more")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads is {self.threads}; it must be 1 or more, or null")


@dataclass
class State:
    """How far a run is; with the weights and the optimiser's state, all that resuming needs."""

    step: int = 0
    samples_seen: int = 0
    sums: list[float] = field(default_factory=list)
    """Of each logged value, over the steps since the last line of metrics."""
    summed: int = 0
    """How many steps these are."""

    def add(self, values: list[float]) -> None:
        """Count in the values of one step."""
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(values), values, strict=True)]
        self.summed += 1

    def take_means(self) -> list[float]:
        """Means over the steps counted in, and start again."""
        means = [total / self.summed for total in self.sums]
        self.sums, self.summed = [], 0
        return means

    @classmethod
    def read(cls, checkpoint: Path) -> "State":
        """The state of a checkpoint folder."""
        return cls(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """Write `state.json`."""
        write_json(folder / "state.json", asdict(self))


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
        resolved: all options of the run, as YAML.

    Raises:
        UserError: the folder has a run and `resume` is never, a run with other options, or
            something that is no run. Nothing is changed then.
    """
    folder = options.output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "environment.json").is_file() or not (folder / "config.yaml").is_file():
            raise UserError(f"output {folder} holds files that are no run; name another folder")
        if options.resume == "never":
            raise UserError(f"output {folder} has a run; continue it with --resume auto")
        if latest_checkpoint(folder) is not None:
            _require_same_options(folder, resolved)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (folder / "checkpoints").glob(".*.partial"):
        shutil.rmtree(leftover)
    for marker in ("DONE", INTERRUPTED_FILE):
        (folder / marker).unlink(missing_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "figures").mkdir(exist_ok=True)
    write_json(folder / "environment.json", environment())
    write_resolved_config(folder, resolved)


def _require_same_options(folder: Path, resolved: str) -> None:
    before = _flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    now = _flat(yaml.safe_load(resolved))
    for name in sorted((before.keys() | now.keys()) - MAY_CHANGE):
        if before.get(name) != now.get(name):
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


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write the checkpoint folder of `step`, whole or not at all, and keep the last `keep`.

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
    """Remembers an interrupt, USR2 or TERM, so that the step can be finished and saved first.

    A second interrupt stops at once.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
