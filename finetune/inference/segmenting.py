"""Objects that a user asks for, segmented in an image or in the slices of a volume."""

from collections.abc import Iterator, Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.inference.objects import NO_PROMPT, Prompt, Wanted, check_value, place
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.uncertainty import Spread, entropy
from finetune.inference.volume import PromptedVolume, carried
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
    """What a model makes of a prompt for one object: see `decode_prompt`."""
    logits = decode_prompt(prompted, prompt)
    return Answer(prompted.masks_of(logits)[0], logits=logits)


def segment_several(
    prompted: PromptedImage, prompt: Prompt, spread: Spread, rng: np.random.Generator
) -> Answer:
    """The mean of what a model makes of prompts around one, with its probability."""
    before = prompted.clock.seconds
    with prompted.clock.running():
        prompts = spread.around(prompt, prompted.resize.original, rng)
        logits = torch.cat([decode_prompt(prompted, each) for each in prompts])
        mask, probability = prompted.averaged(logits)
    mean, seconds = logits.mean(0, keepdim=True), prompted.clock.seconds - before
    return Answer(mask, box=prompt.box, logits=mean, probability=probability, seconds=seconds)


def decode_prompt(prompted: PromptedImage, prompt: Prompt) -> Tensor:
    """The logits (1, 1, S / 4, S / 4) of the object that a prompt asks for.

    Where the model was trained so, clicks are taken one after the other, the prediction after each
    being part of the next prompt, and the first one after that of a text; otherwise all at once.
    """
    if prompt.target is not None:
        return prompted.decode(targets=[prompt.target]).low_res
    count = len(prompt.points)
    boxes = None if prompt.box is None else prompt.box[None]
    previous = None if prompt.mask is None else prompted.mask_prompts(prompt.mask[None])
    texts = None if prompt.text is None else [prompt.text]
    step_by_step = prompted.segmenter.previous_mask and count
    for number in range(texts is None, count + 1) if step_by_step else [count]:
        points, labels = prompt.points[None, :number], prompt.labels[None, :number]
        previous = prompted.decode(
            points if number else None, labels if number else None, boxes, previous, texts=texts
        ).low_res
    assert previous is not None
    return previous


def segment_volume(
    volume: PromptedVolume,
    prompts: Mapping[int, Prompt],
    carry: bool,
    spread: Spread | None = None,
) -> Iterator[tuple[int, Answer]]:
    """The mask of one object in each slice in which it may be, in no order.

    Args:
        prompts: By slice.
        carry: Carry the masks on to slices without a prompt: see `carried`.
        spread: Answer each prompt by the mean over several, and give probabilities.
    """

    def answered() -> Iterator[tuple[int, Answer]]:
        for depth, prompt in prompts.items():
            if spread is None:
                yield depth, segment(volume[depth], prompt)
            else:  # the same boxes each time
                rng = np.random.default_rng(depth)
                yield depth, segment_several(volume[depth], prompt, spread, rng)

    yield from carried(volume, dict(answered())) if carry else answered()


class Placed(NamedTuple):
    """What became of an object in a label map."""

    wanted: Wanted
    pixels: int
    """Of its mask."""
    taken: int
    """Pixels among them that were another object's before."""
    slices: list[int]
    """Those that hold it."""


def draw_object(
    labels: NDArray[np.uint8],
    volume: PromptedVolume,
    wanted: Wanted,
    spread: Spread | None = None,
    unsure: NDArray[np.float32] | None = None,
) -> Placed:
    """Segment an object, and set its pixels in a label map (D, H, W) to its value.

    Args:
        wanted: Its prompts all name their slice.
        spread: See `segment_volume`.
        unsure: (D, H, W) entropy of the objects before, raised to that of this one where that is
            higher.
    """
    prompts = {depth: prompt for depth, prompt in wanted.prompts.items() if depth is not None}
    pixels = taken = 0
    slices = []
    for depth, answer in segment_volume(volume, prompts, wanted.carry, spread):
        mask = answer.mask
        if unsure is not None and answer.probability is not None:
            np.maximum(unsure[depth], entropy(answer.probability), out=unsure[depth])
        if not mask.any():
            continue
        before = labels[depth][mask]
        pixels += len(before)
        taken += int(((before > 0) & (before != wanted.value)).sum())
        labels[depth][mask] = wanted.value
        slices.append(depth)
    return Placed(wanted, pixels, taken, sorted(slices))
