"""NIfTI volumes in a fixed, upright orientation, and masks back in the geometry of their file.

A volume is first brought to the closest canonical (RAS+) orientation: voxel axes run to the
patient's right, front and head. From there an array (depth, row, column) is a transposition and
flips, so that every slice is shown as radiologists see it:

| plane    | depth          | rows           | columns                   |
|----------|----------------|----------------|---------------------------|
| axial    | foot to head   | front to back  | patient's right to left   |
| coronal  | back to front  | head to foot   | patient's right to left   |
| sagittal | left to right  | head to foot   | front to back             |
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage

from data_prep.options import ReadOptions
from data_prep.readers.intensity import intensity_limits, replace_not_finite, to_integers
from data_prep.records import Sample, Unreadable

PLANES = {
    "axial": ((2, 1, 0), (False, True, True)),
    "coronal": ((1, 2, 0), (False, True, True)),
    "sagittal": ((0, 2, 1), (False, True, True)),
}
"""For (depth, row, column): the canonical axis each one is, and whether it is reversed."""

INFLATED = {".gz": 1032, ".bz2": np.inf, ".zst": np.inf}
"""Largest factor by which compression shrinks anything, by suffix."""
MAX_HEAD = 1 << 24
"""Bytes before the voxels of a compressed file: a header and its extensions, which are short."""

ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass
class Volume:
    """A volume as (depth, row, column) and what leads back to its file."""

    array: np.ndarray
    """(D, H, W), the file's own intensities (scaled by slope and intercept)."""
    spacing: tuple[float, float, float]
    """Millimetres along depth, row, column."""
    affine: np.ndarray
    """(4, 4): voxel of the canonical image to millimetres (RAS+)."""
    axes: tuple[int, int, int]
    """Canonical axis of depth, row, column."""
    flips: tuple[bool, bool, bool]
    """Whether depth, row, column run against their canonical axis."""

    def meta(self) -> dict[str, Any]:
        """The geometry for a record's JSON."""
        return {
            "spacing": [round(float(value), 6) for value in self.spacing],
            "affine": [[float(value) for value in row] for row in self.affine],
            "axes": list(self.axes),
            "flips": list(self.flips),
        }


def load_nifti(path: Path) -> SpatialImage:
    """Open a NIfTI file (its voxels are read later).

    Raises:
        Unreadable: Not a NIfTI file, an impossible header, or one that claims more voxels than
            the file can hold.
    """
    try:
        if path.suffix.lower() in INFLATED:
            _check_head(path)
        image = nibabel.load(path)
    except (FileNotFoundError, Unreadable):
        raise
    except Exception as error:  # nibabel lets errors of many kinds through for damaged headers
        raise Unreadable(f"not a readable NIfTI file ({type(error).__name__})") from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise Unreadable("not an image with voxels in space")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
        raise Unreadable("its affine matrix is not invertible")
    _check_size(image)
    return image


def count_voxels(path: Path) -> int:
    """Voxels of one channel of a NIfTI file, as its header counts them; 0 if it is unreadable."""
    try:
        return int(np.prod(load_nifti(path).shape[:3], dtype=np.int64))
    except (Unreadable, OSError):  # reading it says why
        return 0


def _check_head(path: Path) -> None:
    """Refuse a compressed file that would inflate to much before its voxels begin.

    nibabel reads extensions as long as each one says it is.
    """
    with ImageOpener(str(path)) as file:
        head = file.read(544)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            size = kind.sizeof_hdr
            if len(head) < size + 4 or not kind.may_contain_header(head):
                continue
            header = kind(head[:size], check=False)
            end = int(header["vox_offset"]) if b"n+" in bytes(header["magic"]) else MAX_HEAD
            position = size + 4
            while head[size] and position + 16 <= end <= MAX_HEAD:
                file.seek(position)
                length = int.from_bytes(file.read(4), ORDERS[header.endianness], signed=True)
                if length < 8 or position + length > end:
                    raise Unreadable("its header's extensions are damaged")
                position += length
            if end > MAX_HEAD:
                raise Unreadable(f"its voxels begin {end} bytes into the file")
            return


def _check_size(image: SpatialImage) -> None:
    """Refuse a header that would have memory allocated for voxels that cannot be there."""
    path = Path(str(image.file_map["image"].filename))
    ratio = INFLATED.get(path.suffix.lower(), 1)
    claimed = int(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize
    if claimed > path.stat().st_size * ratio:
        raise Unreadable("its voxels cannot be read: fewer than the header says")


def volume_from_nifti(
    source: Path | SpatialImage,
    plane: str = "axial",
    channel: int = 0,
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
) -> Volume:
    """Read a NIfTI file or image as (depth, row, column) slices of `plane`.

    Args:
        source: File path, or an image in memory.
        plane: "axial", "coronal" or "sagittal".
        channel: Which volume of a 4D image.
        max_pixels: Bound on the pixels of the largest face of the volume.
        max_bytes: Bound on the bytes of its voxels, as they are stored before compression.

    Raises:
        Unreadable: Not 3D or 4D, no such channel, too large, complex or coloured voxels, fewer
            voxels than the header says.
    """
    image = source if isinstance(source, SpatialImage) else load_nifti(source)
    data = _voxels(image, channel, max_pixels, max_bytes)
    orientation = io_orientation(image.affine)
    canonical = apply_orientation(data, orientation)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, data.shape)
    axes, flips = PLANES[plane]
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) * _millimetres(image)
    array = _flip(canonical.transpose(axes), flips)
    depth, row, column = (float(zooms[axis]) for axis in axes)
    return Volume(array, (depth, row, column), affine, axes, flips)


