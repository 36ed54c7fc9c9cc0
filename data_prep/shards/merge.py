"""The end of a shard set: the indexes of its shards, joined in `dataset.json`."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.files import sha256, write_json, write_text
from data_prep.format.index import read_json
from data_prep.options import WriteOptions
from data_prep.records import Source, record_key
from data_prep.shards.history import extended_history
from data_prep.shards.manifest import Shard
from data_prep.shards.private import write_configs, write_quarantine
from data_prep.shards.summary import dataset_document


@contextmanager
def claim_merge(options: WriteOptions) -> Iterator[bool]:
    """Whether this task of a job array merges, of all that find every shard finished.

    The claim is a symbolic link that names its task: it is made at once and by one task alone, on
    network file systems without locks too. A task killed while it merges leaves its claim behind,
    and continues when it runs again.
    """
    claim = options.output / f".merge-{options.tasks}"
    with suppress(FileExistsError):
        claim.symlink_to(str(options.task))
    owner = None
    with suppress(FileNotFoundError):  # its owner has just ended
        owner = str(claim.readlink())
    if owner != str(options.task):
        yield False
        return
    try:
        yield True
    finally:
        remove_claims(options)


def remove_claims(options: WriteOptions) -> None:
    """Remove the claims of tasks that were killed while they merged, also of other arrays.

    Where a shard is still to be written, no task can be merging.
    """
    for path in options.output.glob(".merge-*"):
        path.unlink(missing_ok=True)


def merge(
    shards: list[Shard], source: Source, options: WriteOptions, resolved: str | None
) -> dict[str, Any]:
    """Write what was left out, judge how many files were unreadable, and write dataset.json.

    dataset.json comes last: where it is, the set is complete and good.

    Args:
        shards: All shards of the set, finished.
        resolved: Resolved options, kept as `config.yaml`.

    Returns:
        The contents of `dataset.json`.

    Raises:
        UserError: No file yielded a record, or too many were unreadable (`options.max_bad`).
    """
    indexes = []
    for shard in shards:
        path = options.output / f"{shard.name}.index.json"
        document = read_json(path)
        del document["records"]  # a large set's would not fit in memory
        document["index_sha256"] = sha256(path)
        indexes.append(document)
    quarantined = [entry for index in indexes for entry in index["quarantined"]]
    paths = _paths(shards, {key for key, *_ in quarantined}, options.salt)
    lines = [
        json.dumps({"key": key, "kind": kind, "reason": reason})
        for key, kind, reason, _ in quarantined
    ]
    write_text(options.output / "quarantine.jsonl", "".join(f"{line}\n" for line in sorted(lines)))
    quarantine = write_quarantine(
        options.output,
        [(paths[key], kind, reason, key) for key, kind, reason, _ in quarantined],
    )
    document = dataset_document(source.labels, indexes)
    # a file of which one image among many cannot be read counts by that share
    bad = [share for _, kind, _, share in quarantined if kind == "unreadable"]
    files = sum(len(shard.references) for shard in shards)
    reasons = Counter(reason for _, kind, reason, _ in quarantined if kind == "unreadable")
    most = f" (most often: {reasons.most_common(1)[0][0]})" if reasons else ""
    problem = None
    if document["records"] == 0:
        problem = f"layout {source.layout}: no file yielded an image{most}; see {quarantine}"
    elif sum(bad) > options.max_bad * files:
        problem = (
            f"{len(bad)} images of {files} files could not be read{most}, more than --max-bad"
            f" {options.max_bad}: see {quarantine}, fix them or allow more, and run again;"
            " finished shards are kept, and until then there is no dataset.json. Other options"
            " need another --output"
        )
    if problem is not None:
        (options.output / "dataset.json").unlink(missing_ok=True)
        raise UserError(problem)
    if history := extended_history(shards, indexes, options.output):
        document["history"] = history
    if resolved is not None:
        write_configs(options.output, resolved)
    write_json(options.output / "dataset.json", document)
    return document


def _paths(shards: list[Shard], keys: set[str], salt: str) -> dict[str, str]:
    """Path of the file behind each of `keys`."""
    paths = {}
    for shard in shards if keys else []:
        for reference in shard.references:
            key = record_key(reference, salt)
            if key in keys:
                paths[key] = reference.path
    return paths
