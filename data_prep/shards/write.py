"""Write a shard set: plain WebDataset tars, an index beside each, and `dataset.json`.

Every shard is made by one process from its references alone, so its bytes depend neither on
the number of processes nor on which shards were already there.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, sha256, write_text
from data_prep.format.index import index_path, read_json
from data_prep.format.tar import TarWriter
from data_prep.options import WriteOptions
from data_prep.readers.quiet import quiet
from data_prep.records import NotAnImage, Source, record_key
from data_prep.shards.alone import reading
from data_prep.shards.existing import count_changed, is_finished, recipe, stored_options
from data_prep.shards.history import extension_number
from data_prep.shards.manifest import Shard
from data_prep.shards.merge import claim_merge, merge, remove_claims
from data_prep.shards.plan import plan
from data_prep.shards.private import (
    FileTable,
    keep_salt,
    read_states,
    settle_salt,
    state_of,
)
from data_prep.shards.summary import Summary
from data_prep.shards.workers import write_in_parallel


def write_shards(
    source: Source, options: WriteOptions, resolved: str | None = None
) -> dict[str, Any] | None:
    """Write the shards of `source` that are not yet there, and the set's `dataset.json`.

    A task of a job array (`options.tasks` > 1) writes its own shards only, and the one that
    finishes last writes `dataset.json`.

    Args:
        resolved: The options as YAML, kept as `config.yaml`.

    Returns:
        The contents of `dataset.json`, or None if another task of the array writes it.

    Raises:
        UserError: Nothing to write, an output folder of another set, a full disk, or (after all
            shards were written) more unreadable files than `options.max_bad` allows.
    """
    if not source.references:
        raise UserError(f"layout {source.layout}: found no image in the input")
    options.output.mkdir(parents=True, exist_ok=True)
    options = replace(options, salt=settle_salt(options.output, options.salt))
    shards = plan(source, options)
    keep_salt(options.output, options.salt)
    mine = {shard.name for shard in shards[options.task :: options.tasks]}
    unfinished = [shard for shard in shards if not is_finished(shard, source, options)]
    left = {shard.name for shard in unfinished}
    finished = [shard for shard in shards if shard.name not in left]
    # an extension waits for the changed shards of other tasks; else each task looks after its own
    looked_at = [shard for shard in finished if options.extend or shard.name in mine]
    unfinished += _changed(looked_at, source, options)
    todo = [shard for shard in unfinished if shard.name in mine]
    indexes = {path.name for path in options.output.glob("*-*.index.json")}
    is_smaller = bool(indexes - {f"{shard.name}.index.json" for shard in shards})
    try:
        # the set is not whole now; no other task merges before these are written
        if todo or is_smaller:
            (options.output / "dataset.json").unlink(missing_ok=True)
            remove_claims(options)
        write_in_parallel(write_shard, todo, source, options)
        if options.tasks == 1:
            remove_claims(options)
            return merge(shards, source, options, resolved)
        # Every task looks only after its own shards are in place, so that the last one sees all.
        others = [shard for shard in unfinished if shard.name not in mine]
        if not all(
            is_finished(shard, source, options)
            and not (options.extend and count_changed(shard, source, options))
            for shard in others
        ):
            return None
        with claim_merge(options) as claimed:
            return merge(shards, source, options, resolved) if claimed else None
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written: {error.strerror}") from error


def _changed(shards: list[Shard], source: Source, options: WriteOptions) -> list[Shard]:
    """Finished shards that are to be made again since their files may have changed."""
    if options.check_contents:
        return shards
    if options.extend and source.root is not None:
        unknown = sum(not read_states(options.output, shard.name) for shard in shards)
        if unknown:
            print(
                f"warning: {unknown} shards have no table in the private folder, so that changes of"
                " their files go unnoticed; --check_contents finds them",
                file=sys.stderr,
            )
    counts = [count_changed(shard, source, options) for shard in shards]
    changed = [shard for shard, count in zip(shards, counts, strict=True) if count]
    if changed and not options.extend:
        print(
            f"warning: {sum(counts)} files have changed since they were read (another size or"
            f" time); --extend makes their {len(changed)} shards again",
            file=sys.stderr,
        )
        return []
    return changed


def _index_before(path: Path) -> dict[str, Any]:
    """The index that a shard has had; empty if it is missing or damaged."""
    with suppress(UserError):
        document: dict[str, Any] = read_json(index_path(path))
        return document
    return {}


def write_shard(
    shard: Shard, source: Source, options: WriteOptions, progress: Callable[[int], None]
) -> None:
    """Write one tar and its index, each whole or not at all; the index comes last.

    Args:
        progress: Called with `Reference.records` after each reference.
    """
    path = options.output / f"{shard.name}.tar"
    summary, table = Summary(), FileTable()
    quarantined = []
    mark = options.output / f".reading-{shard.name}"
    before = _index_before(path)
    with (
        quiet(),
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        reading(mark, source, options.salt) as read,
    ):
        writer = TarWriter(file)
        for reference in shard.references:
            key = record_key(reference, options.salt)
            state = state_of(source.root, reference)  # before it is read: it may be written to
            records, errors = read(reference)
            for error in errors:
                kind = "skipped" if isinstance(error, NotAnImage) else "unreadable"
                quarantined.append([key, kind, str(error), 1 / (len(records) + len(errors))])
            patients = {}
            for index, record in enumerate(records):
                summary.add(record.figures, record.meta)
                patients[record.meta["group"]] = record.patient
                writer.add(key if len(records) == 1 else f"{key}-{index:04d}", record.members)
            if not records:
                patients[""] = reference.group
            table.add(key, reference, patients.items(), state)
            progress(reference.records)
        writer.close()
    document = {
        "shard": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "options": stored_options(source, options),
        "recipe": recipe(shard, source, options.salt),
        "summary": summary.document(),
        "quarantined": quarantined,
        "records": writer.records,
    }
    if shard.extension:
        document["extension"] = shard.extension
    number = extension_number(options.output) if options.extend else 0
    if shard.extension < number and before.get("sha256", document["sha256"]) != document["sha256"]:
        document["revised"] = number
    elif "revised" in before:
        document["revised"] = before["revised"]
    table.save(options.output, shard.name)
    write_text(index_path(path), json.dumps(document, separators=(",", ":")) + "\n")
