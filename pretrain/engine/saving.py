"""Saving a run, and going on where that fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from pretrain.engine.checkpoint import State, save_checkpoint
from pretrain.engine.metrics import Metrics
from pretrain.engine.resume import on_rank_0
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stage import Stage


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """A file of the run that can be done without is a warning where it cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        line = f"warning: {what} cannot be written ({reason}): {error.filename}"
        print(line, file=sys.stderr, flush=True)


def save(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    optimizer: AcceleratedOptimizer,
    state: State,
    metrics: Metrics | None,
    steps: int,
    ends: bool,
) -> None:
    """Save a checkpoint. Called in all processes; they go on when it is whole.

    One that cannot be written, most often because the disk is full, is a warning, and training
    goes on. Ending would lose the same steps as a crash later on, whereas space may be made, by a
    user or by the cluster's own cleaning, before the next save, which tries again and holds all
    steps until then. The last whole checkpoint stays, and a run that is killed meanwhile goes on
    from it. Only where no save would follow is it an error.

    Args:
        metrics: In the main process; on disk before the checkpoint that they lead to.
        steps: Of the whole run.
        ends: Whether the run ends after this save.

    Raises:
        UserError: The run ends and cannot be saved.
    """

    def write() -> str:
        assert metrics is not None
        try:
            metrics.sync()
            weights, documents = stage.weights(), stage.documents()
            save_checkpoint(options.output, state, weights, documents, optimizer, options.keep)
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{metrics.path} cannot be written: {error.strerror}"
        return ""

    fault: str = on_rank_0(accelerator, write)
    if fault and ends:
        raise UserError(
            f"{fault}; the last whole checkpoint is kept: make room, then continue with --resume"
            " auto"
        )
    if fault and accelerator.is_main_process:
        again = min(state.step - state.step % options.save_every + options.save_every, steps)
        print(
            f"warning: {fault}; make room: step {again} is saved next, and until then the last"
            " whole checkpoint is kept",
            file=sys.stderr,
            flush=True,
        )
