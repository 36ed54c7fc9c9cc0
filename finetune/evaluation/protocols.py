"""The ways in which a simulated user prompts for an object in evaluation."""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.prompted import PromptedImage
from finetune.prompts.boxes import box_of, jitter_box

BOX = "box"
JITTERED_BOX = "jittered box"


@dataclass(frozen=True, kw_only=True)
class Protocols:
    """How the model is prompted and scored."""

    clicks: tuple[int, ...] = (1, 3, 5, 10)
    """Numbers of clicks after which the prediction is scored."""
    box: bool = True
    """Whether to prompt with the box of the truth."""
    jittered_box: bool = True
    """Whether to prompt with a box drawn inexactly."""
    tolerance: float = 1.0
    """Distance within which surfaces agree for the NSD: mm, or pixels where spacing is unknown."""
    seed: int = 0
    """Seed of the jittered boxes, the bootstrap and the choice of few cases."""

    def __post_init__(self) -> None:
        if any(number < 1 for number in self.clicks):
            raise UserError(f"protocols.clicks: {list(self.clicks)} must all be at least 1")
        if not (self.clicks or self.box or self.jittered_box):
            raise UserError("protocols: no prompt is left; give clicks, box or jittered_box")
        if self.tolerance < 0:
            raise UserError(f"protocols.tolerance is {self.tolerance}; it must not be negative")


def click_protocol(number: int) -> str:
    """Name of the protocol with so many clicks."""
    return "1 click" if number == 1 else f"{number} clicks"


def predict_protocols(
    prompted: PromptedImage,
    truths: NDArray[np.bool_],
    protocols: Protocols,
    key: str,
    previous_mask: bool = True,
) -> dict[str, NDArray[np.bool_]]:
    """Predictions of the objects `truths` (M, H, W) of an image, (M, H, W) for each protocol.

    Args:
        key: of the image; decides, with the seed, how boxes are jittered.
    """
    predictions = {}
    if protocols.clicks:
        steps = prompted.click_by_click(truths, max(protocols.clicks), previous_mask)
        for number in protocols.clicks:
            predictions[click_protocol(number)] = np.stack(
                [own[min(number, len(own)) - 1].prediction for own in steps]
            )
    boxes = np.stack([box_of(truth) for truth in truths])
    if protocols.box:
        predictions[BOX] = prompted.predict(boxes=boxes)[0]
    if protocols.jittered_box:
        rng = np.random.default_rng([protocols.seed, zlib.crc32(key.encode())])
        jittered = np.stack([jitter_box(box, rng, truths.shape[1:]) for box in boxes])
        predictions[JITTERED_BOX] = prompted.predict(boxes=jittered)[0]
    return predictions
