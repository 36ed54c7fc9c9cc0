"""Files below a folder, in a fixed order."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data_prep.common.errors import UserError


def find_files(root: Path) -> list[str]:
    """Paths of all files below `root`, relative to it, with forward slashes, sorted.

    Hidden files and folders are skipped. Links are followed, but no folder is entered twice, so
    that links in a circle end.

    Raises:
        UserError: A folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")

    found = []
    entered = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        # of a folder and a link to it beside it, the folder is entered
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: ((Path(folder) / name).is_symlink(), name),
        )
        base = Path(folder).relative_to(root)
        found += [(base / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


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
