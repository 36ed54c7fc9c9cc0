"""What the runs of a study scored: means over draws and cases, and differences between arms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.common.errors import UserError
from finetune.evaluation.comparison.results import read_results
from finetune.evaluation.statistics import Mean, crossed_interval
from finetune.evaluation.tables import ALL_TARGETS, BOUNDS, Row, case_groups, case_means
from finetune.few_shot.study import Run

Key = tuple[str, int | None]
"""Arm and number of cases."""
Dice = dict[int, dict[str, float]]
"""Of each case, by draw."""


@dataclass(frozen=True)
class Point:
    """An arm trained with a number of cases, under one protocol, for one target."""

    protocol: str
    target: str
    arm: str
    cases: int | None
    """Number of labelled cases; None for all."""
    groups: int
    """The same number, also where it is all."""
    draws: int
    """Those that are done."""
    dice: Mean
    """Over draws and test cases."""
    lowest: float
    """Mean Dice of the draw that did worst."""
    highest: float
    """Mean Dice of the draw that did best."""
    difference: Mean | None
    """To the baseline trained with the same cases, draw by draw and case by case; None without."""
    shared_draws: int = 0
    """Draws that the arm and the baseline have, over which the difference is."""
    other_cases: bool = False
    """Whether there is no difference since the baseline was evaluated on other cases or targets."""


@dataclass(frozen=True)
class _Done:
    """A run that is done."""

    draw: int
    groups: int
    rows: list[Row]


def points_of(runs: Sequence[Run], baseline: str) -> list[Point]:
    """The mean Dice of every arm and number of cases of which a run is done.

    A case counts by the mean over its targets, cases of one group do not count as independent, and
    neither do runs of one draw: see `crossed_interval`.

    Args:
        runs: All of the study; those that are not done are left out.
        baseline: Arm with which the others are compared.

    Raises:
        UserError: A file of results is damaged, or two of one arm are of different cases.
    """
    done: dict[Key, list[_Done]] = {}
    for run in runs:
        if run.is_done:
            rows = read_results(run.evaluation / "results.csv")
            found = _Done(run.draw, len(run.record()["groups"]), rows)
            done.setdefault((run.arm.name, run.cases), []).append(found)
    groups = case_groups(row for found in done.values() for each in found for row in each.rows)
    points = []
    for protocol, target in _questions(done):
        tables = {key: _dice(found, protocol, target, key) for key, found in done.items()}
        for (arm, cases), dice in tables.items():
            if not dice:
                continue
            values = _table(dice)
            members = [groups[case] for case in next(iter(dice.values()))]
            against = {} if arm == baseline else tables.get((baseline, cases), {})
            shared = [draw for draw in dice if draw in against]
            # of the same targets of the same cases
            same = not against or all(
                _asked(each, protocol, target) == _asked(other, protocol, target)
                for each in done[arm, cases]
                for other in done[baseline, cases]
            )
            difference = _difference(dice, against, shared, members) if shared and same else None
            points.append(
                Point(
                    protocol=protocol,
                    target=target,
                    arm=arm,
                    cases=cases,
                    groups=done[arm, cases][0].groups,
                    draws=len(dice),
                    dice=crossed_interval(values, members, BOUNDS["dice"]),
                    lowest=float(values.mean(1).min()),
                    highest=float(values.mean(1).max()),
                    difference=difference,
                    shared_draws=len(shared),
                    other_cases=not same,
                )
            )
    return points


def _questions(done: Mapping[Key, Sequence[_Done]]) -> Iterator[tuple[str, str]]:
    """Every protocol with every target, and then with all together if there are several."""
    rows = [row for found in done.values() for each in found for row in each.rows]
    for protocol in dict.fromkeys(row.protocol for row in rows):
        targets = dict.fromkeys(row.target for row in rows if row.protocol == protocol)
        for target in targets if len(targets) < 2 else (*targets, ALL_TARGETS):
            yield protocol, target


def _dice(found: Sequence[_Done], protocol: str, target: str, key: Key) -> Dice:
    """Empty for an arm that was not evaluated so.

    Raises:
        UserError: Not all draws have the same cases.
    """
    dice: Dice = {}
    for each in found:
        if means := case_means(_rows(each, protocol, target), "dice"):
            dice[each.draw] = means
    first = next(iter(dice.values()), {})
    for draw, means in dice.items():
        if means.keys() != first.keys():
            raise UserError(
                f"output: draw {draw} of the arm {key[0]!r} was evaluated on other cases than the"
                " draws before it; remove its folder below evaluations/ and start again"
            )
    return dice


def _rows(done: _Done, protocol: str, target: str) -> list[Row]:
    return [
        row for row in done.rows if row.protocol == protocol and target in (row.target, ALL_TARGETS)
    ]


def _asked(done: _Done, protocol: str, target: str) -> set[tuple[str, str]]:
    """The cases, each with the targets that were asked for."""
    return {(row.case, row.target) for row in _rows(done, protocol, target)}


def _table(dice: Dice) -> np.ndarray:
    """(draws, cases)."""
    cases = list(next(iter(dice.values())))
    return np.array([[means[case] for case in cases] for means in dice.values()])


def _difference(dice: Dice, baseline: Dice, draws: Sequence[int], members: Sequence[str]) -> Mean:
    """Over draws and cases that both have."""
    paired = [[dice[draw][case] - baseline[draw][case] for case in dice[draw]] for draw in draws]
    return crossed_interval(paired, members, (-1, 1))
