"""DICOM images to pixels as a viewer would show them, without what names a patient.

Grey values pass the modality LUT or rescale slope and intercept, then a window, and MONOCHROME1 is
inverted (DICOM PS3.3 C.7.6.3.1.2, C.11.1, C.11.2). Colour images become 8-bit RGB.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

from data_prep.options import PictureOptions, ReadOptions, Window
from data_prep.readers.dicom_header import patient, read_header, transfer_syntax
from data_prep.readers.dicom_pixels import stored_frames
from data_prep.readers.intensity import (
    distinct,
    intensity_limits,
    look_up,
    replace_not_finite,
    to_integers,
    unit_to_integers,
)
from data_prep.records import NOT_OF_A_DECODER, NotAnImage, Sample, Unreadable

# fmt: off
BODY_PARTS = frozenset((
    "ABDOMEN", "ANKLE", "AORTA", "ARM", "BLADDER", "BRAIN", "BREAST", "CHEST", "CLAVICLE",
    "COLON", "CSPINE", "ELBOW", "EYE", "FEMUR", "FINGER", "FOOT", "HAND", "HEAD", "HEART",
    "HIP", "HUMERUS", "KIDNEY", "KNEE", "LEG", "LIVER", "LSPINE", "LUNG", "NECK", "PANCREAS",
    "PELVIS", "PROSTATE", "RIB", "SHOULDER", "SKIN", "SKULL", "SPINE", "THIGH", "TSPINE",
    "UTERUS", "WRIST",
))
# fmt: on
"""BodyPartExamined is typed by hand at some sites, so only these values are kept."""


@dataclass
class DicomFrame:
    """One frame."""

    image: np.ndarray
    """(H, W) uint8 or uint16, or (H, W, 3) uint8."""
    meta: dict[str, Any] = field(default_factory=dict)
    """modality, body_part, spacing ([row, column] in mm), window and burned_in; None where unknown.
    Nothing else of the header is kept."""


def read_pictures(path: Path, options: PictureOptions) -> Iterator[Sample]:
    """The frames of a file as records of stage one.

    Raises:
        NotAnImage: Not a picture, or one with a side shorter than `options.min_size`.
        Unreadable: See `read_frames`.
    """
    dataset = read_header(path, options.max_bytes)
    for frame in read_frames(
        dataset, options.bits, options.window, options.max_pixels, options.max_bytes
    ):
        height, width = frame.image.shape[:2]
        if min(height, width) < options.min_size:
            raise NotAnImage(f"{height} x {width} pixels are smaller than min_size")
        yield Sample(frame.image, group=patient(dataset), meta=frame.meta)


def read_frames(
    dataset: Dataset,
    bits: Literal[8, 16] = 8,
    window: Window = "auto",
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
) -> Iterator[DicomFrame]:
    """Decode the frames of an image one after the other; one is held at a time.

    Args:
        bits: Bits of grey frames. 8-bit grey without a window or rescale stays as it is.
        window: See `ReadOptions.window`; `auto` takes the file's first window or VOI LUT.

    Raises:
        Unreadable: No decoder, damaged or truncated pixel data, more pixels per frame than
            `max_pixels` or more bytes in all frames than `max_bytes`.
    """
    with decoding(dataset):
        for index, frame in enumerate(stored_frames(dataset, max_pixels, max_bytes)):
            yield _show(frame, dataset, index, bits, window)


@contextmanager
def decoding(dataset: Dataset) -> Iterator[None]:
    """Whatever is raised while a file is decoded, as what it means for the file.

    Raises:
        Unreadable: Anything was, but what ends a program.
    """
    try:
        yield
    except (Unreadable, *NOT_OF_A_DECODER):
        raise
    except BaseException as error:  # each decoder plugin raises other errors, or panics
        raise Unreadable(
            f"its pixels cannot be decoded (transfer syntax {transfer_syntax(dataset)},"
            f" {type(error).__name__})"
        ) from error


def _show(
    frame: np.ndarray, dataset: Dataset, index: int, bits: Literal[8, 16], window: Window
) -> DicomFrame:
    meta = {
        "modality": modality(dataset),
        "body_part": body_part(dataset),
        "spacing": _spacing(dataset, index),
        "window": None,
        "burned_in": True if dataset.get("BurnedInAnnotation") == "YES" else None,
    }
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)
        return DicomFrame(_to_eight_bits(frame, 8 * frame.itemsize), meta)
    if frame.ndim == 3:
        return DicomFrame(_to_eight_bits(frame, int(dataset.BitsStored)), meta)
    image, limits = _grey(frame, dataset, index, bits, window)
    if limits is not None:
        meta["window"] = [float(limits[0]), float(limits[1])]
    inverse = dataset.get("PresentationLUTShape") == "INVERSE"
    if dataset.PhotometricInterpretation == "MONOCHROME1" or inverse:
        image = np.iinfo(image.dtype).max - image
    return DicomFrame(image, meta)


def _grey(
    frame: np.ndarray, dataset: Dataset, index: int, bits: Literal[8, 16], window: Window
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Grey frame as integers, and the linear window used (None for a LUT or a sigmoid)."""
    rescale = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    voi = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    if (found := distinct(frame)) is None:
        return _shown(frame, None, dataset, rescale, voi, bits, window)
    stored, counts, unsigned = found
    table, limits = _shown(stored, counts, dataset, rescale, voi, bits, window)
    return look_up(table, stored, unsigned), limits


