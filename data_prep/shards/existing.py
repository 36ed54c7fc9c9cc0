"""What an output folder already holds, and whether it belongs to the set that is to be written."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.format.index import index_path, read_json
from data_prep.options import WriteOptions
from data_prep.readers.quiet import quiet
from data_prep.records import Source, keyed_hash, record_key
from data_prep.shards.alone import ENDED, read_alone
from data_prep.shards.encode import read_reference
from data_prep.shards.manifest import Shard
from data_prep.shards.private import read_states, state_of
from data_prep.shards.summary import FORMAT


def stored_options(source: Source, options: WriteOptions) -> dict[str, Any]:
    """The options that decide the bytes of a set, as its indexes keep them."""
    values = {
        "layout": source.layout,
        **source.options,
        "shard_records": options.shard_records,
        "shard_bytes": options.shard_bytes,
        "seed": options.seed,
    }
    return json.loads(json.dumps(values))  # as they come back: tuples are lists


def recipe(shard: Shard, source: Source, salt: str) -> str:
    """Hash of the references and labels that a shard is made from."""
    parts: list[Any] = [FORMAT, source.labels]
    parts += [reference.identity() for reference in shard.references]
    return keyed_hash(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), salt)


def read_heads(output: Path) -> dict[str, dict[str, Any]]:
    """What the index of each shard in a folder says, without its records, by the shard's name."""
    heads = {}
    for path in sorted(output.glob("*-*.index.json")):
        try:
            document = read_json(path)
        except UserError as error:
            print(f"warning: {error}; its shard is made again", file=sys.stderr)
            continue
        del document["records"]  # those of a large set would not fit in memory
        heads[path.name.removesuffix(".index.json")] = document
    return heads


def find_misfits(
    heads: Mapping[str, Mapping[str, Any]], shards: Sequence[Shard], source: Source, salt: str
) -> list[str]:
    """Names of the shards in a folder that are not as one of `shards`.

    Args:
        heads: See `read_heads`.
    """
    planned = {shard.name: shard for shard in shards}
    return [
        name
        for name, head in heads.items()
        if name not in planned or head["recipe"] != recipe(planned[name], source, salt)
    ]


def other_options(
    heads: Mapping[str, Mapping[str, Any]], source: Source, options: WriteOptions
) -> str:
    """Which option the shards in a folder were made with another value of; "" if none."""
    problems = (_other_options(head, source, options) for head in heads.values())
    return next(filter(None, problems), "")


def is_finished(shard: Shard, source: Source, options: WriteOptions) -> bool:
    """Whether a shard of this set is in the output folder, with all that can be read."""
    path = options.output / f"{shard.name}.tar"
    try:
        document = read_json(index_path(path))
    except UserError:  # missing or damaged
        return False
    return (
        document["recipe"] == recipe(shard, source, options.salt)
        and path.is_file()
        and path.stat().st_size == document["bytes"]
        and not _is_fixed(shard, document["quarantined"], source, options.salt)
    )


def count_changed(shard: Shard, source: Source, options: WriteOptions) -> int:
    """How many references of a finished shard have files of another size or time than then."""
    states = read_states(options.output, shard.name)
    changed = 0
    for reference in shard.references if states else ():
        before = states.get(record_key(reference, options.salt))
        changed += before is not None and state_of(source.root, reference) not in (None, before)
    return changed


def _other_options(document: Mapping[str, Any], source: Source, options: WriteOptions) -> str:
    """Which option an index was made with another value of; "" if none."""
    if "options" not in document:
        return "was written by an earlier version, which did not keep its options"
    before, now = document["options"], stored_options(source, options)
    # a set of an earlier version was cut by records alone, and goes on so
    defaults = json.loads(json.dumps(source.defaults | {"shard_bytes": options.shard_bytes}))
    for name in sorted(before.keys() | now.keys()):
        old, new = (stored.get(name, defaults.get(name)) for stored in (before, now))
        order = [list(value) for value in (old, new) if isinstance(value, dict)]
        if old != new or (len(order) == 2 and order[0] != order[1]):  # the n-th target is bit n
            old, new = ("null" if value in (None, "") else value for value in (old, new))
            return f"was made with --{name} {old}, not {new}"
    return ""


def _is_fixed(shard: Shard, quarantined: list[Any], source: Source, salt: str) -> bool:
    """Whether a file that was unreadable when the shard was made now gives another result."""
    unreadable = {key for key, kind, *_ in quarantined if kind == "unreadable"}
    for reference in shard.references if unreadable else ():
        key = record_key(reference, salt)
        if key in unreadable:
            before = [reason for other, _, reason, _ in quarantined if other == key]
            read = read_alone if before[0].startswith(ENDED) else read_reference
            with quiet():
                _, errors = read(reference, source, salt)
            if [str(error) for error in errors] != before:
                return True
    return False
