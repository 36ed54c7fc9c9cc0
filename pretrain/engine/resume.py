"""Which checkpoint a run goes on from: chosen by rank 0, and seen by all."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from data_prep.common.errors import UserError
from data_prep.common.messages import one_line
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of


def on_rank_0(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """What a function gives in the main process, in all processes.

    Raises:
        UserError: It raised one, or met a file that it cannot read or write. All processes do, so
            that none waits for one that has ended.
    """
    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = function()
        except UserError as error:
            result[1] = str(error)
        except OSError as error:
            result[1] = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
    broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


@contextmanager
def ended_with_others(accelerator: Accelerator) -> Iterator[None]:
    """Where another process of a run has ended, by an error or killed, this one ends too.

    Its line says why the run ended; a traceback of this one's broken connection would bury it. Gloo
    tells at once that a connection was closed. NCCL waits, until the launcher (torchrun, or srun
    with `--kill-on-bad-exit`) ends this process, which takes it 30 s.

    Raises:
        SystemExit: With status 1.
    """
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if accelerator.num_processes == 1 or not broken:
            raise
        line = "ends, as another process of the run has ended; that one's line says why"
        print(f"process {accelerator.process_index} {line}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def agree_on_checkpoint(run: Path, accelerator: Accelerator) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder, as the main process sees it.

    Returns:
        None if the run has none yet.

    Raises:
        UserError: No checkpoint is whole, or a process does not see the chosen one.
    """
    name = on_rank_0(accelerator, lambda: _choose(run))
    checkpoint = None if name is None else Checkpoint(run / "checkpoints" / name)
    seen = _names(run)
    agrees = name in seen if name is not None else not seen
    refuse_strangers(run, accelerator, agrees, f"sees there ({name or 'no checkpoint'})")
    return checkpoint


def refuse_strangers(run: Path, accelerator: Accelerator, sees: bool, what: str) -> None:
    """End the run in all processes if one of them has another run folder before it.

    Args:
        sees: Whether this process sees what the main one does.
        what: The end of "does not see what process 0 ...".

    Raises:
        UserError: One does not. It is named.
    """
    answers = gather_object([(accelerator.process_index, socket.gethostname(), sees)])
    if strangers := [(rank, host) for rank, host, agreed in answers if not agreed]:
        rank, host = strangers[0]
        raise UserError(
            f"output {run}: process {rank} on {host} does not see what process 0 {what};"
            " a run folder must be on a disk that all nodes share"
        )


def _choose(run: Path) -> str | None:
    """Name of the newest whole checkpoint; each that is damaged is told."""
    faults: list[str] = []
    for checkpoint in reversed(checkpoints_of(run)):
        fault = checkpoint.fault()
        if not fault:
            for each in faults:
                print(
                    f"warning: {each}; going on from {checkpoint.folder.name} without it",
                    file=sys.stderr,
                )
            return checkpoint.folder.name
        faults.append(f"{checkpoint.folder} is damaged: {fault}")
    if faults:
        raise UserError(
            f"{faults[0]}; no other is whole. To start anew, remove {run / 'checkpoints'}"
        )
    return None


def _names(run: Path) -> list[str]:
    return [checkpoint.folder.name for checkpoint in checkpoints_of(run)]
