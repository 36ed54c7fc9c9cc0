"""NIfTI volumes below a folder, sliced in the chosen planes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from data_prep.layouts.base import FolderLayout
from data_prep.options import SliceOptions
from data_prep.readers.nifti import count_voxels
from data_prep.readers.slices import slice_volume
from data_prep.records import Reference, Sample

TYPICAL_SLICES = 128
"""Slices expected of a volume when shards are filled; the true number is known on reading."""
SUFFIXES = (".nii", ".nii.gz")
IMAGES = ("imagesTr/", "imagesVa/", "imagesTs/")
LABELS = ("labelsTr/", "labelsVa/", "labelsTs/")


@dataclass(frozen=True, kw_only=True)
class NiftiFiles(FolderLayout, SliceOptions):
    """NIfTI volumes, sliced; the case is the group.

    Label maps in the folders of the Medical Segmentation Decathlon or nnU-Net are left out.
    """

    stage = "pretraining"
    summary = "NIfTI volumes below any folders, sliced in the chosen planes"
    tree = """
any/folders/any_name.nii.gz   every .nii and .nii.gz file
  or, of a Medical Segmentation Decathlon or nnU-Net folder, the images only:
imagesTr/case_0000.nii.gz     and imagesVa, imagesTs
labelsTr/case.nii.gz          is left out
"""

    channel: int = 0
    """Which channel of a multi-channel or 4D image is read."""

    def references(self) -> list[Reference]:
        """One reference for each volume and plane."""
        files = [name for name in self.files() if name.lower().endswith(SUFFIXES)]
        images = [name for name in files if name.startswith(IMAGES)]
        cases = {_stem(name) for name in files if name.startswith(LABELS)}
        return [
            Reference(name, part=plane, group=case_of(name, cases), records=TYPICAL_SLICES)
            for name in (images if cases else files)
            for plane in self.planes
        ]

    def stored_bytes(self, reference: Reference) -> int:
        """Those of all voxels; PNG takes about half of it."""
        return self.bits // 8 * count_voxels(self.input / reference.path) // 2

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The slices of one plane."""
        path = self.input / reference.path
        yield from slice_volume(path, reference.part, self, self.channel)


def case_of(name: str, cases: set[str]) -> str:
    """The case a file belongs to, as layout nnunet names it; otherwise its own path.

    Args:
        cases: The labelled cases; an image of one may carry its channel, such as `_0000`.
    """
    stem = _stem(name)
    whole = re.sub(r"_\d{4}$", "", stem)
    return next((case for case in (stem, whole) if case in cases), name)


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".gz").removesuffix(".nii")
