"""From a reference to records that are ready to be written."""

import json
from typing import Any, NamedTuple

import numpy as np

from data_prep.format.codec import encode_npy, encode_png
from data_prep.records import (
    NOT_OF_A_DECODER,
    NotAnImage,
    Reference,
    Sample,
    Source,
    Unreadable,
    group_hash,
    patient_of,
    printable,
)
from data_prep.shards.summary import Figures, count_pixels


class Encoded(NamedTuple):
    """A record, ready to be written; its pixels are no longer in memory."""

    meta: dict[str, Any]
    """Its JSON."""
    members: dict[str, bytes]
    patient: str
    """Whose it is, in clear; see `patient_of`."""
    figures: Figures


def read_reference(
    reference: Reference, source: Source, salt: str
) -> tuple[list[Encoded], list[NotAnImage | Unreadable]]:
    """The records of a reference, ready to be written, and why others are missing.

    A reference that fails as a whole gives no record and one error. Reasons never name a path.
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
    except NOT_OF_A_DECODER:
        raise
    except BaseException as error:
        return [], [Unreadable(f"its decoder failed ({type(error).__name__})")]
    return records, errors


def _encode(sample: Sample, reference: Reference, source: Source, salt: str) -> Encoded:
    meta = {
        "group": group_hash(patient_of(sample, reference), salt),
        "label": None if reference.label is None else printable(reference.label),
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
    return Encoded(meta, members, patient_of(sample, reference), count_pixels(sample))


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
