"""Stopping a run so that nothing is lost."""

import os
import signal
from pathlib import Path
from types import FrameType

INTERRUPTED = 75
"""Exit status of a training script that was asked to stop and has saved."""
INTERRUPTED_FILE = "INTERRUPTED"
"""Present in a run folder that was so stopped: launchers do not pass the exit status on."""
DONE_FILE = "DONE"
"""Present in the folder of a run that has come to its end."""
HELD = (signal.SIGTERM, signal.SIGUSR2)
"""Signals that wait while training is being set up; Ctrl-C ends it at once."""
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables that a launcher gives to the processes that it starts: accelerate, torchrun."""


def _is_launched() -> bool:
    """Whether the process that started this one is a launcher, and not somebody's shell."""
    if any(name in os.environ for name in LAUNCHED):
        return True
    try:  # in a shell that srun has opened, SLURM's variables are set as well
        parent = Path(f"/proc/{os.getppid()}/comm").read_text()
    except OSError:
        return False
    return "SLURM_STEP_ID" in os.environ and parent.startswith("slurmstepd")


LAUNCHER = os.getppid() if _is_launched() else None
"""The process that started this one, if it is a launcher. Found at the start of the script, since
Accelerate sets such variables itself."""


def hold_signals() -> None:
    """Let TERM and USR2 wait for a `StopRequest`. Called at the start of a training script.

    Otherwise a signal that comes while PyTorch is imported or a model is built would kill the
    process, which looks like a crash to the batch script.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


class StopRequest:
    """Remembers an interrupt, USR2 or TERM, so that the step can be finished and saved first.

    A second interrupt stops at once. The end of the launcher counts as a request: what it started
    would go on unseen, beside the run that is started next in the same folder.
    """

    def __init__(self) -> None:
        self._asked = False
        for signum in (signal.SIGINT, *HELD):
            signal.signal(signum, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)

    @property
    def asked(self) -> bool:
        """Whether this process should stop."""
        return self._asked or (LAUNCHER is not None and os.getppid() != LAUNCHER)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
