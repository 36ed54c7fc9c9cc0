"""Decoders without prompts, judged on images with targets and without, as on whole cases."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from finetune.data.cases import LabelledCases, LabelledImage
from finetune.evaluation.labelled import encode_labelled
from finetune.evaluation.protocols import NO_PROMPT
from finetune.evaluation.tables import ABSENT
from finetune.model.segmenter import Segmenter


class Counted(NamedTuple):
    """Pixels of one target in one image."""

    record: int
    target: int
    both: int
    """Of the prediction and the truth alike."""
    total: int
    """Of the prediction and of the truth, added up."""


def count_pixels(
    segmenter: Segmenter, cases: LabelledCases, image: LabelledImage
) -> Iterator[Counted]:
    """What the model finds of each target in an image, whether it is there or not."""
    every = LabelledImage(image.record, image.depth, tuple(range(len(cases.targets))))
    _, pixels, truths = cases.read(every)
    prompted = encode_labelled(segmenter, cases, every, pixels)
    masks, _ = prompted.predict(targets=cases.names(every))
    for target, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
        both, total = int((mask & truth).sum()), int(mask.sum()) + int(truth.sum())
        yield Counted(image.record, target, both, total)


def pooled_scores(cases: LabelledCases, counted: Iterable[Counted]) -> dict[str, list[float]]:
    """Scores of each record and target, the pixels of all images of a record being counted as one.

    So a wrong pixel in a slice without the target costs as much as one beside the target. A volume
    of which no slice shows the target, nor was said to, gives no score.

    Returns:
        By row: the Dice of targets that a record holds; for those that it does not hold 1 where
        nothing was found, else 0.
    """
    sums: dict[tuple[int, int], list[int]] = {}
    for record, target, both, total in counted:
        pooled = sums.setdefault((record, target), [0, 0])
        pooled[0] += both
        pooled[1] += total
    rows: dict[str, list[float]] = {}
    for (record, target), (both, total) in sorted(sums.items()):
        if target not in cases.held(record):
            rows.setdefault(NO_PROMPT + ABSENT, []).append(float(total == 0))
        elif total:
            rows.setdefault(NO_PROMPT, []).append(2 * both / total)
    return rows
