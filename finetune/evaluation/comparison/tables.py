"""The tables of a comparison."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from finetune.evaluation.comparison.clicks import THRESHOLDS, clicks_needed
from finetune.evaluation.comparison.forms import (
    Cell,
    Column,
    Table,
    interval,
    number,
    spread,
    words,
)
from finetune.evaluation.comparison.paired import Comparison, Difference
from finetune.evaluation.comparison.results import Evaluated
from finetune.evaluation.details import PROGRAM
from finetune.evaluation.statistics import EXACT_GROUPS, notes_on_groups
from finetune.evaluation.tables import (
    ALL_TARGETS,
    BOUNDS,
    HD95_NOTES,
    WAYS,
    Summary,
    summarise,
)

MANY = 4
"""Runs that are as many columns at most."""
NO_GROUPS = (
    "These results name no groups, as those of earlier versions: each case counts as its own."
    " Evaluate again if a patient has several."
)


def prompts_table(comparison: Comparison) -> Table:
    """Dice by prompt, with the difference to the baseline.

    One row per protocol and one column per run; of more than `MANY` runs one row each, in short.
    """
    differences = {(row.protocol, row.run): row for row in comparison.differences}
    protocols = dict.fromkeys([*comparison.dice, *(row.protocol for row in comparison.differences)])
    many = len(comparison.runs) > MANY
    texts = {key: _in_short(row) if many else _in_words(row) for key, row in differences.items()}
    for protocol, dice in comparison.dice.items():
        texts[protocol, comparison.baseline] = f"{dice:.3f}"
    if many:
        names = ["run", *protocols]
        found = [[run, *(texts.get((p, run), "-") for p in protocols)] for run in comparison.runs]
    else:
        names = ["prompt", *comparison.runs]
        found = [[p, *(texts.get((p, run), "-") for run in comparison.runs)] for p in protocols]
    rows = [[words(text) for text in row] for row in found]
    bounds = (
        "; its interval is in the table of differences."
        if many
        else " with its 95 % interval (Student's t; cases of one group, such as a patient, do not"
        " count as independent)."
    )
    notes = [
        f"Mean Dice over cases, then the difference to {comparison.baseline} case by case{bounds}",
        *notes_on_groups(row.difference for row in comparison.differences if row.against),
    ]
    tested = sum(not math.isnan(row.p) for row in comparison.differences)
    if tested > 1:
        notes.append(
            "`ahead` and `behind`: that interval leaves out 0, each judged by itself. p-values"
            f" corrected for all {tested} are in the table of differences that `--output` writes."
        )
    if any(row.against not in ("", row.protocol) for row in comparison.differences):
        notes.append(
            f"What {comparison.baseline} was not evaluated under is compared with its"
            f" `{comparison.reference}`."
        )
    if not comparison.groups_known:
        notes.append(NO_GROUPS)
    columns = [Column(name, (name,)) for name in names]
    return Table("prompts", "Dice by prompt", columns, rows, notes)


def _in_short(row: Difference) -> str:
    verdict = f" {row.verdict}" if row.verdict in ("ahead", "behind") else ""
    return f"{row.dice:.3f}" + (f", {row.difference.mean:+.3f}{verdict}" if row.against else "")


def _in_words(row: Difference) -> str:
    against = "" if row.against in ("", row.protocol) else f" to {row.against}"
    if not row.against:
        return f"{row.dice:.3f}"
    return f"{row.dice:.3f}, {row.signed}{against}: {row.verdict}"


def scores_table(runs: Mapping[str, Evaluated]) -> Table:
    """All metrics, of all targets together and of each: one row per target, protocol and run."""
    summaries = {name: summarise(run.rows) for name, run in runs.items()}
    everything = [summary for each in summaries.values() for summary in each]
    targets = dict.fromkeys(summary.target for summary in everything)
    protocols = dict.fromkeys(summary.protocol for summary in everything)
    units = sorted({summary.unit for summary in everything})
    unit = units[0] if len(units) == 1 else ""
    tolerance = next((run.tolerance for run in runs.values() if run.tolerance is not None), None)
    times = {name: _case_times(run) for name, run in runs.items()}
    rows = []
    for target in sorted(targets, key=lambda target: target != ALL_TARGETS):
        for protocol in protocols:
            for name, run in runs.items():
                seconds = times[name].get((target, protocol), math.nan)
                rows += [
                    _scores(summary, name, run, seconds, unit)
                    for summary in summaries[name]  # one for cases in mm, one for those in pixels
                    if (summary.target, summary.protocol) == (target, protocol)
                ]
    nsd = "NSD" if tolerance is None else f"NSD at {tolerance:g} {unit}".rstrip()
    columns = [Column(name, (name,)) for name in ("target", "prompt", "run")]
    columns += [Column("prompts", ("prompts",)), Column("cases", ("cases",))]
    columns += [Column("groups", ("groups",)), spread("Dice", "dice"), spread("IoU", "iou")]
    columns += [spread(f"HD95 {unit}".rstrip(), "hd95"), spread(nsd, "nsd")]
    columns += [Column("missed", ("missed",)), Column("trained", ("trained_parameters",))]
    columns += [Column("of all", ("parameters",)), Column("s per case", ("seconds",))]
    definition = runs[next(iter(runs))].rows[0].hd95_definition
    devices = dict.fromkeys(_device(run) for run in runs.values() if "device" in run.model)
    notes = [
        "Mean over cases with its 95 % interval; `all targets`: a case counts by the mean over its"
        " targets. `prompts`: clicks, boxes, texts and masks per case and target.",
        *(note for end, note in WAYS.items() if any(name.endswith(end) for name in protocols)),
        HD95_NOTES[definition],
        "It leaves out targets of which nothing was predicted; `missed` counts them.",
        *notes_on_groups(getattr(row, metric) for row in everything for metric in BOUNDS),
        "`trained`: parameters that training changed. `s per case`: seconds of encoding and"
        " decoding for one case (median), without reading it and without the simulated user"
        + (f", on {' and '.join(devices)}." if devices else "."),
    ]
    if len(devices) > 1:
        notes.append("They were measured on different machines, so they cannot be compared.")
    notes += notes_on_missing(runs)
    return Table("scores", "Scores", columns, rows, notes)


def notes_on_missing(runs: Mapping[str, Evaluated]) -> list[str]:
    """What some results do not have, and what to do about it."""
    earlier = [name for name, run in runs.items() if not run.model]
    foreign = [name for name, run in runs.items() if PROGRAM in run.model]
    blind = [
        name
        for name, run in runs.items()
        if run.model and run.thumbnails is None and name not in foreign
    ]
    notes = []
    if foreign:
        notes.append(
            f"{', '.join(foreign)}: masks of another program, whose parameters, times and pictures"
            " are not known."
        )
    if earlier:
        notes.append(
            f"{', '.join(earlier)}: evaluated by an earlier version, which kept no parameters,"
            " times, Dice after each click and pictures; evaluate again to have them here."
        )
    if blind:
        notes.append(
            f"{', '.join(blind)}: no pictures were kept (--thumbnails 0), so that the cases are"
            " not shown side by side."
        )
    return notes


def _device(run: Evaluated) -> str:
    threads = run.model.get("threads", 1)
    return f"{run.model['device']} ({threads} CPU thread{'s' * (threads != 1)})"


def _scores(summary: Summary, name: str, run: Evaluated, seconds: float, unit: str) -> list[Cell]:
    hd95 = f"{summary.hd95}" if unit or not summary.cases else f"{summary.hd95} {summary.unit}"
    return [
        words(summary.target),
        words(summary.protocol),
        words(name),
        number(summary.prompts),
        number(summary.cases, "d"),
        number(summary.groups, "d"),
        interval(summary.dice),
        interval(summary.iou),
        interval(summary.hd95, hd95),
        interval(summary.nsd),
        number(summary.missed, "d"),
        _parameters(run.model.get("trained_parameters")),
        _parameters(run.model.get("parameters")),
        number(seconds),
    ]


def _parameters(count: int | None) -> Cell:
    if count is None:
        return number(math.nan)
    return Cell(f"{count / 1e6:.2f} M" if count else "0", (count,))


def _case_times(run: Evaluated) -> dict[tuple[str, str], float]:
    """Median time of a case by target and protocol; of all targets, of the sum over them.

    The first case takes longer, since libraries prepare themselves.
    """
    times: dict[tuple[str, str], dict[str, float]] = {}
    for each in run.seconds:
        for target in {each.target, ALL_TARGETS}:
            cases = times.setdefault((target, each.protocol), {})
            cases[each.case] = cases.get(each.case, 0.0) + each.seconds
    return {key: float(np.median(list(cases.values()))) for key, cases in times.items()}


def differences_table(comparison: Comparison) -> Table:
    """Paired differences of Dice to the baseline, with p-values."""
    rows = []
    for row in comparison.differences:
        if not row.against:
            continue
        against = comparison.dice[row.against]
        rows.append(
            [
                words(row.protocol),
                words(row.run),
                number(row.dice, ".3f"),
                words(row.against),
                number(against, ".3f"),
                interval(row.difference, row.signed),
                number(row.p, ".2g"),
                number(row.corrected, ".2g"),
                number(row.difference.groups, "d"),
            ]
        )
    tested = [row for row in comparison.differences if not math.isnan(row.p)]
    columns = [Column(name, (name,)) for name in ("prompt", "run")]
    columns += [Column("Dice", ("dice",))]
    columns += [Column(f"{comparison.baseline} by", ("baseline_prompt",))]
    columns += [Column("its Dice", ("baseline_dice",)), spread("difference", "difference")]
    columns += [Column("p", ("p",)), Column("p, Holm", ("p_holm",)), Column("groups", ("groups",))]
    notes = [
        f"Difference of Dice to {comparison.baseline}, mean over cases of the mean over targets,"
        " with its 95 % interval (Student's t over groups). p: two-sided paired permutation test,"
        " which turns the signs of all differences of a group together (all possibilities up to"
        f" {EXACT_GROUPS} groups, 19 999 drawn ones for more). p, Holm: corrected by Holm's"
        f" method for the number of p-values in this table, {len(tested)}; what is below 0.05"
        " there remains significant after correction.",
        *_limits([row.difference.groups for row in tested]),
    ]
    if not comparison.groups_known:
        notes.append(NO_GROUPS)
    title = f"Differences to {comparison.baseline}"
    return Table("differences", title, columns, rows, notes)


def _limits(groups: Sequence[int]) -> list[str]:
    """What p-values cannot show."""
    if not groups:
        return ["No p-value: all cases are of one group, or no model is compared."]
    smallest = 2.0 ** (1 - max(groups))
    if smallest * len(groups) <= 0.05:
        return []
    return [
        f"With {max(groups)} groups no p-value is below {smallest:.2g}, and after correction for"
        f" {len(groups)} none is below {min(1.0, smallest * len(groups)):.2g}: such differences"
        " cannot be shown to be clear with so few groups."
    ]


def clicks_table(runs: Mapping[str, Evaluated]) -> Table | None:
    """Number of clicks to a Dice; None if no run has the Dice after each click."""
    found = clicks_needed(runs)
    if not found:
        return None
    single = [name for name in runs if runs[name].clicks and name not in {row.run for row in found}]
    columns = [Column(name, (name,)) for name in ("clicks", "target", "run")]
    columns.append(Column("at most", ("at_most",)))
    rows = [
        [words(row.way), words(row.target), words(row.run), number(row.most, "d")] for row in found
    ]
    for threshold in THRESHOLDS:
        metric, percent = threshold.metric, f"{100 * threshold.value:.0f}"
        name = f"{percent}_{metric.lower()}"
        columns.append(spread(f"NoC@{percent} {metric}", f"noc{name}"))
        columns.append(Column("never", (f"never{name}",)))
        for cells, row in zip(rows, found, strict=True):
            cells.append(interval(row.noc[threshold]))
            cells.append(number(row.never[threshold], ".0%"))
    notes = [
        "NoC@85, NoC@90: number of clicks until the Dice, or the IoU, is 0.85 or 0.90, mean over"
        " cases with its 95 % interval over groups. An object that never gets there counts as the"
        " number in `at most`; `never` is the share of those objects. Of volumes that are prompted"
        " per slice, it is clicks in each slice, for the Dice or IoU of the volume.",
        *notes_on_groups(noc for row in found for noc in row.noc.values()),
        *(f"{name}: one click shows no number that is needed." for name in single),
    ]
    return Table("clicks", "Clicks needed", columns, rows, notes)
