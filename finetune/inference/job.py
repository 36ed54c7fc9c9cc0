"""One image with the objects to segment in it: checked, segmented and written."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.files.base import ImageFile, Masks
from finetune.inference.objects import Wanted, check_inside, place, with_rough_masks
from finetune.inference.overlay import draw_overlay
from finetune.inference.segmenting import Placed, all_targets, check_prompts, draw_object
from finetune.inference.task import Task
from finetune.inference.volume import PromptedVolume
from finetune.model.segmenter import Segmenter


@dataclass(frozen=True)
class Job:
    """A task whose image has been read, and whose prompts fit it."""

    task: Task
    image: ImageFile
    wanted: list[Wanted]
    """None: all targets of a model without prompts."""
    labels: NDArray[np.uint8]
    """(D, H, W): what is there already."""


def prepare(task: Task, image: ImageFile) -> Job:
    """Read the masks that are there, and check the prompts.

    Args:
        image: What `task.input` holds.

    Raises:
        UserError: A mask or a prompt cannot be used.
    """
    wanted = [place(each, image.depth, image.chosen) for each in task.wanted]
    for each in wanted:
        for prompt in each.prompts.values():
            check_inside(prompt, image.size)
    image.check_output(task.output)
    if task.mask is not None:
        rough = image.read_masks(task.mask)
        wanted = with_rough_masks(wanted, rough, image.chosen, task.value)
    wanted = [each if each.rough is None else _with_its_mask(each, image) for each in wanted]
    if task.add:
        labels = image.read_masks(task.output)
    else:
        labels = np.zeros((image.depth, *image.size), np.uint8)
    return Job(task, image, wanted, labels)


def _with_its_mask(wanted: Wanted, image: ImageFile) -> Wanted:
    """An object with the rough mask in the file that it names.

    Raises:
        UserError: The file cannot be used, or holds several objects, and it is none of them.
    """
    assert wanted.rough is not None
    labels = image.read_masks(wanted.rough)
    numbers = sorted({int(value) for each in labels for value in np.unique(each)} - {0})
    if len(numbers) > 1:
        if wanted.value not in numbers:
            listed = ", ".join(map(str, numbers))
            raise UserError(f"mask: {wanted.rough} holds objects {listed}, and not {wanted.value}")
        labels = np.where(labels == wanted.value, labels, np.uint8(0))
    given = [wanted] if wanted.prompts else []
    (found,) = with_rough_masks(given, labels, image.chosen, wanted.value)
    return found


def finish(
    job: Job,
    segmenter: Segmenter,
    adapters: bool = True,
    encoded: Callable[[], object] | None = None,
) -> list[Placed]:
    """Segment the objects of an image and write their mask.

    Args:
        adapters: False leaves the adapters of the model out.
        encoded: Called after each slice that was encoded.

    Raises:
        UserError: The model takes other prompts, or there are none and it needs some, or the mask
            cannot be written in this format.
    """
    task, image = job.task, job.image
    if not job.wanted:
        every = all_targets(segmenter, image.depth, image.chosen, task.value)
        job = replace(job, wanted=every)
    for each in job.wanted:
        check_prompts(segmenter, each)

    def read(depth: int) -> NDArray[np.generic]:
        if encoded is not None:
            encoded()
        return image.read(depth)

    unsure = None if task.spread is None else np.zeros(job.labels.shape, np.float32)
    with nullcontext() if adapters else segmenter.without_adapters():
        volume = PromptedVolume(segmenter, image.depth, read)
        placed = [draw_object(job.labels, volume, each, task.spread, unsure) for each in job.wanted]
    names = {each.value: each.name for each in job.wanted}
    automatic = all(each.target is not None for each in job.wanted)
    task.output.parent.mkdir(parents=True, exist_ok=True)
    numbered = task.numbered or (automatic and len(names) > 1)
    masks = Masks(job.labels, names, numbered=numbered, automatic=automatic)
    if unsure is not None:
        image.write_map(unsure, task.uncertainty)
    image.write(masks, task.output)
    if task.overlay:
        _draw(job, placed)
    return placed


def _draw(job: Job, placed: list[Placed]) -> None:
    """The picture of a slice: of a volume the first one that was prompted, or else the chosen one,
    or else the one that holds most."""
    prompted = [
        depth
        for each in job.wanted
        for depth, prompt in each.prompts.items()
        if depth is not None and prompt.says_where
    ]
    largest = int((job.labels > 0).sum((1, 2)).argmax()) if len(job.labels) > 1 else 0
    depth = min(prompted, default=largest if job.image.chosen is None else job.image.chosen)
    shown = [each.prompts[depth] for each in job.wanted if depth in each.prompts]
    draw_overlay(
        job.image.read(depth),
        job.labels[depth],
        job.task.picture,
        np.concatenate([np.empty((0, 2)), *(prompt.points for prompt in shown)]),
        np.concatenate([np.empty(0, int), *(prompt.labels for prompt in shown)]),
        [prompt.box for prompt in shown if prompt.box is not None],
    )


def describe(job: Job, placed: list[Placed]) -> str:
    """What was found, in one line."""
    parts = []
    for each in placed:
        part = f"{each.pixels} of {job.labels.size} pixels"
        if job.image.depth > 1 and each.slices:
            first, last = each.slices[0], each.slices[-1]
            part += f" in slice {first}" if first == last else f" in slices {first} to {last}"
        if each.taken:
            part += f", {each.taken} of them from other objects"
        parts.append(part if len(placed) == 1 else f"{each.wanted.name}: {part}")
    line = f"{job.task.output}: {'; '.join(parts)}"
    others = [path for path in job.task.outputs if path != job.task.output]
    return f"{line}; see {' and '.join(map(str, others))}" if others else line
