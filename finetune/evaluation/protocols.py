"""The ways in which a simulated user prompts for an object in evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.inference.prompted import Answer, PromptedImage
from finetune.prompts.boxes import boxes_of, jitter_box


class Protocol(ABC):
    """A simulated user."""

    gives_prompts: ClassVar[bool] = True
    """Whether it gives clicks, boxes and the like: False for decoders that take none."""

    @property
    def clicks(self) -> dict[str, int]:
        """Number of clicks behind each row that counts clicks, by the row's name."""
        return {}

    @abstractmethod
    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """What the model makes of this user's prompts for M objects.

        Args:
            prompted: The image, encoded.
            truths: (M, H, W) objects, none empty.
            targets: What each object is.
            rng: Source of all randomness.

        Returns:
            M answers by the name of their row in tables.
        """


@dataclass(frozen=True)
class Clicks(Protocol):
    """Clicks one after the other, each at the largest error of the last prediction."""

    numbers: tuple[int, ...] = (1, 3, 5, 10)
    """Numbers of clicks after which the prediction is scored."""

    def __post_init__(self) -> None:
        if not self.numbers or min(self.numbers) < 1:
            raise UserError(f"protocols: Clicks.numbers {list(self.numbers)} must be at least 1")

    @property
    def clicks(self) -> dict[str, int]:
        """One row for each number."""
        return {_clicks(number): number for number in sorted(self.numbers)}

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """The answers after each number of clicks, or after the last one that was needed."""
        steps = prompted.click_by_click(truths, max(self.numbers))
        return {
            _clicks(number): [taken[min(number, len(taken)) - 1] for taken in steps]
            for number in self.numbers
        }


@dataclass(frozen=True)
class Box(Protocol):
    """The exact box of the object."""

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row."""
        return {"box": _from_boxes(prompted, boxes_of(truths))}


@dataclass(frozen=True)
class JitteredBox(Protocol):
    """A box drawn inexactly."""

    ratio: float = 0.1
    """Standard deviation of the box's edges as a share of its side."""

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row."""
        size = truths.shape[1:]
        boxes = [jitter_box(box, rng, size, self.ratio) for box in boxes_of(truths)]
        return {"jittered box": _from_boxes(prompted, np.stack(boxes))}


@dataclass(frozen=True)
class TargetOnly(Protocol):
    """No prompt but the name of the target, for decoders that take no others."""

    gives_prompts = False

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row."""
        masks, _ = prompted.predict(targets=targets)
        return {"no prompt": [Answer(mask) for mask in masks]}


def _clicks(number: int) -> str:
    return "1 click" if number == 1 else f"{number} clicks"


def _from_boxes(prompted: PromptedImage, boxes: NDArray[np.float64]) -> list[Answer]:
    masks, _ = prompted.predict(boxes=boxes)
    return [Answer(mask, box=box) for mask, box in zip(masks, boxes, strict=True)]
