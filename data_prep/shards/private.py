"""What stays at home: the salt of a set, and which file and patient each of its keys stands for.

A shard set names no file and no patient. What does lies in its folder `private`, which its owner
alone may read: `salt`, `config.yaml` with all paths, `quarantine.csv`, and for each shard a table
of its files. Training and evaluation need none of it.
"""

import csv
import io
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import yaml

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.records import Reference, printable
from data_prep.shards.manifest import PLAN
from data_prep.shards.named import is_table

FOLDER = "private"
SALT = "salt"
EARLIER_SALT = "samaritan"
"""Salt of the sets that were made before salts were drawn, unless another was given."""
WAIT_SECONDS = 5.0
"""How long a task of a job array waits for the salt that another one is writing."""
PATHS = ("input", "output", "held_out", "salt")
"""Options that are paths, or secret."""
TABLES = ("group", "label")
"""Options that may be paths of tables."""
COLUMNS = ("key", "file", "part", "group", "patient", "bytes", "modified")


class State(NamedTuple):
    """Size and time of a reference's files, by which a change under the same names is noticed."""

    bytes: int
    """Of all its files together."""
    modified: int
    """The latest time of modification, nanoseconds since 1970."""


def private_folder(output: Path) -> Path:
    """The private folder of a set, made if need be."""
    folder = output / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_text(text, encoding="utf-8", newline="")


def write_configs(output: Path, resolved: str) -> None:
    """Keep resolved options twice: with all paths in the private folder, and without beside it."""
    values = yaml.safe_load(resolved)
    values |= {"salt": ""}  # kept by itself
    write_private(private_folder(output) / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    values |= {name: "" for name in TABLES if is_table(str(values.get(name)))}
    shared = {name: value for name, value in values.items() if name not in PATHS}
    write_resolved_config(output, yaml.safe_dump(shared, sort_keys=False))


def settle_salt(output: Path, given: str) -> str:
    """The salt of a set: as the set has it, else as given, else drawn at random, and kept.

    Tasks of a job array that start together agree on one. What is given for a set that has lost its
    own is not kept before it is known to fit: see `keep_salt`.

    Args:
        given: The option `salt`; "" if none was given.

    Raises:
        UserError: The set has another one than was given, or has lost its own.
    """
    path = private_folder(output) / SALT
    if not path.exists() and any(output.glob("*-*.index.json")):
        if not given and (output / PLAN).is_file():
            raise UserError(
                f"{output}: its private folder is missing or has no salt; put it back, or give the"
                " --salt that it was made with"
            )
        return given or EARLIER_SALT
    keep_salt(output, given or secrets.token_hex(16))
    salt = _read_when_written(path)
    if given and given != salt:
        raise UserError(
            f"{output}: was made with another --salt; give another --output, or leave out --salt"
        )
    return salt


def keep_salt(output: Path, salt: str) -> None:
    """Keep the salt of a set, unless it has one."""
    path = private_folder(output) / SALT
    if not path.exists():
        with suppress(FileExistsError):  # another task was faster
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(file, os.fsencode(salt))
            except OSError:  # a full disk
                path.unlink()
                raise
            finally:
                os.close(file)


def read_salt(output: Path) -> str | None:
    """The salt that a set keeps; None if its private folder is not there."""
    path = output / FOLDER / SALT
    return _read_when_written(path) if path.is_file() else None


def _read_when_written(path: Path) -> str:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (salt := os.fsdecode(path.read_bytes())):
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: is empty; write the set's salt there, or delete it if it has no shard yet"
            )
        time.sleep(0.05)
    return salt


def state_of(root: Path | None, reference: Reference) -> State | None:
    """Size and time of a reference's files; None where it has none that can be looked at."""
    if root is None:
        return None
    size = modified = 0
    for name in (reference.path, *filter(None, reference.masks)):
        try:
            status = os.stat(f"{root}/{name}")  # noqa: PTH116, half the time
        except OSError:
            return None
        size += status.st_size
        modified = max(modified, status.st_mtime_ns)
    return State(size, modified)


class FileTable:
    """Which file and patient each key of a shard stands for."""

    def __init__(self) -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text)
        self._writer.writerow(COLUMNS)

    def add(
        self,
        key: str,
        reference: Reference,
        groups: Iterable[tuple[str, str]],
        state: State | None,
    ) -> None:
        """Add a line for each (hash, name) of the patients that a reference shows."""
        known = ("", "") if state is None else (state.bytes, state.modified)
        place = (printable(reference.path), reference.part)
        for group, patient in groups:
            self._writer.writerow((key, *place, group, printable(patient), *known))

    def save(self, output: Path, shard: str) -> None:
        """Keep the table in the set's private folder."""
        write_private(table_path(output, shard), self._text.getvalue())


def read_states(output: Path, shard: str) -> dict[str, State]:
    """State of the files behind each key of a shard when they were read; those that are known.

    A table that something else has written over says nothing.
    """
    path = table_path(output, shard)
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        with suppress(ValueError, IndexError, StopIteration, csv.Error):
            next(rows)
            return {row[0]: State(int(row[-2]), int(row[-1])) for row in rows if row[-1]}
    return {}


def write_quarantine(output: Path, rows: Sequence[tuple[str, str, str, str]]) -> Path:
    """Keep file, kind, reason and key of what was left out, and say where."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("file", "kind", "reason", "key"))
    writer.writerows(sorted((printable(file), *rest) for file, *rest in rows))
    path = private_folder(output) / "quarantine.csv"
    write_private(path, text.getvalue())
    return path


def table_path(output: Path, shard: str) -> Path:
    """Where the table of a shard's files is."""
    return private_folder(output) / f"{shard}.csv"
