"""Which DICOM files below a folder belong together: volumes, and the labels made on them.

Each header is read once, without pixels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.options import Plane
from data_prep.readers.dicom_header import is_dicom, patient
from data_prep.readers.dicom_labels import LABEL_TAGS, LABELS, Labels, labels_of
from data_prep.readers.dicom_stacks import (
    Slice,
    element,
    read_slice_header,
    slices_of,
    split_stacks,
)
from data_prep.readers.quiet import quiet
from data_prep.records import Unreadable

VOLUMES = ("CT", "MR", "PT")
"""Modalities whose series are volumes."""
PLANES: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
"""Planes by the axis of the patient that they are across."""


@dataclass
class FoundStack:
    """The files of one volume."""

    names: tuple[str, ...]
    """Paths below the input."""
    part: str
    """Which volume of a multi-frame file with several; else ""."""
    group: str
    series: str
    uids: frozenset[str]
    """SOPInstanceUIDs."""
    acquired: Plane | None
    slices: int
    longest: int
    """Rows or columns, whichever are more."""
    labels: list[Labels] = field(default_factory=list)

    def records(self, plane: Plane) -> int:
        """About how many slices it has in a plane."""
        return self.slices if plane == self.acquired else self.longest


@dataclass
class Found:
    """What a folder holds."""

    stacks: list[FoundStack] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    """Patient by path of every DICOM file that is neither a slice nor a label."""
    labels: list[Labels] = field(default_factory=list)
    """Those of no series here."""


def find_volumes(root: Path, names: Sequence[str]) -> Found:
    """Sort the DICOM files among `names`, paths below `root`.

    A file whose header cannot be read is one of `others`: reading it says why. A slice that is
    there twice counts once.
    """
    found = Found()
    series: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    labels: list[Labels] = []
    seen: set[tuple[str, str, tuple[float, ...] | None]] = set()
    paths = {root / name: name for name in names}
    with quiet():
        for path, name in paths.items():
            if not is_dicom(path):
                continue
            try:
                header = read_slice_header(path, LABEL_TAGS)
            except (Unreadable, OSError):
                found.others[name] = ""
                continue
            group = patient(header)
            if element(header, "SOPClassUID") in LABELS:
                labels.append(labels_of(header, path, name, group))
            elif element(header, "Modality") not in VOLUMES:
                found.others[name] = group
            else:
                slices = slices_of(header, path)
                identity = group, slices[0].uid, slices[0].position
                if slices[0].uid and identity in seen:
                    continue
                seen.add(identity)
                uids = [
                    str(element(header, key)) for key in ("StudyInstanceUID", "SeriesInstanceUID")
                ]
                # a multi-frame file is a series of its own
                series[(group, *uids, name if len(slices) > 1 else "")] += slices
        for key, slices in series.items():
            stacks = split_stacks(slices)
            for number, stack in enumerate(stacks):
                part = str(number) if key[3] and len(stacks) > 1 else ""
                found.stacks.append(_describe(stack, paths, part, key[0], key[2]))
    _assign(labels, found)
    found.stacks.sort(key=lambda stack: (stack.names[0], stack.part))
    return found


def _describe(
    slices: Sequence[Slice], paths: dict[Path, str], part: str, group: str, series: str
) -> FoundStack:
    names = tuple(sorted({paths[each.path] for each in slices}))
    uids = frozenset(each.uid for each in slices)
    acquired = None
    if (orientation := slices[0].orientation) is not None:
        normal = np.cross(orientation[:3], orientation[3:])
        acquired = PLANES[int(np.abs(normal).argmax())]
    longest = max(slices[0].size)
    return FoundStack(names, part, group, series, uids, acquired, len(slices), longest)


def _assign(labels: Sequence[Labels], found: Found) -> None:
    """Give each file of labels to the stacks whose images it names, or else whose series.

    Only to those of its own patient: a study that was anonymised twice has its UIDs twice.
    """
    by_uid: dict[tuple[str, str], list[FoundStack]] = defaultdict(list)
    by_series: dict[tuple[str, str], list[FoundStack]] = defaultdict(list)
    for stack in found.stacks:
        by_series[stack.group, stack.series].append(stack)
        for uid in stack.uids:
            by_uid[stack.group, uid].append(stack)
    for each in labels:
        stacks = [stack for uid in each.images for stack in by_uid.get((each.group, uid), [])]
        stacks = stacks or [
            stack for uid in each.series for stack in by_series.get((each.group, uid), [])
        ]
        for stack in {id(stack): stack for stack in stacks}.values():
            stack.labels.append(each)
        if not stacks:
            found.labels.append(each)
