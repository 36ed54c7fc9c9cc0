"""The files of frozen weights that a run keeps, so that it needs nothing outside its folder."""

import os
import shutil
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, sha256, sync_folder
from finetune.model.segmenter import Segmenter

FOLDER = "sources"
"""Folder in a run: the files that its model was built on, each once and as it was."""


def keep_weights(run: Path, segmenter: Segmenter) -> None:
    """Keep the files that the weights of a new segmenter came from.

    They are hard links, which take no space and outlive the removal of the original; on another
    disk they are copies. A file that was given twice is kept once.

    Args:
        run: Run folder.

    Raises:
        UserError: A file is no longer the one that was loaded.
        OSError: It cannot be kept (a full disk, say).
    """
    folder = run / FOLDER
    kept: dict[str, Path] = {}  # by SHA-256
    for role, source in segmenter.files.items():
        digest = segmenter.digests[str(source)]
        if digest not in kept:
            kept[digest] = folder / f"{role}{source.suffix}"
            _keep(source.resolve(), kept[digest], digest)
    if folder.is_dir():
        for path in set(folder.iterdir()) - set(kept.values()):
            path.unlink()  # of a start with other weights, which never came to a checkpoint
        sync_folder(folder)


def kept_weights(run: Path) -> dict[str, Path]:
    """The files that a run keeps, as `encoder`, `sam` and `text_...`; none in runs of an earlier
    version."""
    return {path.stem: path for path in sorted((run / FOLDER).glob("[!.]*"))}


def _keep(source: Path, kept: Path, digest: str) -> None:
    if kept.is_file() and sha256(kept) == digest:
        return
    kept.parent.mkdir(exist_ok=True)
    kept.unlink(missing_ok=True)
    try:
        os.link(source, kept)
    except OSError:  # another disk, another owner, or a file system without links
        with atomic_path(kept) as temporary:
            shutil.copyfile(source, temporary)
    if sha256(kept) != digest:
        kept.unlink()
        raise UserError(f"{source}: was replaced while the run started; start it again")
