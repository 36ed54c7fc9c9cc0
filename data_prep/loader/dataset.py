"""Shards to samples, in an order that is a pure function of the seed.

The sample order of an epoch permutes the shards, then the samples within each run of a few shards,
so that reading stays nearly sequential.
"""

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_prep.common.errors import DamagedError, UserError
from data_prep.format.codec import decode, decode_slices
from data_prep.format.index import Member, ShardIndex, open_shard, read_at, read_json
from data_prep.loader.remote import ShardCache, is_remote

OPEN_SHARDS = 16
"""Least number of shards that a process keeps open; more if `shuffle_shards` needs it."""

CACHE = Path.home() / ".cache" / "samaritan"
"""Where copies of remote shards are kept."""
CACHE_BYTES = 50 * 10**9
"""Limit of their size, for each set."""


@dataclass
class Record:
    """One decoded record."""

    key: str
    image: np.ndarray
    """(H, W), (H, W, 3) or a volume (D, H, W); uint8 or uint16, white is the dtype's maximum."""
    mask: np.ndarray | None
    """Label map of the image's height and width (and depth), 0 is background; None in stage one."""
    meta: dict[str, Any]
    """The record's JSON: group, label, modality, spacing, size, ...; see `ShardDataset.meta`."""


Transform = Callable[[Record, np.random.Generator], Any]


