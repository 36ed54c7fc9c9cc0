"""Options of every training run."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from data_prep.common.components import Component
from data_prep.common.errors import UserError


@dataclass
class OptimConfig:
    """Steps, batch and AdamW."""

    steps: int = 100_000
    """Optimiser steps of the whole run."""
    batch_size: int = 256
    """Images per step, summed over processes."""
    accumulate: int = 1
    """Forward and backward passes per step, each with its share of the batch."""
    lr: float = 1.5e-4
    """Learning rate for a batch of 256; the rate used is this times batch_size / 256."""
    warmup_steps: int = 2_000
    """Steps of linear warm-up; after it a cosine leads to 0."""
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

    def check(self, processes: int) -> int:
        """Images of one forward pass in one process.

        Raises:
            UserError: The batch does not divide, or the warm-up is longer than the run.
        """
        parts = processes * self.accumulate
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise UserError("optim.steps, optim.batch_size and optim.accumulate must be 1 or more")
        if self.batch_size % parts:
            raise UserError(
                f"optim.batch_size {self.batch_size} does not divide into {processes} processes x "
                f"{self.accumulate} passes"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise UserError(
                f"optim.warmup_steps {self.warmup_steps} is not in 0..optim.steps {self.steps}"
            )
        return self.batch_size // parts


@dataclass(kw_only=True)
class RunOptions:
    """Options of every training run."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *("log_every", "save_every", "keep", "threads", "data.workers", "precision"),
        "optim.accumulate",
    )
    """Beginnings of the names of options that may differ when a run is continued: they decide where
    and how fast it runs, and change its result by rounding and by random draws at most."""

    output: Path
    """Run folder; made, or continued with --resume auto."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Steps, batch and optimiser."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the forward pass in bfloat16 where that is safe."""
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
    keep: int = 2
    """Checkpoints kept."""
    seed: int = 0
    """Seed of weights, order, augmentation and all that a step draws."""
    resume: Literal["never", "auto"] = "never"
    """auto continues the run in the output folder from its newest checkpoint."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.save_every < 1 or self.keep < 1:
            raise UserError("log_every, save_every and keep must be 1 or more")
