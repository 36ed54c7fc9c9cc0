"""One image with the objects to segment in it: checked, segmented and written."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.files.base import ImageFile, Masks, Reading
from finetune.inference.files.opening import open_image
from finetune.inference.objects import Wanted, check_inside, place, with_rough_masks
from finetune.inference.overlay import draw_overlay
from finetune.inference.segmenting import Placed, check_prompts, draw_object
from finetune.inference.volume import PromptedVolume
from finetune.model.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to do with one image; see `PredictConfig`."""

    input: Path
    output: Path
    wanted: list[Wanted]
    reading: Reading = field(default_factory=Reading)
    mask: Path | None = None
    add: bool = False
    overlay: bool = True

    @property
    def picture(self) -> Path:
        """Where the picture of the mask over the image goes."""
        return self.output.with_name(f"{stem(self.output.name)}_overlay.png")

    def is_done(self) -> bool:
        """Whether all that it writes is there."""
        return self.output.exists() and (self.picture.exists() or not self.overlay)


@dataclass(frozen=True)
class Job:
    """A task whose image has been read, and whose prompts fit it."""

    task: Task
    image: ImageFile
    wanted: list[Wanted]
    labels: NDArray[np.uint8]
    """(D, H, W): what is there already."""


def stem(name: str) -> str:
    """A file's name without its suffix, of which .nii.gz is one."""
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem


def check_new(task: Task) -> None:
    """Refuse to overwrite anything, or to add to what is not there.

    Raises:
        UserError: Names the file.
    """
    if task.add:
        if not task.output.is_file():
            raise UserError(f"add: {task.output} is not there; leave --add out")
        return
    for path in (task.output, task.picture) if task.overlay else (task.output,):
        if path.exists():
            raise UserError(f"output: {path} is there already; give another name")


def prepare(task: Task) -> Job:
    """Read an image, and the masks that are there, and check the prompts.

    Raises:
        UserError: The image, a mask or a prompt cannot be used.
    """
    image = open_image(task.input, task.reading)
    wanted = [place(each, image.depth, image.chosen) for each in task.wanted]
    for each in wanted:
        for prompt in each.prompts.values():
            check_inside(prompt, image.size)
    image.check_output(task.output)
    if task.mask is not None:
        wanted = with_rough_masks(wanted, image.read_masks(task.mask), image.chosen)
    if task.add:
        labels = image.read_masks(task.output)
    else:
        labels = np.zeros((image.depth, *image.size), np.uint8)
    return Job(task, image, wanted, labels)


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
        UserError: The model takes other prompts, or the mask cannot be written in this format.
    """
    task, image = job.task, job.image
    for each in job.wanted:
        check_prompts(segmenter, each)

    def read(depth: int) -> NDArray[np.generic]:
        if encoded is not None:
            encoded()
        return image.read(depth)

    with nullcontext() if adapters else segmenter.without_adapters():
        volume = PromptedVolume(segmenter, image.depth, read)
        placed = [draw_object(job.labels, volume, each) for each in job.wanted]
    names = {each.value: each.name for each in job.wanted}
    automatic = all(each.target is not None for each in job.wanted)
    task.output.parent.mkdir(parents=True, exist_ok=True)
    image.write(Masks(job.labels, names, automatic), task.output)
    if task.overlay:
        _draw(job, placed)
    return placed


def _draw(job: Job, placed: list[Placed]) -> None:
    """The picture of a slice: of a volume the first one that was prompted, or that holds most."""
    prompted = [
        depth
        for each in job.wanted
        for depth, prompt in each.prompts.items()
        if depth is not None and prompt.says_where
    ]
    largest = int((job.labels > 0).sum((1, 2)).argmax()) if len(job.labels) > 1 else 0
    depth = min(prompted, default=largest)
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
    return f"{line}; see {job.task.picture}" if job.task.overlay else line