class ShardDataset(Dataset[Any]):
    """Map-style dataset over the records of one split of a shard set.

    Safe to fork and to pickle: shards are read at explicit offsets, and opened by each process on
    its own after a spawn.

    Args:
        root: Folder of the set, or its URL.
        shuffle_shards: Shards among which samples are shuffled.
        cache: Where copies of remote shards are kept.
        cache_bytes: Limit of their size; at least `shuffle_shards` shards should fit.

    Raises:
        UserError: No shard set at `root`, no such split, or a split without records.
    """

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        shuffle_shards: int = 4,
        transform: Transform | None = None,
        cache: Path = CACHE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._cache = ShardCache(str(root), cache, cache_bytes) if is_remote(root) else None
        self.root = Path(root) if self._cache is None else self._cache.folder
        if not (self.root / "dataset.json").is_file():
            raise UserError(
                f"{self.root}: no shard set (dataset.json is missing); make one with"
                " `python -m data_prep shard`, or `shard-seg` for images with masks"
            )
        self.info: dict[str, Any] = read_json(self.root / "dataset.json")
        if split not in self.info["splits"]:
            raise UserError(
                f"{self.root}: has no split {split!r}, only {', '.join(self.info['splits'])}"
            )
        shards = self.info["splits"][split]["shards"]
        self.split, self.seed, self.transform = split, seed, transform
        self.shuffle_shards = shuffle_shards
        self.shards = [self.root / shard["name"] for shard in shards]
        self.counts: list[int] = [shard["records"] for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        if not len(self):
            raise UserError(f"{self.root}: split {split!r} has no records")
        self._open_limit = max(OPEN_SHARDS, 2 * shuffle_shards)
        self._open: OrderedDict[int, tuple[int, ShardIndex]] = OrderedDict()
        self._broken: dict[int, str] = {}  # shards that cannot be opened, and why

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def fingerprint(self) -> str:
        """What the split holds and in which order, wherever it lies."""
        shards = self.info["splits"][self.split]["shards"]
        listed = [[shard["name"], shard["records"], shard["sha256"]] for shard in shards]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def order(self, epoch: int) -> np.ndarray:
        """(n,) int64: every index once, in the order of `epoch`."""
        generator = np.random.default_rng([self.seed, epoch])
        shards = generator.permutation(len(self.shards))
        parts = []
        for first in range(0, len(shards), self.shuffle_shards):
            ranges = [
                np.arange(self._starts[shard], self._starts[shard + 1])
                for shard in shards[first : first + self.shuffle_shards]
            ]
            parts.append(generator.permutation(np.concatenate(ranges)))
        return np.concatenate(parts)

    def record(self, index: int, slices: slice | None = None) -> Record:
        """Read and decode one record, without the transform.

        Args:
            slices: Depths of a volume to read (a slice of step 1): image and mask hold only them,
                `meta` describes the whole volume.

        Raises:
            DamagedError: A shard is missing or truncated, or a member altered.
            UserError: A remote shard cannot be fetched.
        """
        shard, key, members = self._locate(index)
        mask = next((name for name in members if name.startswith("mask.")), None)
        image = next(name for name in members if name not in (mask, "json"))
        return Record(
            key,
            self._array(shard, image, members[image], slices),
            None if mask is None else self._array(shard, mask, members[mask], slices),
            self._meta(shard, members),
        )

    def key(self, index: int) -> str:
        """The key of one record, without reading it."""
        return self._locate(index)[1]

    def meta(self, index: int) -> dict[str, Any]:
        """The JSON of one record, without decoding its image.

        What is unknown is None here, and left out there: label, modality, spacing. Of a
        segmentation, `present` may be empty and `slices` has every target.
        """
        shard, _, members = self._locate(index)
        return self._meta(shard, members)

    def _meta(self, shard: int, members: dict[str, Member]) -> dict[str, Any]:
        try:
            stored: dict[str, Any] = json.loads(self._read_whole(shard, members["json"]))
        except ValueError:
            raise self._damaged(shard, "does not decode (JSON)") from None
        meta = {"label": None, "modality": None, "spacing": None} | stored
        if "labels" in self.info:
            meta.setdefault("present", [])
            if "axes" in meta:  # a volume
                meta["slices"] = {name: [] for name in self.info["labels"]} | meta.get("slices", {})
        return meta

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        """The transformed record (the record itself without a transform).

        Args:
            item: An index, or (index, draw). The transform's generator is seeded with
                (seed, draw), draw being the position in the endless stream of samples, so that
                augmentation does not depend on processes, workers or restarts.
        """
        index, draw = item if isinstance(item, tuple) else (item, item)
        record = self.record(index)
        if self.transform is None:
            return record
        return self.transform(record, np.random.default_rng([self.seed, draw]))

    def _locate(self, index: int) -> tuple[int, str, dict[str, Member]]:
        shard, position = self.position(index)
        shard_index = self._handle(shard)[1]
        return shard, shard_index.keys[position], shard_index.members[position]

    def position(self, index: int) -> tuple[int, int]:
        """Which of `shards` holds a record, and the record's position in that."""
        if not 0 <= index < len(self):
            raise IndexError(f"no record {index} among {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, int(index - self._starts[shard])

    def _handle(self, shard: int) -> tuple[int, ShardIndex]:
        """Descriptor and index of a shard, opened at need; the least used one is closed."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if shard in self._broken:
            raise DamagedError(self._broken[shard])
        try:
            self._open[shard] = self._open_shard(shard)
        except DamagedError as error:  # not opened, or even fetched, again for each of its records
            self._broken[shard] = str(error)
            raise
        if len(self._open) > self._open_limit:
            _, (oldest, _) = self._open.popitem(last=False)
            os.close(oldest)
        return self._open[shard]

    def _open_shard(self, shard: int) -> tuple[int, ShardIndex]:
        path = self.shards[shard]
        opened, index = open_shard(path) if not self._cache else self._cache.open(path.name)
        expected = self.counts[shard]
        if len(index.keys) != expected:
            os.close(opened)
            raise DamagedError(
                f"{path}: its index has {len(index.keys)} records, dataset.json says {expected};"
                " shard again"
            )
        return opened, index

    def _read(self, shard: int, member: Member) -> bytes:
        return read_at(self._handle(shard)[0], member[0], member[1], self.shards[shard])

    def _read_whole(self, shard: int, member: Member) -> bytes:
        data = self._read(shard, member)
        if zlib.crc32(data) != member[2]:  # many a JPEG decodes although it is altered
            raise self._damaged(shard, "is altered (CRC-32 differs)")
        return data

    def _damaged(self, shard: int, how: str) -> DamagedError:
        path = self.shards[shard]
        return DamagedError(f"{path}: a member {how}; run `python -m data_prep verify`")

    def _array(self, shard: int, name: str, member: Member, slices: slice | None) -> np.ndarray:
        try:
            if slices is None or not name.endswith("npy"):
                return decode(name, self._read_whole(shard, member))
            offset, size, crc = member
            return decode_slices(
                lambda start, count: self._read(shard, (offset + start, count, crc)), size, slices
            )
        except (ValueError, OSError, RuntimeError, SyntaxError) as error:
            raise self._damaged(shard, f"does not decode ({type(error).__name__})") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # the default is still there when the interpreter has emptied the module
        for descriptor, _ in getattr(self, "_open", {}).values():
            close(descriptor)
