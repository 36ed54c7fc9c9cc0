"""One image, encoded once, segmented by prompts given in its own pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from finetune.data.cases import normalise_stored
from finetune.data.geometry import Resize
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from finetune.prompts.clicks import evaluation_click


@dataclass(frozen=True)
class ClickStep:
    """What was clicked so far, and what the model made of it."""

    points: NDArray[np.int64]
    """(n, 2) clicks (x, y) in pixels of the image."""
    labels: NDArray[np.int64]
    """(n,) 1 on the object, 0 on the background."""
    prediction: NDArray[np.bool_]
    """(H, W), after these clicks."""


class PromptedImage:
    """An image and its embedding.

    Args:
        segmenter: in evaluation mode.
        image: (H, W) or (H, W, 3), uint8 or uint16, white is the dtype's maximum.
    """

    @torch.inference_mode()
    def __init__(self, segmenter: Segmenter, image: NDArray[Any]) -> None:
        self.segmenter = segmenter
        self.device = next(segmenter.parameters()).device
        self.resize = Resize((image.shape[0], image.shape[1]), segmenter.image_size)
        pixels = self.resize.image(normalise_stored(image))
        self.embedding = segmenter.encode(pixels[None].to(self.device))

    @torch.inference_mode()
    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        previous: Tensor | None = None,
    ) -> tuple[NDArray[np.bool_], Tensor]:
        """The masks of M objects, each from its own prompt, in one pass of the decoder.

        Args:
            points: (M, n, 2) clicks (x, y) in pixels of the image.
            labels: (M, n) 1 or 0, for the points.
            boxes: (M, 4) x0, y0, x1, y1 in pixels of the image.
            previous: (M, 1, S / 4, S / 4) logits returned by an earlier call.

        Returns:
            (M, H, W) bool masks, and logits to be given as `previous`.
        """
        frame_points = None if points is None else torch.from_numpy(self.resize.points(points))
        frame_boxes = None if boxes is None else torch.from_numpy(self.resize.boxes(boxes))
        given = frame_points if frame_points is not None else frame_boxes
        if given is None:
            raise ValueError("no prompt: give points or boxes")
        prompts = Prompts(
            image=torch.zeros(len(given), dtype=torch.int64),
            points=frame_points,
            labels=None if labels is None else torch.as_tensor(np.asarray(labels)),
            boxes=frame_boxes,
            masks=previous,
        )
        low_res = self.segmenter.decode(self.embedding, prompts.to(self.device)).low_res
        return (self.resize.restore(low_res[:, 0]) > 0).cpu().numpy(), low_res

    def click_by_click(
        self, targets: NDArray[np.bool_], clicks: int, previous_mask: bool = True
    ) -> list[list[ClickStep]]:
        """Segment objects by correcting clicks, as `evaluation_click` places them.

        The first click falls on the object; each further one corrects the last prediction, in
        pixels of the image. All objects still wrong take their clicks in one pass of the decoder.

        Args:
            targets: (M, H, W) the objects, none empty.
            clicks: number of clicks.
            previous_mask: the logits of the last prediction are part of the next prompt.

        Returns:
            For each object its steps, after 1, 2, ... clicks; fewer than `clicks` where nothing was
            left to correct.
        """
        steps: list[list[ClickStep]] = [[] for _ in targets]
        predictions = np.zeros_like(targets)
        points: list[list[NDArray[np.int64]]] = [[] for _ in targets]
        labels: list[list[int]] = [[] for _ in targets]
        active = list(range(len(targets)))
        low_res: Tensor | None = None  # of the active objects
        for _ in range(clicks):
            wrong = []  # positions in `active`
            for place, number in enumerate(active):
                clicked = np.array(points[number], np.int64).reshape(-1, 2)
                click = evaluation_click(predictions[number], targets[number], clicked)
                if click is not None:
                    points[number].append(click[0])
                    labels[number].append(click[1])
                    wrong.append(place)
            if not wrong:
                break
            active = [active[place] for place in wrong]
            previous = low_res[wrong] if previous_mask and low_res is not None else None
            masks, low_res = self.predict(
                np.array([points[number] for number in active]),
                np.array([labels[number] for number in active]),
                previous=previous,
            )
            for number, mask in zip(active, masks, strict=True):
                predictions[number] = mask
                steps[number].append(
                    ClickStep(np.array(points[number]), np.array(labels[number]), mask)
                )
        return steps
