"""The index beside a shard: where each member lies, so that samples are read without parsing tar.

`train-000000.index.json` holds `shard`, `bytes` and `sha256` of the tar, `options` (those that
decide its bytes), `recipe` (a hash of the references it was made from), `records` (key and, for
each member, [offset, bytes, CRC-32]), `summary` (counts and sums for dataset.json) and
`quarantined` (hashed key, kind and reason of what was left out, and its share of the file).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import DamagedError, UserError

Member = tuple[int, int, int]
"""Offset in the tar, size in bytes, CRC-32."""


@dataclass
class ShardIndex:
    """Keys and members of one shard's records, in the order of the tar."""

    keys: list[str]
    members: list[dict[str, Member]]


def index_path(shard: Path) -> Path:
    """Path of the index of a tar."""
    return shard.with_suffix(".index.json")


def read_json(path: Path) -> Any:
    """Parse a JSON file of a shard set.

    Raises:
        DamagedError: It is missing or damaged.
        UserError: It cannot be read now.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; run the shard command again to complete it") from None
    except ValueError as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def load_index(shard: Path) -> ShardIndex:
    """The index of a tar.

    Raises:
        DamagedError: It is missing or damaged.
    """
    path = index_path(shard)
    document = read_json(path)
    try:
        keys = [record["key"] for record in document["records"]]
        members = [
            {name: (member[0], member[1], member[2]) for name, member in record["members"].items()}
            for record in document["records"]
        ]
        plain = all("/" not in key and not key.startswith(".") for key in keys)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise DamagedError(f"{path}: is not a shard index; shard again") from None
    if not plain:
        raise DamagedError(f"{path}: has a key that is a path; it was not written by this program")
    return ShardIndex(keys, members)


def open_shard(shard: Path) -> tuple[int, ShardIndex]:
    """File descriptor and index of a tar.

    Raises:
        DamagedError: One of them is missing or the index is damaged.
        UserError: One cannot be read now, as where a network file system does not answer.
    """
    index = load_index(shard)
    try:
        return os.open(shard, os.O_RDONLY), index
    except FileNotFoundError:
        raise DamagedError(f"{shard}: missing; run the shard command again") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from None


def read_at(descriptor: int, offset: int, size: int, shard: Path) -> bytes:
    """`size` bytes at `offset` of an open shard; leaves the file position alone.

    Raises:
        DamagedError: The file ends before.
        UserError: It cannot be read now.
    """
    try:
        data = os.pread(descriptor, size, offset)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror})") from None
    if len(data) < size and data:  # a signal, or the kernel's limit of 2 GiB a call
        data += read_at(descriptor, offset + len(data), size - len(data), shard)
    if len(data) < size:
        raise DamagedError(f"{shard}: is shorter than its index; run `python -m data_prep verify`")
    return data
