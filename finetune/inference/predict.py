"""Segment objects of new images: masks in the images' own geometry.

What can be refused without PyTorch is refused before it is imported, which takes seconds.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

from data_prep.common.errors import UserError
from data_prep.options import Plane, Window
from finetune.inference.files.base import ImageFile, Reading
from finetune.inference.files.opening import kind_of, open_image
from finetune.inference.objects import NO_PROMPT, parse_objects
from finetune.inference.options import PredictConfig
from finetune.inference.task import Task, check_new
from finetune.inference.uncertainty import Spread

if TYPE_CHECKING:
    from finetune.inference.loading import TrainedOn
    from finetune.model.segmenter import Segmenter


def predict(config: PredictConfig, resolved: str) -> None:
    """Segment the objects of one image, or of all images of a table or a folder."""
    if config.is_folder and config.run is None:
        raise UserError(f"prompts: {config.input} is a folder, and SAM needs prompts; give a table")
    if config.prompts is not None or config.is_folder:
        from finetune.inference.table import predict_table  # with PyTorch

        predict_table(config, resolved)
        return
    wanted = parse_objects(config.clicks, config.box, config.target, config.value or 1, config.text)
    if not wanted and config.mask is None and config.run is None:  # of a run its decoder decides
        raise UserError(NO_PROMPT)
    kind = kind_of(config.input)
    task = Task(
        input=config.input,
        output=config.output,
        wanted=wanted,
        value=config.value,
        mask=config.mask,
        add=config.add,
        overlay=config.overlay,
        spread=spread_of(config),
    )
    check_new(task)
    from finetune.inference.job import describe, finish, prepare  # with PyTorch

    seen = seen_by(config)
    image = open_image(task.input, reading(config, seen, has_window=kind != "picture"))
    for note in unlike_training(config.plane, config.mask is not None, seen, image):
        print(note)
    job = prepare(task, image)
    segmenter = load(config, texts=config.text is not None or config.target is not None)
    alone = job.image.depth == 1 or config.slice is not None
    with tqdm(desc="predict", unit="slice", mininterval=1, disable=alone) as slices:
        placed = finish(job, segmenter, config.adapters, slices.update)
    print(describe(job, placed))


def seen_by(config: PredictConfig) -> "TrainedOn | None":
    """What the run was trained on; None for plain SAM.

    Raises:
        UserError: Not a run, or no checkpoint.
    """
    if config.run is None:
        return None
    from finetune.inference.loading import trained_on  # with PyTorch

    return trained_on(config.run)


def spread_of(config: PredictConfig) -> Spread | None:
    """How uncertainty is measured, if it is."""
    return Spread(config.uncertainty, config.jitter) if config.uncertainty else None


def reading(config: PredictConfig, seen: "TrainedOn | None", has_window: bool) -> Reading:
    """How images are read; without another word windowed as those that the run was trained on.

    Args:
        has_window: Whether the images have intensities to choose a window of, so that the choice is
            to be told.
    """
    window: Window = config.window or (seen.window if seen is not None else "auto")
    if config.window is None and seen is None and has_window:
        print("window: auto, the file's own or else percentiles; --window gives another")
    return Reading(window, config.plane, config.channel, config.series, config.slice)


def unlike_training(
    plane: Plane | None, rough_mask: bool, seen: "TrainedOn | None", image: ImageFile
) -> Iterator[str]:
    """What a user who expects the accuracy of evaluation should know, a line each.

    Args:
        plane: The plane that was asked for.
        rough_mask: Whether a rough mask is given.
    """
    if seen is None:
        return
    if plane is None and seen.plane is not None and image.plane not in (None, seen.plane):
        yield (
            f"plane: {image.plane}, as the series was acquired; the run was trained on {seen.plane}"
            f" slices, which --plane {seen.plane} shows"
        )
    if rough_mask and not seen.rough_masks:
        yield (
            "mask: the run was never trained to start from a rough mask (prompts.mask_share is 0);"
            " clicks or a box may do better"
        )


def load(config: PredictConfig, texts: bool) -> "Segmenter":
    """The model, on the device that was asked for.

    Args:
        texts: Whether it may be needed for texts, or to say that it takes some.

    Raises:
        UserError: See `load_model`; also adapters that are to be left out and are not there.
    """
    from finetune.inference.loading import find_device, has_adapters, load_model  # with PyTorch
    from pretrain.engine.cpu import use_cores

    device = find_device(config.device)
    if device.type == "cpu":
        use_cores(1, config.threads)
    segmenter = load_model(config, device, texts)
    if not config.adapters and not has_adapters(segmenter):
        raise UserError("adapters: the model of this run has none; leave --no-adapters out")
    return segmenter
