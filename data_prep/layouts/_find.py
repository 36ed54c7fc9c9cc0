"""Files below a folder, in a fixed order."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError

INDEX = ".index.json"
"""End of the name of a shard's index: what lies beside one was made from the collection."""


def find_files(root: Path) -> list[str]:
    """Paths of all files below `root`, relative to it, with forward slashes, sorted.

    Hidden files and folders are skipped, and so are pipes, devices and shard sets. Links are
    followed, but no folder is entered twice, so that links in a circle end; a link to nothing is
    listed, so that reading it says so.

    Raises:
        UserError: A folder cannot be listed.
    """
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        base = folders.pop()
        try:
            status = (root / base).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / base) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{root / base}: cannot be listed ({error.strerror})") from None
        if any(entry.name.endswith(INDEX) for entry in listed):
            continue
        inner = [entry for entry in listed if _is(entry.is_dir)]
        found += [base + entry.name for entry in listed if _is_readable(entry)]
        # the last one is entered first; of a folder and a link to it beside it, that is the folder
        inner.sort(key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
        folders += [f"{base}{entry.name}/" for entry in inner]
    found.sort()
    return found


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link to nothing."""
    return _is(entry.is_file) or (entry.is_symlink() and not Path(entry.path).exists())


def _is(question: Callable[[], bool]) -> bool:
    """The answer; no of a link in a circle."""
    try:
        return question()
    except OSError:
        return False


def first_folder_off(root: Path, names: Sequence[str]) -> list[str]:
    """Names from a list, relative to `root`.

    Lists are often written from above the folder they come with: the first folder of all names is
    dropped if the first file is found only so.

    Raises:
        UserError: A name leads out of `root`.
    """
    paths = [PurePosixPath(name) for name in names]
    for path in paths:
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"input: a list names {path}, which is not below the input folder")
    if paths and not (root / paths[0]).exists():
        shorter = [PurePosixPath(*path.parts[1:]) for path in paths]
        if (root / shorter[0]).is_file():
            paths = shorter
    return [path.as_posix() for path in paths]
