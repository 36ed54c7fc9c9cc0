"""Masks that another program made of the cases of a shard set, scored as `evaluate` scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.common.cli import write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import new_folder, write_json
from data_prep.loader.dataset import Record
from finetune.data.cases import LabelledCases
from finetune.evaluation.details import MODEL, PROGRAM
from finetune.evaluation.drawing import draw_case, largest_image, shown_cases
from finetune.evaluation.protocols import NO_PROMPT
from finetune.evaluation.scored import Scoring
from finetune.evaluation.tables import ABSENT, Row
from finetune.evaluation.volume_pictures import draw_volume
from finetune.external.config import ScoreConfig, ScoringOptions
from finetune.external.files import PICTURE, VOLUME, find_mask, is_volume, read_mask
from finetune.inference.prompted import Answer


class Masks:
    """A folder of masks, one per case.

    Args:
        values: Values of each target of the cases in these masks.
        others: Values that stand for nothing that is scored.

    Raises:
        UserError: A case has no mask.
    """

    def __init__(
        self,
        folder: Path,
        cases: LabelledCases,
        values: Mapping[str, Sequence[int]],
        others: Sequence[int] = (),
    ) -> None:
        self.cases, self.values = cases, values
        self.known = sorted({0, *others, *(value for each in values.values() for value in each)})
        self.files: dict[int, Path] = {}
        self.records = records_of(cases)
        missing = []
        for index in self.records:
            key, meta = cases.shards.key(index), cases.shards.meta(index)
            if (path := find_mask(folder, key, meta)) is None:
                missing.append(key + (VOLUME if is_volume(meta) else PICTURE))
            else:
                self.files[index] = path
        if missing:
            raise UserError(
                f"masks: {folder} lacks masks of {len(missing)} of {len(self.records)} cases, such"
                f" as {missing[0]}"
            )

    def read(self, index: int) -> tuple[Record, dict[str, NDArray[np.bool_]]]:
        """A record of the shard set, and the mask of each target.

        Raises:
            UserError: The mask cannot be used; see `read_mask`.
        """
        record, path = self.cases.shards.record(index), self.files[index]
        mask = read_mask(path, record)
        if unknown := sorted(set(np.unique(mask).tolist()) - set(self.known)):
            known = ", ".join(f"{name} {list(each)}" for name, each in self.values.items())
            raise UserError(
                f"{path}: has the value {unknown[0]}, which is no target's ({known}); give the"
                " values of its targets by --values"
            )
        return record, {name: np.isin(mask, each) for name, each in self.values.items()}


def score_masks(masks: Masks, scoring: Scoring, absent: bool = True) -> list[Row]:
    """One row per case and target, as of a model that is asked for targets without a prompt."""
    rows = []
    for index in tqdm(masks.records, desc="score", unit="case", mininterval=1):
        record, found = masks.read(index)
        held = masks.cases.held(index)
        for place, (target, values) in enumerate(masks.cases.targets.items()):
            if place in held or absent:
                truth = _truth(record, values)
                row = NO_PROMPT + ("" if place in held else ABSENT)
                rows.append(scoring.row(record, target, row, 0, found[target], truth))
    return rows


def draw_masks(masks: Masks, rows: Sequence[Row], folder: Path) -> None:
    """Write best.png, median.png and worst.png by Dice; of volumes also best_volume.png and so on.

    Args:
        rows: Those of `score_masks`.
    """
    record_of = {masks.cases.shards.key(index): index for index in masks.records}
    held = [row for row in rows if row.protocol == NO_PROMPT]
    for name, row in shown_cases(held).items():
        index = record_of[row.case]
        record, found = masks.read(index)
        image, pixels, truth = largest_image(masks.cases, index, row.target)
        mask = found[row.target]
        answer = {NO_PROMPT: Answer(mask if image.depth is None else mask[image.depth])}
        title = f"{name}: {row.target}, Dice {row.dice:.3f} ({NO_PROMPT})"
        draw_case(pixels, truth, answer, title, folder / f"{name}.png")
        if image.depth is not None:
            whole = _truth(record, masks.cases.targets[row.target])
            path = folder / f"{name}_volume.png"
            draw_volume(record.image, whole, {NO_PROMPT: mask}, title, path)


def records_of(cases: LabelledCases) -> list[int]:
    """Every record of the cases, with targets or without, in stored order."""
    return sorted({image.record for image in (*cases.images, *cases.empty)})


def write_scores(
    masks: Masks, options: ScoringOptions, folder: Path, program: str | None = None
) -> str:
    """Score masks, write tables and figures into a folder, and return the table as Markdown.

    Args:
        program: What made the masks, if that is known.
    """
    scoring = Scoring(options.tolerance, options.hd95)
    rows = score_masks(masks, scoring, options.absent)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    draw_masks(masks, rows, folder / "figures")
    write_json(folder / MODEL, {PROGRAM: program})
    return scoring.write(folder, rows, list(masks.cases.targets))


def score(config: ScoreConfig, resolved: str) -> None:
    """Measure masks that another program made of the cases of a shard set."""
    if not config.masks.is_dir():
        raise UserError(f"masks: {config.masks} is not a folder")
    cases = LabelledCases(config.data, config.seed)
    labels: dict[str, list[int]] = cases.shards.info["labels"]
    values, others = dict(cases.targets), [value for each in labels.values() for value in each]
    if config.values is not None:
        values, others = _given(config.values, list(labels), list(cases.targets))
    with new_folder(config.output) as folder:
        write_resolved_config(folder, resolved)
        table = write_scores(Masks(config.masks, cases, values, others), config, folder)
    print(table, end="")


def _truth(record: Record, values: Sequence[int]) -> NDArray[np.bool_]:
    assert record.mask is not None
    return np.isin(record.mask, values)


def _given(
    values: dict[str, list[int]], labels: list[str], targets: list[str]
) -> tuple[dict[str, list[int]], list[int]]:
    """Values of the targets that are scored, and of the others.

    Raises:
        UserError: A target is unknown, or has none.
    """
    if unknown := [name for name in values if name not in labels]:
        raise UserError(f"values: there is no target {unknown[0]!r}, only {', '.join(labels)}")
    if lacking := [name for name in targets if name not in values]:
        raise UserError(
            f"values: none is given for {lacking[0]}; give some, or leave it out of --data.targets"
        )
    others = [value for name, each in values.items() if name not in targets for value in each]
    return {name: values[name] for name in targets}, others
