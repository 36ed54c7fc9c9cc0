"""The slices of a volume that show something."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from data_prep.options import SliceOptions
from data_prep.readers.intensity import intensity_limits, to_integers
from data_prep.readers.nifti import Volume, volume_from_nifti
from data_prep.records import NotAnImage, Sample


def slice_volume(
    source: Path | SpatialImage, plane: str, options: SliceOptions, channel: int = 0
) -> Iterator[Sample]:
    """The slices of `plane` that show something, windowed over the whole volume.

    Args:
        channel: Which volume of a 4D image.

    Raises:
        NotAnImage: No slice does, or slices are smaller than `options.min_size`.
        Unreadable: See `volume_from_nifti`.
    """
    volume = volume_from_nifti(source, plane, channel, options.max_pixels, options.max_bytes)
    yield from slices_of_volume(volume, plane, options)


def slices_of_volume(
    volume: Volume, plane: str, options: SliceOptions, limits: tuple[float, float] | None = None
) -> Iterator[Sample]:
    """The slices of a volume, cut in `plane`, that show something.

    Args:
        limits: What becomes black and white; by default `options.window` over the whole volume.

    Raises:
        NotAnImage: See `slice_volume`.
    """
    height, width = volume.array.shape[1:]
    if min(height, width) < options.min_size:
        raise NotAnImage(f"slices of {height} x {width} are smaller than min_size")
    limits = limits or intensity_limits(volume.array, options.window)
    bright = (volume.array > volume.array.mean()).mean(axis=(1, 2))  # (D,)
    chosen = np.flatnonzero(bright >= options.min_content)
    if not len(chosen):
        raise NotAnImage("no slice is bright enough for min_content")
    meta = {"spacing": volume.meta()["spacing"][1:], "plane": plane, "window": list(limits)}
    for depth in chosen:
        yield Sample(to_integers(volume.array[depth], limits, options.bits), meta=meta)
