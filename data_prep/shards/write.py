"""Write a shard set: plain WebDataset tars, an index beside each, and `dataset.json`.

Every shard is made by one process from its own references alone, so its bytes depend neither on
the number of processes nor on which shards were already there.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, sha256, write_text
from data_prep.format.codec import encode_npy, encode_png
from data_prep.format.index import TarWriter, index_path, read_json
from data_prep.options import WriteOptions
from data_prep.readers.quiet import quiet
from data_prep.records import (
    NotAnImage,
    Reference,
    Sample,
    Source,
    Unreadable,
    group_hash,
    keyed_hash,
    record_key,
)
from data_prep.shards.manifest import Shard, plan_shards
from data_prep.shards.merge import claim_merge, merge
from data_prep.shards.summary import FORMAT, Summary
from data_prep.shards.workers import write_in_parallel

REFERENCE = [field.name for field in fields(Reference)]

Encoded = tuple[Sample, dict[str, Any], dict[str, bytes]]
"""A sample, its JSON and its members."""


def write_shards(
    source: Source, options: WriteOptions, resolved: str | None = None
) -> dict[str, Any] | None:
    """Write the shards of `source` that are not yet there, and the set's `dataset.json`.

    A task of a job array (`options.tasks` > 1) writes its own shards only, and the one that
    finishes last writes `dataset.json`.

    Args:
        resolved: the options as YAML, kept as `config.yaml`.

    Returns:
        The contents of `dataset.json`, or None if another task of the array writes it.

    Raises:
        UserError: nothing to write, an output folder of another recipe, a full disk, or (after
            all shards were written) more unreadable files than `options.max_bad` allows.
    """
    shards = plan_shards(source.references, options.shard_records, options.seed)
    if not shards:
        raise UserError(f"layout {source.layout}: found no image in the input")
    options.output.mkdir(parents=True, exist_ok=True)
    _refuse_others(shards, options)
    unfinished = _unfinished(shards, source, options)
    mine = {shard.name for shard in shards[options.task :: options.tasks]}
    todo = [shard for shard in unfinished if shard.name in mine]
    try:
        if todo:  # the set is not whole now; no other task merges before these are written
            (options.output / "dataset.json").unlink(missing_ok=True)
        write_in_parallel(write_shard, todo, source, options)
        if options.tasks == 1:
            return merge(shards, source, options, resolved)
        # Every task looks only after its own shards are in place, so that the last one sees all.
        others = [shard for shard in unfinished if shard.name not in mine]
        if _unfinished(others, source, options):
            return None
        with claim_merge(options) as claimed:
            return merge(shards, source, options, resolved) if claimed else None
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written: {error.strerror}") from error


def write_shard(
    shard: Shard, source: Source, options: WriteOptions, progress: Callable[[int], None]
) -> None:
    """Write one tar and its index, each whole or not at all; the index comes last.

    Args:
        progress: called with `Reference.records` after each reference.
    """
    path = options.output / f"{shard.name}.tar"
    summary = Summary()
    quarantined = []
    with quiet(), atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = TarWriter(file)
        for reference in shard.references:
            key = record_key(reference, options.salt)
            records, errors = _read(reference, source, options.salt)
            for error in errors:
                kind = "skipped" if isinstance(error, NotAnImage) else "unreadable"
                quarantined.append([key, kind, str(error), 1 / (len(records) + len(errors))])
            for number, (sample, meta, members) in enumerate(records):
                summary.add(sample, meta)
                writer.add(key if len(records) == 1 else f"{key}-{number:04d}", members)
            progress(reference.records)
        writer.close()
    document = {
        "shard": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "recipe": _recipe(shard, source, options.salt),
        "summary": summary.document(),
        "quarantined": quarantined,
        "records": writer.records,
    }
    write_text(index_path(path), json.dumps(document, separators=(",", ":")) + "\n")


def _read(
    reference: Reference, source: Source, salt: str
) -> tuple[list[Encoded], list[NotAnImage | Unreadable]]:
    """The records of a reference, ready to be written, and why others are missing.

    A reference that fails as a whole gives no record and one error. Reasons name no path.
    """
    records: list[Encoded] = []
    errors: list[NotAnImage | Unreadable] = []
    try:
        for sample in source.read(reference):
            if isinstance(sample, Sample):
                records.append(_encode(sample, reference, source, salt))
            else:
                errors.append(sample)
    except (NotAnImage, Unreadable) as error:
        return [], [error]
    except OSError as error:  # of Pillow too, which then has no strerror
        reason = f" ({error.strerror})" if error.strerror else ""
        return [], [Unreadable(f"cannot be read{reason}")]
    # A damaged file makes its decoder raise nearly anything; the message may quote the path or a
    # header, so only its kind is kept.
    except Exception as error:
        return [], [Unreadable(f"its decoder failed ({type(error).__name__})")]
    return records, errors


def _encode(sample: Sample, reference: Reference, source: Source, salt: str) -> Encoded:
    meta = {
        "group": group_hash(sample.group or reference.group or reference.path, salt),
        "label": reference.label,
        "modality": None,
        "spacing": None,
        "size": list(sample.image.shape),
        **sample.meta,
    }
    if sample.volume:
        members = {"npy": encode_npy(sample.image)}
    elif sample.encoded is not None:
        members = dict([sample.encoded])
    else:
        members = {"png": encode_png(sample.image)}
    if source.labels is not None:
        if sample.mask is None:
            raise Unreadable("has no mask")
        meta |= _describe_mask(sample, source.labels)
        if sample.volume:
            members["mask.npy"] = encode_npy(sample.mask)
        else:
            members["mask.png"] = encode_png(sample.mask)
    members["json"] = _encode_meta(meta)
    return sample, meta, members


def _encode_meta(meta: dict[str, Any]) -> bytes:
    """JSON without what is unknown or empty.

    `datasets` infers a column's type from the first records of a set: one that is null there could
    hold nothing else later, whereas one that is missing may come and go.
    """
    known = {name: value for name, value in meta.items() if value not in (None, [], {})}
    return json.dumps(known, separators=(",", ":"), allow_nan=False).encode()


def _describe_mask(sample: Sample, labels: dict[str, list[int]]) -> dict[str, Any]:
    """Which targets a mask holds and, for a volume, in which slices."""
    mask = sample.mask
    assert mask is not None
    spatial = sample.image.shape if sample.volume else sample.image.shape[:2]
    if mask.shape != spatial:
        raise Unreadable(f"a mask of {mask.shape} for an image of {spatial}")
    values = np.unique(mask)
    named = {0}.union(*labels.values())
    if unnamed := sorted(set(values.tolist()) - named):
        raise Unreadable(f"its mask has the value {unnamed[0]}, which no label has")
    found = set(values.tolist())
    present = [name for name, members in labels.items() if found & set(members)]
    if not sample.volume:
        return {"present": present}
    slices = {}
    for name, members in labels.items():
        wanted = np.isin(mask, members).any(axis=(1, 2))  # (D,)
        if wanted.any():
            slices[name] = np.flatnonzero(wanted).tolist()
    return {"present": present, "slices": slices}


def _recipe(shard: Shard, source: Source, salt: str) -> str:
    """Hash of all that a shard is made from but the files' contents."""
    parts = [FORMAT, source.layout, source.recipe, source.labels]
    # not `asdict`, which takes as long as decoding a small image
    parts += [[getattr(reference, name) for name in REFERENCE] for reference in shard.references]
    return keyed_hash(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), salt)


