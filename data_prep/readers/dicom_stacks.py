"""Slices of a DICOM series in space: which of them make a volume, and why others do not.

Positions are those of PS3.3 C.7.6.2.1.1 (of enhanced multi-frame images C.7.6.16.2), which count
to the patient's left, back and head; affines here count to the right, front and head, as NIfTI's.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from data_prep.readers.dicom import functional_group
from data_prep.readers.dicom_header import read_elements
from data_prep.records import NotAnImage, Unreadable

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_PLACE = 0.01
"""Slices closer than this (mm) lie at one place."""
ROUNDED = 0.1
"""Millimetres by which headers round places."""
UNEVEN = 0.05
"""How far a slice may lie from where even steps would put it, in steps, besides `ROUNDED`; of steps
so small that this is a large part of them, at most a quarter of one."""
TURNED = 2e-3
"""By how much direction cosines of one stack may differ."""
SCALED = 1e-3
"""By which fraction pixel spacings of one stack may differ."""

SPLIT_BY = (
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("ImageType", "CTImageFrameTypeSequence", "FrameType"),
    ("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"),
    ("InversionTime", "MRModifierSequence", "InversionTimes"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime"),
)
"""What tells apart images of one series at one place: of a single-frame image, and the sequence and
element of a frame of an enhanced one. The first of them, or the first pair, that leaves whole
volumes divides the series."""

HEADER = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"),
    *("Modality", "BodyPartExamined", "BurnedInAnnotation", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PresentationLUTShape", "BitsStored"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *dict.fromkeys(name for name, _, _ in SPLIT_BY),
]
"""Elements that are read of a slice before its pixels."""


Numbers = tuple[float, ...] | None
"""What a header gives as so many finite numbers."""


class _AtOnePlace(NotAnImage):
    """Several images lie at one place."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One image in space: a single-frame file, or a frame of an enhanced one."""

    path: Path
    frame: int
    uid: str
    """SOPInstanceUID of the file."""
    position: Numbers
    orientation: Numbers
    spacing: Numbers
    """Millimetres between rows and between columns."""
    size: tuple[int, int]
    kind: tuple[str, ...]
    """Modality, samples per pixel and photometric interpretation."""
    mosaic: bool
    keys: tuple[str, ...]
    """Values of `SPLIT_BY`."""


