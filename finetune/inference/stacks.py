"""Slices of a volume encoded together with their neighbours, as a model for volumes was trained."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from finetune.inference.prompted import PromptedImage, frame
from finetune.model.segmenter import Segmenter


def stack_around(depth: int, count: int, slices: int) -> tuple[range, list[int]]:
    """The stack in which a slice of a volume is encoded.

    A volume is covered by stacks of which each begins half a stack after the one before; the last
    one begins earlier if need be, so that it ends with the volume. Of those that hold a slice the
    one is taken that has it nearest to its middle, the first of two equals.

    Args:
        depth: The slice.
        count: Slices of the volume.
        slices: Slices of a stack; there is one stack of fewer where the volume has no more.

    Returns:
        The slices of the stack, and those of them that have their embedding from it.
    """
    last = max(0, count - slices)
    starts = sorted({*range(0, last, max(1, slices // 2)), last})

    def start_of(place: int) -> int:
        return min(starts, key=lambda start: abs(2 * (place - start) - slices + 1))

    start = start_of(depth)
    stack = range(start, min(start + slices, count))
    return stack, [place for place in stack if start_of(place) == start]


@torch.inference_mode()
def encode_around(
    segmenter: Segmenter, read: Callable[[int], NDArray[Any]], depth: int, count: int
) -> dict[int, PromptedImage]:
    """A slice of a volume, encoded; and those that have their embedding from the same stack.

    No more than a stack is in memory at once, and the result does not depend on which of the slices
    is asked for.

    Args:
        segmenter: The model, in evaluation mode.
        read: Gives the pixels of a slice, as `PromptedImage` takes them.
        depth: The slice.
        count: Slices of the volume.
    """
    if segmenter.stack == 1:
        return {depth: PromptedImage(segmenter, read(depth))}
    device = next(segmenter.parameters()).device
    stack, central = stack_around(depth, count, segmenter.stack)
    images = {place: read(place) for place in stack}
    framed = [frame(image, segmenter.image_size, device) for image in images.values()]
    embeddings = segmenter.encode(torch.cat(framed), [len(stack)])
    # a copy each: a view would keep the whole stack in memory
    return {
        place: PromptedImage(segmenter, images[place], embedding[None].clone())
        for place, embedding in zip(stack, embeddings, strict=True)
        if place in central
    }
