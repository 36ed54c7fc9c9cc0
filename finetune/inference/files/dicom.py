"""DICOM images and series, and masks as DICOM-SEG, as NIfTI in their geometry, or as PNG."""

from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.layouts._dicom import FoundStack, find_volumes
from data_prep.layouts._find import find_files
from data_prep.options import Plane
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import read_header
from data_prep.readers.dicom_series import Series, load_series
from data_prep.readers.dicom_stacks import element, plane_affine, read_slice_header
from data_prep.readers.intensity import to_integers
from data_prep.readers.nifti import mask_to_nifti, volume_from_nifti
from data_prep.records import NotAnImage
from finetune.inference.files.base import (
    NIFTI_SUFFIXES,
    ImageFile,
    Masks,
    Reading,
    SliceError,
    check_slice,
    check_unused,
    values_of,
)
from finetune.inference.files.dicom_seg import write_seg
from finetune.inference.files.nifti import load_mask, read_nifti, write_nifti, write_nifti_map
from finetune.inference.files.pictures import read_png, write_png, write_png_map

SEG = ".dcm"
SHOWN = 12
"""Volumes that a refusal lists."""


def open_dicom(path: Path, reading: Reading) -> ImageFile:
    """The image or the volume of a file, or the volume of a folder.

    Raises:
        UserError: A folder of none, or of several of which none was chosen.
        NotAnImage, Unreadable: See `load_series` and `read_frames`.
    """
    if path.is_dir():
        return _open_stack(path, find_volumes(path, find_files(path)).stacks, reading)
    found = find_volumes(path.parent, [path.name]).stacks
    if any(stack.slices > 1 for stack in found):
        try:
            return _open_stack(path, found, reading)
        except NotAnImage:  # frames that are no volume may be segmented one by one
            pass
    return DicomImage(path, reading)


def _open_stack(path: Path, found: list[FoundStack], reading: Reading) -> "DicomVolume":
    stacks = [stack for stack in found if stack.slices > 1]
    if not stacks:
        raise UserError(
            f"input: {path} holds no DICOM series of CT, MR or PET; a folder of images takes"
            " --prompts TABLE.csv"
        )
    if len(stacks) > 1 and reading.series is None:
        listed = [
            f"{number} is {stack.acquired or 'of unknown orientation'}, {stack.slices} slices"
            for number, stack in enumerate(stacks[:SHOWN])
        ]
        more = ", ..." if len(stacks) > SHOWN else ""
        raise UserError(
            f"input: {path} holds {len(stacks)} volumes; choose one with --series:"
            f" {'; '.join(listed)}{more}"
        )
    check_unused(reading, path, "DICOM, not 4D NIfTI", "channel")
    number = reading.series or 0
    if not 0 <= number < len(stacks):
        raise UserError(f"series: {path} holds {len(stacks)} volumes, 0 to {len(stacks) - 1}")
    stack = stacks[number]
    root = path if path.is_dir() else path.parent
    series = load_series([root / name for name in stack.names], int(stack.part or 0))
    return DicomVolume(series, reading.plane or stack.acquired or "axial", reading, path)


