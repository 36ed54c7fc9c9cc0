"""RIGA, optic disc and cup by six raters (Almazroa et al. 2018, doi:10.1117/12.2293584).

`image1prime.tif` (or .jpg) is the photograph; in `image1-1.tif` to `image1-6.tif` each rater's
disc and cup are drawn on it as two closed lines, one inside the other. The difference of the two
pictures shows the lines; what they enclose is the disc, and the inner line encloses the cup. A
drawing whose lines do neither does not vote; an image needs more than half of its raters.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from data_prep.layouts._find import find_files
from data_prep.options import ShardSegConfig
from data_prep.readers.images import read_image
from data_prep.records import NotAnImage, Reference, Sample, Source, Unreadable

PRIME = re.compile(r"(.+)prime\.(?:tiff?|jpe?g|png)", re.IGNORECASE)
RATER = re.compile(r"(.+)-(\d)\.(?:tiff?|jpe?g|png)", re.IGNORECASE)
LABELS = {"optic disc": [1, 2], "optic cup": [2]}

MIN_DIFFERENCE = 40
"""Grey values by which a drawn line differs from the photograph; compression stays below."""
MIN_AREA = 0.01
"""Share of the disc that an enclosed region has at least; smaller ones are gaps in the drawing."""
MARGIN = 3
"""Pixels around a drawing, so that closing its gaps does not reach its border."""


def segmentation(config: ShardSegConfig) -> Source:
    """One reference for each photograph or, if `config.raters` is `each`, for each drawing."""
    root = config.root()
    images, drawings = {}, defaultdict(list)
    for name in find_files(root):
        if match := PRIME.fullmatch(name):
            images[match[1]] = name
        elif match := RATER.fullmatch(name):
            drawings[match[1]].append(name)
    references = []
    for case, name in images.items():
        if config.raters == "majority" or not drawings[case]:
            references.append(Reference(name, group=case, masks=tuple(drawings[case])))
            continue
        references += [
            Reference(name, part=RATER.fullmatch(drawing)[2], group=case, masks=(drawing,))
            for drawing in drawings[case]
        ]
    read = partial(_read, root=root, config=config)
    return Source(config.layout, references, read, config.recipe(), LABELS)


def _read(reference: Reference, root: Path, config: ShardSegConfig) -> Iterator[Sample]:
    if not reference.masks:
        raise NotAnImage("has no rater's drawing")
    picture = read_image(root / reference.path, config)
    masks, errors = [], []
    for name in reference.masks:
        drawing = read_image(root / name, config).array
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
        drawing: the same with two closed lines on it.

    Raises:
        Unreadable: different sizes, or lines that do not enclose exactly a rim and a cup.
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
