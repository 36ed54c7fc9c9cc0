"""What an output folder already holds, and whether it belongs to the set that is to be written."""

import hashlib
import json
from collections.abc import Sequence
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
from data_prep.shards.summary import FORMAT


def stored_options(source: Source, options: WriteOptions) -> dict[str, Any]:
    """The options that decide the bytes of a set, as its indexes keep them."""
    values = {
        "layout": source.layout,
        **source.options,
        "shard_records": options.shard_records,
        "seed": options.seed,
    }
    return json.loads(json.dumps(values))  # as they come back: tuples are lists


def recipe(shard: Shard, source: Source, salt: str) -> str:
    """Hash of the references and labels that a shard is made from."""
    parts: list[Any] = [FORMAT, source.labels]
    parts += [reference.identity() for reference in shard.references]
    return keyed_hash(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), salt)


def find_unfinished(shards: Sequence[Shard], source: Source, options: WriteOptions) -> list[Shard]:
    """Those of `shards` that no run has completed, or that lack a file that has been fixed.

    A folder without any record may be left of a run that could read nothing, perhaps for want of an
    option: what does not fit there is removed.

    Raises:
        UserError: The folder holds records made from other inputs or with other options.
    """
    planned = {index_path(options.output / f"{shard.name}.tar"): shard for shard in shards}
    finished: set[str] = set()
    misfits: dict[Path, str] = {}
    records = 0
    for path in sorted(options.output.glob("*-*.index.json")):
        document = read_json(path)
        records += document["summary"]["records"]
        shard = planned.get(path)
        if problem := _other_options(document, source, options):
            misfits[path] = problem
        elif shard is None or document["recipe"] != recipe(shard, source, options.salt):
            misfits[path] = ""
        elif _is_finished(shard, document, source, options):
            finished.add(shard.name)
    if misfits and records:
        problem = next(iter(misfits.values())) or _other_inputs(shards, options)
        raise UserError(f"{options.output}: {problem}; give another --output, or delete it")
    for path in misfits:
        path.unlink()
    return [shard for shard in shards if shard.name not in finished]


def is_finished(shard: Shard, source: Source, options: WriteOptions) -> bool:
    """Whether a shard of this set is in the output folder, with all that can be read."""
    path = index_path(options.output / f"{shard.name}.tar")
    return path.is_file() and _is_finished(shard, read_json(path), source, options)


def _other_options(document: dict[str, Any], source: Source, options: WriteOptions) -> str:
    """Which option an index was made with another value of; "" if none."""
    if "options" not in document:
        return "was written by an earlier version, which did not keep its options"
    before, now = document["options"], stored_options(source, options)
    defaults = json.loads(json.dumps(source.defaults))
    for name in sorted(before.keys() | now.keys()):
        old, new = (stored.get(name, defaults.get(name)) for stored in (before, now))
        if old != new:
            old, new = ("null" if value is None else value for value in (old, new))
            return f"was made with --{name} {old}, not {new}"
    return ""


def _other_inputs(shards: Sequence[Shard], options: WriteOptions) -> str:
    """How the files of a folder's records differ from those of the manifest."""
    stored = set()
    for path in options.output.glob("*-*.index.json"):
        document = read_json(path)
        stored |= {record["key"].partition("-")[0] for record in document["records"]}
        stored |= {key for key, *_ in document["quarantined"]}
    planned = {
        record_key(reference, options.salt) for shard in shards for reference in shard.references
    }
    if not stored & planned:
        return "was made from other files, or with another --salt"
    added, gone = len(planned - stored), len(stored - planned)
    if added or gone:
        return f"was made from other files ({added} new, {gone} missing)"
    return "was made from the same files with other groups, classes, labels or splits"


def _is_finished(
    shard: Shard, document: dict[str, Any], source: Source, options: WriteOptions
) -> bool:
    tar = options.output / f"{shard.name}.tar"
    whole = tar.is_file() and tar.stat().st_size == document["bytes"]
    return whole and not _is_fixed(shard, document["quarantined"], source, options.salt)


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
