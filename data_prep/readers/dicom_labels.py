"""What DICOM files of labels say before their pixels: DICOM-SEG and RTSTRUCT.

Segment labels and names of regions are typed by hand: they may say to whom they belong.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    RTStructureSetStorage,
    SegmentationStorage,
)

from data_prep.readers.dicom_header import read_elements
from data_prep.readers.dicom_stacks import element

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, which pydicom does not yet name."""
SEGMENTATIONS = (SegmentationStorage, LABEL_MAP)
LABELS = (*SEGMENTATIONS, RTStructureSetStorage)
"""SOP classes of labels."""
REFERENCES = ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
NAMES = (("SegmentSequence", "SegmentLabel"), ("StructureSetROISequence", "ROIName"))
PERSONAL = ("PatientName", "PatientID", "AccessionNumber")
LABEL_TAGS = (*REFERENCES, *(sequence for sequence, _ in NAMES), *PERSONAL)
"""Elements that are read of a file of labels before its pixels."""


@dataclass(frozen=True)
class Labels:
    """A file of labels, and what it is of."""

    name: str
    """Path below the input."""
    group: str
    series: tuple[str, ...]
    """SeriesInstanceUIDs."""
    images: tuple[str, ...]
    """SOPInstanceUIDs."""
    targets: tuple[str, ...]
    """Names of its segments or regions, as `plain_name` writes them."""
    personal: bool
    """Whether one of the names may say to whom it belongs: it holds a part of the patient's name or
    number, or five digits in a row."""


def labels_of(header: Dataset, path: Path, name: str, group: str) -> Labels:
    """What the header of a file of labels says.

    Args:
        header: Its elements `LABEL_TAGS`.
        path: The file, read again if the header names no series.
    """
    series, images = _referenced(header, REFERENCES)
    if not series and not images:
        try:  # each frame or contour names its image
            series, images = _referenced(read_elements(path)[0], None)
        except Exception:  # reading it says why
            series, images = (), ()
    targets = tuple(
        plain_name(str(element(item, inner) or ""))
        for sequence, inner in NAMES
        for item in element(header, sequence) or ()
        if element(item, "SegmentNumber") != 0  # the background of a label map
    )
    people = " ".join(str(element(header, key) or "") for key in PERSONAL)
    return Labels(
        name, group, series, images, targets, any(_names(each, people) for each in targets)
    )


def plain_name(text: str) -> str:
    """A name in small letters, its words separated by one space.

    >>> plain_name(" GTV_Primary")
    'gtv primary'
    """
    return " ".join(re.split(r"[\s_]+", text.strip(" _\0").casefold()))


def matches(name: str, pattern: str) -> bool:
    """Whether a plain name is that of a pattern with * and ?, whatever its case."""
    return fnmatchcase(name, plain_name(pattern))


def _names(target: str, people: str) -> bool:
    parts = re.findall(r"[^\W_]{3,}", people.casefold())
    return bool(re.search(r"\d{5}", target)) or any(part in target for part in parts)


def _referenced(
    header: Dataset, names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """UIDs of series and of images in some sequences, or in all, however deep."""
    found: dict[str, dict[str, None]] = {"SeriesInstanceUID": {}, "ReferencedSOPInstanceUID": {}}
    sequences = (
        [item for each in header if each.VR == "SQ" for item in each.value]
        if names is None
        else [item for name in names for item in element(header, name) or ()]
    )
    for item in sequences:
        for each in _flat(item):
            if each.keyword in found:
                found[each.keyword][str(each.value)] = None
    series, images = found.values()
    return tuple(series), tuple(images)


def _flat(dataset: Dataset) -> Iterator[pydicom.DataElement]:
    for each in dataset:
        if each.VR == "SQ":
            for item in each.value:
                yield from _flat(item)
        else:
            yield each
