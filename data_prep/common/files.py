"""Files that appear under their final name only when they are whole."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.common.errors import UserError

LOCK_SECONDS = 5.0
"""How long to wait for another process; workers of a killed run need a moment to end."""

Locking = Callable[[BinaryIO, int], None]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it.

    On an exception the temporary file is removed and `path` stays as it was. What a killed process
    left there is written over.

    Raises:
        UserError: Another process is writing `path` (a job that was submitted twice, say).
        OSError: It cannot be written (a full disk, say); `filename` is set.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with _locked(temporary, path) as file:
        try:
            yield temporary
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)  # writes do not say where they failed
            raise


def _locked(temporary: Path, path: Path) -> BinaryIO:
    """`temporary`, made if need be and held against other processes until it is closed."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        file = temporary.open("ab")
        try:
            held = lock_file(file, deadline - time.monotonic())
        except OSError:  # a file system without locks
            return file
        if not held:
            file.close()
            raise UserError(
                f"{path}: another process is writing it; wait for it, or end it and run again"
            )
        with suppress(FileNotFoundError):  # its last owner may have renamed it meanwhile
            if os.path.samestat(temporary.stat(), os.fstat(file.fileno())):
                return file
        file.close()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success flush its files to disk and rename it.

    On an exception the temporary folder is removed. What a killed process left there is removed
    first.

    Raises:
        UserError: `path` is a file or a folder that is not empty, or another process writes it.
    """
    _require_new(path)
    temporary = path.with_name(f".{path.name}.partial")
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock, path):
        try:
            _require_new(path)  # it may have been written while this process waited
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            lock.unlink(missing_ok=True)


def _require_new(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is there already; give a new or empty folder")


def lock_file(file: BinaryIO, seconds: float, lock: Locking = fcntl.flock) -> bool:
    """Lock a file against other processes, waiting at most so long for one that holds it.

    Args:
        lock: `fcntl.flock`, whose lock belongs to the open file and so to forked children too, or
            `fcntl.lockf`, whose lock belongs to this process alone.

    Returns:
        Whether it is locked.

    Raises:
        OSError: The file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):  # lockf may raise either
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a renaming in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems do not know it
        os.fsync(descriptor)
    os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def use_umask(path: Path) -> None:
    """Give a file the permissions that new files have here."""
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    path.chmod(probe.stat().st_mode)
    probe.unlink()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
