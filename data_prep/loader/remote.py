"""Shard sets behind a URL (https, s3, hf, anything fsspec opens), through a bounded local cache."""

import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from data_prep.common.errors import DamagedError, UserError
from data_prep.common.faults import MISSING, find_fault
from data_prep.common.files import atomic_path, sha256, write_text
from data_prep.format.index import ShardIndex, index_path, open_shard, read_json

ATTEMPTS = 4
"""Downloads that fail are tried again after 1, 2 and 4 seconds, if that may help."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def is_remote(root: Path | str) -> bool:
    """Whether `root` is a URL."""
    return "://" in str(root)


class ShardCache:
    """Local copies of the shards last used, shared by all processes of a machine.

    A shard is downloaded whole, as nearly all of it is read, and checked against its SHA-256, as is
    its index. When
    the copies exceed `limit` bytes the least recently used are deleted; those that a process has
    open keep their space until it closes them.

    Args:
        url: Folder of the shard set.
        folder: Where copies are kept, one folder for each set and version of it.

    Raises:
        UserError: `dataset.json` cannot be fetched, or lists a shard outside its folder.
    """

    def __init__(self, url: str, folder: Path, limit: int) -> None:
        self.url, self.limit = url.rstrip("/"), limit
        with tempfile.TemporaryDirectory() as fetched:
            self._fetch("dataset.json", Path(fetched) / "dataset.json")
            document = (Path(fetched) / "dataset.json").read_text(encoding="utf-8")
        version = hashlib.sha256(f"{self.url}\0{document}".encode()).hexdigest()[:16]
        self.folder = folder / version
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            write_text(self.folder / "dataset.json", document)
        splits: dict[str, Any] = read_json(self.folder / "dataset.json")["splits"]
        self._sums: dict[str, str] = {}
        for shard in (shard for split in splits.values() for shard in split["shards"]):
            if Path(shard["name"]).name != shard["name"]:
                raise UserError(
                    f"{self.url}/dataset.json: lists the shard {shard['name']!r}, which is a path;"
                    " it was not written by this program"
                )
            self._sums[shard["name"]] = shard["sha256"]
            if "index_sha256" in shard:  # sets of earlier versions do not say
                self._sums[index_path(Path(shard["name"])).name] = shard["index_sha256"]

    def open(self, name: str) -> tuple[int, ShardIndex]:
        """File descriptor and index of a shard, downloaded if need be.

        Raises:
            DamagedError: It is missing, or not the one that dataset.json describes.
            UserError: It cannot be fetched.
        """
        path = self.folder / name
        with self._lock():  # no other process may delete it between its download and its opening
            if not path.exists():
                self._download(index_path(path))
                self._download(path)
                self._make_room(path)
            os.utime(path)
            return open_shard(path)

    def _download(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            self._fetch(path.name, temporary)
            if path.name in self._sums and sha256(temporary) != self._sums[path.name]:
                raise DamagedError(
                    f"{self.url}/{path.name}: is not the file that dataset.json describes"
                    " (SHA-256 differs); upload the set again"
                )

    def _fetch(self, name: str, path: Path) -> None:
        url = f"{self.url}/{name}"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                files, remote = fsspec.core.url_to_fs(url)
                if name == "dataset.json" or attempt > 1:
                    files.invalidate_cache()  # its listing may be of an earlier version of the set
                files.get_file(remote, str(path))
                return
            except Exception as error:  # every file system raises errors of its own
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise UserError(f"{path.parent}: no space left to download {url}") from error
                fault = find_fault(url, error)
                if fault.reason == MISSING:
                    raise DamagedError(f"{url}: {fault.reason}") from error
                if fault.lasts or attempt == ATTEMPTS:
                    raise UserError(f"{url}: {fault.reason}") from error
                time.sleep(2 ** (attempt - 1))

    def _make_room(self, newest: Path) -> None:
        """Delete the least recently used copies beyond the limit, but never `newest`."""
        copies = [path for path in self.folder.glob("*.tar") if path != newest]
        copies.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        used = newest.stat().st_size
        for path in copies:
            used += path.stat().st_size
            if used > self.limit:
                path.unlink()
                index_path(path).unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
