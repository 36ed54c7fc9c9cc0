"""A run folder has one writer: the main process of one job."""

import datetime
import fcntl
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from data_prep.common.errors import UserError
from data_prep.common.files import lock_file

LOCK = ".lock"
"""File in a run folder that its writer holds locked, with a line about that process. It stays."""
LOCK_SECONDS = 120.0
"""How long to wait for the writer before: a job that was requeued may start while its first process
still shuts down, and an NFS server keeps the locks of a node that died for 90 s."""


class RunLock:
    """Keeps other processes from training in a run folder.

    The lock is one of POSIX (`fcntl.lockf`): the kernel drops it when this process ends, however it
    ends, and forked workers do not inherit it. It holds between nodes on NFS 4, on NFS 3 with
    lockd, and on Lustre mounted with `flock`; where a file system has no locks, a line says so and
    the run goes on without. A Lustre mounted with `localflock` locks within each node only.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def take(self, folder: Path) -> None:
        """Lock a run folder, which is made if need be.

        Raises:
            UserError: Another process trains there, and still did after `LOCK_SECONDS`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            if not lock_file(self._file, 0, fcntl.lockf):
                holder = self._holder()
                waiting = f"output {folder}: {holder} trains there; waiting for its end"
                print(f"{waiting} for up to {LOCK_SECONDS:.0f} s", file=sys.stderr, flush=True)
                if not lock_file(self._file, LOCK_SECONDS, fcntl.lockf):
                    self.release()
                    raise UserError(
                        f"output {folder}: {holder} trains there; wait for its end, end it, or name"
                        " another folder"
                    )
        except OSError as error:  # a file system without locks
            print(
                f"warning: {folder} is on a file system without locks ({error.strerror}); see that"
                " no second job trains there",
                file=sys.stderr,
            )
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        with suppress(OSError):  # on a full disk others are refused all the same
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(line).encode() + b"\n", 0)

    def _holder(self) -> str:
        """The process that the lock file names."""
        assert self._file is not None
        try:
            line = json.loads(os.pread(self._file.fileno(), 1000, 0))
            return f"process {line['process']} on {line['host']} (since {line['since']})"
        except (OSError, ValueError, TypeError, KeyError):  # it is about to write that
            return "another process"

    def release(self) -> None:
        """Let others train there."""
        if self._file is not None:
            self._file.close()
            self._file = None
