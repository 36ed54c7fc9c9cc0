"""A DICOM series as one volume, in the geometry and with the intensities of its headers.

Its slices are sorted by their place in space and share one window. The volume is an image as
nibabel's, so that all that holds for a NIfTI file holds for it: `volume_from_nifti` brings it to
the same orientation, and `mask_to_nifti` a mask back.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage
from pydicom.dataset import Dataset

from data_prep.options import ReadOptions, Window
from data_prep.readers.dicom import (
    body_part,
    decoding,
    functional_group,
    modality,
    output_units,
)
from data_prep.readers.dicom_header import read_header
from data_prep.readers.dicom_pixels import stored_frames
from data_prep.readers.dicom_stacks import (
    Slice,
    Stack,
    arrange,
    element,
    read_slice_header,
    slices_of,
    split_stacks,
)
from data_prep.readers.histogram import counted_limits
from data_prep.readers.intensity import replace_not_finite
from data_prep.records import Unreadable

Range = tuple[float, float]


@dataclass
class Series:
    """A volume and how it is to be shown."""

    image: SpatialImage
    """(columns, rows, slices) in the modality's units, held once: as integers of the smallest type
    that fits, or float32 where a rescale slope is a fraction. MONOCHROME1 is negated, so that more
    is brighter."""
    negated: bool
    window: Range | None
    """Of the headers: the median of the first windows of all slices; None if one has none."""
    padding: Range | None
    """Values outside the picture, which must not set a window; None if the slices differ."""
    meta: dict[str, Any]
    """modality, body_part and burned_in for a record's JSON; None where unknown."""
    slices: tuple[Slice, ...] = ()
    """Where each slice of `image` came from, in its order."""

    def limits(self, window: Window) -> Range:
        """What becomes black and white in `image`: one window for all slices.

        Args:
            window: See `ReadOptions.window`; `auto` takes the headers' window.
        """
        if isinstance(window, tuple):
            return self.in_file(window)
        if window == "auto" and self.window is not None:
            return self.window
        # (slices, rows, columns)
        return counted_limits(np.asanyarray(self.image.dataobj).T, window, self.padding)

    def in_file(self, limits: Range) -> Range:
        """Limits of `image` in the headers' units, or the reverse."""
        return (-limits[1], -limits[0]) if self.negated else limits


def load_series(
    paths: Sequence[Path],
    stack: int = 0,
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
) -> Series:
    """Read the files of one series, in any order.

    Args:
        stack: Which volume of `split_stacks`, where the files hold several.
        max_pixels: Bound on the pixels of a slice.
        max_bytes: Bound on the volume's bytes.

    Raises:
        NotAnImage: See `arrange`; also files that hold no picture.
        Unreadable: See `arrange` and `read_frames`; also a volume beyond `max_bytes`.
    """
    slices: list[Slice] = []
    shown: dict[tuple[Path, int], _Shown] = {}
    meta: dict[str, Any] = {}
    for path in paths:
        header = read_slice_header(path)
        found = slices_of(header, path)
        slices += found
        shown |= {(each.path, each.frame): _shown(header, each.frame) for each in found}
        meta = meta or {"modality": modality(header), "body_part": body_part(header)}
        if element(header, "BurnedInAnnotation") == "YES":
            meta["burned_in"] = True
    placed = arrange(split_stacks(slices)[stack])
    views = [shown[each.path, each.frame] for each in placed.slices]
    array = _decode(placed, views, max_pixels, max_bytes)
    negated = views[0].negated
    windows = [view.window for view in views if view.window is not None]
    window = paddings = None
    if len(windows) == len(views):
        low, high = np.median(windows, axis=0).tolist()
        window = (low, high) if low < high else None
    paddings = {view.padding for view in views}
    return Series(
        # from (slice, row, column)
        SpatialImage(array.transpose(2, 1, 0), placed.affine),
        negated,
        window,
        paddings.pop() if len(paddings) == 1 else None,
        meta,
        placed.slices,
    )


@dataclass(frozen=True)
class _Shown:
    """What a header says of the values of a frame; ranges are those of `Series.image`."""

    values: Range | None
    """Smallest and largest value possible; None where they are no integers."""
    window: Range | None
    padding: Range | None
    negated: bool


