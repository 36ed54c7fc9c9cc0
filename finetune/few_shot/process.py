"""Commands in processes of their own, which end as they should when this one is to end."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
LAST = 4096
"""Bytes of what a command writes to stderr that are kept, to say why it failed."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    """Exit status; negative: the number of the signal that ended it."""
    reason: str
    """Its last line on stderr, or "" if there is none."""


class Commands:
    """Runs commands of this environment's Python, one at a time. A context manager.

    Inside, Ctrl-C, TERM, USR2 and HUP (of a terminal that is closed) ask the command that is
    running to end, which training does once it has saved; a second Ctrl-C ends it at once.

    Attributes:
        stopped: Whether a signal came.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._interrupted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Commands":
        heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup
        self._before = {number: signal.signal(number, self._stop) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, words: Sequence[str]) -> Ended:
        """Run `python -m WORDS` to its end, its output passed on as it comes."""
        sys.stdout.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            # Training that was started by a launcher ends with it, even if that is killed.
            env=os.environ | {"ACCELERATE_MIXED_PRECISION": "no"},
            stderr=subprocess.PIPE,
            process_group=0,  # so that a Ctrl-C comes to it once, from here
        )
        self._process = process
        if self.stopped:  # the signal came while it was started
            process.terminate()
        assert process.stderr is not None
        last = b""
        while written := os.read(process.stderr.fileno(), 65536):
            sys.stderr.write(written.decode(errors="replace"))
            sys.stderr.flush()
            last = (last + written)[-LAST:]
        status = process.wait()
        process.stderr.close()
        self._process = None
        lines = [line.strip() for line in last.decode(errors="replace").splitlines()]
        return Ended(status, next((line for line in reversed(lines) if line), ""))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        at_once = number == signal.SIGINT and self._interrupted
        self.stopped = True
        self._interrupted |= number == signal.SIGINT
        if self._process is not None:
            with suppress(ProcessLookupError):
                if at_once:
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.terminate()