@dataclass(frozen=True)
class Stack:
    """Slices of one volume in their order in space."""

    slices: tuple[Slice, ...]
    affine: np.ndarray
    """(4, 4): column, row and slice to millimetres (RAS+)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return len(self.slices), *self.slices[0].size


def read_slice_header(path: Path, extra: Sequence[str] = ()) -> Dataset:
    """The elements `HEADER` and `extra` of a file.

    Raises:
        Unreadable: Not a readable DICOM file.
    """
    return read_elements(path, stop_before_pixels=True, specific_tags=[*HEADER, *extra])[0]


def slices_of(header: Dataset, path: Path) -> list[Slice]:
    """The slices of a file; those of a multi-frame file that is not enhanced have no position."""
    enhanced = len(element(header, "PerFrameFunctionalGroupsSequence") or ())
    placed = bool(enhanced) or int(element(header, "NumberOfFrames") or 1) == 1
    kind = ("Modality", "SamplesPerPixel", "PhotometricInterpretation")
    kinds = tuple(str(element(header, name)) for name in kind)
    size = int(element(header, "Rows") or 0), int(element(header, "Columns") or 0)
    mosaic = "MOSAIC" in str(element(header, "ImageType"))
    uid = str(element(header, "SOPInstanceUID"))
    slices = []
    for frame in range(max(enhanced, 1)):
        geometry = _geometry(header, frame) if placed else (None, None, None)
        keys = tuple(
            str(_of_frame(header, frame, sequence, inner) if enhanced else element(header, name))
            for name, sequence, inner in SPLIT_BY
        )
        slices.append(Slice(path, frame, uid, *geometry, size, kinds, mosaic, keys))
    return slices


def arrange(slices: Sequence[Slice]) -> Stack:
    """Put the slices of one volume in order, from the first along their normal.

    Raises:
        NotAnImage: They are no volume: a single slice, several orientations, sizes or kinds,
            several images at one place, no position at all.
        Unreadable: They should be one, but slices are missing or shifted.
    """
    _check_alike(slices)
    first = slices[0]
    assert first.orientation is not None and first.spacing is not None
    across, down = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(across, down)
    positions = np.array([each.position for each in slices])  # (N, 3)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    positions, heights = positions[order], heights[order]
    gaps = np.diff(heights)
    if gaps.min() < SAME_PLACE:
        raise _AtOnePlace("several images at one place that its header does not tell apart")
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    even = positions[0] + np.arange(len(slices))[:, None] * step
    height = float(step @ normal)
    allowed = min(UNEVEN * height + ROUNDED, height / 4)
    if np.abs(heights - even @ normal).max() > allowed:
        raise Unreadable(
            f"its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart: some are missing, or"
            " they are not evenly spaced"
        )
    if np.linalg.norm(positions - even, axis=1).max() > allowed:
        raise Unreadable("its slices are shifted against each other")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = across * first.spacing[1], down * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return Stack(tuple(slices[index] for index in order), LPS_TO_RAS @ affine)


def _check_alike(slices: Sequence[Slice]) -> None:
    if any(each.mosaic for each in slices):
        raise NotAnImage("a mosaic: all slices of a volume in one picture")
    if len(slices) < 2:
        raise NotAnImage("a single slice is not a volume")
    if len({each.kind for each in slices}) > 1 or len({each.size for each in slices}) > 1:
        raise NotAnImage("images of several sizes or kinds in one series")
    if slices[0].kind[1] != "1":
        raise NotAnImage("colour images are no volume")
    geometry = [(each.orientation, each.position, each.spacing) for each in slices]
    if any(None in values for values in geometry):
        raise NotAnImage("its header does not say where its slices lie")
    orientations, _, spacings = (np.array(values) for values in zip(*geometry, strict=True))
    if np.abs(orientations - orientations[0]).max() > TURNED:
        raise NotAnImage("slices of several orientations, as those of a localiser")
    across, down = orientations[0].reshape(2, 3)
    lengths = np.array([across @ across, down @ down, 1 + across @ down])
    if np.abs(lengths - 1).max() > 0.01 or spacings.min() <= 0:
        raise Unreadable("its header gives an impossible orientation or spacing")
    if np.abs(spacings / spacings[0] - 1).max() > SCALED:
        raise NotAnImage("slices of several pixel spacings in one series")


def split_stacks(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The volumes of a series that holds several images at each place, such as phases or echoes.

    Slices that are one volume, or that no value of `SPLIT_BY` divides into volumes, stay together.
    """
    if not isinstance(_fault(slices), _AtOnePlace):
        return [list(slices)]
    varying = [
        index for index in range(len(SPLIT_BY)) if len({each.keys[index] for each in slices}) > 1
    ]
    for chosen in chain(combinations(varying, 1), combinations(varying, 2)):
        parts: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
        for each in slices:
            parts[tuple(each.keys[index] for index in chosen)].append(each)
        if not any(map(_fault, parts.values())):
            return list(parts.values())
    return [list(slices)]


def _fault(slices: Sequence[Slice]) -> NotAnImage | Unreadable | None:
    try:
        arrange(slices)
    except (NotAnImage, Unreadable) as error:
        return error
    return None


def plane_affine(header: Dataset, frame: int) -> np.ndarray | None:
    """(4, 3): column and row of a frame to millimetres (RAS+); None if its header does not say."""
    position, orientation, spacing = _geometry(header, frame)
    if position is None or orientation is None or spacing is None:
        return None
    plane = np.zeros((4, 3))
    plane[:3, 0] = np.array(orientation[:3]) * spacing[1]
    plane[:3, 1] = np.array(orientation[3:]) * spacing[0]
    plane[:3, 2], plane[3, 2] = position, 1
    return LPS_TO_RAS @ plane


def _geometry(header: Dataset, frame: int) -> tuple[Numbers, Numbers, Numbers]:
    """Position, orientation and pixel spacing of a frame."""
    position = _of_frame(header, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _of_frame(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _of_frame(header, frame, "PixelMeasuresSequence", "PixelSpacing")
    return numbers(position, 3), numbers(orientation, 6), numbers(spacing, 2)


def element(dataset: Dataset, name: str) -> Any:
    """The value of an element, None if it is missing or cannot be understood."""
    try:
        return dataset.get(name)
    except Exception:  # pydicom raises nearly anything for a value that is not what it should be
        return None


def numbers(value: Any, count: int) -> Numbers:
    """So many finite numbers, or None."""
    try:
        found = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and np.isfinite(found).all() else None


def _of_frame(header: Dataset, frame: int, sequence: str, name: str) -> Any:
    """An element of a frame's functional group, or of a single-frame image."""
    return element(functional_group(header, frame, sequence) or header, name)
