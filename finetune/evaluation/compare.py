"""Two runs evaluated on the same cases: which is ahead, case by case."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.evaluation.metrics import bootstrap_interval
from finetune.evaluation.tables import Row


class Difference(NamedTuple):
    """Mean Dice of both runs under one protocol, and their difference case by case."""

    protocol: str
    pretrained: float
    untrained: float
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Which run is ahead, if the interval of the difference leaves out 0."""
        if self.low > 0:
            return "pretrained ahead"
        return "untrained ahead" if self.high < 0 else "not told apart"


def read_results(path: Path) -> list[Row]:
    """The rows of a `results.csv`, as `evaluate` wrote them."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{name: _value(name, text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def _value(name: str, text: str) -> Any:
    return text if name in ("case", "target", "protocol", "unit") else float(text)


def compare(pretrained: Sequence[Row], untrained: Sequence[Row]) -> list[Difference]:
    """Dice of two runs over the same cases, for each protocol.

    A case counts by the mean over its targets; the interval (95 %, bootstrap) is that of the mean
    difference of a case.
    """
    result = []
    for protocol in dict.fromkeys(row.protocol for row in pretrained):
        first, second = _dice_by_case(pretrained, protocol), _dice_by_case(untrained, protocol)
        one = np.array([first[case] for case in first])
        other = np.array([second[case] for case in first])
        interval = bootstrap_interval(one - other, np.random.default_rng(0))
        means = float(one.mean()), float(other.mean()), float((one - other).mean())
        result.append(Difference(protocol, *means, *interval))
    return result


def _dice_by_case(rows: Iterable[Row], protocol: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.protocol == protocol:
            values.setdefault(row.case, []).append(row.dice)
    return {case: float(np.mean(own)) for case, own in values.items()}
