"""Differences between runs, case by case."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.messages import nearest
from finetune.evaluation.statistics import Mean, holm, mean_interval, sign_flip_test
from finetune.evaluation.tables import (
    ABSENT,
    ALL_TARGETS,
    WITHOUT_MODEL,
    Row,
    case_groups,
    case_means,
)


class Difference(NamedTuple):
    """How far one run is ahead of the baseline under one protocol, case by case."""

    protocol: str
    run: str
    against: str
    """Protocol of the baseline: the same one, or its reference; "": none to compare with."""
    dice: float
    """Mean Dice of the run."""
    difference: Mean
    """Mean difference of Dice to the baseline."""
    p: float = math.nan
    """Of `sign_flip_test`; NaN where no model is compared, or all cases are of one group."""
    corrected: float = math.nan
    """p for all differences of the comparison together, by Holm's method."""

    @property
    def verdict(self) -> str:
        """Whether the run is ahead, if the interval of the difference leaves out 0."""
        if not self.against:
            return "not compared"
        if math.isnan(self.difference.low):
            return "no interval"
        if self.difference.low > 0:
            return "ahead"
        return "behind" if self.difference.high < 0 else "no clear difference"

    @property
    def signed(self) -> str:
        """The difference with its interval, as `+0.012 (-0.003 to +0.027)`."""
        mean, low, high = self.difference.mean, self.difference.low, self.difference.high
        if math.isnan(mean):
            return "-"
        return f"{mean:+.3f}" + ("" if math.isnan(low) else f" ({low:+.3f} to {high:+.3f})")


class Comparison(NamedTuple):
    """Several runs over the same cases."""

    baseline: str
    dice: dict[str, float]
    """Mean Dice of the baseline by protocol."""
    differences: list[Difference]
    """Of every other run, by protocol."""
    reference: str
    """Protocol of the baseline with which those are compared that it was not evaluated under."""
    runs: tuple[str, ...]
    """The baseline and the others, in their order."""
    groups_known: bool = True
    """False if some case counts as its own group because no run's results name its group."""


@dataclass
class _Scores:
    """Rows of one run under one protocol."""

    rows: list[Row]

    @property
    def dice(self) -> dict[str, float]:
        """Mean over targets of each case."""
        return case_means(self.rows, "dice")

    @property
    def scored(self) -> set[tuple[str, str]]:
        return {(row.case, row.target) for row in self.rows}


def compare(runs: Mapping[str, Sequence[Row]], reference: str | None = None) -> Comparison:
    """Dice of several runs over the same cases; the first one is the baseline.

    A case counts by the mean over its targets; the interval (95 %, see `mean_interval`) is that of
    the mean difference of a case, where cases of one group do not count as independent.

    A run is compared with the baseline under the same protocol. What the baseline was not evaluated
    under, as a run without prompts if the baseline takes clicks, is compared with its `reference`.

    Args:
        reference: A protocol of the baseline; None: its first one.

    Raises:
        UserError: Runs were evaluated on different cases or targets, or by different definitions of
            the HD95; or the baseline has no such reference.
    """
    baseline, *others = runs
    for run in others:
        _check_alike(runs, baseline, run)
    scores = {name: _by_protocol(rows) for name, rows in runs.items()}
    reference = reference or default_protocol(scores[baseline])
    if reference not in scores[baseline]:
        hint = nearest(reference, scores[baseline])
        raise UserError(f"reference: {baseline} has no rows under {reference!r}{hint}")
    everything = [row for rows in runs.values() for row in rows]
    groups = case_groups(everything)
    known = groups.keys() == {row.case for row in everything if row.group}
    differences = []
    for protocol in dict.fromkeys(row.protocol for row in everything):
        for run in others:
            if protocol in scores[run]:
                against = _against(protocol, scores, (baseline, run), reference)
                compared = scores[baseline].get(against)
                differences.append(
                    _difference(protocol, run, against, scores[run][protocol], compared, groups)
                )
    corrected = holm([each.p for each in differences])
    differences = [
        each._replace(corrected=p) for each, p in zip(differences, corrected, strict=True)
    ]
    dice = {name: _mean(found.dice) for name, found in scores[baseline].items()}
    return Comparison(baseline, dice, differences, reference, tuple(runs), known)


def default_protocol(protocols: Iterable[str], reference: str | None = None) -> str:
    """The protocol that stands for a run: the reference if it has it, else its first one.

    Rows about targets that cases do not hold, and about prompts by themselves, come last.
    """
    names = list(protocols)
    if reference in names:
        return str(reference)
    return min(names, key=lambda name: name.startswith(WITHOUT_MODEL) or name.endswith(ABSENT))


def _by_protocol(rows: Iterable[Row]) -> dict[str, _Scores]:
    found: dict[str, _Scores] = {}
    for protocol, members in groupby(rows, key=lambda row: row.protocol):
        found.setdefault(protocol, _Scores([])).rows.extend(members)
    return found


def _against(
    protocol: str, scores: Mapping[str, Mapping[str, _Scores]], pair: tuple[str, str], other: str
) -> str:
    """The baseline's protocol that one of another run is compared with; "" if there is none."""
    baseline, run = (scores[name] for name in pair)
    if protocol in baseline:
        first, second = baseline[protocol].scored, run[protocol].scored
        if first != second:
            here, there = pair if first - second else pair[::-1]
            case, target = min(first - second or second - first)
            raise UserError(
                f"{here} was evaluated on target {target!r} of case {case!r} under {protocol!r},"
                f" and {there} was not; compare runs evaluated with the same options"
            )
        return protocol
    same = baseline[other].scored == run[protocol].scored
    return other if same and not protocol.startswith(WITHOUT_MODEL) else ""


def _difference(
    protocol: str,
    run: str,
    against: str,
    scores: _Scores,
    compared: _Scores | None,
    groups: Mapping[str, str],
) -> Difference:
    found = scores.dice
    reference = {} if compared is None else compared.dice
    paired = [found[case] - value for case, value in reference.items()]
    members = [groups[case] for case in reference]
    difference = mean_interval(paired, members, (-1, 1))
    of_models = not protocol.startswith(WITHOUT_MODEL)
    p = sign_flip_test(paired, members) if of_models else math.nan
    return Difference(protocol, run, against, _mean(found), difference, p)


def _mean(dice: Mapping[str, float]) -> float:
    return float(np.mean(list(dice.values())))


def _check_alike(runs: Mapping[str, Sequence[Row]], baseline: str, run: str) -> None:
    """Refuse runs on different cases or targets, or by different definitions of the HD95."""
    names = [
        ", ".join(sorted({row.hd95_definition for row in runs[name]})) for name in (baseline, run)
    ]
    if names[0] != names[1]:
        raise UserError(
            f"the HD95 of {baseline} is by {names[0]!r} and that of {run} by {names[1]!r};"
            " evaluate both with the same --hd95"
        )
    for what in ("target", "case"):
        first, second = (
            {
                getattr(row, what)
                for row in runs[name]
                if not row.protocol.endswith(ABSENT) and row.target != ALL_TARGETS
            }
            for name in (baseline, run)
        )
        if first != second:
            here, there = (baseline, run) if first - second else (run, baseline)
            missing = sorted(first - second or second - first)[0]
            raise UserError(
                f"{here} was evaluated on {what} {missing!r}, and {there} was not; compare runs"
                " evaluated with the same options"
            )
