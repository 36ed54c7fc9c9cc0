"""What judges a model while it trains."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from accelerate import Accelerator
from matplotlib.figure import Figure

from data_prep.common.errors import UserError
from pretrain.engine.stage import Stage


@dataclass
class Judgement:
    """What an evaluator found."""

    numbers: dict[str, float] = field(default_factory=dict)
    """Logged as `evaluator/name`."""
    pictures: dict[str, Figure] = field(default_factory=dict)
    """Written as `figures/evaluator_name.png`, or see `Evaluator.names_pictures`."""


class Evaluator(ABC):
    """Judges the model every so many steps, and after the last one.

    It is called in all processes at once, in evaluation mode and without gradients, and may use
    `accelerator` to divide the work. What the main process returns is logged.

    Args:
        every: Steps between judgements.

    Attributes:
        step: The step after which it is called.
    """

    step = 0

    names_pictures: ClassVar[bool] = True
    """Whether its pictures are called after it; else by their own names alone."""

    def __init__(self, every: int = 500) -> None:
        if every < 1:
            raise UserError(f"every is {every}; it must be 1 or more")
        self.every = every

    def prepare(self, stage: Stage, accelerator: Accelerator) -> None:  # noqa: B027, optional
        """Find what judging needs, in all processes, before the run folder is made.

        Raises:
            UserError: It cannot judge this stage, or not with these options.
        """

    @abstractmethod
    def evaluate(self, stage: Stage, accelerator: Accelerator) -> Judgement:
        """Judge `stage.model`."""
