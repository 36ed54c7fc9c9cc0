"""The figures of an evaluation: one row per case, target and protocol, their means, and tables."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields

import numpy as np

from data_prep.common.results import markdown_table
from finetune.evaluation.details import to_csv
from finetune.evaluation.statistics import Mean, mean_interval, notes_on_groups

ALL_TARGETS = "all targets"
"""Target name of the summary over all targets."""

PER_SLICE = " per slice"
"""Ends the names of rows for which every slice that holds the target was prompted."""
IN_ONE_SLICE = " in one slice"
"""Ends the names of rows for which one slice was prompted, and its mask carried on."""

ABSENT = ", absent"
"""Ends the names of rows for targets that a case does not hold: the right answer is empty."""

FILLED_BOX = "filled box"
"""Name of the row for what boxes are worth by themselves."""
ROUGH = "rough mask"
AS_GIVEN = f"{ROUGH} as it is"
"""Name of the row for what rough masks are worth by themselves."""
WITHOUT_MODEL = (FILLED_BOX, AS_GIVEN)
"""What names of rows begin with that tell what prompts are worth by themselves, whatever model."""

NAMES_ALL = " that names all"
"""Ends the names of rows for one prompt for all targets of a case, under `ALL_TARGETS`."""

BOUNDS = {"dice": (0.0, 1.0), "iou": (0.0, 1.0), "hd95": (0.0, math.inf), "nsd": (0.0, 1.0)}
"""Smallest and largest value of each metric."""

WAYS = {
    PER_SLICE: "`per slice`: each slice that holds the target is prompted, which only somebody who"
    " knows the truth can do; `filled box` is what these boxes are worth by themselves.",
    IN_ONE_SLICE: "`in one slice`: the slice in which the target is largest is prompted, and its"
    " mask carried on from slice to slice.",
    ABSENT: "`absent`: targets that a case does not hold were asked for; Dice is the share of cases"
    " that were answered by an empty mask.",
    NAMES_ALL: "`that names all`: one text for all targets of a case that holds several, scored"
    " against their union.",
}
"""What a table says about how volumes were prompted, by the end of rows' names."""

HD95_NOTES = {
    "surface": "HD95 by size of surface, as DeepMind's surface-distance.",
    "monai": "HD95 by edge pixels, as MONAI.",
}
"""What a table says about its definition of the HD95."""


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
    """In `unit`; infinite if nothing was predicted, NaN if the case does not hold the target."""
    nsd: float
    unit: str
    """mm, or px where the shard set knows no spacing."""
    prompts: float = math.nan
    """Clicks, boxes, texts and masks given for the case; not told by earlier versions."""
    group: str = ""
    """Group (patient) of the record, hashed as in the shard set; empty: the case is its own."""
    hd95_definition: str = "surface"
    """As `EvaluateConfig.hd95`."""


@dataclass(frozen=True)
class Summary:
    """All cases of one target, or of `ALL_TARGETS`, under one protocol."""

    target: str
    protocol: str
    cases: int
    groups: int
    prompts: float
    """Mean number of prompts given for a target of a case; NaN where it is not known."""
    dice: Mean
    iou: Mean
    hd95: Mean
    """Over the targets of which something was predicted."""
    nsd: Mean
    missed: int
    """Targets of which nothing was predicted: their HD95 is infinite and not in the mean."""
    unit: str


def summarise(rows: Sequence[Row], targets: Sequence[str] = ()) -> list[Summary]:
    """Means over cases, for each target and then for all targets together.

    For all targets, a case counts once, by the mean over its targets.

    Args:
        targets: Targets in their order; one without any case gets summaries of 0 cases. Others that
            occur in `rows` follow.
    """
    given = dict.fromkeys([*targets, *(row.target for row in rows)])
    names = [name for name in given if name != ALL_TARGETS]
    kinds = list(dict.fromkeys((row.protocol, row.unit) for row in rows))
    summaries = []
    for target in names if len(names) == 1 else [*names, ALL_TARGETS]:
        members = [row for row in rows if target in (row.target, ALL_TARGETS)]
        held = {(row.protocol, row.unit) for row in members}
        for protocol, unit in [kind for kind in kinds if kind in held] or kinds:
            same = [row for row in members if (row.protocol, row.unit) == (protocol, unit)]
            summaries.append(_summary(target, protocol, unit, same))
    return summaries