def _millimetres(image: SpatialImage) -> float:
    """Millimetres of the unit that a header names; most name none and mean millimetres."""
    units = getattr(image.header, "get_xyzt_units", None)
    return {"meter": 1000.0, "micron": 0.001}.get(units()[0] if units else "", 1.0)


def read_labelled(
    image_path: Path, label_path: Path, options: ReadOptions, modality: str | None, channel: int = 0
) -> Sample:
    """A volume and its label map, windowed over the whole volume.

    Args:
        channel: Which volume of a 4D image; a 3D one has no others.

    Raises:
        Unreadable: Another shape, position or kind of values than a label map of this image has;
            see also `volume_from_nifti`.
    """
    image, label = load_nifti(image_path), load_nifti(label_path)
    if image.shape[:3] != label.shape[:3]:
        raise Unreadable(f"an image of {image.shape[:3]} with a label map of {label.shape[:3]}")
    if not np.allclose(image.affine, label.affine, atol=1e-2):
        raise Unreadable("its label map lies elsewhere in space (another affine)")
    channel = channel if len(image.shape) > 3 else 0
    bounds = options.max_pixels, options.max_bytes
    volume = volume_from_nifti(image, "axial", channel, *bounds)
    mask = volume_from_nifti(label, "axial", 0, *bounds).array
    whole = mask.astype(np.uint16)
    if (whole != mask).any():
        raise Unreadable("its label map has values that are not labels")
    limits = intensity_limits(volume.array, options.window)
    return Sample(
        to_integers(volume.array, limits, options.bits),
        whole.astype(np.uint8) if whole.max() < 256 else whole,
        meta=volume.meta() | {"modality": modality, "window": list(limits)},
        volume=True,
    )


def mask_to_nifti(
    mask: np.ndarray, reference: Path | SpatialImage, plane: str = "axial"
) -> nibabel.Nifti1Image:
    """Put a mask made on a volume back into the geometry of the volume's file.

    Args:
        mask: (D, H, W) integers or booleans, as `volume_from_nifti(reference, plane)` orders them.
        reference: The file or image the volume was read from.

    Returns:
        A NIfTI image with the reference's affine and (first three) axes.

    Raises:
        ValueError: The mask's shape is not that of the volume.
    """
    image = reference if isinstance(reference, SpatialImage) else load_nifti(reference)
    axes, flips = PLANES[plane]
    canonical = _flip(mask, flips).transpose(np.argsort(axes))
    data = apply_orientation(canonical, ornt_transform(RAS, io_orientation(image.affine)))
    if data.shape != image.shape[:3]:
        raise ValueError(f"a mask of {mask.shape} does not fit an image of {image.shape}")
    data = data.astype(np.uint8 if data.dtype == bool else data.dtype)
    result = nibabel.Nifti1Image(data, image.affine)
    if isinstance(image, nibabel.Nifti1Image):
        result.set_qform(*image.get_qform(coded=True), update_affine=False)
        result.set_sform(*image.get_sform(coded=True), update_affine=False)
    return result


def _flip(array: np.ndarray, flips: tuple[bool, bool, bool]) -> np.ndarray:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _voxels(image: SpatialImage, channel: int, max_pixels: int, max_bytes: int) -> np.ndarray:
    """(X, Y, Z) voxels of one channel, in the file's own order."""
    shape = image.shape
    if len(shape) == 5 and shape[3] == 1:  # vector images store channels on the fifth axis
        shape = (*shape[:3], shape[4])
    if len(shape) not in (3, 4) or 0 in shape:
        raise Unreadable(f"an image of shape {image.shape}, not 3D or 4D")
    if len(shape) == 4 and not 0 <= channel < shape[3]:
        raise Unreadable(f"has no channel {channel} among its {shape[3]}")
    if len(shape) == 3 and channel:
        raise Unreadable(f"has one channel, no channel {channel}")
    face = int(np.prod(sorted(shape[:3])[1:], dtype=np.int64))
    if face > max_pixels:
        raise Unreadable(f"{shape[:3]} voxels: a slice exceeds max_pixels ({max_pixels})")
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise Unreadable(f"voxels of type {kind}, not one number per voxel")
    size = math.prod(map(int, shape[:3])) * kind.itemsize
    if size > max_bytes:
        raise Unreadable(f"{shape[:3]} voxels: {size} bytes exceed max_bytes ({max_bytes})")
    try:
        if len(image.shape) == 3:
            data = np.asanyarray(image.dataobj)
        elif len(image.shape) == 4:
            data = np.asanyarray(image.dataobj[..., channel])
        else:
            data = np.asanyarray(image.dataobj[:, :, :, 0, channel])
    except Exception as error:  # gzip, zlib, mmap and nibabel raise errors of many kinds
        raise Unreadable(
            f"its voxels cannot be read: fewer than the header says ({type(error).__name__})"
        ) from error
    return replace_not_finite(data)
