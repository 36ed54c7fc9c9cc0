"""Segment an object of a new image by clicks, a box, or both: a mask in the image's geometry."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.format.codec import encode_png
from data_prep.options import ReadOptions, Window
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import is_dicom, read_header
from data_prep.readers.images import SUFFIXES, read_image
from data_prep.readers.intensity import intensity_limits, to_integers
from data_prep.readers.nifti import mask_to_nifti, volume_from_nifti
from data_prep.records import NotAnImage, Unreadable
from finetune.config import PredictConfig
from finetune.inference.loading import find_device, load_model, trained_window
from finetune.inference.overlay import draw_overlay
from finetune.inference.prompted import PromptedImage
from pretrain.engine.cpu import use_cores

NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Prompt:
    """What the user asked for, in pixels of the image."""

    points: NDArray[np.float64]
    """(n, 2) clicks (x, y)."""
    labels: NDArray[np.int64]
    """(n,) 1 or 0."""
    box: NDArray[np.float64] | None
    """(4,) x0, y0, x1, y1, see `finetune.prompts.boxes`."""
    target: str | None = None
    """For a decoder that takes no prompts."""


def predict(config: PredictConfig, resolved: str) -> None:
    """Segment one new image by clicks, a box, or both."""
    prompt = parse_prompt(config.clicks, config.box, config.target)
    kind = _kind(config)
    overlay = config.output.with_name(_stem(config.output.name) + "_overlay.png")
    for path in (config.output, overlay) if config.overlay else (config.output,):
        if path.exists():
            raise UserError(f"output: {path} is there already; give another name")
    device = find_device(config.device)
    if device.type == "cpu":
        use_cores(1, config.threads)
    window = config.window or _default_window(config, kind)
    try:
        image, shape = _READERS[kind](config, window)
    except (Unreadable, NotAnImage) as error:
        raise UserError(f"input: {config.input}: {error}") from None
    check_inside(prompt, (image.shape[0], image.shape[1]))
    segmenter = load_model(config, device)
    mask = segment(PromptedImage(segmenter, image), prompt)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        whole = np.zeros(shape, np.uint8)
        whole[_chosen(config, len(whole))] = mask
        data = mask_to_nifti(whole, config.input, config.plane).to_bytes()
        if config.output.name.lower().endswith(".gz"):
            data = gzip.compress(data, mtime=0)
    else:
        data = encode_png(mask.astype(np.uint8) * 255)
    with atomic_path(config.output) as temporary:
        temporary.write_bytes(data)
    if config.overlay:
        draw_overlay(image, mask, overlay, prompt.points, prompt.labels, prompt.box)
    found = f"{config.output}: {int(mask.sum())} of {mask.size} pixels"
    print(f"{found}; see {overlay}" if config.overlay else found)


def segment(prompted: PromptedImage, prompt: Prompt) -> NDArray[np.bool_]:
    """The mask (H, W) of a prompt.

    Where the model was trained so, clicks are taken one after the other, the prediction after each
    being part of the next prompt; otherwise all at once.

    Raises:
        UserError: The model's decoder takes another kind of prompt.
    """
    takes_prompts = prompted.segmenter.decoder.takes_prompts
    if takes_prompts != (prompt.target is None):
        wanted = "clicks or a box" if takes_prompts else "a target (--target NAME)"
        raise UserError(f"this model's decoder takes {wanted}, and no other prompt")
    if prompt.target is not None:
        return prompted.predict(targets=[prompt.target])[0][0]
    count = len(prompt.points)
    boxes = None if prompt.box is None else prompt.box[None]
    step_by_step = prompted.segmenter.previous_mask and count
    previous = None
    mask = np.zeros((1, *prompted.resize.original), dtype=bool)
    for number in range(1, count + 1) if step_by_step else [count]:
        points, labels = prompt.points[None, :number], prompt.labels[None, :number]
        mask, logits = prompted.predict(
            points if count else None, labels if count else None, boxes, previous
        )
        previous = logits if step_by_step else None
    return mask[0]


def parse_prompt(clicks: str, box: str, target: str | None = None) -> Prompt:
    """Read `PredictConfig.clicks`, `PredictConfig.box` and `PredictConfig.target`.

    Raises:
        UserError: None is given, one is not in its form, or a target beside clicks or a box.
    """
    if target is not None and (clicks.strip() or box.strip()):
        raise UserError("target: is for models without prompts; leave out --clicks and --box")
    if target is None and not clicks.strip() and not box.strip():
        raise UserError('no prompt: give --clicks "x,y,1" or --box "x0,y0,x1,y1"')
    points, labels = [], []
    for click in clicks.split():
        x, y, label = _numbers(click, 3, "clicks", "x,y,label")
        if label not in (0, 1):
            raise UserError(f"clicks: {click!r} has the label {label:g}; it must be 1 or 0")
        points.append((x, y))
        labels.append(int(label))
    corners = np.array(_numbers(box.strip(), 4, "box", "x0,y0,x1,y1")) if box.strip() else None
    if corners is not None and (corners[:2] >= corners[2:]).any():
        raise UserError(f"box: {box!r} must have x0 < x1 and y0 < y1")
    coordinates = np.array(points, float).reshape(-1, 2)
    return Prompt(coordinates, np.array(labels, np.int64), corners, target)


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


def _default_window(config: PredictConfig, kind: str) -> Window:
    """As in the data that the model was trained on; for plain SAM, as `shard` does by default."""
    if config.run is not None:
        return trained_window(config.run)
    if kind != "picture":
        print("window: auto, the file's own or else percentiles; --window gives another")
    return "auto"


def _stem(name: str) -> str:
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else Path(name).stem


def _numbers(text: str, count: int, name: str, form: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise UserError(f"{name}: {text!r} is not of the form {form}")
    return values


def _kind(config: PredictConfig) -> str:
    """`nifti`, `dicom` or `picture`; input and output must exist and fit."""
    path, name = config.input, config.input.name.lower()
    if not path.is_file():
        raise UserError(f"input: {path} does not exist")
    wanted: tuple[str, ...] = (".png",)
    if name.endswith(NIFTI_SUFFIXES):
        kind, wanted = "nifti", NIFTI_SUFFIXES
    elif name.endswith(SUFFIXES):
        kind = "picture"
    elif is_dicom(path):
        kind = "dicom"
    else:
        raise UserError(
            f"input: {path} is not a DICOM file and its suffix is none of"
            f" {', '.join((*SUFFIXES, *NIFTI_SUFFIXES))}"
        )
    if not config.output.name.lower().endswith(wanted):
        raise UserError(f"output: {config.output} must end in {' or '.join(wanted)} for this input")
    if kind == "picture" and config.slice is not None:
        raise UserError(f"slice: {path} is a single picture; leave --slice out")
    return kind


def _read_picture(config: PredictConfig, window: Window) -> tuple[NDArray[Any], tuple[int, ...]]:
    picture = read_image(config.input, ReadOptions(window=window))
    return picture.array, picture.array.shape


def _read_dicom(config: PredictConfig, window: Window) -> tuple[NDArray[Any], tuple[int, ...]]:
    image, count = np.empty(0), 0
    for index, frame in enumerate(read_frames(read_header(config.input), 8, window)):
        count = index + 1
        if index == (config.slice or 0):  # the others are counted, not kept
            image = frame.image
    _chosen(config, count)
    return image, image.shape


def _read_nifti(config: PredictConfig, window: Window) -> tuple[NDArray[Any], tuple[int, ...]]:
    """One slice, windowed as the whole volume is, and the shape (D, H, W) of the volume."""
    volume = volume_from_nifti(config.input, config.plane, config.channel).array
    limits = intensity_limits(volume, window)
    return to_integers(volume[_chosen(config, len(volume))], limits, 8), volume.shape


def _chosen(config: PredictConfig, count: int) -> int:
    if config.slice is None and count == 1:
        return 0
    if config.slice is None or not 0 <= config.slice < count:
        raise UserError(f"slice: {config.input} has {count} slices; give --slice 0 to {count - 1}")
    return config.slice


_READERS = {"picture": _read_picture, "dicom": _read_dicom, "nifti": _read_nifti}
