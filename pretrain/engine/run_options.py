"""Options of every training run."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.common.components import Component
from data_prep.common.errors import UserError

Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "aim", "comet_ml", "clearml", "dvclive", "swanlab", "trackio"
]

DEFAULT_STEPS, DEFAULT_WARMUP = 100_000, 2_000
"""Steps where neither steps nor epochs are given."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and how its learning rate goes."""

    steps: int
    warmup_steps: int
    peak: float
    """Largest learning rate."""


@dataclass
class OptimConfig:
    """Length of the run, batch and AdamW."""

    steps: int | None = None
    """Optimiser steps of the whole run; null: as `epochs` say, or 100,000 without them."""
    epochs: float | None = None
    """Length of the run in passes over the images, instead of `steps`."""
    batch_size: int = 256
    """Images per step, summed over processes."""
    accumulate: int | Literal["auto"] = 1
    """Forward and backward passes per step, each with its share of the batch. auto: as few as the
    memory allows, found by trying when the run starts."""
    lr: float = 1.5e-4
    """Learning rate for a batch of 256; the rate used is this times batch_size / 256."""
    scale_lr: bool = True
    """Whether `lr` is so scaled by the batch. false: it is the rate itself, whatever the batch."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; after it a cosine leads to 0. null: as `warmup_epochs` say, or 2,000
    without them."""
    warmup_epochs: float | None = None
    """Warm-up in passes over the images, instead of `warmup_steps`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging factors."""
    weight_decay: float = 0.05
    """Decoupled weight decay; biases, norms and position tables have none."""
    clip: float | None = 1.0
    """Largest gradient norm; null for none."""
    layer_decay: float | None = None
    """Factor of the learning rate from each encoder block to the one below it; null for none."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optim.lr is {self.lr}; it must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas are {list(self.betas)}; they must lie in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"optim.clip is {self.clip}; it must be positive, or null")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay is {self.layer_decay}; it must lie in (0, 1]")

        for one, other in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(
                    f"optim.{one} {getattr(self, one)} and optim.{other} {getattr(self, other)}"
                    f" are both given; set one of them to null"
                )
        for name in ("steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"optim.{name} is {value}; it must be 1 or more")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"optim.epochs is {self.epochs}; it must be positive")
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < math.inf:
            raise UserError(f"optim.warmup_epochs is {self.warmup_epochs}; it must be 0 or more")

    def schedule(self, images: int) -> Schedule:
        """Length and rate of a run.

        Args:
            images: Images of one epoch.

        Raises:
            UserError: The warm-up is longer than the run.
        """
        steps = DEFAULT_STEPS if self.steps is None else self.steps
        if self.epochs is not None:
            steps = self._steps_of(self.epochs, images)
        warmup = DEFAULT_WARMUP if self.warmup_steps is None else self.warmup_steps
        if self.warmup_epochs is not None:
            warmup = self._steps_of(self.warmup_epochs, images)
        if not 0 <= warmup <= steps:
            name = "warmup_steps" if self.warmup_epochs is None else "warmup_epochs"
            raise UserError(f"optim.{name}: {warmup} steps are not in 0..{steps}, the whole run's")
        scale = self.batch_size / 256 if self.scale_lr else 1.0
        return Schedule(steps, warmup, self.lr * scale)

    def _steps_of(self, epochs: float, images: int) -> int:
        return math.ceil(epochs * images / self.batch_size)

    def share(self, processes: int) -> int:
        """Images of one step in one process.

        Raises:
            UserError: The batch does not divide into processes and passes.
        """
        passes = 1 if self.accumulate == "auto" else self.accumulate
        if self.batch_size % (processes * passes):
            raise UserError(
                f"optim.batch_size {self.batch_size} does not divide into {processes} processes x "
                f"{passes} passes"
            )
        return self.batch_size // processes


@dataclass(kw_only=True)
class RunOptions:
    """Options of every training run."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *("log_every", "save_every", "keep", "threads", "data.workers", "precision"),
        *("optim.accumulate", "optim.lr", "skip_keys", "trackers", "check_every"),
    )
    """Beginnings of the names of options that may differ when a run is continued: they decide where
    and how fast it runs, and change its result by rounding and by random draws at most."""

    output: Path
    """Run folder; made, or continued with --resume auto."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Steps, batch and optimiser."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the forward pass in bfloat16 where that is safe. On a CPU that is slow in it the
    run computes in float32, and says so."""
    threads: int | None = None
    """CPU threads of each process; null: the machine's cores, divided among the processes."""
    evaluators: dict[str, Component] = field(
        default_factory=dict, metadata={"base": "pretrain.engine.evaluator.Evaluator"}
    )
    """Classes that judge the model every so many steps, by the name under which they are logged."""
    log_every: int = 10
    """Steps between lines of metrics, which give the means over these steps."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    check_every: int | None = None
    """Steps between looks at what the device has computed: whether it is finite, and whether a
    signal asks to stop. null: 8 on a GPU, which need not wait in between, or fewer where these take
    longer than 20 seconds; 1 on a CPU."""
    skip_keys: list[str] = field(default_factory=list)
    """Records to leave out, by key; others stand in for them. See `nonfinite-*.json` of a run that
    a loss stopped."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """What shows the metrics beside `metrics.jsonl`, through Accelerate."""
    keep: int = 2
    """Checkpoints kept."""
    seed: int = 0
    """Seed of weights, order, augmentation and all that a step draws."""
    resume: Literal["never", "auto"] = "never"
    """auto continues the run in the output folder from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.save_every < 1 or self.keep < 1:
            raise UserError("log_every, save_every and keep must be 1 or more")
        if self.check_every is not None and self.check_every < 1:
            raise UserError(f"check_every is {self.check_every}; it must be 1 or more, or null")
