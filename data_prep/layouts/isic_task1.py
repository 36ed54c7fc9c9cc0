"""ISIC challenges 2016 to 2018, lesion boundary segmentation (challenge.isic-archive.com)."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from data_prep.layouts._isic import isic_group, isic_rows
from data_prep.layouts.base import MaskedImages
from data_prep.options import MaskOptions
from data_prep.readers.masks import read_label_map
from data_prep.records import Reference

SUFFIX = "_segmentation"


@dataclass(frozen=True, kw_only=True)
class IsicTask1(MaskedImages, MaskOptions):
    """Dermoscopic photographs with lesion masks; superpixel maps are ignored.

    The lesion is the group where a table of the archive, such as HAM10000_metadata.csv, lies below
    the input; else each photograph is one.
    """

    summary = "ISIC 2016 to 2018, task 1: dermoscopy, lesion boundaries"
    tree = """
ISIC-2017_Training_Data/ISIC_0000000.jpg
ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png
ISIC-2017_Validation_Data/...   `Validation` and `Test` in folder names make the split
"""
    modality = "dermoscopy"

    def targets(self) -> dict[str, list[int]]:
        """One target."""
        return {"lesion": [1]}

    def references(self) -> list[Reference]:
        """One reference for each photograph."""
        files = self.files()
        rows = isic_rows(self.input, files)
        masks = {}
        for name in files:
            stem = PurePosixPath(name).stem
            if name.lower().endswith(f"{SUFFIX}.png"):
                masks[stem[: -len(SUFFIX)]] = name
        references = []
        for name in files:
            if name.lower().endswith((".jpg", ".jpeg")):
                stem = PurePosixPath(name).stem
                mask = (masks[stem],) if stem in masks else ()
                group = isic_group(rows.get(stem), stem)
                references.append(Reference(name, group=group, masks=mask, split=_split(name)))
        return references

    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """The lesion."""
        path = self.input / reference.masks[0]
        return read_label_map(path, self.max_pixels, self.threshold, binary=True)


def _split(name: str) -> str:
    folder = PurePosixPath(name).parent.as_posix().lower()
    match = re.search(r"(?<![a-z])(validation|test)(?![a-z])", folder)
    return {"validation": "val", "test": "test"}[match[1]] if match else "train"
