"""From a list of references to splits and shards: pure functions of the references and the seed."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from data_prep.common.errors import UserError
from data_prep.records import Reference

PLAN = "plan.json"
"""How many references each shard of a set takes."""
DEFAULT_SPLIT = {"train": 0.8, "test": 0.2}


@dataclass(frozen=True)
class Shard:
    """A shard: its name without suffix, and the references it takes, in order."""

    name: str
    references: tuple[Reference, ...]
    extension: int = 0
    """Which extension of the set it came with; 0 is the first run."""


def assign_splits(
    references: Sequence[Reference],
    fractions: dict[str, float],
    seed: int,
    known: Mapping[str, str] | None = None,
) -> list[Reference]:
    """Give every reference a split; references of one group always get the same.

    Groups are put in an order drawn from `seed` and cut at the cumulated fractions; every split
    gets at least one.

    Args:
        known: Splits of groups that have one. Further groups then go one by one, in the same
            order, to the split that is furthest from its fraction.

    Raises:
        UserError: Fractions that do not sum to 1, or fewer groups than splits.
    """
    fractions = {str(name): fraction for name, fraction in fractions.items()}
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise UserError(f"split: {fractions} are not positive fractions that sum to 1")
    if bad := [name for name in fractions if not name.isalnum()]:
        raise UserError(f"split: {bad[0]!r} is not a name of letters and digits")
    groups = sorted({reference.group for reference in references}, key=_shuffle_key(seed))
    if len(groups) < len(fractions):
        raise UserError(f"split: {len(groups)} groups cannot be divided into {len(fractions)}")
    split_of = _cut(groups, fractions) if known is None else _fill(groups, fractions, known)
    if empty := sorted(fractions.keys() - set(split_of.values())):
        raise UserError(f"split: no group would be left in {empty[0]}; give another --output")
    return [replace(reference, split=split_of[reference.group]) for reference in references]


def _cut(groups: list[str], fractions: dict[str, float]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    start, share = 0, 0.0
    for count, (name, fraction) in enumerate(fractions.items(), start=1):
        share += fraction
        # at least one group each
        end = min(max(round(share * len(groups)), start + 1), len(groups) - len(fractions) + count)
        split_of.update(dict.fromkeys(groups[start:end], name))
        start = end
    return split_of


def _fill(
    groups: list[str], fractions: dict[str, float], known: Mapping[str, str]
) -> dict[str, str]:
    split_of = {group: known[group] for group in groups if group in known}
    counts = {name: 0 for name in fractions}
    for name in split_of.values():
        counts[name] = counts.get(name, 0) + 1
    for group in groups:
        if group not in split_of:
            total = len(split_of) + 1
            name = max(fractions, key=lambda split: fractions[split] * total - counts[split])
            split_of[group] = name
            counts[name] += 1
    return split_of


def in_order(references: Sequence[Reference], seed: int) -> dict[str, list[Reference]]:
    """The references of each split, by name, in an order drawn from `seed`.

    It is that of a hash, not of a random generator, so that it depends neither on the order in
    which a file system lists its files nor on a library's version.

    Raises:
        UserError: Two references are the same.
    """
    members: dict[str, list[Reference]] = {}
    for reference in references:
        members.setdefault(reference.split, []).append(reference)
    key = _shuffle_key(seed)
    for split, listed in members.items():
        digests = bytearray()  # a list of them would take three times the memory of the paths
        for reference in listed:
            digests += key(f"{reference.path}\0{reference.part}")
        halves = np.frombuffer(digests, ">u8").reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        members[split] = listed = [listed[index] for index in order]
        for one, next_one in pairwise(listed):
            if one.path == next_one.path and one.part == next_one.part:
                raise UserError("the same file is listed twice in the input")
    return dict(sorted(members.items()))


def count_per_shard(
    references: Sequence[Reference],
    shard_records: int,
    shard_bytes: int,
    stored_bytes: Callable[[Reference], int],
) -> list[int]:
    """How many references in a row each shard takes, so that neither bound is exceeded.

    A reference that exceeds one alone has a shard of its own.

    Args:
        stored_bytes: About how many bytes the records of a reference take.
    """
    counts: list[int] = []
    records = size = 0
    for reference in references:
        its_bytes = stored_bytes(reference)
        too_many = records and records + reference.records > shard_records
        if not counts or too_many or (size and size + its_bytes > shard_bytes):
            counts.append(0)
            records = size = 0
        counts[-1] += 1
        records, size = records + reference.records, size + its_bytes
    return counts


def cut_shards(
    split: str, references: Sequence[Reference], counts: Sequence[int], first: int, extension: int
) -> list[Shard]:
    """The shards of a split, numbered from `first`."""
    shards, start = [], 0
    for number, count in enumerate(counts, start=first):
        members = tuple(references[start : start + count])
        shards.append(Shard(f"{split}-{number:06d}", members, extension))
        start += count
    return shards


def plan_shards(references: Sequence[Reference], shard_records: int, seed: int) -> list[Shard]:
    """The shards of a set that are cut by their number of records alone.

    Raises:
        UserError: Two references are the same.
    """
    shards = []
    for split, members in in_order(references, seed).items():
        counts = count_per_shard(members, shard_records, 1, lambda _: 0)
        shards += cut_shards(split, members, counts, 0, 0)
    return shards


def _shuffle_key(seed: int) -> Callable[[str], bytes]:
    keyed = hashlib.blake2b(key=f"order {seed}".encode(), digest_size=16)

    def key(text: str) -> bytes:
        of_text = keyed.copy()
        of_text.update(os.fsencode(text))
        return of_text.digest()

    return key
