"""Who answers a signal: the training process, not the workers that read for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def leave_signals_to_parent(worker: int) -> None:
    """In a DataLoader worker: signals to the whole job do not end it, SIGTERM of its parent does.

    A scheduler or a terminal signals every process of a run. The training process then finishes
    its step and saves, for which it still needs batches. Without siginfo (macOS), SIGTERM ends
    workers as usual.
    """
    for signum in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_for_parent, daemon=True).start()


@contextmanager
def term_blocked() -> Iterator[None]:
    """Around the start of workers: all their threads are born with SIGTERM blocked.

    A thread that a library starts in a worker before `leave_signals_to_parent` runs would otherwise
    take the signal.
    """
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_for_parent() -> None:
    # At its exit the parent terminates and joins workers that are left; they must not outlive it.
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
