"""Images and masks that correspond by name: patterns with one * each, which is the case."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.common.errors import UserError
from data_prep.layouts._isic import isic_group, isic_rows
from data_prep.layouts.base import MaskedImages
from data_prep.options import MaskOptions
from data_prep.readers.colours import parse_colours
from data_prep.readers.masks import read_colour_map, read_label_map
from data_prep.records import Reference, Unreadable

MAX_TARGETS = 8
"""Masks in files of their own: each combination of them is one value of an 8-bit label map."""


@dataclass(frozen=True, kw_only=True)
class Pairs(MaskedImages, MaskOptions):
    """Images and masks that correspond by name.

    A mask file holds one target, or several as grey values (`labels`) or as colours (`colors`); or
    each target has mask files of its own (several patterns in `mask`), which may overlap.
    """

    summary = "your own images with masks of the same names"
    tree = """
images/a.png        --image 'images/*.png'
masks/a_mask.png    --mask 'masks/*_mask.png'
  or, with a mask for each target:
disc/a.png          --mask '{disc: disc/*.png, cup: cup/*.png}'
cup/a.png
"""

    image: str
    """Image files below the input, with one * that is the case's name."""
    mask: str | dict[str, str]
    """Mask files below the input, with the same *; or a pattern for each target."""
    labels: dict[str, list[int]] | None = None
    """Mask values of each target, e.g. {disc: [1, 2], cup: [2]}; without it a mask has one value
    besides 0, the target `target`."""
    colors: dict[str, list[int] | str] | None = None
    """Colour of each target in masks that are colour images, e.g. {tumour: [255, 0, 0], node:
    '#00ff00'}; `background`, black unless it is given, and what is transparent are no target."""
    color_tolerance: int = 32
    """How far each of red, green and blue (0 to 255) may be from a colour of `colors`. Soft edges
    between two colours take the nearer one; masks with other colours are refused."""
    missing: Literal["refuse", "empty", "skip"] = "refuse"
    """What it means that an image lacks a mask file: a mistake, that the target is not there, or
    that nobody has drawn one, so that the image is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and isinstance(self.mask, dict):
            raise UserError("labels: are for mask files of several values; leave them out")
        if isinstance(self.mask, dict) and not 1 <= len(self.mask) <= MAX_TARGETS:
            raise UserError(f"mask: {len(self.mask)} patterns; expected 1 to {MAX_TARGETS}")
        if not 0 <= self.color_tolerance <= 127:
            raise UserError(f"color_tolerance: {self.color_tolerance} is not between 0 and 127")
        if self.colors is not None:
            parse_colours(self.colors)
            if isinstance(self.mask, dict):
                raise UserError("colors: are for masks of one pattern; leave them out")
            for name, value in (("labels", self.labels), ("threshold", self.threshold)):
                if value is not None:
                    raise UserError(
                        f"{name}: is for grey masks, colors for coloured ones; give one"
                    )

    def targets(self) -> dict[str, list[int]]:
        """The named targets.

        Of targets with files of their own, the n-th is bit n of a mask value.
        """
        if isinstance(self.mask, dict):
            values = range(1, 2 ** len(self.mask))
            return {
                name: [value for value in values if value >> bit & 1]
                for bit, name in enumerate(self.mask)
            }
        if self.colors is not None:
            _, *names = parse_colours(self.colors)
            return {name: [value] for value, name in enumerate(names, start=1)}
        return self.labels or {"target": [1]}

    def references(self) -> list[Reference]:
        """One reference for each case that has an image.

        Raises:
            UserError: Patterns without exactly one *, images without a mask (unless `missing`
                allows them).
        """
        files = self.files()
        rows = isic_rows(self.input, files)
        patterns = self.mask if isinstance(self.mask, dict) else {"": self.mask}
        images = _match(files, self.image, "image")
        masks = [_match(files, pattern, "mask") for pattern in patterns.values()]
        # `a_*.png` as image pattern also matches `a_1_mask.png`, which is the mask of case 1
        taken = {name for found in masks for name in found.values()}
        images = {case: name for case, name in images.items() if name not in taken}
        if self.missing == "refuse":
            for pattern, found in zip(patterns.values(), masks, strict=True):
                if missing := sorted(images.keys() - found.keys()):
                    raise UserError(
                        f"mask: {images[missing[0]]} has no mask {pattern.replace('*', missing[0])}"
                        f" ({len(missing)} of {len(images)} images have none); if such images show"
                        " nothing of the target, give --missing empty; if nobody has drawn their"
                        " masks, --missing skip"
                    )
        if self.missing == "skip":
            drawn = set.intersection(*(set(found) for found in masks))
            images = {case: name for case, name in images.items() if case in drawn}
        return [
            Reference(
                images[case],
                group=isic_group(rows.get(case), case),
                masks=tuple(found.get(case, "") for found in masks),
            )
            for case in sorted(images)
        ]

    def read_mask(self, reference: Reference, image: np.ndarray) -> np.ndarray:
        """The label map of all targets."""
        shape = image.shape[:2]
        whole = np.zeros(shape, np.uint8)
        for bit, name in enumerate(reference.masks):
            if not name:
                continue
            path, limit = self.input / name, self.max_pixels
            if self.colors is not None:
                colours = list(parse_colours(self.colors).values())
                return read_colour_map(path, limit, colours, self.color_tolerance)
            mask = read_label_map(path, limit, self.threshold, binary=self.labels is None)
            if not isinstance(self.mask, dict):
                return mask
            if mask.shape != shape:
                raise Unreadable(f"a mask of {mask.shape} for an image of {shape}")
            whole |= mask << bit
        return whole


def _match(files: list[str], pattern: str, name: str) -> dict[str, str]:
    """File of each case: what the * of `pattern` stands for in its path."""
    if pattern.count("*") != 1:
        raise UserError(f"{name}: {pattern!r} is not a pattern with one *, such as {name}s/*.png")
    before, after = pattern.split("*")
    expression = re.compile(f"{re.escape(before)}([^/]+){re.escape(after)}")
    found = {match[1]: file for file in files if (match := expression.fullmatch(file))}
    if not found:
        raise UserError(f"{name}: no file below the input matches {pattern!r}")
    return found