class DicomImage(ImageFile):
    """One image of a DICOM file."""

    is_volume = False

    def __init__(self, path: Path, reading: Reading) -> None:
        check_unused(reading, path, "not a volume", "plane", "channel", "series")
        self._path, self._frame = path, reading.slice or 0
        count = 0
        for index, frame in enumerate(read_frames(read_header(path), 8, reading.window)):
            count = index + 1
            if index == self._frame:  # the others are counted, not kept
                self._pixels = frame.image
        if count > 1 and reading.slice is None:
            raise SliceError(path, count)
        check_slice(reading.slice, count, path)
        self.depth, self.size = 1, (self._pixels.shape[0], self._pixels.shape[1])

    @property
    def outputs(self) -> tuple[str, ...]:
        """All formats."""
        return (".png", *NIFTI_SUFFIXES, SEG)

    def read(self, depth: int) -> NDArray[Any]:
        """The image as a viewer would show it."""
        return self._pixels

    def write(self, masks: Masks, path: Path) -> None:
        """Write a mask; of NIfTI the image must say where it lies in space."""
        name = path.name.lower()
        if name.endswith(SEG):
            write_seg(path, [(self._path, self._frame)], masks.labels, masks)
        elif name.endswith(NIFTI_SUFFIXES):
            write_nifti(Nifti1Image(masks.labels.T, self._in_space().affine), path)
        else:
            write_png(masks.labels[0], path, masks.numbered)

    def write_map(self, values: NDArray[np.float32], path: Path) -> None:
        """Write a map; of NIfTI the image must say where it lies in space."""
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            write_nifti_map(Nifti1Image(values.T, self._in_space().affine), path)
        else:
            write_png_map(values[0], path)

    def read_masks(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask, PNG or NIfTI."""
        _refuse_seg(path)
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            mask = load_mask(path, self._in_space())
            return values_of(np.asanyarray(mask.dataobj), path).T
        return read_png(path, self.size)[None]

    def _in_space(self) -> Nifti1Image:
        """An image of its columns, rows and one slice, where it lies."""
        header = read_slice_header(self._path, ["SliceThickness"])
        plane = plane_affine(header, self._frame)
        if plane is None:
            raise UserError(
                f"{self._path}: its header does not say where it lies in space; a mask of it is a"
                " PNG"
            )
        normal = np.cross(plane[:3, 0], plane[:3, 1])
        thickness = float(element(header, "SliceThickness") or 1)
        affine = np.eye(4)
        affine[:, [0, 1, 3]] = plane
        affine[:3, 2] = normal / np.linalg.norm(normal) * thickness
        return Nifti1Image(np.zeros((*self.size[::-1], 1), np.uint8), affine)


class DicomVolume(ImageFile):
    """A series, or a multi-frame file, whose slices make a volume."""

    def __init__(self, series: Series, plane: Plane, reading: Reading, path: Path) -> None:
        self._series = series
        self.plane: Plane = plane
        self._voxels = volume_from_nifti(series.image, plane).array
        self.depth, *size = self._voxels.shape
        self.size = (size[0], size[1])
        self.chosen = reading.slice
        check_slice(reading.slice, self.depth, path)
        self._limits = series.limits(reading.window)

    @property
    def outputs(self) -> tuple[str, ...]:
        """NIfTI and DICOM-SEG, and PNG of one slice."""
        return (*NIFTI_SUFFIXES[::-1], SEG, *((".png",) if self.chosen is not None else ()))

    def read(self, depth: int) -> NDArray[Any]:
        """A slice in the window of the whole series."""
        return to_integers(self._voxels[depth], self._limits, 8)

    def write(self, masks: Masks, path: Path) -> None:
        """Write a mask of the series, or as PNG of its chosen slice as it is shown."""
        name = path.name.lower()
        if name.endswith(".png"):
            assert self.chosen is not None
            write_png(masks.labels[self.chosen], path, masks.numbered)
            return
        image = mask_to_nifti(masks.labels, self._series.image, self.plane)
        if name.endswith(NIFTI_SUFFIXES):
            write_nifti(image, path)
        else:
            places = [(each.path, each.frame) for each in self._series.slices]
            step = float(np.linalg.norm(self._series.image.affine[:3, 2]))
            write_seg(path, places, np.asarray(image.dataobj).T, masks, round(step, 4))

    def write_map(self, values: NDArray[np.float32], path: Path) -> None:
        """Write a map of the series, or as PNG of its chosen slice as it is shown."""
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            write_nifti_map(mask_to_nifti(values, self._series.image, self.plane), path)
        else:
            write_png_map(values[self.chosen or 0], path)

    def read_masks(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask of the series as NIfTI, or of its chosen slice as PNG."""
        _refuse_seg(path)
        if self.chosen is None or path.name.lower().endswith(NIFTI_SUFFIXES):
            return read_nifti(path, self._series.image, self.plane)
        labels = np.zeros((self.depth, *self.size), np.uint8)
        labels[self.chosen] = read_png(path, self.size)
        return labels


def _refuse_seg(path: Path) -> None:
    if path.name.lower().endswith(SEG):
        raise UserError(f"{path}: a DICOM file is not changed once it is written; use NIfTI")
