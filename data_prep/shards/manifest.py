"""From a list of references to splits and shards: pure functions of the references and the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data_prep.common.errors import UserError
from data_prep.records import Reference, keyed_hash

DEFAULT_SPLIT = {"train": 0.8, "test": 0.2}


@dataclass(frozen=True)
class Shard:
    """A shard to be written: its name without suffix, and the references it takes, in order."""

    name: str
    references: tuple[Reference, ...]


def assign_splits(
    references: Sequence[Reference], fractions: dict[str, float], seed: int
) -> list[Reference]:
    """Give every reference a split; references of one group always get the same.

    Groups are put in an order drawn from `seed` and cut at the cumulated fractions; every split
    gets at least one.

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
    split_of: dict[str, str] = {}
    start, share = 0, 0.0
    for count, (name, fraction) in enumerate(fractions.items(), start=1):
        share += fraction
        # at least one group each
        end = min(max(round(share * len(groups)), start + 1), len(groups) - len(fractions) + count)
        split_of.update(dict.fromkeys(groups[start:end], name))
        start = end
    return [replace(reference, split=split_of[reference.group]) for reference in references]


def plan_shards(references: Sequence[Reference], shard_records: int, seed: int) -> list[Shard]:
    """Shuffle the references of each split by `seed` and cut them into shards.

    The order is that of a hash, not of a random generator, so that it depends neither on the order
    in which a file system lists its files nor on a library's version.

    Raises:
        UserError: Two references are the same.
    """
    seen = {(reference.path, reference.part) for reference in references}
    if len(seen) != len(references):
        raise UserError("the same file is listed twice in the input")
    shards = []
    for split in sorted({reference.split for reference in references}):
        members = [reference for reference in references if reference.split == split]
        key = _shuffle_key(seed)
        members.sort(key=lambda reference: key(f"{reference.path}\0{reference.part}"))
        for index, chunk in enumerate(_chunks(members, shard_records)):
            shards.append(Shard(f"{split}-{index:06d}", tuple(chunk)))
    return shards


def _chunks(references: list[Reference], records: int) -> list[list[Reference]]:
    chunks: list[list[Reference]] = []
    filled = records
    for reference in references:
        if filled + reference.records > records and filled:
            chunks.append([])
            filled = 0
        chunks[-1].append(reference)
        filled += reference.records
    return chunks


def _shuffle_key(seed: int) -> Callable[[str], tuple[str, str]]:
    return lambda text: (keyed_hash(text, f"order {seed}"), text)
