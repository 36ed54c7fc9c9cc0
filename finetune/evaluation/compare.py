"""Runs evaluated on the same cases: which is ahead, case by case."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from data_prep.common.results import markdown_table
from finetune.config import CompareConfig
from finetune.evaluation.statistics import Mean, mean_interval, notes_on_groups
from finetune.evaluation.tables import Row, case_groups, case_means

TEXTS = ("case", "target", "protocol", "unit", "group", "hd95_definition")
"""Columns of results.csv that are not numbers."""


class Difference(NamedTuple):
    """How far one run is ahead of the baseline under one protocol, case by case."""

    protocol: str
    run: str
    dice: float
    """Mean Dice of the run."""
    difference: Mean
    """Mean difference of Dice to the baseline."""

    @property
    def verdict(self) -> str:
        """Whether the run is ahead, if the interval of the difference leaves out 0."""
        if math.isnan(self.difference.low):
            return "no interval"
        if self.difference.low > 0:
            return "ahead"
        return "behind" if self.difference.high < 0 else "no clear difference"

    @property
    def signed(self) -> str:
        """The difference with its interval, as `+0.012 (-0.003 to +0.027)`."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        return f"{mean:+.3f}" + ("" if math.isnan(low) else f" ({low:+.3f} to {high:+.3f})")


class Comparison(NamedTuple):
    """Several runs over the same cases."""

    baseline: str
    dice: dict[str, float]
    """Mean Dice of the baseline by protocol."""
    differences: list[Difference]
    """Of every other run, by protocol."""
    groups_known: bool = True
    """False if some case counts as its own group because no run's results name its group."""


def read_results(path: Path) -> list[Row]:
    """The rows of a `results.csv`, as `evaluate` wrote them.

    In a file of an earlier version, which has no column `group`, each case is its own group.

    Raises:
        UserError: The file is not there, is not a results.csv, or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                Row(**{name: _value(name, text) for name, text in line.items()})
                for line in csv.DictReader(file)
            ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run evaluate first") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: is not a results.csv of evaluate ({error})") from None
    if not rows:
        raise UserError(f"{path}: holds no results; run evaluate again")
    return rows


def _value(name: str, text: str) -> Any:
    return text if name in TEXTS else float(text)


def compare(runs: Mapping[str, Sequence[Row]]) -> Comparison:
    """Dice of several runs over the same cases; the first one is the baseline.

    A case counts by the mean over its targets; the interval (95 %, see `mean_interval`) is that of
    the mean difference of a case, where cases of one group do not count as independent.

    Raises:
        UserError: Runs were evaluated on different cases, targets or protocols, or by different
            definitions of the HD95.
    """
    baseline, *others = runs
    for run in others:
        names = [_definitions(runs[name]) for name in (baseline, run)]
        if names[0] != names[1]:
            raise UserError(
                f"the HD95 of {baseline} is by {names[0]!r} and that of {run} by {names[1]!r};"
                " evaluate both with the same --hd95"
            )
        for what in ("protocol", "target", "case"):
            first, second = ({getattr(row, what) for row in runs[name]} for name in (baseline, run))
            if first != second:
                here, there = (baseline, run) if first - second else (run, baseline)
                missing = sorted(first - second or second - first)[0]
                raise UserError(
                    f"{here} was evaluated on {what} {missing!r}, and {there} was not; compare runs"
                    " evaluated with the same options"
                )
    everything = [row for rows in runs.values() for row in rows]
    groups = case_groups(everything)
    known = groups.keys() == {row.case for row in everything if row.group}
    dice: dict[str, float] = {}
    differences = []
    for protocol in dict.fromkeys(row.protocol for row in runs[baseline]):
        reference = _dice_by_case(runs[baseline], protocol)
        dice[protocol] = float(np.mean(list(reference.values())))
        members = [groups[case] for case in reference]
        for run in others:
            found = _dice_by_case(runs[run], protocol)
            paired = [found[case] - value for case, value in reference.items()]
            difference = mean_interval(paired, members, (-1, 1))
            mean = float(np.mean(list(found.values())))
            differences.append(Difference(protocol, run, mean, difference))
    return Comparison(baseline, dice, differences, known)


def comparison_markdown(comparison: Comparison) -> str:
    """One row per protocol, one column per run, as Markdown."""
    runs = list(dict.fromkeys(row.run for row in comparison.differences))
    differences = {(row.protocol, row.run): row for row in comparison.differences}
    rows: list[list[str]] = []
    for protocol, dice in comparison.dice.items():
        cells = [protocol, f"{dice:.3f}"]
        for run in runs:
            row = differences[protocol, run]
            cells.append(f"{row.dice:.3f}, {row.signed}: {row.verdict}")
        rows.append(cells)
    notes = [
        f"Mean Dice over cases, then the difference to {comparison.baseline} case by case with its"
        " 95 % interval (Student's t; cases of one group, such as a patient, do not count as"
        " independent).",
        *notes_on_groups(row.difference for row in comparison.differences),
    ]
    if not comparison.groups_known:
        notes.append(
            "These results name no groups, as those of earlier versions: each case counts as its"
            " own. Evaluate again if a patient has several."
        )
    table = markdown_table(["prompt", comparison.baseline, *runs], rows)
    return "\n".join([*table, "", " ".join(notes)]) + "\n"


def compare_runs(config: CompareConfig, resolved: str) -> None:
    """Compare evaluated runs case by case."""
    names = config.names or [folder.name for folder in config.results]
    if len(set(names)) < len(names):
        raise UserError(f"names: give different names to the runs, which are {', '.join(names)}")
    runs = {
        name: read_results(folder / "results.csv")
        for name, folder in zip(names, config.results, strict=True)
    }
    table = comparison_markdown(compare(runs))
    if config.output is not None:
        write_text(config.output, table)
    print(table, end="")


def _dice_by_case(rows: Iterable[Row], protocol: str) -> dict[str, float]:
    return case_means((row for row in rows if row.protocol == protocol), "dice")


def _definitions(rows: Iterable[Row]) -> str:
    return ", ".join(sorted({row.hd95_definition for row in rows}))
