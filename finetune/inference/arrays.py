"""Prompts given as arrays: checked, and by object and slice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_prep.common.errors import UserError
from finetune.inference.objects import Prompt, check_inside


def names_of(target: str | Sequence[str] | None) -> list[str] | None:
    """Names of targets, or texts, of which there may be one."""
    return [target] if isinstance(target, str) else None if target is None else list(target)


def count_objects(given: Sequence[Any]) -> int:
    """How many objects some prompts of several kinds are for; those that are None do not count.

    Raises:
        UserError: None is given, or they are for different numbers.
    """
    counts = [len(each) for each in given if each is not None]
    if not counts or not max(counts):
        raise UserError("no prompt: give clicks, a box, a mask, a text or a target")
    if len(set(counts)) > 1:
        raise UserError(f"the prompts are for different numbers of objects: {counts}")
    return counts[0]


def prompts_by_slice(
    shape: tuple[int, ...],
    clicks: ArrayLike | None = None,
    box: ArrayLike | None = None,
    mask: NDArray[Any] | None = None,
    target: str | Sequence[str] | None = None,
    text: str | Sequence[str] | None = None,
) -> list[dict[int, Prompt]]:
    """The prompts of `Predictor.predict_volume`, by slice for each object.

    Args:
        shape: (D, H, W) of the volume.

    Raises:
        UserError: None is given, or one that does not fit.
    """
    depth, height, width = shape
    if names := names_of(target):
        if not (clicks is None and box is None and mask is None and text is None):
            raise UserError("target: is for models without prompts; give it alone")
        return [dict.fromkeys(range(depth), Prompt(target=name)) for name in names]
    texts = names_of(text)
    if texts and clicks is None and box is None and mask is None:
        return [dict.fromkeys(range(depth), Prompt(text=each)) for each in texts]
    points = None if clicks is None else as_array(clicks, 3, 4, "clicks")
    boxes = None if box is None else as_array(box, 3, 5, "box")
    masks = None if mask is None else rough_masks(mask, shape)
    count = count_objects([points, boxes, masks, texts])
    objects: list[dict[int, Prompt]] = []
    for number in range(count):
        clicked = np.empty((0, 4)) if points is None else points[number]
        edges = np.empty((0, 5)) if boxes is None else boxes[number]
        rough = np.empty(0) if masks is None else np.flatnonzero(masks[number].any((1, 2)))
        named = {float(each) for each in (*clicked[:, 2], *edges[:, 4], *rough)}
        if outside := [each for each in named if each not in range(depth)]:
            raise UserError(f"slice {outside[0]:g} is not one of the volume's, 0 to {depth - 1}")
        if not named:
            raise UserError("mask: it is empty, and there is no other prompt for its object")
        prompts: dict[int, Prompt] = {}
        for place in sorted(map(int, named)):
            here, there = clicked[clicked[:, 2] == place], edges[edges[:, 4] == place]
            if len(there) > 1:
                raise UserError(f"box: an object has {len(there)} in slice {place}; it takes one")
            prompts[place] = Prompt(
                points=here[:, :2],
                labels=here[:, 3].astype(np.int64),
                box=there[0, :4] if len(there) else None,
                mask=masks[number, place] if masks is not None and place in rough else None,
                text=texts[number] if texts else None,
            )
            check_inside(prompts[place], (height, width))
        objects.append(prompts)
    return objects


def rough_masks(mask: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Rough masks (M, *shape) bool of one object or of M.

    Raises:
        UserError: Another shape, or fractions.
    """
    masks = mask[None] if mask.ndim == len(shape) else mask
    if masks.shape[1:] != shape or masks.dtype.kind == "f":
        raise UserError(
            f"mask: has shape {mask.shape} and type {mask.dtype}; expected {shape} or"
            f" (M, {str(shape)[1:]} of bool or integers"
        )
    return masks != 0


def as_array(values: ArrayLike, axes: int, columns: int, name: str) -> NDArray[np.float64]:
    """Clicks or boxes as an array of so many axes, of which the first ones may be left out.

    Raises:
        UserError: Another shape, none, values that are not finite, or a box or a label that cannot
            be.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except ValueError:
        raise UserError(f"{name}: is not an array of numbers") from None
    array = array.reshape(*(1,) * (axes - array.ndim), *array.shape)
    if array.ndim != axes or array.shape[-1] != columns or not array.size:
        raise UserError(f"{name}: has shape {np.shape(values)}; expected {columns} numbers each")
    if not np.isfinite(array).all():
        raise UserError(f"{name}: holds values that are not finite")
    if name == "box" and (array[..., :2] >= array[..., 2:4]).any():
        raise UserError("box: must have x0 < x1 and y0 < y1")
    if name == "clicks" and not np.isin(array[..., -1], (0, 1)).all():
        raise UserError("clicks: the last number of each is its label, 1 or 0")
    return array
