"""Masks in your own Python code, as with segment_anything's `SamPredictor`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.options import Window
from finetune.config import ModelSource
from finetune.inference.arrays import (
    as_array,
    count_objects,
    names_of,
    prompts_by_slice,
    rough_masks,
)
from finetune.inference.files.base import Reading, SliceError
from finetune.inference.files.opening import open_image
from finetune.inference.loading import find_device, has_adapters, load_model, trained_on
from finetune.inference.objects import Prompt, check_inside
from finetune.inference.prompted import PromptedImage
from finetune.inference.segmenting import check_kinds, segment_several, segment_volume
from finetune.inference.uncertainty import Spread, entropy
from finetune.inference.volume import PromptedVolume
from finetune.model.prompt_encoder import MASK_STRIDE
from finetune.model.segmenter import Segmenter


class Predictor:
    """A trained model that segments images by prompts.

    An image is encoded once, by `set_image`; each `predict` takes milliseconds after that. All
    coordinates are pixels (x, y) of the image, from 0 at the top left.

    Args:
        run_or_hub: Run folder of finetune/train.py, or `hf:org/name` of a published one.
        device: `cpu`, `cuda`, `mps`, or `auto`: a GPU if there is one.
        encoder: Where the image encoder that the run was trained on lies now, for a run that does
            not keep it.
        sam: The same of the SAM checkpoint.
        checkpoint: Of a run that was validated: the checkpoint that did best, or the last one.

    Attributes:
        segmenter: The model, in evaluation mode.
        window: How `set_image` windows the intensities of medical images: as those that the model
            was trained on.

    Raises:
        UserError: It cannot be loaded.
    """

    def __init__(
        self,
        run_or_hub: str | Path,
        device: str = "auto",
        *,
        encoder: str | None = None,
        sam: str | None = None,
        checkpoint: Literal["best", "last"] = "best",
    ) -> None:
        run = str(run_or_hub)
        source = ModelSource(run=run, encoder=encoder, sam=sam, checkpoint=checkpoint)
        self._start(source, device, trained_on(run).window)

    @classmethod
    def from_sam(
        cls,
        sam: str | Path,
        device: str = "auto",
        *,
        encoder: str | None = None,
        image_size: int | None = None,
    ) -> "Predictor":
        """SAM as it is, without adapters.

        Args:
            sam: SAM checkpoint.
            encoder: Image encoder to use instead of its own: a stage-one run, an encoder file, or
                `hf:org/name` on the Hub.
            image_size: Side of the square input in pixels, a multiple of 16. None: that of the
                encoder's training, 1024 for SAM's own.

        Raises:
            UserError: It cannot be loaded.
        """
        predictor = cls.__new__(cls)
        source = ModelSource(sam=str(sam), encoder=encoder, image_size=image_size)
        predictor._start(source, device, "auto")
        return predictor

    def _start(self, source: ModelSource, device: str, window: Window) -> None:
        self.segmenter: Segmenter = load_model(source, find_device(device))
        self.window = window
        self._pixels: NDArray[Any] | None = None
        self._prompted: PromptedImage | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of what the model was trained to segment."""
        return self.segmenter.targets

    def set_image(self, image: NDArray[Any] | str | Path) -> None:
        """Encode an image, which the following prompts are for.

        Args:
            image: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, in which white is the largest
                value; or the path of a picture or of a DICOM image.

        Raises:
            UserError: Another shape or type, or a file that cannot be read or has several slices.
        """
        if isinstance(image, np.ndarray):
            pixels = image
        else:
            slices = f"{image}: holds slices; give one, or all to predict_volume, as an array"
            try:
                file = open_image(Path(image), Reading(self.window))
            except SliceError:
                raise UserError(slices) from None
            if file.is_volume:
                raise UserError(slices)
            pixels = file.read(0)
        self._prompted, self._pixels = PromptedImage(self.segmenter, pixels), pixels

    def predict(
        self,
        clicks: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: NDArray[Any] | None = None,
        text: str | Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
        """The masks of one object, or of M, each by a prompt of the same kinds.

        All clicks are one prompt. Where the model was trained so, a single click or a box is
        answered by the one of several masks of which the model expects most.

        Args:
            clicks: (n, 3) or (M, n, 3): x, y, and 1 on the object or 0 on the background.
            box: (4,) or (M, 4): x0, y0, x1, y1, its left, upper, right and lower edge. The pixel in
                column x covers x to x + 1.
            mask: Rough masks (H, W) or (M, H, W), bool or integers that are not 0 on the object; or
                the logits of an earlier call, (S / 4, S / 4) or (M, S / 4, S / 4) float.
            text: What is wanted in words, one text or M, for a model that was trained with texts.
            target: One or M names, for a decoder that takes no prompts; None: all of `targets`.

        Returns:
            Masks (M, H, W); the IoU (M,) that the model expects of each, NaN where it expects none;
            and logits (M, S / 4, S / 4), to be given as `mask`. M is 1 for one object.

        Raises:
            UserError: No image is set, no prompt is given, or one that the model does not take or
                that does not fit.
        """
        prompted = self._image()
        size = prompted.resize.original
        array = None if clicks is None else as_array(clicks, 3, 3, "clicks")  # (M, n, 3)
        points = None if array is None else array[..., :2]
        labels = None if array is None else array[..., 2].astype(np.int64)
        boxes = None if box is None else as_array(box, 2, 4, "box")
        names = names_of(target)
        previous = None if mask is None else self._logits(mask, prompted)
        texts = names_of(text)
        others = [points, boxes, previous, texts]
        if names is None and all(each is None for each in others):
            names = self._all_targets()
        count = count_objects([names, *others])
        check_kinds(self.segmenter, names is not None, previous is not None, texts is not None)
        if names is not None and any(each is not None for each in others):
            raise UserError("target: is for models without prompts; give it alone")
        for number in range(count):
            here = Prompt() if points is None else Prompt(points[number])
            check_inside(replace(here, box=None if boxes is None else boxes[number]), size)
        decoded = prompted.decode(points, labels, boxes, previous, names, texts)
        scores = np.full(count, np.nan, np.float32)
        if decoded.iou is not None:
            scores = _numpy(decoded.iou[:, 0])
        return prompted.masks_of(decoded.low_res), scores, _numpy(decoded.low_res[:, 0])

    def predict_uncertain(
        self,
        box: ArrayLike,
        clicks: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        *,
        draws: int = 10,
        jitter: float = 0.1,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
        """The masks of one object, or of M, with how sure the model is of each pixel.

        The box is redrawn several times, each time slightly differently, and the predictions are
        averaged (SAM-U, Deng et al. 2023, arXiv 2307.04973). Clicks are taken one after the
        other, as by the command `predict --uncertainty`.

        Args:
            box: As in `predict`.
            clicks: As in `predict`.
            text: As in `predict`.
            draws: How many boxes are drawn for each object; the same ones in every call.
            jitter: Standard deviation of a box's edges as a share of its side, see `jitter_box`.

        Returns:
            Masks (M, H, W), where the mean probability is above one half; that probability
            (M, H, W), 0 to 1; and its entropy (M, H, W) in bits, 0 to 1, the uncertainty.

        Raises:
            UserError: See `predict`.
        """
        prompted, spread = self._image(), Spread(draws, jitter)
        points = None if clicks is None else as_array(clicks, 3, 3, "clicks")
        boxes, texts = as_array(box, 2, 4, "box"), names_of(text)
        count = count_objects([boxes, points, texts])
        check_kinds(self.segmenter, target=False, mask=False, text=texts is not None)
        answers = []
        for number in range(count):
            prompt = Prompt(box=boxes[number], text=texts[number] if texts else None)
            if points is not None:
                places, labels = points[number, :, :2], points[number, :, 2].astype(np.int64)
                prompt = replace(prompt, points=places, labels=labels)
            check_inside(prompt, prompted.resize.original)
            answers.append(segment_several(prompted, prompt, spread, np.random.default_rng(0)))
        masks = np.stack([each.mask for each in answers])
        probability = np.stack([np.asarray(each.probability, np.float32) for each in answers])
        return masks, probability, entropy(probability)

    def predict_volume(
        self,
        volume: NDArray[Any],
        clicks: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: NDArray[Any] | None = None,
        text: str | Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
    ) -> NDArray[np.bool_]:
        """The masks of one object, or of M, in a volume that is prompted in some of its slices.

        To each other slice the mask is carried from the nearest prompted one, slice by slice until
        nothing is left of it. In a slice, clicks are taken one after the other, as in training.
        A decoder without prompts sees every slice. Slices are encoded when they are needed, and at
        most 1 GB of their embeddings is kept.

        Args:
            volume: (D, H, W) grey or (D, H, W, 3) RGB, uint8 or uint16; also a memory map.
            clicks: (n, 4) or (M, n, 4): x, y, slice, and 1 on the object or 0 on the background.
            box: (5,), (k, 5) in k slices, or (M, k, 5): x0, y0, x1, y1, slice.
            mask: Rough masks (D, H, W) or (M, D, H, W); a prompt in each slice that they mark.
            text: One text or M, as in `predict`; alone it is for every slice.
            target: One or M names, for a decoder that takes no prompts; None: all of `targets`.

        Returns:
            (M, D, H, W); M is 1 for one object.

        Raises:
            UserError: See `predict`; also a slice that is not there.
        """
        if volume.ndim not in (3, 4):
            raise UserError(
                f"a volume has shape {volume.shape}; expected (D, H, W) or (D, H, W, 3)"
            )
        if all(each is None for each in (clicks, box, mask, text, target)):
            target = self._all_targets()
        objects = prompts_by_slice(volume.shape[:3], clicks, box, mask, target, text)
        check_kinds(self.segmenter, target is not None, mask is not None, text is not None)
        slices = PromptedVolume(self.segmenter, len(volume), lambda depth: np.array(volume[depth]))
        found = np.zeros((len(objects), *volume.shape[:3]), dtype=bool)
        carry = not (clicks is None and box is None and mask is None)
        for number, prompts in enumerate(objects):
            for depth, answer in segment_volume(slices, prompts, carry=carry):
                found[number, depth] = answer.mask
        return found

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Leave the adapters out inside the `with` block; an image that is set is encoded anew.

        Raises:
            UserError: The model has none.
        """
        if not has_adapters(self.segmenter):
            raise UserError("this model has no adapters")
        try:
            with self.segmenter.without_adapters():
                self._encode()
                yield
        finally:
            self._encode()

    def _all_targets(self) -> list[str] | None:
        """Their names where the decoder takes no prompts, so that none need be given."""
        return None if self.segmenter.decoder.takes_prompts else list(self.targets)

    def _image(self) -> PromptedImage:
        if self._prompted is None:
            raise UserError("no image is set: call set_image first")
        return self._prompted

    def _encode(self) -> None:
        if self._pixels is not None:
            self._prompted = PromptedImage(self.segmenter, self._pixels)

    def _logits(self, mask: NDArray[Any], prompted: PromptedImage) -> Tensor:
        """Rough masks, or logits of an earlier call, as the decoder takes them."""
        if mask.dtype.kind == "f":
            masks = mask[None] if mask.ndim == 2 else mask
            side = self.segmenter.image_size // MASK_STRIDE
            if masks.ndim != 3 or masks.shape[1:] != (side, side):
                raise UserError(
                    f"mask: logits of shape {mask.shape}; expected ({side}, {side}) or"
                    f" (M, {side}, {side}). A rough mask is bool or integers"
                )
            return torch.from_numpy(masks[:, None].astype(np.float32)).to(prompted.device)
        return prompted.mask_prompts(rough_masks(mask, prompted.resize.original))


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
