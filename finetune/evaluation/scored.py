"""A prediction against the truth as a row of the tables, and the files of an evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.common.files import write_text
from data_prep.loader.dataset import Record
from finetune.evaluation import metrics
from finetune.evaluation.tables import (
    Row,
    results_csv,
    summarise,
    summary_csv,
    summary_markdown,
)


@dataclass(frozen=True)
class Scoring:
    """How predictions are scored; see `EvaluateConfig`."""

    tolerance: float = 1.0
    hd95: str = "surface"

    def row(
        self,
        record: Record,
        target: str,
        protocol: str,
        prompts: float,
        prediction: NDArray[np.bool_],
        truth: NDArray[np.bool_],
    ) -> Row:
        """How well a target of a case was segmented.

        Args:
            record: The case; its pixels are not looked at.
            protocol: Name of the row.
            prompts: How many were given.
            prediction: Mask of the case's shape.
            truth: The same.
        """
        known = record.meta["spacing"]
        spacing, distance = known or [1.0] * truth.ndim, math.nan
        if truth.any():
            distance = metrics.hd95(prediction, truth, spacing, definition=self.hd95)
        return Row(
            case=record.key,
            target=target,
            protocol=protocol,
            dice=metrics.dice(prediction, truth),
            iou=metrics.iou(prediction, truth),
            hd95=distance,
            nsd=metrics.nsd(prediction, truth, spacing, self.tolerance),
            unit="px" if known is None else "mm",
            prompts=prompts,
            group=record.meta["group"],
            hd95_definition=self.hd95,
        )

    def write(self, folder: Path, rows: Sequence[Row], targets: Sequence[str]) -> str:
        """Write results.csv, summary.csv and summary.md, and return the text of the last."""
        summaries = summarise(rows, targets)
        write_text(folder / "results.csv", results_csv(rows))
        write_text(folder / "summary.csv", summary_csv(summaries))
        table = summary_markdown(summaries, self.tolerance, self.hd95)
        write_text(folder / "summary.md", table)
        return table
