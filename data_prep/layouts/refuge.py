"""REFUGE, optic disc and cup in fundus photographs (Orlando et al. 2020,
doi:10.1016/j.media.2019.101570).
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from data_prep.layouts.base import MaskedImages
from data_prep.readers.masks import nearest_level, read_label_map
from data_prep.records import Reference

MASK_FOLDERS = {"disc_cup_masks", "masks", "gts"}
SPLITS = {"g": "train", "n": "train", "v": "val", "t": "test"}
CLASSES = {"glaucoma": "glaucoma", "g": "glaucoma", "non-glaucoma": "normal", "n": "normal"}
"""Class by the folder of an image or mask, or by the first letter of its name."""

LEVELS = (255, 128, 0)
"""Grey values of background, rim and cup, which are stored as 0, 1 and 2."""


@dataclass(frozen=True, kw_only=True)
class Refuge(MaskedImages):
    """Fundus photographs with optic disc and cup; each photograph is a group."""

    summary = "REFUGE: fundus photographs, optic disc and cup"
    tree = """
any/folders/g0001.jpg, n0001.jpg   training: glaucoma, none; V0001.jpg validation, T0001.jpg test
Disc_Cup_Masks/g0001.bmp           or .png, or in a folder Masks or gts: 0 in the cup, 128 in the
                                   rest of the disc, 255 elsewhere
"""
    modality = "fundus"

    def targets(self) -> dict[str, list[int]]:
        """The disc includes the cup."""
        return {"optic disc": [1, 2], "optic cup": [2]}

    def references(self) -> list[Reference]:
        """One reference for each photograph."""
        images, masks = [], {}
        for name in self.files():
            path = PurePosixPath(name)
            in_masks = any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])
            if in_masks and path.suffix.lower() in (".bmp", ".png"):
                masks[path.stem.lower()] = name
            elif not in_masks and path.suffix.lower() in (".jpg", ".jpeg"):
                images.append(path)
        references = []
        for path in images:
            mask = masks.get(path.stem.lower())
            references.append(
                Reference(
                    path.as_posix(),
                    group=path.stem,
                    label=_class(path, mask),
                    masks=() if mask is None else (mask,),
                    split=SPLITS.get(path.stem[0].lower(), "train"),
                )
            )
        return references

    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """Rim and cup."""
        path = self.input / reference.masks[0]
        return nearest_level(read_label_map(path, self.max_pixels, None, binary=False), LEVELS)


def _class(image: PurePosixPath, mask: str | None) -> str | None:
    folders = [image.parent.name, PurePosixPath(mask or "").parent.name, image.stem[0]]
    return next((CLASSES[name.lower()] for name in folders if name.lower() in CLASSES), None)
