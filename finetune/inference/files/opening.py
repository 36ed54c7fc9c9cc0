"""Which kind of image a path is, and its opening; readers are imported when they are needed."""

from collections.abc import Callable
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.readers.quiet import quiet
from data_prep.records import NotAnImage, Unreadable
from finetune.inference.files.base import NIFTI_SUFFIXES, ImageFile, Reading

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Usual ones; a DICOM file may have any name, or be named by a UID, which has dots."""


def kind_of(path: Path) -> str:
    """`picture`, `nifti` or `dicom`, a file or the folder of a series.

    Raises:
        UserError: It does not exist, or is none of these.
    """
    if not path.exists():
        raise UserError(f"input: {path} does not exist")
    name = path.name.lower()
    if path.is_dir():
        return "dicom"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    if name.endswith(PICTURE_SUFFIXES):
        return "picture"
    from data_prep.readers.dicom_header import is_dicom  # pydicom, which others need not wait for

    if is_dicom(path):
        return "dicom"
    raise UserError(
        f"input: {path} is not a DICOM file and its suffix is none of"
        f" {', '.join((*PICTURE_SUFFIXES, *NIFTI_SUFFIXES))}"
    )


def stem(name: str) -> str:
    """A file's name without the suffix of an image; other dots belong to the name."""
    for suffix in (*NIFTI_SUFFIXES[::-1], *PICTURE_SUFFIXES, *DICOM_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def open_image(path: Path, reading: Reading) -> ImageFile:
    """An image, read and ready to be segmented.

    Raises:
        UserError: It cannot be read, or an option does not fit it.
    """
    opener: Callable[[Path, Reading], ImageFile]
    kind = kind_of(path)
    if kind == "nifti":
        from finetune.inference.files.nifti import NiftiFile as opener
    elif kind == "dicom":
        from finetune.inference.files.dicom import open_dicom as opener
    else:
        from finetune.inference.files.pictures import PictureFile as opener
    try:
        with quiet():  # decoders' warnings may quote a header
            return opener(path, reading)
    except (Unreadable, NotAnImage) as error:
        raise UserError(f"input: {path}: {error}") from None
