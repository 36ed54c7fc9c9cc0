"""One image, encoded once, segmented by prompts given in its pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from finetune.inference.clock import Clock
from finetune.model.decoder import ALWAYS, Decoded
from finetune.model.prompt_encoder import Prompts, mask_logits
from finetune.model.segmenter import Segmenter
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels, normalise_pixels


@dataclass(frozen=True)
class Answer:
    """Some prompts for one object, and what the model made of them."""

    mask: NDArray[np.bool_]
    """(H, W) prediction."""
    points: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """(n, 2) clicks (x, y) in pixels of the image."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) 1 on the object, 0 on the background."""
    box: NDArray[np.float64] | None = None
    """(4,) x0, y0, x1, y1 in the image, see `finetune.prompts.boxes`."""
    logits: Tensor | None = None
    """(1, 1, S / 4, S / 4) of the prediction, to be given as `previous`."""
    others: int = 0
    """How many texts and masks were given."""
    seconds: float = math.nan
    """Time of the decoder for this answer and those to the other objects that were asked for in the
    same passes; NaN: not measured."""
    probability: NDArray[np.float32] | None = None
    """(H, W) of the object at each pixel, where it was asked for."""

    @property
    def prompts(self) -> int:
        """How many prompts were given."""
        return len(self.labels) + (self.box is not None) + self.others


