"""NIfTI volumes, and masks as NIfTI in the geometry of a volume."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.options import Plane
from data_prep.readers.intensity import intensity_limits, to_integers
from data_prep.readers.nifti import load_nifti, mask_to_nifti, volume_from_nifti
from data_prep.records import Unreadable
from finetune.inference.files.base import (
    NIFTI_SUFFIXES,
    ImageFile,
    Masks,
    Reading,
    check_slice,
    check_unused,
    values_of,
)

SAME_PLACE = 1e-2
"""By how much the affine of a mask may differ from that of its image: headers are rounded."""
STEP = 2**-12
"""Between values of a map; a power of 2, with which 1 stays 1 in any header."""


class NiftiFile(ImageFile):
    """A volume, windowed as a whole."""

    def __init__(self, path: Path, reading: Reading) -> None:
        check_unused(reading, path, "not DICOM", "series")
        self._image = load_nifti(path)
        self.plane: Plane = reading.plane or "axial"
        self._voxels = volume_from_nifti(self._image, self.plane, reading.channel).array
        self.depth, *size = self._voxels.shape
        self.size = (size[0], size[1])
        self.chosen = reading.slice
        check_slice(reading.slice, self.depth, path)
        self._limits = intensity_limits(self._voxels, reading.window)

    @property
    def outputs(self) -> tuple[str, ...]:
        """NIfTI, plain or compressed."""
        return NIFTI_SUFFIXES[::-1]

    def read(self, depth: int) -> NDArray[Any]:
        """A slice as `data_prep` shows it."""
        return to_integers(self._voxels[depth], self._limits, 8)

    def write(self, masks: Masks, path: Path) -> None:
        """See `write_nifti`."""
        write_nifti(mask_to_nifti(masks.labels, self._image, self.plane), path)

    def write_map(self, values: NDArray[np.float32], path: Path) -> None:
        """See `write_nifti_map`."""
        write_nifti_map(mask_to_nifti(values, self._image, self.plane), path)

    def read_masks(self, path: Path) -> NDArray[np.uint8]:
        """See `read_nifti`."""
        return read_nifti(path, self._image, self.plane)


def write_nifti(image: Nifti1Image, path: Path) -> None:
    """Write a mask, compressed if its name says so."""
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_nifti_map(image: Nifti1Image, path: Path) -> None:
    """Write values of 0 to 1 as whole steps of `STEP` in two bytes each, which compress well."""
    whole = np.rint(image.get_fdata(dtype=np.float32) / STEP).astype(np.uint16)
    stored = Nifti1Image(whole, image.affine, image.header)
    stored.set_data_dtype(np.uint16)
    stored.header.set_slope_inter(STEP, 0)
    write_nifti(stored, path)


def read_nifti(path: Path, image: SpatialImage, plane: Plane) -> NDArray[np.uint8]:
    """Read a mask (D, H, W) of an image, in slices of a plane.

    Raises:
        UserError: See `load_mask`.
    """
    mask = load_mask(path, image)
    try:
        return values_of(volume_from_nifti(mask, plane).array, path)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None


def load_mask(path: Path, image: SpatialImage) -> SpatialImage:
    """Open a mask of an image.

    Raises:
        UserError: It cannot be read, or has another shape or place in space.
    """
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise UserError(f"{path}: a mask of this image is a NIfTI file (.nii or .nii.gz)")
    try:
        mask = load_nifti(path)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    if mask.shape != image.shape[:3]:
        raise UserError(f"{path}: has {mask.shape} voxels, and the image has {image.shape[:3]}")
    if not np.allclose(mask.affine, image.affine, atol=SAME_PLACE):
        raise UserError(f"{path}: lies elsewhere in space than the image (another affine)")
    return mask
