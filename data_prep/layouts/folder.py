"""Image files in folders of any depth."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_prep.layouts.base import FolderLayout
from data_prep.options import PhotographOptions
from data_prep.readers.images import SUFFIXES
from data_prep.readers.photographs import read_photograph
from data_prep.records import Reference, Sample

MASK_NAME = re.compile(
    r"(?!.*with[ _-])(?:.*[^a-z0-9])?"
    r"(?:masks?|labels?|annotations?|seg|segmentations?|gts?|ground[ _-]?truth)"
    r"(?:tr|ts|[ _-]?\d+)?",
    re.IGNORECASE,
)
"""Stems and folders such as `x_mask_1`, `x-gt`, `labelsTr`, `Part1_GroundTruth`, but not
`Dataset_BUSI_with_GT`, which holds both."""


@dataclass(frozen=True, kw_only=True)
class Folder(FolderLayout, PhotographOptions):
    """Image files of any names; each is a group of its own."""

    stage = "pretraining"
    summary = "your own image files in folders of any depth"
    tree = """
any/folders/any_name.png   also JPEG, TIFF, BMP, GIF and WebP
"""

    class_folders: bool = False
    """The folder of an image is its class, and its name is stored. Leave it off where folders are
    named after patients."""

    def references(self) -> list[Reference]:
        """One reference for each image file."""
        references = []
        for name in self.files():
            if not name.lower().endswith(SUFFIXES):
                continue
            folder = name.rpartition("/")[0]
            label = folder if self.class_folders and folder else None
            references.append(Reference(name, group=name, label=label))
        _warn_of_masks([reference.path for reference in references])
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The image."""
        yield read_photograph(self.input / reference.path, self)


def _warn_of_masks(names: Sequence[str]) -> None:
    """Say how many files look like masks, which stage one would learn to reproduce."""
    masks = [name for name in names if _looks_like_a_mask(name)]
    if masks:
        print(
            f"warning: {len(masks)} of {len(names)} files look like masks, such as {masks[0]}, and"
            " are taken as images; give the folder of the images alone, or use `shard-seg --layout"
            " pairs` for images with masks",
            file=sys.stderr,
        )


def _looks_like_a_mask(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return _is_mask_folder(folder) or MASK_NAME.fullmatch(file.rpartition(".")[0]) is not None


@lru_cache(maxsize=1000)
def _is_mask_folder(folder: str) -> bool:
    return any(map(MASK_NAME.fullmatch, folder.split("/")))
