"""BUSI, breast ultrasound (Al-Dhabyani et al. 2020, doi:10.1016/j.dib.2019.104863).

Patients are not published, so each image is a group of its own.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from data_prep.layouts.base import MaskedImages
from data_prep.options import MaskOptions
from data_prep.readers.masks import read_union
from data_prep.records import Reference

MASK = re.compile(r"(.+)_mask(?:_\d+)?\.png")
"""Name of a mask file; its first group is the stem of the image's name."""


@dataclass(frozen=True, kw_only=True)
class Busi(MaskedImages, MaskOptions):
    """Breast ultrasound with lesions; the masks of one image are united."""

    summary = "BUSI: breast ultrasound, lesions"
    tree = """
benign/benign (1).png          the folder is the class
benign/benign (1)_mask.png     and _mask_1, ... with several lesions
normal/normal (1)_mask.png     is empty
"""
    modality = "US"

    def targets(self) -> dict[str, list[int]]:
        """One target."""
        return {"lesion": [1]}

    def references(self) -> list[Reference]:
        """One reference for each image, with all of its masks."""
        images: list[str] = []
        masks: dict[str, list[str]] = defaultdict(list)
        for name in self.files():
            if match := MASK.fullmatch(name):
                masks[f"{match[1]}.png"].append(name)
            elif name.lower().endswith(".png"):
                images.append(name)
        return [
            Reference(
                name,
                group=name,
                label=PurePosixPath(name).parent.name or None,
                masks=tuple(masks[name]),
            )
            for name in images
        ]

    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """The union of the image's masks."""
        paths = [self.input / name for name in reference.masks]
        return read_union(paths, self.max_pixels, self.threshold)
