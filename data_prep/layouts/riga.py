"""RIGA, optic disc and cup by six raters (Almazroa et al. 2018, doi:10.1117/12.2293584).

Each rater's disc and cup are drawn on a copy of the photograph as two closed lines, one inside the
other. The difference of the two pictures shows the lines; what they enclose is the disc, and the
inner line encloses the cup. A drawing whose lines do neither does not vote; an image needs more
than half of its raters.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from data_prep.layouts.base import FolderLayout
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Reference, Sample, Unreadable

MIN_DIFFERENCE = 40
"""Grey values by which a drawn line differs from the photograph; compression stays below."""
MIN_AREA = 0.01
"""Share of the disc that an enclosed region has at least; smaller ones are gaps in the drawing."""
MARGIN = 3
"""Pixels around a drawing, so that closing its gaps does not reach its border."""

PRIME = re.compile(r"(.+)prime\.(?:tiff?|jpe?g|png)", re.IGNORECASE)
RATER = re.compile(r"(.+)-(\d)\.(?:tiff?|jpe?g|png)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Riga(FolderLayout, ReadOptions):
    """Fundus photographs with optic disc and cup drawn by six raters."""

    stage = "segmentation"
    summary = "RIGA: fundus photographs, optic disc and cup by six raters"
    tree = """
any/folders/image1prime.tif   the photograph (or .jpg)
any/folders/image1-1.tif      the same with the lines of rater 1; to image1-6.tif
"""

    raters: Literal["majority", "each"] = "majority"
    """One record per image with what most raters marked, or one for each rater."""

    def targets(self) -> dict[str, list[int]]:
        """The disc includes the cup."""
        return {"optic disc": [1, 2], "optic cup": [2]}

    def references(self) -> list[Reference]:
        """One reference for each photograph or, if `raters` is `each`, for each drawing."""
        images, drawings = {}, defaultdict(list)
        for name in self.files():
            if match := PRIME.fullmatch(name):
                images[match[1]] = name
            elif match := RATER.fullmatch(name):
                drawings[match[1]].append((match[2], name))
        references = []
        for case, name in images.items():
            masks = tuple(drawing for _, drawing in drawings[case])
            if self.raters == "majority" or not masks:
                references.append(Reference(name, group=case, masks=masks))
                continue
            references += [
                Reference(name, part=rater, group=case, masks=(drawing,))
                for rater, drawing in drawings[case]
            ]
        return references

    def read(self, reference: Reference) -> Iterator[Sample]:
        """The photograph with the majority of its drawings."""
        if not reference.masks:
            raise NotAnImage("has no rater's drawing")
        picture = read_image(self.input / reference.path, self)
        masks, errors = [], []
        for name in reference.masks:
            drawing = read_image(self.input / name, self).array
            try:
                masks.append(disc_and_cup(picture.array, drawing))
            except Unreadable as error:
                errors.append(error)
        if len(errors) >= len(reference.masks) / 2:
            raise errors[0]
        votes = np.stack(masks)  # (raters, H, W)
        majority = [(votes >= value).sum(axis=0) > len(masks) / 2 for value in (1, 2)]  # disc, cup
        meta = {"modality": "fundus", "raters": len(masks)}
        if reference.part:
            meta["rater"] = int(reference.part)
        mask = np.add(*majority, dtype=np.uint8)
        yield Sample(picture.array, mask, encoded=picture.encoded, meta=meta)


def disc_and_cup(photograph: np.ndarray, drawing: np.ndarray) -> np.ndarray:
    """(H, W) uint8: 1 in the rim of the disc, 2 in its cup, bounded by the middle of the lines.

    Args:
        photograph: (H, W, 3) uint8.
        drawing: The same with two closed lines on it.

    Raises:
        Unreadable: Different sizes, or lines that do not enclose exactly a rim and a cup.
    """
    if photograph.shape != drawing.shape:
        raise Unreadable(f"a drawing of {drawing.shape} on a photograph of {photograph.shape}")
    difference = np.abs(photograph.astype(np.int16) - drawing)
    lines = difference.reshape(*difference.shape[:2], -1).max(axis=2) > MIN_DIFFERENCE
    if not lines.any():
        raise Unreadable("a drawing shows no line")
    mask = np.zeros(lines.shape, np.uint8)
    (box,) = ndimage.find_objects(lines.astype(np.uint8))
    mask[box] = _enclosed(np.pad(lines[box], MARGIN))[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return mask


def _enclosed(lines: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of 0, 1 and 2 for a boolean drawing that leaves its corners free."""
    lines = ndimage.binary_closing(lines, iterations=2)
    regions, _ = ndimage.label(~lines)
    areas = np.bincount(regions.ravel())
    areas[[0, regions[0, 0]]] = 0  # the lines, and what lies outside the disc
    large = np.flatnonzero(areas > MIN_AREA * areas.sum())
    if len(large) != 2:
        raise Unreadable(f"a drawing encloses {len(large)} regions, not a rim and a cup")
    # A cup fills more of its bounding box than a rim does, be that a ring or a crescent.
    boxes = ndimage.find_objects(regions)
    rim, cup = sorted(large, key=lambda n: areas[n] / regions[boxes[n - 1]].size)
    seeds = np.where(regions == cup, 2, np.where(regions == rim, 1, 0)).astype(np.uint8)
    # Lines and gaps in them go to the nearest of outside, rim and cup.
    unknown = lines | ~np.isin(regions, (regions[0, 0], rim, cup))
    nearest = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return seeds[tuple(nearest)]
