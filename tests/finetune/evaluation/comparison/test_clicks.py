"""Number of clicks to reach a Dice, against literal loops over objects."""

import numpy as np
import pytest

from data_prep.common.errors import UserError
from finetune.evaluation.comparison.clicks import (
    THRESHOLDS,
    Threshold,
    clicks_needed,
    clicks_to_reach,
    curves_by_clicks,
    way_of,
)
from finetune.evaluation.comparison.results import Evaluated
from finetune.evaluation.comparison.tables import clicks_table
from finetune.evaluation.details import ClickDice
from finetune.evaluation.statistics import mean_interval
from finetune.evaluation.tables import Row

CASES = {"p": "x", "q": "x", "r": "y", "s": "z"}
"""Group of each case."""


def names(count: int, way: str = "") -> dict[int, str]:
    return {n: f"{n} click{'s' * (n > 1)}{way}" for n in range(1, count + 1)}


def evaluated(curves: dict[tuple[str, str], list[float]], way: str = "") -> Evaluated:
    """A run from the Dice after each click, by case and target; rows after 1 and 3 clicks."""
    clicks = [
        ClickDice(case, target, names(len(dice), way)[n], n, value, CASES[case])
        for (case, target), dice in curves.items()
        for n, value in enumerate(dice, start=1)
    ]
    rows = [
        Row(c.case, c.target, c.protocol, c.dice, 0, 0, 0, "mm", group=c.group)
        for c in clicks
        if c.clicks in (1, 3)
    ]
    return Evaluated(rows, clicks)


def drawn(seed: int, count: int) -> dict[tuple[str, str], list[float]]:
    rng = np.random.default_rng(seed)
    return {
        (case, target): np.clip(0.6 + 0.07 * np.arange(count) + rng.normal(0, 0.1, count), 0, 1)
        for case in CASES
        for target in ("a", "b")
    }


def test_the_first_click_that_reaches_it_counts() -> None:
    dice = [0.5, 0.86, 0.8, 0.9, 0.95]
    assert [clicks_to_reach(dice, each) for each in (0.3, 0.85, 0.9, 0.96)] == [1, 2, 4, None]


def test_it_is_a_literal_loop_over_objects() -> None:
    one, other = drawn(0, 6), drawn(1, 5)
    runs = {"one": evaluated(one), "other": evaluated(other)}
    found = {(row.target, row.run): row for row in clicks_needed(runs)}
    assert len(found) == 2 * 3
    for name, curves in (("one", one), ("other", other)):
        for target in ("a", "b", "all targets"):
            row = found[target, name]
            assert (row.way, row.most) == ("clicks", 5)  # runs are judged on as many
            assert [*row.noc] == [*row.never] == [*THRESHOLDS]
            for metric, limit in THRESHOLDS:
                means, failed = [], []
                for case in CASES:
                    needed = []
                    for of in ("a", "b") if target == "all targets" else (target,):
                        count = 0
                        for dice in curves[case, of][:5]:
                            count += 1
                            value = dice if metric == "Dice" else dice / (2 - dice)
                            if value >= limit:
                                break
                        needed.append(count)
                        failed.append(value < limit)
                    means.append(np.mean(needed))
                expected = mean_interval(means, list(CASES.values()), (1, 5))
                assert row.noc[metric, limit] == expected
                assert row.never[metric, limit] == np.mean(failed)
    assert 0 < found["all targets", "one"].never["IoU", 0.85] < 1


def test_what_just_reaches_an_iou_counts() -> None:
    """17 of 20 pixels in common are an IoU of 0.85, and a Dice of 34 / 37."""
    limit = Threshold("IoU", 0.85).dice
    assert clicks_to_reach([33.99 / 37, 34 / 37], limit) == 2
    for common, union in ((85, 100), (17, 20), (170, 200)):
        assert clicks_to_reach([2 * common / (common + union)], limit) == 1


def test_ways_of_clicking_are_told_apart_and_must_have_each_click() -> None:
    assert way_of("10 clicks after a text per slice") == "clicks after a text per slice"
    assert way_of("1 click in one slice") == "clicks in one slice"
    run, volumes = evaluated(drawn(0, 4)), evaluated(drawn(1, 4), " per slice")
    both = Evaluated([*run.rows, *volumes.rows], [*run.clicks, *volumes.clicks])
    assert {row.way for row in clicks_needed({"run": both})} == {"clicks", "clicks per slice"}
    gaps = Evaluated(run.rows, [each for each in run.clicks if each.clicks != 2])
    assert clicks_needed({"run": gaps}) == []
    single = Evaluated(run.rows, [each for each in run.clicks if each.clicks == 1])
    assert clicks_needed({"run": single}) == []
    with pytest.raises(UserError, match="'1 click' of case p is there twice"):
        clicks_needed({"run": Evaluated(run.rows, [*run.clicks, *run.clicks])})


def test_the_table_says_how_many_never_reach_it() -> None:
    curves = {(case, "a"): [0.5, 0.7] for case in CASES} | {("s", "a"): [0.86, 0.91]}
    table = clicks_table({"run": evaluated(curves), "earlier": Evaluated(evaluated(curves).rows)})
    assert table is not None
    (line,) = table.rows  # the other run has no Dice after each click
    assert [cell.text for cell in line[:4]] == ["clicks", "a", "run", "2"]
    assert line[4].values[0] == (2 * 3 + 1) / 4 and line[5].values == (0.75,)
    assert line[6].values[0] == 2 and line[5].text == line[7].text == "75%"
    assert [cell.text for cell in line[9::2]] == ["100%", "100%"]  # IoU 0.85 and 0.90
    assert clicks_table({"earlier": Evaluated(evaluated(curves).rows)}) is None


def test_a_run_of_one_click_is_left_out_and_takes_nothing_from_others() -> None:
    runs = {"ten": evaluated(drawn(0, 10)), "six": evaluated(drawn(1, 6))}
    alone = clicks_table(runs)
    table = clicks_table(runs | {"one": evaluated(drawn(2, 1))})
    assert alone is not None and table is not None and table.rows == alone.rows
    assert any(note.startswith("one: one click shows no number") for note in table.notes)
    assert clicks_table({"one": evaluated(drawn(2, 1))}) is None


def test_curves_of_earlier_results_have_the_clicks_of_their_rows() -> None:
    run = evaluated(drawn(0, 4))
    summaries, numbers = curves_by_clicks({"new": run, "earlier": Evaluated(run.rows)})
    assert numbers == {name: n for n, name in names(4).items()}
    known = {
        name: {s.protocol: s.dice for s in each if s.target == "a"}
        for name, each in summaries.items()
    }
    assert list(known["new"]) == list(names(4).values())
    assert list(known["earlier"]) == ["1 click", "3 clicks"]
    assert known["earlier"].items() < known["new"].items()
