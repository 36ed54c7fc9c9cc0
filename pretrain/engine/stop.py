"""Stopping a run so that nothing is lost."""

import signal
from types import FrameType

INTERRUPTED = 75
"""Exit status of a training script that was asked to stop and has saved."""
INTERRUPTED_FILE = "INTERRUPTED"
"""Present in a run folder that was so stopped: launchers do not pass the exit status on."""


class StopRequest:
    """Remembers an interrupt, USR2 or TERM, so that the step can be finished and saved first.

    A second interrupt stops at once.
    """

    def __init__(self) -> None:
        self.asked = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
