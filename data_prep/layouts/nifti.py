"""NIfTI volumes below a folder, sliced in the chosen planes.

Every .nii and .nii.gz file counts; in a Medical Segmentation Decathlon or nnU-Net folder only
those of imagesTr, imagesVa and imagesTs, as the others are masks.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from nibabel.spatialimages import SpatialImage

from data_prep.layouts._find import find_files
from data_prep.options import ShardConfig
from data_prep.readers.intensity import intensity_limits, to_integers
from data_prep.readers.nifti import volume_from_nifti
from data_prep.records import NotAnImage, Reference, Sample, Source

SUFFIXES = (".nii", ".nii.gz")
IMAGES = ("imagesTr/", "imagesVa/", "imagesTs/")
LABELS = ("labelsTr/", "labelsVa/", "labelsTs/")
TYPICAL_SLICES = 128
"""Slices expected of a volume when shards are filled; the true number is known on reading."""


def pretraining(config: ShardConfig) -> Source:
    """One reference for each volume and plane."""
    root = config.root()
    files = [name for name in find_files(root) if name.lower().endswith(SUFFIXES)]
    images = [name for name in files if name.startswith(IMAGES)]
    cases = {_stem(name) for name in files if name.startswith(LABELS)}
    names = images if cases else files
    references = [
        Reference(name, part=plane, group=case_of(name, cases), records=TYPICAL_SLICES)
        for name in names
        for plane in config.planes
    ]
    read = partial(read_nifti, root=root, config=config)
    return Source(config.layout, references, read, config.recipe())


def case_of(name: str, cases: set[str]) -> str:
    """The case a file belongs to, as layout nnunet names it; otherwise its own path.

    Args:
        cases: the labelled cases; an image of one may carry its channel, such as `_0000`.
    """
    stem = _stem(name)
    whole = re.sub(r"_\d{4}$", "", stem)
    return next((case for case in (stem, whole) if case in cases), name)


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".gz").removesuffix(".nii")


def read_nifti(reference: Reference, root: Path, config: ShardConfig) -> Iterator[Sample]:
    """The slices of one plane of a volume file."""
    yield from slice_volume(root / reference.path, reference.part, config)


def slice_volume(source: Path | SpatialImage, plane: str, config: ShardConfig) -> Iterator[Sample]:
    """The slices of `plane` that show something, windowed over the whole volume.

    Raises:
        NotAnImage: if none does, or slices are smaller than `config.min_size`.
        Unreadable: see `volume_from_nifti`.
    """
    volume = volume_from_nifti(source, plane, config.channel, config.max_pixels)
    height, width = volume.array.shape[1:]
    if min(height, width) < config.min_size:
        raise NotAnImage(f"slices of {height} x {width} are smaller than min_size")
    limits = intensity_limits(volume.array, config.window)
    bright = (volume.array > volume.array.mean()).mean(axis=(1, 2))  # (D,)
    chosen = np.flatnonzero(bright >= config.min_content)
    if not len(chosen):
        raise NotAnImage("no slice is bright enough for min_content")
    meta = {"spacing": volume.meta()["spacing"][1:], "plane": plane, "window": list(limits)}
    for depth in chosen:
        yield Sample(to_integers(volume.array[depth], limits, config.bits), meta=meta)
