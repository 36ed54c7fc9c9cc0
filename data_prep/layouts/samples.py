"""Real images that come with the installed packages: no download.

Stage one: nilearn's MNI152 T1 brain template, 1 mm, through the NIfTI reader, and pydicom's
test files, through the DICOM reader. Stage two: axial slices of the same template with a label map
of grey matter, white matter and the rest of the brain, each slice as four views of `VIEW` mm, which
overlap. In a view a token of 16 pixels covers 8 mm; in a whole slice, 17 mm, the cortex would be a
fifth of a token wide.

The template is one brain, so the split is by place: `HELD_OUT` is a contiguous slab that neither
stage trains on. The test slices lie in its middle, apart from the nearest slice seen in training.
Stage one sees the template below and above the slab, cut off before it is sliced in any plane.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pydicom

from data_prep.layouts._find import find_files
from data_prep.layouts.base import Layout
from data_prep.options import ReadOptions, SliceOptions, Window
from data_prep.readers.dicom import read_pictures
from data_prep.readers.dicom_header import is_dicom
from data_prep.readers.intensity import intensity_limits, to_integers
from data_prep.readers.nifti import volume_from_nifti
from data_prep.readers.slices import slice_volume
from data_prep.records import NotAnImage, Reference, Sample, Unreadable

HELD_OUT = range(104, 124)
"""Axial slices (of 189, foot to head, 1 mm) that no training sees."""
TRAIN_SLICES = (*range(56, HELD_OUT.start), *range(HELD_OUT.stop, 148))
"""Slices with masks to train on: those with more than traces of white matter."""
TEST_SLICES = range(111, 117)
"""Slices with masks to test on."""
VIEW = 112
"""Side of a view of a slice in pixels."""
CORNERS = ((14, 10), (14, 75), (100, 10), (100, 75))
"""First row and column of each view; together they cover the brain."""
SEEN = {"below": slice(0, HELD_OUT.start), "above": slice(HELD_OUT.stop, None)}
"""Parts of the template that stage one sees."""

LABELS = {"grey matter": [1], "white matter": [2], "brain": [1, 2, 3]}
"""Targets of stage two; value 3 is brain that is neither (mostly fluid)."""

T1 = "MNI152_T1_1mm"
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@dataclass(frozen=True, kw_only=True)
class Samples(Layout, SliceOptions):
    """The template's slices in the chosen planes, and pydicom's test files."""

    stage = "pretraining"
    summary = "real images that come with the installed packages, no download"

    def references(self) -> list[Reference]:
        """Each plane of each seen part of the template, and each DICOM file."""
        references = [
            Reference(T1, part=f"{plane}-{part}", group=T1, records=90)
            for plane in self.planes
            for part in SEEN
        ]
        references += [
            Reference(name, part="dicom", group=name)
            for name in find_files(TEST_FILES)
            if is_dicom(TEST_FILES / name)
        ]
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The slices of a part of the template, or the frames of a file."""
        if reference.part != "dicom":
            plane, part = reference.part.split("-")
            image = template()
            seen = nibabel.Nifti1Image(image.get_fdata()[:, :, SEEN[part]], image.affine)
            for sample in slice_volume(seen, plane, self):
                sample.meta["modality"] = "MR"
                yield sample
            return
        try:
            for sample in read_pictures(TEST_FILES / reference.path, self):
                if sample.meta["modality"] == "OT":
                    raise NotAnImage("a test pattern")
                yield sample
        except Unreadable as error:
            # Some of these files are damaged on purpose, to test pydicom.
            raise NotAnImage(f"damaged on purpose: {error}") from error


@dataclass(frozen=True, kw_only=True)
class LabelledSamples(Layout, ReadOptions):
    """Views of the template's axial slices with masks of its tissues, split by place."""

    stage = "segmentation"
    summary = "real images that come with the installed packages, no download"

    def targets(self) -> dict[str, list[int]]:
        """Grey and white matter, and the brain that holds both."""
        return LABELS

    def references(self) -> list[Reference]:
        """One reference for each view."""
        return [
            Reference(T1, part=f"axial-{depth:03d}-{view}", group=T1, split=split)
            for split, depths in (("train", TRAIN_SLICES), ("test", TEST_SLICES))
            for depth in depths
            for view in range(len(CORNERS))
        ]

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The view with its masks."""
        images, masks, limits = _axial(self.window, self.bits)
        depth, view = map(int, reference.part.removeprefix("axial-").split("-"))
        row, column = CORNERS[view]
        shown = (depth, slice(row, row + VIEW), slice(column, column + VIEW))
        meta: dict[str, Any] = {
            "spacing": [1.0, 1.0],
            "modality": "MR",
            "plane": "axial",
            "slice": depth,
            "corner": [column, row],
            "window": list(limits),
        }
        yield Sample(images[shown], masks[shown], meta=meta)


@cache
def template() -> nibabel.Nifti1Image:
    """The T1 template, (197, 233, 189) voxels of 1 mm, without skull."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=1)


@cache
def tissue_map() -> nibabel.Nifti1Image:
    """Label map in the template's geometry: 1 grey matter, 2 white matter, 3 rest of the brain.

    A voxel is of a tissue if that is the more probable one, with at least one half.
    """
    from nilearn.datasets import (
        load_mni152_brain_mask,
        load_mni152_gm_template,
        load_mni152_wm_template,
    )

    grey = load_mni152_gm_template(resolution=1).get_fdata()
    white = load_mni152_wm_template(resolution=1).get_fdata()
    labels = np.where(load_mni152_brain_mask(resolution=1).get_fdata() > 0, 3, 0).astype(np.uint8)
    labels[(grey >= 0.5) & (grey >= white)] = 1
    labels[(white >= 0.5) & (white > grey)] = 2
    return nibabel.Nifti1Image(labels, template().affine)


@cache
def _axial(
    window: Window, bits: Literal[8, 16]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Images and label maps of all axial slices, (189, 233, 197), and the window."""
    volume = volume_from_nifti(template())
    # The window is that of the training slices: the test slab has no part in it.
    limits = intensity_limits(volume.array[list(TRAIN_SLICES)], window)
    images = to_integers(volume.array, limits, bits)
    return images, volume_from_nifti(tissue_map()).array, limits
