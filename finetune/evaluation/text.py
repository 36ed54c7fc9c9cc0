"""A simulated user who says what to segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.evaluation.protocols import Clicks, Protocol
from finetune.evaluation.tables import ABSENT, NAMES_ALL, PER_SLICE
from finetune.inference.prompted import Answer, PromptedImage
from finetune.model.segmenter import NO_TEXTS, Segmenter
from finetune.prompts.text_bank import TextBank

TEXT = "text"
WORDING = ", held-out wording"
"""Added to the names of rows for wordings that a file keeps from training."""
FOR_ALL = TEXT + NAMES_ALL


def require_texts(
    segmenter: Segmenter, bank: TextBank, targets: Sequence[str], held_out: bool = False
) -> None:
    """Refuse a model that takes no texts, and targets that have none.

    Args:
        held_out: Whether wordings that are kept from training are asked for, too.

    Raises:
        UserError: Says which.
    """
    if segmenter.text_encoder is None:
        raise UserError(f"protocols: {NO_TEXTS}")
    bank.check(targets)
    for target in targets if held_out else ():
        if not bank.texts(target, held_out=True):
            raise UserError(
                f"{bank.path}: has no held-out text for {target}; add some, or give Text"
                " {held_out: false}"
            )


@dataclass(frozen=True)
class Text(Protocol):
    """One text for each target, drawn from a file of texts; a volume is asked for it slice by
    slice, with the target and without."""

    bank: str = ""
    """File of texts for each target, such as configs/text/amos.yaml."""
    held_out: bool = True
    """Give a second row, for wordings that the file keeps from training."""
    absent: bool = True
    """Ask for the targets that a case does not hold, too: the answer should be empty."""

    together: bool = True
    """Ask for all targets of a case that holds several by one text, too."""

    every_slice = True

    def __post_init__(self) -> None:
        if not self.bank:
            raise UserError("protocols: Text.bank: give a file such as configs/text/amos.yaml")

    @cached_property
    def _bank(self) -> TextBank:
        return TextBank(self.bank)

    def begin(self, segmenter: Segmenter, targets: Sequence[str]) -> None:
        """Read the texts."""
        require_texts(segmenter, self._bank, targets, self.held_out)

    @property
    def asks_for_absent(self) -> bool:
        """As its option says."""
        return self.absent

    @property
    def asks_for_all(self) -> bool:
        """As its option says."""
        return self.together

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row, or two."""
        rows = {TEXT: self._asked(prompted, targets, rng)}
        if self.held_out:
            rows[TEXT + WORDING] = self._asked(prompted, targets, rng, held_out=True)
        return rows

    def answers_for_all(
        self, prompted: PromptedImage, targets: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Answer]:
        """One row, or two."""
        texts = {FOR_ALL: self._bank.draw(targets, rng)}
        if self.held_out and self._bank.templates.held_out:
            texts[FOR_ALL + WORDING] = self._bank.draw(targets, rng, held_out=True)
        return {
            row: Answer(prompted.predict(texts=[text])[0][0], others=1)
            for row, text in texts.items()
        }

    def absent_answers(
        self, prompted: PromptedImage, targets: Sequence[str], rng: np.random.Generator
    ) -> dict[str, list[Answer]]:
        """One row, or two."""
        rows = {TEXT + ABSENT: self._asked(prompted, targets, rng)}
        if self.held_out:
            held_out = self._asked(prompted, targets, rng, held_out=True)
            rows[TEXT + WORDING + ABSENT] = held_out
        return rows

    def _asked(
        self,
        prompted: PromptedImage,
        targets: Sequence[str],
        rng: np.random.Generator,
        held_out: bool = False,
    ) -> list[Answer]:
        texts = [self._bank.draw([target], rng, held_out) for target in targets]
        before = prompted.clock.seconds
        masks, logits = prompted.predict(texts=texts)
        seconds = prompted.clock.seconds - before
        return [
            Answer(mask, logits=logits[place : place + 1], others=1, seconds=seconds)
            for place, mask in enumerate(masks)
        ]


@dataclass(frozen=True)
class TextThenClicks(Clicks):
    """A text first, then clicks, each at the largest error of the last prediction."""

    numbers: tuple[int, ...] = (1, 3)
    """Numbers of clicks after which the prediction is scored."""
    bank: str = ""
    """File of texts for each target, such as configs/text/amos.yaml."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bank:
            raise UserError("protocols: TextThenClicks.bank: give a file of texts")

    @cached_property
    def _bank(self) -> TextBank:
        return TextBank(self.bank)

    def begin(self, segmenter: Segmenter, targets: Sequence[str]) -> None:
        """Read the texts."""
        require_texts(segmenter, self._bank, targets)

    @property
    def clicks(self) -> dict[str, int]:
        """One row for each number."""
        names = {self._row(number): number for number in sorted(self.numbers)}
        return names | {name + PER_SLICE: number for name, number in names.items()}

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """The answers after each number of clicks, or after the last one that was needed."""
        texts = [self._bank.draw([target], rng) for target in targets]
        steps = prompted.click_by_click(truths, max(self.numbers), texts)
        return {
            self._row(number): [taken[min(number, len(taken) - 1)] for taken in steps]
            for number in self.numbers
        }

    @staticmethod
    def _row(number: int) -> str:
        return f"{number} click{'s' * (number > 1)} after a text"