def _shown(
    frame: np.ndarray,
    counts: np.ndarray | None,
    dataset: Dataset,
    rescale: Dataset,
    voi: Dataset,
    bits: Literal[8, 16],
    window: Window,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Stored values of any shape (each as often as `counts`) as they are shown, and the window."""
    values = replace_not_finite(output_units(frame, rescale))
    if window == "auto" and _has_table(voi, "VOILUT"):
        table = voi.VOILUTSequence[0]
        top = (1 << int(table.LUTDescriptor[2])) - 1
        return unit_to_integers(apply_voi(values, voi) / top, bits), None
    if window == "auto" and _has_window(voi):
        return _windowed(values, voi, bits)
    plain = values is frame or np.array_equal(values, frame)
    eight_bit = plain and frame.dtype == np.uint8 and int(dataset.BitsStored) == 8
    if window == "auto" and eight_bit and bits == 8:
        return frame, (0, 255)
    inside = ~_padding(frame, dataset)
    if not inside.any():
        inside[...] = True
    limits = intensity_limits(values[inside], window, None if counts is None else counts[inside])
    return to_integers(values, limits, bits), limits


def _windowed(
    values: np.ndarray, voi: Dataset, bits: Literal[8, 16]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The first window of a file (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    center, width = float(_first(voi.WindowCenter)), float(_first(voi.WindowWidth))
    function = str(voi.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        unit = 1 / (1 + np.exp(-4 * (values - center) / width))
        return unit_to_integers(unit, bits), None
    # LINEAR counts in whole steps, so that a width of 1 is a threshold; below that, or where values
    # are fractions, as of PET, the file can only mean the exact window
    fractions = width == 1 and not np.array_equal(values, np.rint(values))
    if function == "LINEAR_EXACT" or width < 1 or fractions:
        limits = (center - width / 2, center + width / 2)
    else:
        limits = (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    if limits[0] >= limits[1]:  # a width of 1 is a threshold
        return unit_to_integers((values > limits[0]).astype(np.float32), bits), None
    return to_integers(values, limits, bits), limits


def output_units(frame: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values to the modality's units, such as Hounsfield (PS3.3 C.11.1)."""
    if _has_table(dataset, "ModalityLUT"):
        return apply_modality_lut(frame, dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return frame
    return frame.astype(np.float64) * float(slope) + float(intercept)


def _has_table(dataset: Dataset, name: str) -> bool:
    """Whether a data set has a lookup table; some files carry its sequence empty."""
    tables = dataset.get(f"{name}Sequence")
    return bool(tables) and tables[0].get("LUTDescriptor") is not None


def _has_window(dataset: Dataset) -> bool:
    return dataset.get("WindowCenter") is not None and bool(dataset.get("WindowWidth"))


def _to_eight_bits(frame: np.ndarray, bits: int) -> np.ndarray:
    """(H, W, 3) of `bits` bits to uint8."""
    if frame.dtype == np.uint8 and bits == 8:
        return frame
    return to_integers(frame, (0, (1 << bits) - 1), 8)


def _padding(frame: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Where the stored values are padding outside the picture: they must not set the window."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(frame.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit", value)
    other = limit if isinstance(limit, int) else value
    return (frame >= min(value, other)) & (frame <= max(value, other))


def functional_group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """A macro of an enhanced multi-frame image: of this frame, else shared by all frames."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        if group.get(name):
            return group[name].value[0]
    return None


def _spacing(dataset: Dataset, index: int) -> list[float] | None:
    measures = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        values = measures.get(name)
        if values is not None and not isinstance(values, str) and len(values) == 2:
            spacing = [float(value) for value in values]
            if all(0 < value < np.inf for value in spacing):  # scanners write 0 for unknown
                return spacing
    return None


def modality(dataset: Dataset) -> str | None:
    """Modality of an image, such as CT; None if the header has something else there."""
    value = str(dataset.get("Modality", ""))
    return value if re.fullmatch(r"[A-Z]{2,6}", value) else None


def body_part(dataset: Dataset) -> str | None:
    """One of `BODY_PARTS`, or None."""
    value = str(dataset.get("BodyPartExamined", "")).upper()
    return value if value in BODY_PARTS else None


def _first(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else value[0]