def results_csv(rows: Iterable[Row]) -> str:
    """All rows as CSV."""
    return to_csv([field.name for field in fields(Row)], (astuple(row) for row in rows))


def summary_csv(summaries: Iterable[Summary]) -> str:
    """All summaries as CSV; a mean takes three columns, as dice, dice_low and dice_high.

    A cell is empty where there is nothing to average, or no interval.
    """
    lines = []
    for summary in summaries:
        line: dict[str, object] = {}
        for name, value in asdict(summary).items():
            if isinstance(value, dict):
                columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
                line |= {k: "" if math.isnan(value[v]) else value[v] for k, v in columns.items()}
            else:
                line[name] = "" if name == "prompts" and math.isnan(value) else value
        lines.append(line)
    return to_csv(list(lines[0]), (line.values() for line in lines))


def summary_markdown(
    summaries: Sequence[Summary], tolerance: float, hd95_definition: str = "surface"
) -> str:
    """The summaries as a Markdown table with notes on how to read it.

    Args:
        tolerance: Tolerance of the NSD, in the summaries' unit.
        hd95_definition: As `EvaluateConfig.hd95`.
    """
    units = sorted({summary.unit for summary in summaries})
    unit = units[0] if len(units) == 1 else ""
    header = ["target", "prompt", "prompts", "cases", "groups", "Dice", "IoU"]
    header += [f"HD95 {unit}", f"NSD at {tolerance:g} {unit}", "missed"]
    rows: list[list[object]] = []
    for row in summaries:
        hd95 = f"{row.hd95}" if unit or not row.cases else f"{row.hd95} {row.unit}"
        prompts = "-" if math.isnan(row.prompts) else f"{row.prompts:.3g}"
        cells = [row.target, row.protocol, prompts, row.cases, row.groups]
        cells += [row.dice, row.iou, hd95, row.nsd, row.missed if row.cases else "-"]
        rows.append(cells)
    notes = [
        "Mean over cases, with its 95 % interval (Student's t; cases of one group, such as a"
        " patient, do not count as independent).",
        "`prompts`: clicks, boxes, texts and masks per case.",
        *(note for end, note in WAYS.items() if any(r.protocol.endswith(end) for r in summaries)),
        *notes_on_groups(getattr(row, metric) for row in summaries for metric in BOUNDS),
        HD95_NOTES[hd95_definition],
        "It leaves out targets of which nothing was predicted; `missed` counts them.",
    ]
    return "\n".join([*markdown_table(header, rows), "", " ".join(notes)]) + "\n"


def case_groups(rows: Iterable[Row]) -> dict[str, str]:
    """The group of each case: the case itself where none is known."""
    groups: dict[str, str] = {}
    for row in rows:
        if row.group or row.case not in groups:
            groups[row.case] = row.group or row.case
    return groups


def case_means(rows: Iterable[Row], metric: str) -> dict[str, float]:
    """Mean over targets of each case, of its finite values; cases without any are left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if math.isfinite(value := getattr(row, metric)):
            values.setdefault(row.case, []).append(value)
    return {case: float(np.mean(found)) for case, found in values.items()}


def _summary(target: str, protocol: str, unit: str, rows: list[Row]) -> Summary:
    groups = case_groups(rows)
    means = {}
    for metric, bounds in BOUNDS.items():
        values = case_means(rows, metric)
        members = [groups[case] for case in values]
        means[metric] = mean_interval(list(values.values()), members, bounds)
    cases, numbers = len(groups), len(set(groups.values()))
    missed = sum(math.isinf(row.hd95) for row in rows)
    prompts = float(np.mean([row.prompts for row in rows])) if rows else math.nan
    return Summary(target, protocol, cases, numbers, prompts, **means, missed=missed, unit=unit)
