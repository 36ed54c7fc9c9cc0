"""The ways in which a simulated user prompts for an object in evaluation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.evaluation.tables import ABSENT, FILLED_BOX, IN_ONE_SLICE, PER_SLICE
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.volume import PromptedVolume, propagate
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import boxes_of, jitter_box

NO_PROMPT = "no prompt"
"""Name of the row for decoders that see every image and are told nothing."""


class VolumeAnswer(NamedTuple):
    """What the model made of a volume."""

    mask: NDArray[np.bool_]
    """(D, H, W) prediction."""
    prompts: int
    """How many clicks and boxes were given."""
    seconds: float = math.nan
    """Time of the decoder for this answer; NaN: as long as all answers together."""


class Protocol(ABC):
    """A simulated user.

    Volumes are prompted slice by slice, in the slices that hold the target: only who knows the
    truth can do that, so these rows are named `per slice`. A protocol without prompts, or with one
    for all slices, sees all slices. One that prompts a volume otherwise has `volume_answers`.
    """

    gives_prompts: ClassVar[bool] = True
    """Whether it gives clicks, boxes and the like: False for decoders that take none."""
    every_slice: ClassVar[bool] = False
    """Whether one prompt is for a whole volume, all slices of which are asked for it."""

    def begin(self, segmenter: Segmenter, targets: Sequence[str]) -> None:
        """See that it can ask a model for these targets, before any case is judged.

        Raises:
            UserError: It cannot.
        """
        return

    @property
    def asks_for_absent(self) -> bool:
        """Whether it also asks for what a case does not hold, by `absent_answers`."""
        return False

    @property
    def asks_for_all(self) -> bool:
        """Whether it also asks for all targets of a case at once, by `answers_for_all`."""
        return False

    @property
    def clicks(self) -> dict[str, int]:
        """Number of clicks behind each row that counts clicks, by the row's name."""
        return {}

    def each_click(self) -> "Protocol":
        """The same user, with a row after every click instead of some; itself if it has no such
        rows."""
        return self

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
            truths: (M, H, W) objects, none empty, except in slices where all are asked for.
            targets: What each object is.
            rng: Source of all randomness.

        Returns:
            M answers by the name of their row in tables.
        """

    def absent_answers(
        self, prompted: PromptedImage, targets: Sequence[str], rng: np.random.Generator
    ) -> dict[str, list[Answer]]:
        """What the model makes of prompts for targets that the case does not hold.

        Returns:
            Answers by the name of their row in tables, which ends in `ABSENT`.
        """
        return {}

    def answers_for_all(
        self, prompted: PromptedImage, targets: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Answer]:
        """What the model makes of one prompt for all targets of a case that holds several.

        Returns:
            An answer by the name of its row in tables, whose truth is the union of the targets.
        """
        return {}

    def volume_answers(
        self,
        volume: PromptedVolume,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[VolumeAnswer]]:
        """What the model makes of a volume as a whole; nothing but for protocols about volumes.

        Args:
            volume: The slices.
            truths: (M, D, H, W) objects, none empty.
            targets: What each object is.
            rng: Source of all randomness.

        Returns:
            M answers by the name of their row in tables.
        """
        return {}


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
        numbers = {_clicks(number): number for number in sorted(self.numbers)}
        return numbers | {name + PER_SLICE: number for name, number in numbers.items()}

    def each_click(self) -> Protocol:
        """A row after 1, 2 and so on clicks."""
        return replace(self, numbers=tuple(range(1, max(self.numbers) + 1)))

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
    """The exact box of the object; beside it what the box itself is worth as a mask."""

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """Two rows."""
        boxes = boxes_of(truths)
        filled = [Answer(_filled(box, truths.shape[1:]), box=box, seconds=0) for box in boxes]
        return {"box": _from_boxes(prompted, boxes), FILLED_BOX: filled}


@dataclass(frozen=True)
class JitteredBox(Protocol):
    """A box drawn inexactly."""

    ratio: float = 0.1
    """Standard deviation of the box's edges as a share of its side (SAM: 0.1, by at most 20 pixels
    of 1024; the bound grows in proportion)."""

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

    absent: bool = True
    """Ask for the targets that a case does not hold, too: the answer should be empty."""

    gives_prompts = False

    @property
    def asks_for_absent(self) -> bool:
        """As its option says."""
        return self.absent

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row."""
        return {NO_PROMPT: _named(prompted, targets)}

    def absent_answers(
        self, prompted: PromptedImage, targets: Sequence[str], rng: np.random.Generator
    ) -> dict[str, list[Answer]]:
        """One row."""
        return {NO_PROMPT + ABSENT: _named(prompted, targets)}


@dataclass(frozen=True)
class Propagated(Protocol):
    """Prompts in one slice of a volume, that in which the object is largest, carried through it."""

    numbers: tuple[int, ...] = (1, 3)
    """Numbers of clicks after which the prediction in that slice is carried on."""
    box: bool = True
    """Carry on what is predicted for the exact box of the object, too."""

    def __post_init__(self) -> None:
        if not (self.numbers or self.box) or min(self.numbers, default=1) < 1:
            raise UserError(
                f"protocols: Propagated.numbers {list(self.numbers)} must be at least 1"
            )

    @property
    def clicks(self) -> dict[str, int]:
        """One row for each number."""
        return {_clicks(number) + IN_ONE_SLICE: number for number in sorted(self.numbers)}

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """Nothing: an image has no slices to carry a mask to."""
        return {}

    def volume_answers(
        self,
        volume: PromptedVolume,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[VolumeAnswer]]:
        """One row for each number of clicks, and one for the box."""
        found: dict[str, list[VolumeAnswer]] = {}
        for truth in truths:
            start = int(truth.sum((1, 2)).argmax())
            prompted, largest = volume[start], truth[None, start]
            starts = {}
            if self.numbers:
                (steps,) = prompted.click_by_click(largest, max(self.numbers))
                for number in self.numbers:
                    starts[_clicks(number)] = steps[min(number, len(steps)) - 1]
            if self.box:
                (starts["box"],) = _from_boxes(prompted, boxes_of(largest))
            for name, answer in starts.items():
                assert answer.logits is not None
                before = volume.clock.seconds
                mask = propagate(volume, start, answer.mask, answer.logits)
                seconds = answer.seconds + volume.clock.seconds - before
                row = found.setdefault(name + IN_ONE_SLICE, [])
                row.append(VolumeAnswer(mask, answer.prompts, seconds))
        return found


def _clicks(number: int) -> str:
    return "1 click" if number == 1 else f"{number} clicks"


def _named(prompted: PromptedImage, targets: Sequence[str]) -> list[Answer]:
    masks, logits = prompted.predict(targets=targets)
    return [Answer(mask, logits=logits[place : place + 1]) for place, mask in enumerate(masks)]


def _from_boxes(prompted: PromptedImage, boxes: NDArray[np.float64]) -> list[Answer]:
    before = prompted.clock.seconds
    masks, logits = prompted.predict(boxes=boxes)
    seconds = prompted.clock.seconds - before
    return [
        Answer(mask, box=box, logits=logits[place : place + 1], seconds=seconds)
        for place, (mask, box) in enumerate(zip(masks, boxes, strict=True))
    ]


def _filled(box: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of the pixels whose centres lie in a box."""
    y, x = (axis + 0.5 for axis in np.ogrid[: size[0], : size[1]])
    x0, y0, x1, y1 = box
    inside: NDArray[np.bool_] = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    return inside
