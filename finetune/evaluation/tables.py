"""The figures of an evaluation: one row per case, target and protocol, their means, and tables."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import groupby

import numpy as np

from data_prep.common.results import markdown_table
from finetune.evaluation.statistics import bootstrap_interval

ALL_TARGETS = "all targets"
"""Target name of the summary over all targets."""


@dataclass(frozen=True)
class Row:
    """How well one target of one case was segmented under one protocol."""

    case: str
    """Key of the record in the shard set."""
    target: str
    protocol: str
    """As `1 click`, `3 clicks`, `box` or `jittered box`."""
    dice: float
    iou: float
    hd95: float
    """In `unit`; infinite if nothing was predicted."""
    nsd: float
    unit: str
    """mm, or px where the shard set knows no spacing."""
    prompts: float = math.nan
    """Clicks and boxes given for the case; not told by earlier versions."""


@dataclass(frozen=True)
class Mean:
    """Mean over cases with its 95 % bootstrap interval; NaN if there is no case to average."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        digits = 3 if self.high <= 1 else 2
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Summary:
    """All cases of one target, or of `ALL_TARGETS`, under one protocol."""

    target: str
    protocol: str
    cases: int
    dice: Mean
    iou: Mean
    hd95: Mean
    """Over the targets of which something was predicted."""
    nsd: Mean
    missed: int
    """Targets of which nothing was predicted: their HD95 is infinite and not in the mean."""
    unit: str


def summarise(rows: Sequence[Row], seed: int = 0) -> list[Summary]:
    """Means over cases, for each target and then for all targets together.

    For all targets, a case counts once, by the mean over its targets. The intervals resample cases;
    where several cases are of one patient, they are narrower than they should be.

    Args:
        seed: Seed of the resampling.
    """
    targets = list(dict.fromkeys(row.target for row in rows))
    named = [(target, [row for row in rows if row.target == target]) for target in targets]
    if len(targets) > 1:
        named.append((ALL_TARGETS, list(rows)))
    summaries = []
    for target, members in named:
        for protocol, unit in dict.fromkeys((row.protocol, row.unit) for row in members):
            group = [row for row in members if (row.protocol, row.unit) == (protocol, unit)]
            summaries.append(_summary(target, protocol, unit, group, seed))
    return summaries


def results_csv(rows: Iterable[Row]) -> str:
    """All rows as CSV."""
    return _csv([field.name for field in fields(Row)], (astuple(row) for row in rows))


def summary_csv(summaries: Iterable[Summary]) -> str:
    """All summaries as CSV; a mean takes three columns, as dice, dice_low and dice_high."""
    lines = []
    for summary in summaries:
        line: dict[str, object] = {}
        for name, value in asdict(summary).items():
            if isinstance(value, dict):
                line |= {name: value["mean"], f"{name}_low": value["low"]}
                line |= {f"{name}_high": value["high"]}
            else:
                line[name] = value
        lines.append(line)
    return _csv(list(lines[0]), (line.values() for line in lines))


def summary_markdown(summaries: Sequence[Summary], tolerance: float) -> str:
    """The summaries as a Markdown table with a note on how to read it.

    Args:
        tolerance: Tolerance of the NSD, in the summaries' unit.
    """
    units = sorted({summary.unit for summary in summaries})
    unit = units[0] if len(units) == 1 else ""
    header = ["target", "prompt", "cases", "Dice", "IoU"]
    header += [f"HD95 {unit}", f"NSD at {tolerance:g} {unit}", "missed"]
    rows: list[list[object]] = []
    for row in summaries:
        hd95 = f"{row.hd95}" if unit else f"{row.hd95} {row.unit}"
        cells = [row.target, row.protocol, row.cases, row.dice, row.iou, hd95, row.nsd, row.missed]
        rows.append(cells)
    lines = [
        *markdown_table(header, rows),
        "",
        "Mean over cases, with 95 % bootstrap interval. HD95 leaves out targets of which nothing"
        " was predicted; `missed` counts them.",
    ]
    return "\n".join(lines) + "\n"


def _summary(target: str, protocol: str, unit: str, rows: list[Row], seed: int) -> Summary:
    means = {}
    for metric in ("dice", "iou", "hd95", "nsd"):
        values = _case_means(rows, metric)
        if values:
            interval = bootstrap_interval(values, np.random.default_rng(seed))
            means[metric] = Mean(float(np.mean(values)), *interval)
        else:
            means[metric] = Mean(math.nan, math.nan, math.nan)
    cases = len({row.case for row in rows})
    missed = sum(math.isinf(row.hd95) for row in rows)
    return Summary(target, protocol, cases, **means, missed=missed, unit=unit)


def _case_means(rows: list[Row], metric: str) -> list[float]:
    """Mean of the finite values of each case that has any."""
    result = []
    for _, members in groupby(sorted(rows, key=_case), key=_case):
        finite = [value for row in members if math.isfinite(value := getattr(row, metric))]
        if finite:
            result.append(float(np.mean(finite)))
    return result


def _case(row: Row) -> str:
    return row.case


def _csv(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
