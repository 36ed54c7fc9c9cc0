"""Segment objects of new images: masks in the images' own geometry.

What can be refused without PyTorch is refused before it is imported, which takes seconds.
"""

from typing import TYPE_CHECKING

from tqdm import tqdm

from data_prep.common.errors import UserError
from data_prep.options import Window
from finetune.inference.files.base import Reading
from finetune.inference.files.opening import kind_of, open_image
from finetune.inference.objects import parse_objects
from finetune.inference.options import PredictConfig
from finetune.inference.task import Task, check_new
from finetune.inference.uncertainty import Spread

if TYPE_CHECKING:
    from finetune.model.segmenter import Segmenter


def predict(config: PredictConfig, resolved: str) -> None:
    """Segment the objects of one image, or of all images of a table."""
    if config.prompts is not None:
        from finetune.inference.table import predict_table  # with PyTorch

        predict_table(config, config.prompts, resolved)
        return
    wanted = parse_objects(config.clicks, config.box, config.target, config.value or 1, config.text)
    if not wanted and config.mask is None:
        raise UserError(
            'no prompt: give --clicks "x,y,1", --box "x0,y0,x1,y1", --mask FILE, --text or --target'
        )
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

    image = open_image(task.input, reading(config, has_window=kind != "picture"))
    job = prepare(task, image)
    segmenter = load(config)
    alone = job.image.depth == 1 or config.slice is not None
    with tqdm(desc="predict", unit="slice", mininterval=1, disable=alone) as slices:
        placed = finish(job, segmenter, config.adapters, slices.update)
    print(describe(job, placed))


def spread_of(config: PredictConfig) -> Spread | None:
    """How uncertainty is measured, if it is."""
    return Spread(config.uncertainty, config.jitter) if config.uncertainty else None


def reading(config: PredictConfig, has_window: bool) -> Reading:
    """How images are read; without another word windowed as those that the run was trained on.

    Args:
        has_window: Whether the images have intensities to choose a window of, so that the choice is
            to be told.
    """
    window: Window = config.window or "auto"
    if config.window is None and config.run is not None:
        from finetune.inference.loading import trained_window  # with PyTorch

        window = trained_window(config.run)
    elif config.window is None and has_window:
        print("window: auto, the file's own or else percentiles; --window gives another")
    return Reading(window, config.plane, config.channel, config.series, config.slice)


def load(config: PredictConfig) -> "Segmenter":
    """The model, on the device that was asked for.

    Raises:
        UserError: See `load_model`; also adapters that are to be left out and are not there.
    """
    from finetune.inference.loading import find_device, has_adapters, load_model  # with PyTorch
    from pretrain.engine.cpu import use_cores

    device = find_device(config.device)
    if device.type == "cpu":
        use_cores(1, config.threads)
    segmenter = load_model(config, device)
    if not config.adapters and not has_adapters(segmenter):
        raise UserError("adapters: the model of this run has none; leave --no-adapters out")
    return segmenter