def _shown(header: Dataset, frame: int) -> _Shown:
    rescale = functional_group(header, frame, "PixelValueTransformationSequence") or header
    voi = functional_group(header, frame, "FrameVOILUTSequence") or header
    inverse = element(header, "PresentationLUTShape") == "INVERSE"
    negated = element(header, "PhotometricInterpretation") == "MONOCHROME1" or inverse
    slope, intercept = element(rescale, "RescaleSlope"), element(rescale, "RescaleIntercept")
    if slope is None or intercept is None:
        slope, intercept = 1, 0
    table = element(rescale, "ModalityLUTSequence") or element(header, "ModalityLUTSequence")

    def unit(low: float, high: float) -> Range:
        ends = [float(slope) * value + float(intercept) for value in (low, high)]
        ends = [-end for end in ends] if negated else ends
        return min(ends), max(ends)

    values = padding = None
    if not table:
        bits = int(element(header, "BitsStored") or 0)  # none of floating point pixels
        start = -(1 << bits >> 1) if element(header, "PixelRepresentation") == 1 else 0
        whole = float(slope).is_integer() and float(intercept).is_integer()
        values = unit(start, start + (1 << bits) - 1) if whole and bits else None
        first = element(header, "PixelPaddingValue")
        last = element(header, "PixelPaddingRangeLimit")
        if isinstance(first, int):
            padding = unit(first, last if isinstance(last, int) else first)
    window = _window(voi)
    if window is not None and negated:
        window = (-window[1], -window[0])
    return _Shown(values, window, padding, negated)


def _window(voi: Dataset) -> Range | None:
    """The first linear window of a header (PS3.3 C.11.2.1.2), that of a sigmoid as its tangent."""
    centers, widths = element(voi, "WindowCenter"), element(voi, "WindowWidth")
    try:
        center, width = (
            float(each if isinstance(each, int | float | str) else each[0])
            for each in (centers, widths)
        )
    except (TypeError, ValueError, IndexError):
        return None
    if not (np.isfinite(center) and 0 < width < np.inf):
        return None
    if (element(voi, "VOILUTFunction") or "LINEAR") == "LINEAR" and width > 1:
        center, width = center - 0.5, width - 1
    return center - width / 2, center + width / 2


def _decode(stack: Stack, views: Sequence[_Shown], max_pixels: int, max_bytes: int) -> np.ndarray:
    """(slices, rows, columns) of a stack, each file read once and dropped."""
    kind = _integers([view.values for view in views])
    if np.prod(stack.shape, dtype=np.int64) * kind.itemsize > max_bytes:
        raise Unreadable(f"{stack.shape} voxels exceed max_bytes")
    if stack.shape[1] * stack.shape[2] > max_pixels:
        raise Unreadable(f"{stack.shape[1]} x {stack.shape[2]} pixels exceed max_pixels")
    places: dict[Path, dict[int, int]] = defaultdict(dict)  # slice by file and frame
    for number, each in enumerate(stack.slices):
        places[each.path][each.frame] = number
    array = np.empty(stack.shape, kind)
    missing = set(range(len(stack.slices)))
    for path, members in places.items():
        dataset = read_header(path, max_bytes)
        with decoding(dataset):
            for frame, stored in enumerate(stored_frames(dataset, max_pixels, max_bytes)):
                if (place := members.get(frame)) is not None:
                    array[place] = _values(stored, dataset, frame, views[place], kind)
                    missing.remove(place)
    if missing:
        raise Unreadable("truncated: it has fewer frames than its header says")
    return array


def _values(
    stored: np.ndarray, dataset: Dataset, frame: int, view: _Shown, kind: np.dtype[Any]
) -> np.ndarray:
    """(rows, columns) of a frame in the units of `Series.image`."""
    rescale = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    values = replace_not_finite(output_units(stored, rescale))
    if view.negated:
        values = -values.astype(np.float64)
    if kind.kind != "f" and not (
        np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max
    ):
        raise Unreadable("its pixels have more bits than its header says")
    return values


def _integers(ranges: Sequence[Range | None]) -> np.dtype[Any]:
    """The smallest integer type that holds all values, or float32."""
    known = [each for each in ranges if each is not None]
    if len(known) == len(ranges):
        low, high = min(low for low, _ in known), max(high for _, high in known)
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
    return np.dtype(np.float32)