def _refuse_others(shards: list[Shard], options: WriteOptions) -> None:
    """Raise UserError if the output folder holds a shard that is not one of `shards`."""
    planned = {shard.name for shard in shards}
    for path in sorted(options.output.glob("*-*.index.json")):
        name = path.name.removesuffix(".index.json")
        if name not in planned:
            raise _other_recipe(options.output / f"{name}.tar")


def _other_recipe(tar: Path) -> UserError:
    return UserError(
        f"{tar}: was made from other inputs or options; give another --output or delete it"
    )


def _unfinished(shards: list[Shard], source: Source, options: WriteOptions) -> list[Shard]:
    """Those of `shards` that no run has completed, or that lack a file that has been mended.

    Raises:
        UserError: if one was made from other inputs or options.
    """
    unfinished = []
    for shard in shards:
        tar = options.output / f"{shard.name}.tar"
        if not index_path(tar).is_file():
            unfinished.append(shard)
            continue
        document = read_json(index_path(tar))
        if document["recipe"] != _recipe(shard, source, options.salt):
            raise _other_recipe(tar)
        whole = tar.is_file() and tar.stat().st_size == document["bytes"]
        if not whole or _mended(shard, document["quarantined"], source, options.salt):
            unfinished.append(shard)
    return unfinished


def _mended(shard: Shard, quarantined: list[Any], source: Source, salt: str) -> bool:
    """Whether a file that was unreadable when the shard was made now gives another result."""
    unreadable = {key for key, kind, *_ in quarantined if kind == "unreadable"}
    for reference in shard.references if unreadable else ():
        key = record_key(reference, salt)
        if key in unreadable:
            with quiet():
                _, errors = _read(reference, source, salt)
            before = [reason for other, _, reason, _ in quarantined if other == key]
            if [str(error) for error in errors] != before:
                return True
    return False
