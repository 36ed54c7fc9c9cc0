"""One case under evaluation: prompted by each protocol, and scored as a whole.

Each image is encoded once. How a volume is prompted is told by its protocol (`protocols.py`); it is
scored as a volume, empty where nothing was predicted.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation import metrics
from finetune.evaluation.answered import Answered
from finetune.evaluation.calibration import Reliability
from finetune.evaluation.details import ClickDice, Details, Seconds
from finetune.evaluation.labelled import generator_of
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.scored import Scoring
from finetune.evaluation.tables import ALL_TARGETS, PER_SLICE, Row
from finetune.evaluation.thumbnails import Thumbnail, reduce_image, reduce_mask
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.volume import PromptedVolume
from finetune.model.segmenter import Segmenter


class Case:
    """A 2D record or a volume: prompted by each protocol, and scored as a whole."""

    def __init__(
        self,
        segmenter: Segmenter,
        cases: LabelledCases,
        images: Sequence[LabelledImage],
        reliability: Reliability | None = None,
    ) -> None:
        self.cases, self.images, self.reliability = cases, images, reliability
        stored = cases.shards.record(images[0].record)
        assert stored.mask is not None
        self.record, self.key, self.labels = stored, stored.key, stored.mask
        self.group = stored.meta["group"]
        self.is_volume = images[0].depth is not None
        self.pixels = stored.image if self.is_volume else stored.image[None]
        self.slices = PromptedVolume(segmenter, len(self.pixels), self.pixels.__getitem__)
        self.answered: dict[tuple[int, str], Answered] = {}
        self.clicks: dict[str, int] = {}
        self.between: set[str] = set()

    def prompt(self, protocol: Protocol, seed: int, every_click: bool = False) -> None:
        """Keep what the model makes of a simulated user.

        Args:
            every_click: Also after clicks for which the protocol has no row.

        Raises:
            UserError: Another one has given a row of the same name.
        """
        shown = protocol.clicks
        protocol = protocol.each_click() if every_click else protocol
        self.clicks |= protocol.clicks
        between = protocol.clicks.keys() - shown.keys()
        found: dict[tuple[int, str], Answered] = {}
        one_for_all = protocol.every_slice or not protocol.gives_prompts
        images = self._whole(self._wanted()) if one_for_all else self.images
        ending = PER_SLICE if self.is_volume and not one_for_all else ""
        for image in images if self._wanted() else ():
            one_key = one_for_all or image.depth is None  # one text for all slices
            key = self.key if one_key else f"{self.key}/{image.depth}"
            truths = np.stack([self._truth(target, image.depth) for target in image.targets])
            self._start()
            prompted, names = self.slices[image.depth or 0], self.cases.names(image)
            answers = protocol.answers(prompted, truths, names, generator_of(seed, key))
            for row, members in answers.items():
                if row not in between:
                    self._count(prompted, row + ending, names, truths, members)
                seconds = self._seconds(*(answer.seconds for answer in members)) / len(members)
                for target, answer in zip(image.targets, members, strict=True):
                    kept = found.setdefault((target, row + ending), Answered())
                    kept.masks[image.depth] = np.packbits(answer.mask)
                    kept.prompts = answer.prompts + (0 if one_for_all else kept.prompts)
                    kept.seconds += seconds
        for target in self._wanted() if self.is_volume else ():
            name = list(self.cases.targets)[target]
            random = generator_of(seed, f"{self.key}/{name}")
            truth = self._truth(target)[None]
            self._start()
            for row, (whole,) in protocol.volume_answers(
                self.slices, truth, [name], random
            ).items():
                kept = found[target, row] = Answered(prompts=whole.prompts)
                kept.seconds = self._seconds(whole.seconds)
                kept.masks.update({n: np.packbits(mask) for n, mask in enumerate(whole.mask)})
        found |= self._absent(protocol, seed) | self._for_all(protocol, seed)
        found = {
            key: answer
            for key, answer in found.items()
            if key[1] not in between or key not in self.answered
        }
        if twice := {key for key in found if key in self.answered and key[1] not in self.between}:
            raise UserError(f"protocols: two of them give the row {min(twice)[1]!r}")
        self.answered |= found
        rows = {row for _, row in found}
        self.between = (self.between - rows) | (rows & between)

    def _count(
        self,
        prompted: PromptedImage,
        row: str,
        names: Sequence[str],
        truths: NDArray[np.bool_],
        answers: Sequence[Answer],
    ) -> None:
        """Count pixels by their probability, where that is asked for and known."""
        for name, truth, answer in zip(names, truths, answers, strict=True):
            if self.reliability is None or answer.logits is None:
                continue
            given = answer.probability
            probability = prompted.averaged(answer.logits)[1] if given is None else given
            self.reliability.add(self.key, self.group, name, row, probability, truth)

    def score(self, scoring: Scoring) -> list[Row]:
        """One row for each target and protocol."""
        names = [*self.cases.targets, ALL_TARGETS]
        rows = []
        for target in sorted({target for target, _ in self.answered}):
            truth = self._truth(target)
            for (answered, protocol), answer in self.answered.items():
                if answered == target and protocol not in self.between:
                    found = answer.whole(self.labels.shape)
                    prompts = answer.prompts
                    rows.append(
                        scoring.row(self.record, names[target], protocol, prompts, found, truth)
                    )
        return rows

    def keep(self, details: Details, rows: Sequence[Row]) -> None:
        """Add what `compare` needs beside the rows of this case.

        Args:
            rows: From `score`.
        """
        names = [*self.cases.targets, ALL_TARGETS]
        scored = {(row.target, row.protocol): row.dice for row in rows}
        for target in sorted({target for target, _ in self.answered}):
            name, truth = names[target], self._truth(target)
            answers = {row: each for (of, row), each in self.answered.items() if of == target}
            for row, answer in answers.items():
                if row not in self.between:
                    details.seconds.append(Seconds(self.key, name, row, answer.seconds))
                if row in self.clicks:
                    dice = scored.get((name, row))
                    if dice is None:
                        dice = metrics.dice(answer.whole(truth.shape), truth)
                    number = self.clicks[row]
                    details.clicks.append(ClickDice(self.key, name, row, number, dice, self.group))
            if details.side and truth.any():
                shown = {row: each for row, each in answers.items() if row not in self.between}
                details.thumbnails.add(self._thumbnail(name, truth, shown, details.side))

    def _thumbnail(
        self, target: str, truth: NDArray[np.bool_], answers: Mapping[str, Answered], side: int
    ) -> Thumbnail:
        """The slice in which a target is largest, or the image."""
        depth = int(truth.sum((1, 2)).argmax()) if self.is_volume else None
        at = truth if depth is None else truth[depth]
        masks = {
            row: reduce_mask(answer.at(depth, at.shape), side) for row, answer in answers.items()
        }
        image = reduce_image(self.pixels[depth or 0], side)
        return Thumbnail(self.key, target, image, reduce_mask(at, side), masks)

    def _start(self) -> None:
        """Begin to measure the time of some answers."""
        self.started = self.slices.clock.seconds
        self.slices.used.clear()

    def _seconds(self, *decoding: float) -> float:
        """Time since `_start` of answers that were given together, encoding included.

        Args:
            decoding: Seconds of each, where the protocol measured them.
        """
        model = max(decoding)
        if math.isnan(model):
            model = self.slices.clock.seconds - self.started
        elif not model:  # nothing was asked of the model
            return 0.0
        return model + sum(self.slices.encoding[depth] for depth in self.slices.used)

    def _absent(self, protocol: Protocol, seed: int) -> dict[tuple[int, str], Answered]:
        """Answers to prompts for the targets that the case does not hold."""
        names, found = list(self.cases.targets), dict[tuple[int, str], Answered]()
        absent = tuple(n for n in range(len(names)) if n not in self._wanted())
        if not absent or not protocol.asks_for_absent:
            return found
        for image in self._whole(absent):
            random = generator_of(seed, self.key)
            self._start()
            prompted, asked = self.slices[image.depth or 0], self.cases.names(image)
            for row, answers in protocol.absent_answers(prompted, asked, random).items():
                seconds = self._seconds(*(answer.seconds for answer in answers)) / len(answers)
                for target, answer in zip(absent, answers, strict=True):
                    kept = found.setdefault((target, row), Answered(prompts=answer.prompts))
                    kept.masks[image.depth] = np.packbits(answer.mask)
                    kept.seconds += seconds
        return found

    def _for_all(self, protocol: Protocol, seed: int) -> dict[tuple[int, str], Answered]:
        """Answers to one prompt for all targets, where the case holds several."""
        wanted, found = self._wanted(), dict[tuple[int, str], Answered]()
        asked_for = protocol.asks_for_all and len(wanted) > 1
        for image in self._whole(wanted) if asked_for else ():
            random = generator_of(seed, self.key)
            self._start()
            prompted, asked = self.slices[image.depth or 0], self.cases.names(image)
            answers = protocol.answers_for_all(prompted, asked, random)
            for row, answer in answers.items():
                key = (len(self.cases.targets), row)
                kept = found.setdefault(key, Answered(prompts=answer.prompts))
                kept.masks[image.depth] = np.packbits(answer.mask)
                kept.seconds += self._seconds(answer.seconds) / len(answers)
        return found

    def _whole(self, targets: tuple[int, ...]) -> list[LabelledImage]:
        """All slices of a volume, or the image, with these targets to be asked for."""
        record = self.images[0].record
        depths = range(len(self.slices)) if self.is_volume else (None,)
        return [LabelledImage(record, depth, targets) for depth in depths]

    def _wanted(self) -> tuple[int, ...]:
        """The targets that the record holds."""
        return tuple(sorted({target for image in self.images for target in image.targets}))

    def _truth(self, target: int, depth: int | None = None) -> NDArray[np.bool_]:
        """Mask of a target, or after the last one of all; of a slice, or as a whole."""
        labels = self.labels if depth is None else self.labels[depth]
        values = list(self.cases.targets.values())
        chosen = values[target] if target < len(values) else list(chain(*values))
        return np.isin(labels, chosen)
