"""Objects that a user asks for, segmented in an image or in the slices of a volume."""

from collections.abc import Iterator, Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.objects import NO_PROMPT, Prompt, Wanted, check_value, place
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.volume import PromptedVolume, carry_through
from finetune.model.segmenter import NO_TEXTS, Segmenter


def check_kinds(segmenter: Segmenter, target: bool, mask: bool, text: bool = False) -> None:
    """Refuse kinds of prompts that a model does not take.

    Args:
        target: Whether a target is named; otherwise there are clicks, boxes, masks or texts.
        mask: Whether there is a rough mask, or logits of an earlier prediction.
        text: Whether there is a text.

    Raises:
        UserError: Says what it takes.
    """
    takes_prompts = segmenter.decoder.takes_prompts
    if takes_prompts == target:
        kinds = ["clicks", "a box", "a mask", "a text"]
        can = (True, True, segmenter.previous_mask, segmenter.text_encoder is not None)
        *others, last = compress(kinds, can)
        wanted = f"{', '.join(others)} or {last}" if takes_prompts else "a target (--target NAME)"
        raise UserError(f"this model's decoder takes {wanted}, and no other prompt")
    if mask and not (takes_prompts and segmenter.previous_mask):
        raise UserError("mask: this model was not trained with masks as prompts")
    if text and segmenter.text_encoder is None:
        raise UserError(f"text: {NO_TEXTS}")


def check_prompts(segmenter: Segmenter, wanted: Wanted) -> None:
    """Refuse an object whose prompts are of kinds that a model does not take.

    Raises:
        UserError: See `check_kinds`.
    """
    for prompt in wanted.prompts.values():
        named, rough, said = (
            each is not None for each in (prompt.target, prompt.mask, prompt.text)
        )
        check_kinds(segmenter, named, rough, said)


def all_targets(
    segmenter: Segmenter, depth: int, chosen: int | None, first: int | None
) -> list[Wanted]:
    """Everything that a model without prompts was trained to segment.

    Args:
        depth: Slices of the image; 1 for a picture.
        chosen: The only slice to segment, if one was chosen.
        first: Value of the first target, 1 if None; the others count up.

    Raises:
        UserError: The model's decoder takes prompts, and has been given none.
    """
    if segmenter.decoder.takes_prompts:
        raise UserError(NO_PROMPT)
    values = range(first or 1, (first or 1) + len(segmenter.targets))
    check_value(values[-1])
    return [
        place(Wanted(value, {None: Prompt(target=name)}), depth, chosen)
        for value, name in zip(values, segmenter.targets, strict=True)
    ]


def segment(prompted: PromptedImage, prompt: Prompt) -> Answer:
    """What a model makes of a prompt for one object.

    Where the model was trained so, clicks are taken one after the other, the prediction after each
    being part of the next prompt, and the first one after that of a text; otherwise all at once.
    """
    if prompt.target is not None:
        masks, logits = prompted.predict(targets=[prompt.target])
        return Answer(masks[0], logits=logits)
    count = len(prompt.points)
    boxes = None if prompt.box is None else prompt.box[None]
    previous = None if prompt.mask is None else prompted.mask_prompts(prompt.mask[None])
    texts = None if prompt.text is None else [prompt.text]
    step_by_step = prompted.segmenter.previous_mask and count
    for number in range(texts is None, count + 1) if step_by_step else [count]:
        points, labels = prompt.points[None, :number], prompt.labels[None, :number]
        # the masks of the steps before the last one are not looked at
        decoded = prompted.decode(
            points if number else None, labels if number else None, boxes, previous, texts=texts
        )
        previous = decoded.low_res
    assert previous is not None
    return Answer(prompted.masks_of(previous)[0], logits=previous)


def segment_volume(
    volume: PromptedVolume, prompts: Mapping[int, Prompt], carry: bool
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The mask (H, W) of one object in each slice in which it may be.

    Args:
        prompts: By slice.
        carry: Carry the masks on to slices without a prompt: see `carry_through`. Then all masks
            are held at once.
    """
    if not carry:
        for depth, prompt in prompts.items():
            yield depth, segment(volume[depth], prompt).mask
        return
    answers = {depth: segment(volume[depth], prompt) for depth, prompt in prompts.items()}
    yield from enumerate(carry_through(volume, answers))


class Placed(NamedTuple):
    """What became of an object in a label map."""

    wanted: Wanted
    pixels: int
    """Of its mask."""
    taken: int
    """Pixels among them that were another object's before."""
    slices: list[int]
    """Those that hold it."""


def draw_object(labels: NDArray[np.uint8], volume: PromptedVolume, wanted: Wanted) -> Placed:
    """Segment an object, and set its pixels in a label map (D, H, W) to its value.

    Args:
        wanted: Its prompts all name their slice.
    """
    prompts = {depth: prompt for depth, prompt in wanted.prompts.items() if depth is not None}
    pixels = taken = 0
    slices = []
    for depth, mask in segment_volume(volume, prompts, wanted.carry):
        if not mask.any():
            continue
        before = labels[depth][mask]
        pixels += len(before)
        taken += int(((before > 0) & (before != wanted.value)).sum())
        labels[depth][mask] = wanted.value
        slices.append(depth)
    return Placed(wanted, pixels, taken, slices)