class PromptedImage:
    """An image and its embedding.

    Args:
        segmenter: The model, in evaluation mode.
        image: (H, W) or (H, W, 3), uint8 or uint16, white is the dtype's maximum.
        embedding: (1, 256, S / 16, S / 16), where it is known already.

    Attributes:
        clock: Counts the seconds of `predict`, and of `segment_several`.

    Raises:
        UserError: The image has another shape or type.
    """

    @torch.inference_mode()
    def __init__(
        self, segmenter: Segmenter, image: NDArray[Any], embedding: Tensor | None = None
    ) -> None:
        self.segmenter = segmenter
        self.device = next(segmenter.parameters()).device
        self.clock = Clock(self.device)
        if embedding is None:
            embedding = segmenter.encode(frame(image, segmenter.image_size, self.device))
        self.embedding = embedding
        self.resize = Resize((image.shape[0], image.shape[1]), segmenter.image_size)

    @torch.inference_mode()
    def decode(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        previous: Tensor | None = None,
        targets: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Decoded:
        """The logits of M objects, each from one prompt, in one pass of the decoder.

        Args:
            points: (M, n, 2) clicks (x, y) in pixels of the image.
            labels: (M, n) 1 or 0, for the points.
            boxes: (M, 4) x0, y0, x1, y1 in the image, corners as in `finetune.prompts.boxes`.
            previous: (M, 1, S / 4, S / 4) logits returned by an earlier call, or of rough masks.
            targets: Names of M targets, for a decoder that takes no prompts.
            texts: M texts, each saying what is asked for, for a model that takes them.

        Returns:
            One mask for each. Of several for one click, box or text, the one is taken of which the
            model expects most.

        Raises:
            UserError: A target that the model does not know, or a text, and it takes none.
        """
        frame_points = None if points is None else torch.from_numpy(self.resize.points(points))
        frame_boxes = None if boxes is None else torch.from_numpy(self.resize.boxes(boxes))
        indices = None if targets is None else self._indices(targets)
        kinds = (frame_points, frame_boxes, indices, texts, previous)
        given = [prompt for prompt in kinds if prompt is not None]
        if not given:
            raise ValueError("no prompt: give points, boxes, a mask, texts or targets")
        prompts = Prompts(
            image=torch.zeros(len(given[0]), dtype=torch.int64),
            points=frame_points,
            labels=None if labels is None else torch.as_tensor(np.asarray(labels)),
            boxes=frame_boxes,
            masks=previous,
            target=indices,
            texts=texts,
        )
        first = previous is None and prompts.is_ambiguous()
        by_text = texts is not None
        several = self.segmenter.text_multimask if by_text else self.segmenter.multimask
        multimask = several == ALWAYS or (first and bool(several))
        decoded = self.segmenter.decode(self.embedding, prompts.to(self.device), multimask)
        return decoded.picked()

    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        previous: Tensor | None = None,
        targets: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> tuple[NDArray[np.bool_], Tensor]:
        """The masks (M, H, W) of M objects, and their logits to be given as `previous`.

        Arguments and errors are those of `decode`.
        """
        with self.clock.running():
            low_res = self.decode(points, labels, boxes, previous, targets, texts).low_res
            return self.masks_of(low_res), low_res

    def masks_of(self, low_res: Tensor) -> NDArray[np.bool_]:
        """Logits (M, 1, S / 4, S / 4) to masks (M, H, W) at the size of the image."""
        # one after the other: at the size of a large image each takes 4 bytes per pixel
        return np.stack([(self.resize.restore(each) > 0).cpu().numpy() for each in low_res[:, 0]])

    def averaged(self, low_res: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """The mean of n predictions (n, 1, S / 4, S / 4) of one object.

        Returns:
            The mask (H, W), where the mean probability is above one half, and that mean (H, W). The
            mask of a single prediction is that of `masks_of`.
        """
        total = torch.zeros(self.resize.original, device=low_res.device)
        for each in low_res[:, 0]:
            # 2 sigmoid(x) - 1, which unlike the sigmoid keeps the sign of the smallest logits
            total += torch.tanh(self.resize.restore(each.float()) / 2)
        probability = 0.5 + total / (2 * len(low_res))
        return (total > 0).cpu().numpy(), probability.cpu().numpy()

    def mask_prompts(self, masks: NDArray[np.bool_]) -> Tensor:
        """Rough masks (M, H, W) as logits (M, 1, S / 4, S / 4), to be given as `previous`."""
        return mask_logits(self.resize.image(torch.from_numpy(masks).float())).to(self.device)

    def _indices(self, targets: Sequence[str]) -> Tensor:
        known = list(self.segmenter.targets)
        if unknown := [name for name in targets if name not in known]:
            raise UserError(
                f"the model was not trained on target {unknown[0]!r}{nearest(unknown[0], known)};"
                f" it knows {', '.join(known)}"
            )
        return torch.tensor([known.index(name) for name in targets])

    def click_by_click(
        self, objects: NDArray[np.bool_], clicks: int, texts: Sequence[str] | None = None
    ) -> list[list[Answer]]:
        """Simulate a user who corrects the segmentation of M objects at their largest error.

        The first click falls on the object; each further one corrects the last prediction, in
        pixels of the image. All objects still wrong take their clicks in one pass of the decoder.

        Args:
            objects: (M, H, W), none empty.
            clicks: Number of clicks.
            texts: M texts, which are the first prompt and stay with the clicks.

        Returns:
            For each object the answers after 1, 2, ... clicks, with texts after 0, 1, ...; fewer
            than `clicks` where nothing was left to correct.
        """
        # of simulated users, with OpenCV: whoever gives prompts need not wait for it
        from finetune.prompts.clicks import evaluation_click

        answers: list[list[Answer]] = [[] for _ in objects]
        predictions = np.zeros_like(objects)
        points: list[list[NDArray[np.int64]]] = [[] for _ in objects]
        labels: list[list[int]] = [[] for _ in objects]
        active = list(range(len(objects)))
        low_res: Tensor | None = None  # of the active objects
        start = self.clock.seconds
        if texts is not None:
            masks, low_res = self.predict(texts=texts)
            seconds = self.clock.seconds - start
            answers = [
                [Answer(mask, logits=low_res[place : place + 1], others=1, seconds=seconds)]
                for place, mask in enumerate(masks)
            ]
            predictions = masks.copy()
        for _ in range(clicks):
            wrong = []  # positions in `active`
            for position, index in enumerate(active):
                clicked = np.array(points[index], np.int64).reshape(-1, 2)
                click = evaluation_click(predictions[index], objects[index], clicked)
                if click is not None:
                    points[index].append(click[0])
                    labels[index].append(click[1])
                    wrong.append(position)
            if not wrong:
                break
            active = [active[position] for position in wrong]
            known = low_res[wrong] if self.segmenter.previous_mask and low_res is not None else None
            masks, low_res = self.predict(
                np.array([points[index] for index in active]),
                np.array([labels[index] for index in active]),
                previous=known,
                texts=None if texts is None else [texts[index] for index in active],
            )
            for place, (index, mask) in enumerate(zip(active, masks, strict=True)):
                predictions[index] = mask
                clicks_given = np.array(points[index]), np.array(labels[index])
                answers[index].append(
                    Answer(
                        mask,
                        *clicks_given,
                        logits=low_res[place : place + 1],
                        others=int(texts is not None),
                        seconds=self.clock.seconds - start,
                    )
                )
        return answers


def frame(image: NDArray[Any], size: int, device: torch.device) -> Tensor:
    """An image as the encoder takes it, (1, 3, size, size).

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        UserError: It has another shape or type.
    """
    stored = as_pixels(image)  # (C, H, W)
    resize = Resize((image.shape[0], image.shape[1]), size)
    pixels, valid = resize.image(stored)[None].to(device), resize.valid()[None].to(device)
    return normalise_pixels(pixels, valid)
