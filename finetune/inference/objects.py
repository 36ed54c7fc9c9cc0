"""The objects that a user asks for: prompts as text, and in which slices they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.options import MAX_OBJECTS

NO_PROMPT = 'no prompt: give --clicks "x,y,1", --box "x0,y0,x1,y1", --mask FILE, --text or --target'
UNPROMPTED = "no prompt: an object has neither clicks nor a box nor a text"
BETWEEN_OBJECTS = ";"
CLICK_FORM = "x,y,label or x,y,slice,label"
BOX_FORM = "x0,y0,x1,y1 or x0,y0,x1,y1,slice"


def _no_points() -> NDArray[np.float64]:
    return np.empty((0, 2))


def _no_labels() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Prompt:
    """What is said about one object in one image or slice, in pixels of it."""

    points: NDArray[np.float64] = field(default_factory=_no_points)
    """(n, 2) clicks (x, y)."""
    labels: NDArray[np.int64] = field(default_factory=_no_labels)
    """(n,) 1 or 0."""
    box: NDArray[np.float64] | None = None
    """(4,) x0, y0, x1, y1, see `finetune.prompts.boxes`."""
    mask: NDArray[np.bool_] | None = None
    """(H, W), a rough mask."""
    target: str | None = None
    """For a decoder that takes no prompts."""
    text: str | None = None
    """What is wanted in words, by themselves or with clicks and the like that correct it."""

    @property
    def says_where(self) -> bool:
        """Whether it points to a place: a name or a text alone is for any slice."""
        return bool(len(self.points)) or self.box is not None or self.mask is not None


@dataclass(frozen=True)
class Wanted:
    """One object to segment."""

    value: int
    """Its value in the mask, 1 to `MAX_OBJECTS`."""
    prompts: dict[int | None, Prompt]
    """By slice; None where no slice is named."""
    carry: bool = False
    """Whether its mask is carried on to slices without a prompt."""
    rough: Path | None = None
    """File of a rough mask of it, which becomes part of its prompts once it is read."""

    @property
    def target(self) -> str | None:
        """The target that it is, if it was asked for by name."""
        return next((prompt.target for prompt in self.prompts.values()), None)

    @property
    def name(self) -> str:
        """What it is called in messages and in a DICOM-SEG."""
        texts = [prompt.text for prompt in self.prompts.values() if prompt.text]
        return self.target or (texts[0] if texts else f"object {self.value}")


def parse_objects(
    clicks: str = "",
    box: str = "",
    target: str | None = None,
    first: int = 1,
    text: str | None = None,
) -> list[Wanted]:
    """Read `clicks`, `box`, `target` and `text` of `PredictConfig`.

    Args:
        first: Value of the first object.

    Returns:
        As many objects as there are parts between semicolons; none if all are empty.

    Raises:
        UserError: One is not in its form, they speak of different numbers of objects, or a target
            beside other prompts.
    """
    given = {"clicks": clicks, "box": box, "target": target or "", "text": text or ""}
    parts = {
        name: [part.strip() for part in value.split(BETWEEN_OBJECTS)]
        for name, value in given.items()
        if value.strip()
    }
    if "target" in parts and len(parts) > 1:
        raise UserError("target: is for models without prompts; leave out all others")
    counts = {name: len(values) for name, values in parts.items()}
    if len(set(counts.values())) > 1:
        listed = " and ".join(f"{name}: {count} objects" for name, count in sorted(counts.items()))
        raise UserError(f"{listed}; give each a part between semicolons, which may be empty")
    count = max(counts.values(), default=0)
    if count:
        check_value(first + count - 1)
    objects = []
    for index in range(count):
        prompts = parse_object(**{name: values[index] for name, values in parts.items()})
        objects.append(Wanted(first + index, prompts, carry=None not in prompts))
    return objects


def parse_object(
    clicks: str = "", box: str = "", target: str = "", text: str = ""
) -> dict[int | None, Prompt]:
    """The prompts for one object, by slice.

    Raises:
        UserError: None is given, one is not in its form, or only some name their slice.
    """
    if target:
        return {None: Prompt(target=target)}
    points: dict[int | None, list[list[float]]] = {}
    boxes: dict[int | None, NDArray[np.float64]] = {}
    for word in _split(clicks):
        x, y, *named, label = _numbers(word, (3, 4), "clicks", CLICK_FORM)
        if label not in (0, 1):
            raise UserError(f"clicks: {word!r} has the label {label:g}; it must be 1 or 0")
        points.setdefault(_slice(named, "clicks", word), []).append([x, y, label])
    for word in _split(box):
        values = _numbers(word, (4, 5), "box", BOX_FORM)
        edges = np.array(values[:4])
        if (edges[:2] >= edges[2:]).any():
            raise UserError(f"box: {word!r} must have x0 < x1 and y0 < y1")
        depth = _slice(values[4:], "box", word)
        if depth in boxes:
            raise UserError(
                f"box: {word!r} is another box of an object that has one; objects are separated by"
                f" {BETWEEN_OBJECTS!r}"
            )
        boxes[depth] = edges
    depths = points.keys() | boxes.keys()
    if not depths and text:
        return {None: Prompt(text=text)}
    if not depths:
        raise UserError(UNPROMPTED)
    if None in depths and len(depths) > 1:
        raise UserError("clicks and box: some of an object name their slice, and others do not")
    prompts: dict[int | None, Prompt] = {}
    for depth in sorted(depths, key=lambda depth: depth or 0):
        given = np.array(points.get(depth, [])).reshape(-1, 3)
        labels = given[:, 2].astype(np.int64)
        prompts[depth] = Prompt(given[:, :2], labels, boxes.get(depth), text=text or None)
    return prompts


def place(wanted: Wanted, depth: int, chosen: int | None) -> Wanted:
    """An object whose prompts all have their slice.

    Args:
        depth: Slices of the image; 1 for a picture.
        chosen: The only slice to segment, if one was chosen.

    Raises:
        UserError: Prompts name no slice and must, name one and must not, or one that is not there.
    """
    named = [each for each in wanted.prompts if each is not None]
    if not wanted.prompts:  # a rough mask says where it is
        return wanted
    if not named:
        (prompt,) = wanted.prompts.values()
        if chosen is None and depth > 1 and not prompt.says_where:
            return replace(wanted, prompts=dict.fromkeys(range(depth), prompt), carry=False)
        if chosen is None and depth > 1:
            raise UserError(
                f"slice: the image has {depth} slices; choose one of 0 to {depth - 1}, or name it"
                f" in each prompt ({CLICK_FORM.split()[-1]})"
            )
        return replace(wanted, prompts={chosen or 0: prompt}, carry=False)
    if chosen is not None:
        raise UserError("slice: the prompts name their slices themselves; leave --slice out")
    if outside := [each for each in named if not 0 <= each < depth]:
        raise UserError(f"slice: {outside[0]} is not one of the image's slices, 0 to {depth - 1}")
    return wanted


def check_inside(prompt: Prompt, size: tuple[int, int]) -> None:
    """Refuse a click or a corner outside an image of `size` (height, width).

    Raises:
        UserError: Names the point.
    """
    height, width = size
    named = [("clicks", point, 1) for point in prompt.points]  # a click is on a pixel
    if prompt.box is not None:  # and a corner may lie on the far edge of the last one
        named += [("box", corner, 0) for corner in prompt.box.reshape(2, 2)]
    for name, (x, y), end in named:
        if not (0 <= x <= width - end and 0 <= y <= height - end):
            raise UserError(
                f"{name}: ({x:g}, {y:g}) lies outside the image, which is {width} pixels wide and"
                f" {height} high"
            )


def with_rough_masks(
    wanted: Sequence[Wanted],
    masks: NDArray[np.uint8],
    chosen: int | None,
    first: int | None = None,
) -> list[Wanted]:
    """Objects with the rough masks of a mask file.

    A mask of a single object is for the one that is asked for, whatever its value in the file. Of
    several objects each keeps its value, and those that were not asked for are added.

    Args:
        masks: (D, H, W) values of objects, 0 elsewhere.
        chosen: The only slice to segment, if one was chosen.
        first: The value that the first object is to have, if that was said.

    Raises:
        UserError: There is no object in them, or in the chosen slice, or values that do not fit
            those that are asked for.
    """
    depths = range(len(masks)) if chosen is None else [chosen]
    objects = {each.value: each for each in wanted}
    numbers = sorted({int(value) for each in masks for value in np.unique(each)} - {0})
    if len(numbers) == 1 and len(objects) <= 1:
        value = next(iter(objects), first or numbers[0])
        masks, numbers = np.where(masks > 0, np.uint8(value), np.uint8(0)), [value]
    elif len(numbers) == 1 and numbers[0] not in objects:
        listed = ", ".join(map(str, objects))
        raise UserError(f"mask: it holds object {numbers[0]}, and the prompts are for {listed}")
    elif len(numbers) > 1 and first not in (None, numbers[0]):
        raise UserError(
            f"value: the first object of the mask is {numbers[0]}, not {first}; leave --value out,"
            " or give a mask of one object"
        )
    found = 0
    for number in numbers:
        kept = objects.get(number, Wanted(number, {}, carry=len(depths) > 1))
        prompts = dict(kept.prompts)
        for depth in depths:
            if (rough := masks[depth] == number).any():
                prompts[depth] = replace(prompts.get(depth, Prompt()), mask=rough)
                found += 1
        if prompts:
            objects[number] = replace(kept, prompts=prompts)
    if not found:
        raise UserError("mask: it is empty" + ("" if chosen is None else f" in slice {chosen}"))
    return [objects[value] for value in sorted(objects)]


def check_value(value: int) -> None:
    """Refuse an object whose value cannot be in a mask.

    Raises:
        UserError: Says how many fit.
    """
    if not 1 <= value <= MAX_OBJECTS:
        raise UserError(f"object {value}: a mask holds objects 1 to {MAX_OBJECTS}")


def _split(text: str) -> list[str]:
    """Words; blanks beside a comma do not separate them."""
    return [word for word in re.split(r"(?<!,)\s+(?!,)", text.strip()) if word]


def _slice(numbers: Sequence[float], option: str, text: str) -> int | None:
    if not numbers:
        return None
    if numbers[0] != int(numbers[0]) or numbers[0] < 0:
        raise UserError(f"{option}: {text!r} names slice {numbers[0]:g}; slices count from 0")
    return int(numbers[0])


def _numbers(text: str, counts: tuple[int, ...], option: str, form: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not np.isfinite(values).all():
        raise UserError(f"{option}: {text!r} is not of the form {form}")
    return values
