"""Cases of a shard set as files for another program, and its masks of them.

A picture is a grey PNG per channel, a volume a NIfTI file. A volume lies in space as far as its
slices' direction and spacing tell: its voxel axes run to the patient's right, front and head, and
its origin is 0, so that no program meets a sheared or oblique grid.
"""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.format.codec import encode_png
from data_prep.loader.dataset import Record
from data_prep.options import ReadOptions
from data_prep.readers.masks import read_label_map
from data_prep.readers.nifti import PLANES, load_nifti, mask_to_nifti, volume_from_nifti
from data_prep.records import Unreadable
from finetune.inference.files.nifti import write_nifti

PICTURE, VOLUME = ".png", ".nii.gz"
"""Endings of the files."""


def write_image(record: Record, folder: Path, colour: bool) -> None:
    """Write KEY_0000 and, of a picture in colour, KEY_0001 and KEY_0002.

    Args:
        colour: Whether pictures have three channels; a grey one then has the same in each.
    """
    if is_volume(record.meta):
        _write_volume(record.image, record.meta, folder / f"{record.key}_0000{VOLUME}")
        return
    planes = record.image if record.image.ndim == 3 else record.image[..., None]
    if colour:
        planes = np.broadcast_to(planes, (*planes.shape[:2], 3))
    for channel in range(planes.shape[2]):
        _write_picture(planes[..., channel], folder / f"{record.key}_{channel:04d}{PICTURE}")


def write_labels(labels: NDArray[Any], record: Record, folder: Path) -> None:
    """Write KEY.png or KEY.nii.gz.

    Args:
        labels: uint8 or uint16 of the shape of the record's mask.
    """
    if is_volume(record.meta):
        _write_volume(labels, record.meta, folder / f"{record.key}{VOLUME}")
    else:
        _write_picture(labels, folder / f"{record.key}{PICTURE}")


def is_volume(meta: dict[str, Any]) -> bool:
    """Whether a record of a segmentation set is a volume."""
    return "slices" in meta


def find_mask(folder: Path, key: str, meta: dict[str, Any]) -> Path | None:
    """The mask of a case, if there is one."""
    endings = (VOLUME, ".nii") if is_volume(meta) else (PICTURE,)
    found = (folder / f"{key}{ending}" for ending in endings)
    return next((path for path in found if path.is_file()), None)


def read_mask(path: Path, record: Record) -> NDArray[np.integer[Any]]:
    """A mask in the pixels of its case: integers of the shape of the record's mask.

    A volume is turned as its own header says it lies.

    Raises:
        UserError: It cannot be read, has another size, or values that are not whole numbers.
    """
    assert record.mask is not None
    bounds = ReadOptions.max_pixels, ReadOptions.max_bytes
    try:
        if is_volume(record.meta):
            image = load_nifti(path)
            if np.prod(image.shape[3:]) > 1:
                raise UserError(f"{path}: has shape {image.shape}; a mask is one volume of labels")
            mask = volume_from_nifti(image, _plane(record.meta), 0, *bounds).array
        else:
            mask = read_label_map(path, bounds[0], None, binary=False)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    if mask.shape != record.mask.shape:
        raise UserError(
            f"{path}: is {_size(mask)} pixels, and its case {_size(record.mask)}; give masks of"
            " the size of the cases' files"
        )
    labels = np.rint(mask).astype(np.int64)
    if (labels != mask).any():
        raise UserError(f"{path}: has values that are not whole numbers; give labels")
    return labels


def _write_picture(pixels: NDArray[Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(np.ascontiguousarray(pixels)))


def _write_volume(voxels: NDArray[Any], meta: dict[str, Any], path: Path) -> None:
    plane = _plane(meta)
    axes, _ = PLANES[plane]
    shape, zooms = [0] * 3, [1.0] * 3
    for size, spacing, axis in zip(voxels.shape, meta["spacing"] or zooms, axes, strict=True):
        shape[axis], zooms[axis] = size, spacing
    space = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), shape), np.diag([*zooms, 1.0]))
    image = mask_to_nifti(voxels, space, plane)
    image.header.set_xyzt_units("mm")
    write_nifti(image, path)


def _plane(meta: dict[str, Any]) -> str:
    """The plane of a volume's slices: axial but for sets that say otherwise."""
    axes = tuple(meta.get("axes", PLANES["axial"][0]))
    return next(name for name, (each, _) in PLANES.items() if each == axes)


def _size(mask: NDArray[Any]) -> str:
    return " x ".join(map(str, mask.shape))
