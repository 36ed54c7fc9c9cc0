"""Which shards a set has: those of a first run, or those that are there and what extends them.

A first run cuts the references of each split, in an order drawn from the seed, into shards. How
many each takes is kept in `plan.json`, so that later runs cut alike, whatever has become of the
files. A set that was extended keeps its shards; references that are in none of them make further
ones, and a shard of which some are gone or changed is made again from what is left.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from data_prep.format.index import index_path, read_json
from data_prep.options import WriteOptions
from data_prep.records import Reference, Source, group_hash, record_key
from data_prep.shards.existing import find_misfits, other_options, read_heads, recipe
from data_prep.shards.history import extension_number
from data_prep.shards.manifest import (
    PLAN,
    Shard,
    count_per_shard,
    cut_shards,
    in_order,
    plan_shards,
)
from data_prep.shards.private import EARLIER_SALT, read_salt


def plan(source: Source, options: WriteOptions) -> list[Shard]:
    """All shards of a set.

    A folder without any record may be left of a run that could read nothing, perhaps for want of an
    option: what does not fit there is removed.

    Raises:
        UserError: The folder holds records made with other options, or from other inputs and it is
            not to be extended.
    """
    heads = read_heads(options.output)
    has_records = any(head["summary"]["records"] for head in heads.values())
    problem = other_options(heads, source, options)
    if problem and has_records:
        raise UserError(f"{options.output}: {problem}; give another --output, or delete it")
    members = in_order(source.references, options.seed)
    if not has_records:
        shards = _cut(members, source, options, 0, {})
        for name in find_misfits(heads, shards, source, options.salt) if not problem else heads:
            index_path(options.output / f"{name}.tar").unlink()
        return shards
    if not _plans(options):  # made by an earlier version, which knew no other bound
        first = plan_shards(source.references, options.shard_records, options.seed)
    elif (counts := _planned(members, options, 0)) is not None:
        first = _shards(members, counts, 0, {})
    else:
        return _extended(heads, source, options)
    fits = not find_misfits(heads, first, source, options.salt)
    return first if fits else _extended(heads, source, options)


def known_splits(references: Sequence[Reference], options: WriteOptions) -> dict[str, str] | None:
    """Splits of the groups that are in a set, which keep them when it is extended.

    Returns:
        None if the set is not to be extended and never was.

    Raises:
        UserError: A group of today has members in several splits.
    """
    number = extension_number(options.output)
    if number == 1 and not options.extend:
        return None
    salt = read_salt(options.output) or options.salt or EARLIER_SALT
    heads = {
        name: head
        for name, head in read_heads(options.output).items()
        if head.get("extension", 0) < number
    }
    by_group: dict[str, set[str]] = defaultdict(set)
    by_key: dict[str, str] = {}
    for name, head in heads.items():
        split = name.rpartition("-")[0]
        for group in head["summary"]["groups"]:
            by_group[group].add(split)
        by_key |= dict.fromkeys(_keys(options.output, name), split)
    known: dict[str, set[str]] = defaultdict(set)
    for reference in references:
        if found := by_group.get(group_hash(reference.group, salt)):
            known[reference.group] |= found
    by_name = set(known)
    for reference in references:  # of groups without a record, or under another name now
        before = by_key.get(record_key(reference, salt))
        if before is not None and reference.group not in by_name:
            known[reference.group].add(before)
    if cut := sum(len(splits) > 1 for splits in known.values()):
        raise UserError(
            f"{options.output}: {cut} groups would have members in several splits, as their names"
            " or the table of groups have changed; give another --output"
        )
    return {group: next(iter(splits)) for group, splits in known.items()}


def _extended(
    heads: Mapping[str, Mapping[str, Any]], source: Source, options: WriteOptions
) -> list[Shard]:
    """The shards that are there, as far as their references are, and those that extend them."""
    number = extension_number(options.output)
    by_key = {record_key(reference, options.salt): reference for reference in source.references}
    kept: list[Shard] = []
    gone = changed = found = 0
    first: dict[str, int] = {}
    for name, head in heads.items():
        extension = head.get("extension", 0)
        if extension >= number:  # of this extension, which was interrupted
            continue
        split, _, index = name.rpartition("-")
        first[split] = max(first.get(split, 0), int(index) + 1)
        keys = _keys(options.output, name)
        members = [by_key.pop(key) for key in keys if key in by_key]
        found += len(members)
        gone += len(keys) - len(members)
        # where a reference has moved to another split, it is written anew there
        moved = [reference for reference in members if reference.split != split]
        by_key |= {record_key(reference, options.salt): reference for reference in moved}
        stay = in_order([each for each in members if each.split == split], options.seed)
        shard = Shard(name, tuple(stay.get(split, ())), extension)
        same = recipe(shard, source, options.salt) == head["recipe"]
        changed += len(members) if not same and len(keys) == len(members) else 0
        if shard.references:
            kept.append(shard)
    if not found:
        raise UserError(
            f"{options.output}: was made from other files, or with another --salt; give another"
            " --output, or delete it"
        )
    if (by_key or gone or changed) and not options.extend:
        raise UserError(f"{options.output}: {_difference(len(by_key), gone)}")
    new = _cut(in_order(list(by_key.values()), options.seed), source, options, number, first)
    return sorted([*kept, *new], key=lambda shard: shard.name)


def _difference(added: int, gone: int) -> str:
    if added or gone:
        return (
            f"was made from other files ({added} new, {gone} missing): --extend takes over the"
            " difference; or give another --output"
        )
    return (
        "was made from the same files with other groups, classes, labels or splits: --extend makes"
        " these shards again; or give another --output"
    )


Members = Mapping[str, Sequence[Reference]]
"""References of each split, in order."""
Counts = dict[str, list[int]]
"""For each split, how many references each shard takes."""


def _cut(
    members: Members,
    source: Source,
    options: WriteOptions,
    extension: int,
    first: Mapping[str, int],
) -> list[Shard]:
    """Cut references into shards, as planned or by a plan that is kept from now on.

    Args:
        first: Number of the first shard in each split; 0 if it is missing.
    """
    counts = _planned(members, options, extension)
    if counts is None:
        counts = {
            name: count_per_shard(
                listed, options.shard_records, options.shard_bytes, source.stored_bytes
            )
            for name, listed in members.items()
        }
        if counts:
            entry = {str(extension): _bounds(options) | {"counts": counts}}
            write_text(options.output / PLAN, json.dumps(_plans(options) | entry) + "\n")
    return _shards(members, counts, extension, first)


def _shards(
    members: Members, counts: Counts, extension: int, first: Mapping[str, int]
) -> list[Shard]:
    return [
        shard
        for name, listed in members.items()
        for shard in cut_shards(name, listed, counts[name], first.get(name, 0), extension)
    ]


def _plans(options: WriteOptions) -> dict[str, Any]:
    path = options.output / PLAN
    plans: dict[str, Any] = read_json(path) if path.is_file() else {}
    return plans


def _planned(members: Members, options: WriteOptions, extension: int) -> Counts | None:
    """The plan of an extension; None if there is none, or one of other references or options."""
    entry = _plans(options).get(str(extension), {})
    counts: Counts = entry.get("counts", {})
    sizes = {name: len(listed) for name, listed in members.items()}
    fits = {name: sum(listed) for name, listed in counts.items()} == sizes
    return counts if fits and entry == entry | _bounds(options) else None


def _bounds(options: WriteOptions) -> dict[str, int]:
    return {
        "seed": options.seed,
        "shard_records": options.shard_records,
        "shard_bytes": options.shard_bytes,
    }


def _keys(output: Path, name: str) -> dict[str, None]:
    """Keys of the references that a shard was made from, in its order."""
    document = read_json(index_path(output / f"{name}.tar"))
    keys = [record["key"].partition("-")[0] for record in document["records"]]
    return dict.fromkeys([*keys, *(key for key, *_ in document["quarantined"])])
