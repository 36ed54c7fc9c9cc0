"""Judging a segmenter while it trains, on patients that are kept from it, to find the best one."""

import sys
from typing import cast

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_prep.common.errors import UserError
from finetune.data.cases import LabelledCases, Part
from finetune.evaluation.labelled import encode_labelled, generator_of
from finetune.evaluation.metrics import dice
from finetune.evaluation.pooled import count_pixels, pooled_scores
from finetune.evaluation.protocols import (
    Box,
    Clicks,
    Propagated,
    Protocol,
)
from finetune.evaluation.tables import FILLED_BOX
from finetune.evaluation.text import Text
from finetune.inference.volume import PromptedVolume
from finetune.model.segmenter import Segmenter
from finetune.stage import SegmentationStage
from pretrain.engine.checkpoint import best_checkpoint, save_best
from pretrain.engine.evaluator import Evaluator, Judgement
from pretrain.engine.resume import on_rank_0
from pretrain.engine.stage import Stage

SCORE = "score"
"""Name of the document on how the best checkpoint did, and of the number that is logged."""


class Validation(Evaluator):
    """Mean Dice of images of the groups that `data.validation` keeps from training.

    Images are prompted as in evaluation, slice by slice: at each number of clicks, by the exact box
    and by texts, as its options say. The mean of these rows is the score; the checkpoint with the
    highest is kept in the run folder as `best`. Texts are also given for targets that an image does
    not hold, some images that hold none among them: their row is the share that is answered by an
    empty mask. Whole volumes, where some are asked for, are prompted in one slice by one click or
    the box, and their rows count among the others.

    A decoder without prompts is asked for every target in images with targets and without, in the
    proportion that the data has, and judged by `pooled_scores`.

    Args:
        every: Steps between judgements.
        clicks: Numbers of clicks; none for a model that is used otherwise.
        box: Give the exact box, too.
        max_images: Use at most so many images, drawn at random.
        seed: Seed of the choice of images.
        volumes: Judge so many whole volumes, too, drawn at random.
        bank: File of texts, such as configs/text/amos.yaml: images are asked for by a text for each
            target, too, of the wordings for training. Empty: they are not.
    """

    def __init__(
        self,
        every: int = 250,
        clicks: tuple[int, ...] = (1, 3),
        box: bool = True,
        max_images: int = 100,
        seed: int = 0,
        volumes: int = 0,
        bank: str = "",
    ) -> None:
        super().__init__(every)
        if max_images < 1:
            raise UserError(
                f"evaluators: Validation.max_images is {max_images}; it must be positive"
            )
        if volumes < 0:
            raise UserError(f"evaluators: Validation.volumes is {volumes}; it must not be negative")
        self.max_images, self.seed, self.wanted_volumes = max_images, seed, volumes
        self.prompting: list[Protocol] = [Clicks(clicks)] if clicks else []
        self.prompting += [Box()] if box else []
        self.prompting += [Text(bank, held_out=False, together=False)] if bank else []
        if not self.prompting:
            raise UserError("evaluators: Validation has no prompts; give clicks, box or bank")

    def prepare(self, stage: Stage, accelerator: Accelerator) -> None:
        """Find the images.

        Raises:
            UserError: Nothing is kept from training, or there are texts that cannot be given.
        """
        if not isinstance(stage, SegmentationStage):
            raise UserError("evaluators: Validation is for finetune/train.py")
        config = stage.options.data
        if not config.validation:
            raise UserError(
                "evaluators: Validation needs groups; set data.validation to 0.1, say, or leave it"
                " out by --evaluators.validation null"
            )
        self.cases = LabelledCases(config, stage.options.seed, Part(config.validation, True))
        if not self.cases.images:
            share, line = config.validation, "no validation, and no best checkpoint"
            accelerator.print(f"{line}: {share} of so few groups is none; see data.validation")
        self.volumes = self._choose_volumes()
        images = self.cases.images
        self.prompted = stage.segmenter.decoder.takes_prompts
        if not self.prompted:
            self.prompting, self.volumes = [], []
            images = images + self.cases.empty
        chosen = np.random.default_rng(self.seed).permutation(len(images))[: self.max_images]
        self.images = [images[index] for index in sorted(chosen.tolist())]
        if any(protocol.asks_for_absent for protocol in self.prompting):
            some = np.random.default_rng([self.seed, 2]).permutation(len(self.cases.empty))
            some = some[: len(self.images) // 4]
            self.images += [self.cases.empty[index] for index in sorted(some.tolist())]
        for protocol in self.prompting:
            protocol.begin(stage.segmenter, list(self.cases.targets))

    def evaluate(self, stage: Stage, accelerator: Accelerator) -> Judgement:
        """Judge the segmenter as it is now, and keep it if it is the best so far."""
        if not self.images:
            return Judgement()
        trained = cast(SegmentationStage, stage)
        trained.segmenter.multimask = trained.prompting.multimask
        trained.segmenter.text_multimask = trained.prompting.text_multimask
        trained.segmenter.previous_mask = bool(trained.prompting.gives_masks)
        with accelerator.autocast():
            if self.prompted:
                rows = self._prompted_scores(trained.segmenter, accelerator)
            else:
                shared = self.images[accelerator.process_index :: accelerator.num_processes]
                found = [
                    counted
                    for image in shared
                    for counted in count_pixels(trained.segmenter, self.cases, image)
                ]
                rows = pooled_scores(self.cases, gather_object(found))
        if not rows:  # nothing to be found, and nothing was
            return Judgement()
        numbers = {row.replace(" ", "_"): float(np.mean(values)) for row, values in rows.items()}
        score = float(np.mean(list(numbers.values())))
        on_rank_0(accelerator, lambda: self._keep(trained, score))
        return Judgement({**numbers, SCORE: score})

    def _prompted_scores(
        self, segmenter: Segmenter, accelerator: Accelerator
    ) -> dict[str, list[float]]:
        """By row the mean over the targets of each image, and the Dice in each volume."""
        found: list[tuple[int, str, float]] = []  # place, row, mean over targets
        for place in range(accelerator.process_index, len(self.images), accelerator.num_processes):
            key, pixels, truths = self.cases.read(self.images[place])
            names = self.cases.names(self.images[place])
            absent = [name for name in self.cases.targets if name not in names]
            prompted = encode_labelled(segmenter, self.cases, self.images[place], pixels)
            for protocol in self.prompting:
                rng = generator_of(self.seed, key)
                given = protocol.answers(prompted, truths, names, rng) if names else {}
                for row, answers in given.items():
                    pairs = zip(answers, truths, strict=True)
                    dices = [dice(answer.mask, truth) for answer, truth in pairs]
                    found.append((place, row, float(np.mean(dices))))
                if not absent or not protocol.asks_for_absent:
                    continue
                rng = generator_of(self.seed, key)
                for row, answers in protocol.absent_answers(prompted, absent, rng).items():
                    empty = [not answer.mask.any() for answer in answers]
                    found.append((place, row, float(np.mean(empty))))
        for number in range(
            accelerator.process_index, len(self.volumes), accelerator.num_processes
        ):
            judged = self._judge_volume(segmenter, self.volumes[number])
            found += [(len(self.images) + number, row, value) for row, value in judged]
        rows: dict[str, list[float]] = {}
        for _, row, value in sorted(gather_object(found)):  # whatever the number of processes
            if row != FILLED_BOX:  # which no model has made
                rows.setdefault(row, []).append(value)
        return rows

    def _choose_volumes(self) -> list[int]:
        """Records, sorted."""
        volumes = sorted({image.record for image in self.cases.images if image.depth is not None})
        chosen = np.random.default_rng([self.seed, 1]).permutation(len(volumes))
        return sorted(volumes[index] for index in chosen[: self.wanted_volumes].tolist())

    def _judge_volume(self, segmenter: Segmenter, number: int) -> list[tuple[str, float]]:
        """Row and Dice of each target that a volume holds."""
        record = self.cases.shards.record(number)
        assert record.mask is not None
        volume = PromptedVolume(segmenter, len(record.image), record.image.__getitem__)
        rng = generator_of(self.seed, record.key)
        found = []
        for name, values in self.cases.targets.items():
            truth = np.isin(record.mask, values)
            if not truth.any():
                continue
            answers = Propagated((1,)).volume_answers(volume, truth[None], [name], rng)
            found += [(row, dice(whole.mask, truth)) for row, (whole,) in answers.items()]
        return found

    def _keep(self, stage: SegmentationStage, score: float) -> None:
        run = stage.options.output
        best = best_checkpoint(run)
        if best is not None and int(best.folder.name.removeprefix("step-")) >= self.step:
            best = None  # of steps after the checkpoint from which the run goes on
        if best is not None and best.document(SCORE) >= score:
            return
        try:
            documents = {**stage.documents(), SCORE: score}
            save_best(run, self.step, stage.weights(), documents)
        except UserError as error:
            print(f"warning: {error}; the best so far is kept", file=sys.stderr, flush=True)
