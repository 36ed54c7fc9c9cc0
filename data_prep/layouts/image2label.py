"""SAM-Med2D's lists of images and masks (Cheng et al. 2023, arXiv 2308.16184).

Masks that overlap cannot share a label map: such an image becomes several records, each with the
targets that fit.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.common.errors import UserError
from data_prep.layouts._find import first_folder_off
from data_prep.layouts.base import FolderLayout
from data_prep.options import MaskOptions
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_union
from data_prep.records import Reference, Sample, Unreadable

TRAIN, TEST = "image2label_train.json", "label2image_test.json"


@dataclass(frozen=True, kw_only=True)
class Image2Label(FolderLayout, MaskOptions):
    """Images with binary masks by target; masks of one target and image are united."""

    stage = "segmentation"
    summary = "SAM-Med2D: lists of images and their masks"
    tree = """
image2label_train.json   {"images/a.png": ["masks/a_liver_000.png", ...], ...}
label2image_test.json    {"masks/b_liver_000.png": "images/b.png", ...}
images/a.png
masks/a_liver_000.png    <image>_<target>_<number>.png, binary
"""

    def targets(self) -> dict[str, list[int]]:
        """Every target that a mask is named after, in alphabetical order."""
        targets = {
            target_of(mask, image)
            for split in self._masks.values()
            for image, masks in split.items()
            for mask in masks
        }
        return {name: [value] for value, name in enumerate(sorted(targets), start=1)}

    @cached_property
    def _masks(self) -> dict[str, dict[str, list[str]]]:
        """Masks of each image, by split."""
        root = self.root()
        if not (root / TRAIN).is_file() and not (root / TEST).is_file():
            raise UserError(f"input: {root} has neither {TRAIN} nor {TEST}")
        return {"train": _train(root / TRAIN), "test": _test(root / TEST)}

    def references(self) -> list[Reference]:
        """One reference for each image of the two lists.

        Raises:
            UserError: Neither list is there, one has another form, or names a missing file.
        """
        references = []
        for split, masks_of in self._masks.items():
            for image, masks in sorted(masks_of.items()):
                path = _locate(self.input, image)
                paths = tuple(_locate(self.input, mask) for mask in sorted(masks))
                references.append(Reference(path, group=path, masks=paths, split=split))
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The image, once for each label map that its masks need."""
        picture = read_image(self.input / reference.path, self)
        labels = self.targets()
        paths = defaultdict(list)
        for name in reference.masks:
            paths[target_of(name, reference.path)].append(self.input / name)
        maps: list[np.ndarray] = []
        for target, files in sorted(paths.items()):
            mask = read_union(files, self.max_pixels, self.threshold) > 0
            shape = picture.array.shape[:2]
            if mask.shape != shape:
                raise Unreadable(f"a mask of {mask.shape} for an image of {shape}")
            fitting = next((layer for layer in maps if not layer[mask].any()), None)
            if fitting is None:
                fitting = np.zeros(mask.shape, np.uint8 if len(labels) < 256 else np.uint16)
                maps.append(fitting)
            fitting[mask] = labels[target][0]
        for layer in maps:
            yield Sample(picture.array, layer, encoded=picture.encoded)


def target_of(mask: str, image: str) -> str:
    """What a mask shows: its name without that of its image and without its number."""
    name = PurePosixPath(mask).stem.removeprefix(PurePosixPath(image).stem).strip("_")
    return re.sub(r"_\d+$", "", name).replace("_", " ") or "target"


def _train(path: Path) -> dict[str, list[str]]:
    images = _load(path)
    if not all(isinstance(masks, list) for masks in images.values()):
        raise UserError(f"{path}: is not a map from images to lists of masks")
    return images


def _test(path: Path) -> dict[str, list[str]]:
    images: dict[str, list[str]] = defaultdict(list)
    for mask, image in _load(path).items():
        if not isinstance(image, str):
            raise UserError(f"{path}: is not a map from masks to images")
        images[image].append(mask)
    return dict(images)


def _load(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: is not a map from files to files")
    return document


def _locate(root: Path, name: str) -> str:
    (path,) = first_folder_off(root, [name])
    if not (root / path).is_file():
        raise UserError(f"input: {name}, which the list names, is not below {root}")
    return path
