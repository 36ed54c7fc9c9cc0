"""Files below a folder, in a fixed order."""

import os
from pathlib import Path

from data_prep.errors import UserError


def find_files(root: Path) -> list[str]:
    """Paths of all files below `root`, relative to it, with forward slashes, sorted.

    Hidden files and folders are passed over, and links to folders are not followed.

    Raises:
        UserError: if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        base = Path(folder).relative_to(root)
        found += [(base / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)
