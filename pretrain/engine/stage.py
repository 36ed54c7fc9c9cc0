"""What a run trains."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from data_prep.loader.batches import OrderedDataset
from data_prep.loader.damaged import DamagedList
from pretrain.engine.checkpoint import Checkpoint


class Stage(ABC):
    """A model, its data and its losses. Each process makes one, and the engine trains it.

    New weights come from the global torch random state, which the engine seeds first.

    Attributes:
        model: Module whose parameters are trained.
        dataset: Training samples.
        workers: Processes that read them, for each training process.
        curves: Names of the losses drawn at the end of the run.
        damaged: Records that could not be read, where they are replaced; logged as `damaged`.
        rounds: Optimiser steps per batch, see `round_losses`. They make up one step of the run.
    """

    find_unused_parameters: ClassVar[bool] = False
    """Whether some steps leave some parameters without a gradient."""

    model: nn.Module
    dataset: OrderedDataset
    workers: int
    curves: Sequence[str]
    damaged: DamagedList | None = None
    rounds: int = 1

    @abstractmethod
    def __init__(self, options: Any, device: torch.device) -> None:
        """Make everything that training needs, before the run folder is made.

        Raises:
            UserError: Options that cannot run.
        """

    @abstractmethod
    def collate(self, samples: list[Any]) -> Any:
        """Samples of the data set to one batch. It runs in a worker process."""

    @abstractmethod
    def losses(
        self, model: nn.Module, batch: Any, seed: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What to minimise, and the scalars to log by name, the same names each time.

        Args:
            model: `self.model` as prepared for distributed training.
            batch: As collated, still on the CPU.
            seed: Of all randomness in this pass.
        """

    def round_losses(
        self, model: nn.Module, batch: Any, seed: int
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """What each of the `rounds` optimiser steps minimises, with the scalars up to there.

        Each is computed when it is asked for, with the weights that the step before it left. Those
        that come with the last round are logged. Arguments are those of `losses`.
        """
        yield self.losses(model, batch, seed)

    @abstractmethod
    def keys(self, batch: Any) -> Sequence[str]:
        """Record keys of a batch, to name them when a loss is not finite."""

    @abstractmethod
    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The state dicts that a checkpoint keeps, by name."""

    @abstractmethod
    def load(self, checkpoint: Checkpoint) -> None:
        """Restore the weights of a checkpoint.

        Raises:
            UserError: They do not fit this model.
        """

    def bound(self, per_pass: int, processes: int) -> dict[str, Any]:
        """What a run that goes on must have as it had, beyond its options, by name.

        Args:
            per_pass: Images of one forward pass in one process.
        """
        return {}

    def alone(self) -> AbstractContextManager[None]:
        """Inside it no pass may wait for another process."""
        return nullcontext()

    def flops(self) -> float:
        """Floating-point operations of training on one image; 0 where they are not counted."""
        return 0.0

    def savings(self) -> Sequence[str]:
        """Options, as they are typed, with which a pass takes less memory."""
        return ()

    def documents(self) -> dict[str, Any]:
        """What else a checkpoint keeps, as JSON by name."""
        return {}

    def keep(self, run: Path) -> None:
        """Keep what the run needs later and no checkpoint holds. Called in the main process only.

        Args:
            run: The run folder, which is there.

        Raises:
            UserError, OSError: It cannot be kept.
        """
        return

    def describe(self) -> Iterable[str]:
        """Lines printed before training starts."""
        return ()

    def draw(self) -> dict[str, Figure]:
        """Pictures of the trained model by file name, drawn at the end of the run."""
        return {}
