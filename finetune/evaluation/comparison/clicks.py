"""How many clicks a run needs."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_prep.common.errors import UserError
from finetune.evaluation.comparison.results import Evaluated
from finetune.evaluation.details import ClickDice
from finetune.evaluation.statistics import Mean, mean_interval
from finetune.evaluation.tables import ALL_TARGETS, Row, Summary, case_groups, summarise


class Threshold(NamedTuple):
    """What an object is to reach."""

    metric: str
    """Dice or IoU."""
    value: float

    @property
    def dice(self) -> float:
        """The same as a Dice: that of one object is 2 IoU / (1 + IoU)."""
        if self.metric == "Dice":
            return self.value
        return 2 * self.value / (1 + self.value) - 1e-12  # the two may be rounded differently


THRESHOLDS = tuple(Threshold(metric, value) for metric in ("Dice", "IoU") for value in (0.85, 0.9))
"""Of NoC@85 and NoC@90, which interactive segmentation counts by IoU (Sofiiuk et al. 2022, RITM,
arXiv 2102.06583), and medical papers often by Dice."""


class Needed(NamedTuple):
    """Number of clicks (NoC) that a run needs to reach each of `THRESHOLDS`, over cases."""

    way: str
    """How clicks were given, as `clicks` or `clicks per slice`."""
    target: str
    run: str
    most: int
    """Clicks given at most; an object that never gets there counts as this number."""
    noc: dict[Threshold, Mean]
    never: dict[Threshold, float]
    """Share of objects that never get there."""


def clicks_to_reach(dice: Sequence[float], threshold: float) -> int | None:
    """The first number of clicks whose Dice is at least `threshold`; None: it never is.

    Args:
        dice: After 1, 2, ... clicks.
    """
    return next((n for n, value in enumerate(dice, start=1) if value >= threshold), None)


def way_of(protocol: str) -> str:
    """How clicks were given, without their number: `clicks per slice` of `3 clicks per slice`."""
    return re.sub(r"^\d+ clicks?", "clicks", protocol)


def clicks_needed(runs: Mapping[str, Evaluated]) -> list[Needed]:
    """NoC of every run that has the Dice after each click, by way of clicking and target.

    Runs that were given different numbers of clicks are judged on the smallest of them. A case
    counts by the mean over its targets.
    """
    curves = {name: _curves(run.clicks) for name, run in runs.items()}
    groups = case_groups(row for run in runs.values() for row in run.rows)
    found = []
    for way in dict.fromkeys(way for run in curves.values() for way in run):
        numbers = {
            name: min(map(len, run[way].values())) for name, run in curves.items() if way in run
        }
        # one click shows nothing
        having = {name: curves[name][way] for name, number in numbers.items() if number > 1}
        if not having:
            continue
        most = min(numbers[name] for name in having)
        targets = list(dict.fromkeys(target for run in having.values() for _, target in run))
        for target in targets if len(targets) < 2 else [ALL_TARGETS, *targets]:
            for name, run in having.items():
                members = {
                    key: dice[:most] for key, dice in run.items() if target in (key[1], ALL_TARGETS)
                }
                if members:
                    found.append(_needed(way, target, name, most, members, groups))
    return found


def curves_by_clicks(
    runs: Mapping[str, Evaluated],
) -> tuple[dict[str, list[Summary]], dict[str, int]]:
    """Mean Dice of every run after each click that is known, and the clicks behind each protocol.

    Of a run without the Dice after each click, there are the rows of its results.
    """
    summaries: dict[str, list[Summary]] = {}
    numbers: dict[str, int] = {}
    for name, run in runs.items():
        clicks = run.clicks or _clicks_of(run.rows)
        rows = [
            Row(each.case, each.target, each.protocol, each.dice, 0, 0, 0, "", group=each.group)
            for each in clicks
        ]
        numbers |= {each.protocol: each.clicks for each in clicks}
        if rows:
            summaries[name] = summarise(rows)
    return summaries, numbers


def _clicks_of(rows: Sequence[Row]) -> list[ClickDice]:
    found = []
    for row in rows:
        if match := re.match(r"(\d+) clicks?\b", row.protocol):
            number = int(match[1])
            found.append(ClickDice(row.case, row.target, row.protocol, number, row.dice, row.group))
    return found


def _curves(clicks: Sequence[ClickDice]) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Dice after 1, 2, ... clicks by way, case and target, of the ways that have each of them."""
    found: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for each in clicks:
        dice = found.setdefault(way_of(each.protocol), {}).setdefault((each.case, each.target), {})
        if each.clicks in dice:
            raise UserError(f"clicks.csv: {each.protocol!r} of case {each.case} is there twice")
        dice[each.clicks] = each.dice
    return {
        way: {key: [dice[n] for n in sorted(dice)] for key, dice in members.items()}
        for way, members in found.items()
        if all(sorted(dice) == list(range(1, len(dice) + 1)) for dice in members.values())
    }


def _needed(
    way: str,
    target: str,
    run: str,
    most: int,
    curves: Mapping[tuple[str, str], Sequence[float]],
    groups: Mapping[str, str],
) -> Needed:
    noc, never = {}, {}
    for threshold in THRESHOLDS:
        reached = {key: clicks_to_reach(dice, threshold.dice) for key, dice in curves.items()}
        by_case: dict[str, list[int]] = {}
        for (case, _), number in reached.items():
            by_case.setdefault(case, []).append(number or most)
        means = {case: sum(numbers) / len(numbers) for case, numbers in by_case.items()}
        members = [groups[case] for case in means]
        noc[threshold] = mean_interval(list(means.values()), members, (1, most))
        never[threshold] = sum(number is None for number in reached.values()) / len(reached)
    return Needed(way, target, run, most, noc, never)
