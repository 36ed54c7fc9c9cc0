"""Which files are DICOM images, and their headers: found, read, and complete."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from data_prep.options import ReadOptions
from data_prep.records import NotAnImage, Unreadable

SPECIFIC_CHARACTER_SET = 0x00080005
UNDEFINED_LENGTH = 0xFFFFFFFF
FIRST_TAGS = tuple(
    group + element + b"\0"
    for group in (b"\x02\0", b"\x08\0")
    for element in (b"\0", b"\1", b"\5", b"\x08", b"\x16", b"\x18")
)
"""Elements with which a file without a preamble begins, little endian."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""Elements that hold pixels."""
HELD_BYTES = 1 << 22
"""Longer elements stay in their file until they are asked for."""
CHUNK_BYTES = 1 << 16
"""So many deflated bytes are read at a time."""
NOT_PICTURES = {"SEG": "a segmentation", "RTDOSE": "a dose map"}
"""Modalities whose pixels are not a picture of a patient."""


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's magic after its preamble, no preamble, or a suffix of DICOM.

    Without a preamble a file begins with an element of group 2 or 8. A file that cannot be opened
    counts, so that reading it says why; a pipe or a device does not.
    """
    if not path.is_file():
        return False
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return True
    return head[128:] == b"DICM" or head[:4] in FIRST_TAGS


def read_header(path: Path, max_bytes: int = ReadOptions.max_bytes) -> Dataset:
    """The data set of a file, its pixels not yet decoded, and left in the file if they are many.

    Args:
        max_bytes: Largest size to which a deflated file may inflate.

    Raises:
        NotAnImage: A DICOM file without pixels, or whose pixels are not a picture.
        Unreadable: Not a DICOM file, or a deflated one that inflates to more than `max_bytes`.
    """
    dataset, inflated = read_elements(path, max_bytes, defer_size=HELD_BYTES)
    size = inflated.getbuffer().nbytes if inflated else path.stat().st_size
    try:
        _check(dataset, size)
    except (NotAnImage, Unreadable):
        raise
    except Exception as error:  # of values, which pydicom converts when they are used
        raise Unreadable(f"its header is damaged ({type(error).__name__})") from error
    return dataset


def _check(dataset: Dataset, size: int) -> None:
    """Refuse what is no picture; complete and correct what reading its pixels needs."""
    if not dataset:
        raise Unreadable("not a DICOM file, or an empty one")
    cut = _ends_within_an_element(dataset, size)
    _name_transfer_syntax(dataset)
    if not any(name in dataset for name in PIXELS):
        if dataset.get("Rows"):
            raise Unreadable("truncated: its header describes an image, but it has no pixel data")
        meta = getattr(dataset, "file_meta", None) or {}
        if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" not in meta:
            raise Unreadable("not a DICOM file, or one whose header is damaged")
        if cut:
            raise Unreadable("truncated: it ends within its header")
        directory = "DirectoryRecordSequence" in dataset
        raise NotAnImage("is a DICOMDIR" if directory else "has no pixel data")
    if what := NOT_PICTURES.get(str(dataset.get("Modality", ""))):
        raise NotAnImage(f"is {what}")
    if transfer_syntax(dataset) == ExplicitVRBigEndian:
        _swap_palette(dataset)


def read_elements(
    path: Path, max_bytes: int = ReadOptions.max_bytes, **options: Any
) -> tuple[Dataset, io.BytesIO | None]:
    """The data set of a file, whatever it is of, and its bytes if they were deflated.

    Args:
        max_bytes: Largest size to which a deflated file may inflate.
        options: Of `pydicom.dcmread`.

    Raises:
        Unreadable: Not a DICOM file, or a deflated one that inflates to more than `max_bytes`.
    """
    try:
        with _NotWhole(path.open("rb", buffering=0)) as file:
            try:
                # Files without a preamble are still common; junk read by force has no Rows.
                return pydicom.dcmread(file, force=True, **options), None
            except _DeflatedError as deflated:
                inflated = _inflate(path, deflated.position, max_bytes)
                return pydicom.dcmread(inflated, force=True, **options), inflated
    except Unreadable:
        raise
    except OSError as error:
        if error.errno is None:  # pydicom's own
            raise Unreadable("truncated: it ends within its header") from error
        raise
    except Exception as error:  # damaged headers make pydicom raise nearly anything
        raise Unreadable(f"not a readable DICOM file ({type(error).__name__})") from error


class _DeflatedError(Exception):
    """The data set is deflated, from `position` on."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position


class _NotWhole(io.BufferedReader):
    """A file that is never read whole: pydicom does so to inflate it, however much that gives."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            raise _DeflatedError(self.tell())
        return super().read(size)


def _inflate(path: Path, position: int, max_bytes: int) -> io.BytesIO:
    """A deflated file as the same without compression (PS3.5 A.5).

    Raises:
        Unreadable: It would take more than `max_bytes`, or is damaged.
    """
    plain = ExplicitVRLittleEndian.encode().ljust(len(DeflatedExplicitVRLittleEndian), b"\0")
    stream, inflated = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    with path.open("rb") as file:
        head = file.read(position)
        inflated.write(head.replace(DeflatedExplicitVRLittleEndian.encode(), plain))
        while not stream.eof and (data := stream.unconsumed_tail or file.read(CHUNK_BYTES)):
            try:
                inflated.write(stream.decompress(data, 16 * CHUNK_BYTES))
            except zlib.error as error:
                raise Unreadable("its deflated data set is damaged") from error
            if inflated.tell() > max_bytes:
                raise Unreadable(f"inflates to more than max_bytes ({max_bytes})")
    if not stream.eof:
        raise Unreadable("truncated: its deflated data set has no end")
    inflated.seek(0)
    return inflated


def _swap_palette(dataset: Dataset) -> None:
    """Bring a big-endian palette into the order in which pydicom applies it, little endian."""
    for colour in ("Red", "Green", "Blue"):
        name = f"{colour}PaletteColorLookupTableData"
        data = dataset.get(name)
        if isinstance(data, bytes) and len(data) % 2 == 0:
            setattr(dataset, name, np.frombuffer(data, ">u2").astype("<u2").tobytes())


def _ends_within_an_element(dataset: Dataset, size: int) -> bool:
    """Whether a file is shorter than its last element says, or ends within the next one."""
    last: Any = dataset.get_item(max(dataset.keys()), keep_deferred=True)
    if not isinstance(last, RawDataElement):  # a sequence, or what pydicom needs to read on
        return bool(last.tag == SPECIFIC_CHARACTER_SET)
    if last.length == UNDEFINED_LENGTH:
        return False
    return bool(last.value_tell + last.length != size)


def _name_transfer_syntax(dataset: Dataset) -> None:
    """Give a file without File Meta the transfer syntax that it was read by."""
    implicit, little = dataset.original_encoding
    meta: Any = getattr(dataset, "file_meta", None)
    if meta is None:
        meta = dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in meta and implicit is not None:
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def patient(dataset: Dataset) -> str:
    """What groups the images of one patient: patient, else study, else "" (to be hashed).

    Blanks around a number mean nothing (PS3.5 6.2).
    """
    names = (str(dataset.get(key) or "").strip(" \0") for key in ("PatientID", "StudyInstanceUID"))
    return next(filter(None, names), "")


def transfer_syntax(dataset: Dataset) -> str:
    """UID of how the pixels are stored, or `unknown`."""
    meta = getattr(dataset, "file_meta", None)
    return str(meta.get("TransferSyntaxUID", "unknown")) if meta else "unknown"
