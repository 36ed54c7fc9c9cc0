"""The table of a study against means and intervals computed step by step."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from finetune.evaluation.statistics import Mean, crossed_interval, mean_interval
from finetune.evaluation.tables import Row, results_csv
from finetune.few_shot.report import write_report
from finetune.few_shot.scores import points_of
from finetune.few_shot.study import Run

GROUPS = {"a": "p", "b": "p", "c": "q", "d": "r", "e": "s"}
"""Test cases and their groups."""


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., list[Run]]:
    """Runs whose results are drawn at random; `u-net` takes no prompts."""

    def make(draws: int = 3, numbers: tuple[int | None, ...] = (1, None)) -> list[Run]:
        rng = np.random.default_rng(0)
        arms = {"mae": ("box", "filled box"), "new": ("box",), "u-net": ("no prompt",)}
        runs = []
        for draw in range(draws):
            for cases in numbers:
                for name, protocols in arms.items():
                    run = Run(tmp_path, SimpleNamespace(name=name, folder=name), cases, draw)
                    rows = [
                        Row(case, target, protocol, rng.random(), 0.5, 1, 1, "mm", 1, group)
                        for case, group in GROUPS.items()
                        for target in ("liver", "tumour")
                        for protocol in protocols
                        if (case, target) != ("c", "tumour")
                    ]
                    run.evaluation.mkdir(parents=True)
                    (run.evaluation / "results.csv").write_text(results_csv(rows))
                    found = [f"{number}" for number in range(cases or 7)]
                    write_json(run.evaluation / "run.json", {"groups": found, "seconds": 1.0})
                    runs.append(run)
        return runs

    return make


def dice_of(run: Run, protocol: str, target: str | None = None) -> list[float]:
    """Mean over targets of each test case."""
    means = []
    with (run.evaluation / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == protocol]
    for case in GROUPS:
        found = [r for r in rows if r["case"] == case and target in (None, r["target"])]
        if found:
            means.append(sum(float(row["dice"]) for row in found) / len(found))
    return means


def literal(table: list[list[float]], groups: list[str]) -> tuple[float, float, float]:
    """Mean and interval of `crossed_interval`, without bounds, in plain steps."""
    draws, cases = len(table), len(table[0])
    mean = sum(map(sum, table)) / draws / cases
    of_runs = [sum(row) / cases for row in table]
    variance_of_runs = sum((each - mean) ** 2 for each in of_runs) / (draws - 1) / draws
    of_cases = [sum(row[index] for row in table) / draws for index in range(cases)]
    variance_of_cases, trace, shared = 0.0, [], []
    for group in sorted(set(groups)):
        members = [value for value, name in zip(of_cases, groups, strict=True) if name == group]
        share = len(members) / cases
        residual = sum(value - mean for value in members) / cases
        variance_of_cases += residual**2 / (1 - share)
        trace.append(share**2)
        shared.append(share**2 / (1 - share))
    freedom = 1 / (sum(trace) + sum(shared) ** 2 - sum(each**2 for each in shared))
    variance = variance_of_cases + variance_of_runs
    together = variance**2 / (variance_of_cases**2 / freedom + variance_of_runs**2 / (draws - 1))
    half = student.ppf(0.975, together) * math.sqrt(variance)
    return mean, mean - half, mean + half


def test_means_and_intervals_are_those_of_a_literal_computation(study):
    runs = study()
    points = {(p.protocol, p.target, p.arm, p.cases): p for p in points_of(runs, "new")}
    for target in ("liver", "tumour", None):
        key = ("box", target or "all targets", "mae", None)
        chosen = [run for run in runs if (run.arm.name, run.cases) == ("mae", None)]
        table = [dice_of(run, "box", target) for run in chosen]
        members = [GROUPS[case] for case in GROUPS if (case, target) != ("c", "tumour")]
        mean, low, high = literal(table, members)
        point = points[key]
        assert (point.draws, point.groups, point.dice.groups) == (3, 7, len(set(members)))
        found = (point.dice.mean, point.dice.low, point.dice.high)
        assert found == pytest.approx((mean, max(low, 0), min(high, 1)))
        assert (point.lowest, point.highest) == pytest.approx(
            (min(map(np.mean, table)), max(map(np.mean, table)))
        )
        others = [run for run in runs if (run.arm.name, run.cases) == ("new", None)]
        baseline = [dice_of(run, "box", target) for run in others]
        mean, low, high = literal((np.array(table) - baseline).tolist(), members)
        assert point.difference is not None
        found = (point.difference.mean, point.difference.low, point.difference.high)
        assert found == pytest.approx((mean, max(low, -1), min(high, 1)))
    assert points["filled box", "liver", "mae", 1].difference is None
    assert points["no prompt", "liver", "u-net", 1].difference is None


def test_only_draws_that_both_arms_have_are_compared(study):
    runs = study()
    kept = [run for run in runs if (run.arm.name, run.draw) != ("new", 1)]
    points = {(p.arm, p.cases): p for p in points_of(kept, "new") if p.target == "liver"}
    chosen = {
        arm: [dice_of(r, "box", "liver") for r in runs if r.arm.name == arm and r.cases == 1]
        for arm in ("mae", "new")
    }
    paired = [np.subtract(chosen["mae"][draw], chosen["new"][draw]) for draw in (0, 2)]
    mae = next(
        p
        for p in points_of(kept, "new")
        if (p.protocol, p.target, p.arm, p.cases) == ("box", "liver", "mae", 1)
    )
    assert mae.difference.mean == pytest.approx(np.mean(paired))
    assert (mae.draws, mae.shared_draws, points["new", 1].draws) == (3, 2, 2)


def test_a_difference_says_over_how_many_draws_it_is(study, tmp_path):
    """Draws 0 and 1 of one arm and 1 and 2 of the other: the difference is that of one draw."""
    undone = {("mae", 2), ("new", 0)}
    runs = [run for run in study(numbers=(1,)) if run.arm.name != "u-net"]
    for run in runs:
        if (run.arm.name, run.draw) in undone:
            (run.evaluation / "run.json").unlink()
    write_report(SimpleNamespace(output=tmp_path, baseline="new"), runs)
    text = (tmp_path / "few_shot.md").read_text()
    differences = text.partition("Difference to new:")[2].partition("##")[0]
    (row,) = (line for line in differences.splitlines() if "| mae" in line)
    assert row.endswith("), 1 of 3 draws |")
    assert "Of a single draw, the interval says nothing about other draws." in text
    with (tmp_path / "few_shot.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["difference"]]
    assert {(line["draws"], line["shared_draws"]) for line in lines} == {("2", "1")}


def test_arms_that_were_evaluated_on_other_cases_are_said_not_to_be_compared(study, tmp_path):
    runs = study()
    for run in runs:
        if run.arm.name == "mae":
            path = run.evaluation / "results.csv"
            path.write_text("".join(line for line in path.open() if not line.startswith("e,")))
    write_report(SimpleNamespace(output=tmp_path, baseline="new"), runs)
    text = (tmp_path / "few_shot.md").read_text()
    assert "Difference to new:" not in text
    assert "Not compared, since evaluated on other test cases or targets than new: mae." in text


def test_arms_that_were_evaluated_on_other_targets_are_compared_by_those_of_both(study, tmp_path):
    runs = study()
    targets = list(dict.fromkeys(point.target for point in points_of(runs, "new")))[:-1]
    for run in runs:
        if run.arm.name == "mae":
            path = run.evaluation / "results.csv"
            kept = [line for line in path.open() if f",{targets[0]}," not in line]
            path.write_text("".join(kept))
    found = [point for point in points_of(runs, "new") if point.arm == "mae"]
    compared = {point.target for point in found if point.difference is not None}
    assert compared == set(targets[1:]) != set()
    write_report(SimpleNamespace(output=tmp_path, baseline="new"), runs)
    said = "Not compared, since evaluated on other test cases or targets than new: mae."
    assert said in (tmp_path / "few_shot.md").read_text()


def test_the_files_hold_the_points_and_name_what_is_missing(study, tmp_path, capsys):
    runs = study()
    for run in runs:
        if (run.arm.name, run.cases) == ("u-net", None) and run.draw > 0:
            (run.evaluation / "run.json").unlink()
    config = SimpleNamespace(output=tmp_path, baseline="new")
    write_report(config, runs)
    text = (tmp_path / "few_shot.md").read_text()
    assert text in capsys.readouterr().out
    assert "| arm | 1 case | all cases (7) |" in text and "Difference to new:" in text
    assert "- u-net, all cases: draws 1, 2\n" in text and "1 of 3 draws" in text
    points = points_of(runs, "new")
    with (tmp_path / "few_shot.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(points) == 3 * (2 + 2 + 2 + 2)
    for line, point in zip(lines, points, strict=True):
        assert line["cases"] == str(point.cases or "all")
        assert float(line["dice"]) == point.dice.mean
        low = math.nan if line["dice_low"] == "" else float(line["dice_low"])
        assert low == pytest.approx(point.dice.low, nan_ok=True)
        if point.target == "all targets":
            assert str(point.dice) in text
    for line in lines:
        assert (line["difference"] != "") == (line["arm"] == "mae" and line["protocol"] == "box")
    assert (tmp_path / "few_shot.png").read_bytes().startswith(b"\x89PNG")


def test_draws_of_other_cases_are_refused(study):
    runs = study()
    path = runs[-1].evaluation / "results.csv"
    path.write_text("".join(line for line in path.open() if not line.startswith("e,")))
    with pytest.raises(UserError, match="draw 2 of the arm 'u-net' was evaluated on other cases"):
        points_of(runs, "new")


def test_an_interval_over_draws_and_cases_holds_as_often_as_it_says():
    rng, groups = np.random.default_rng(0), [f"{number}" for number in range(20)]
    held = {crossed_interval: 0, mean_interval: 0}
    for _ in range(600):
        of_runs, of_cases = rng.normal(size=(3, 1)), rng.normal(size=20)
        values = of_runs + of_cases + rng.normal(size=(3, 20))
        for function, given in ((crossed_interval, values), (mean_interval, values.mean(0))):
            found = function(given, groups)
            held[function] += found.low <= 0 <= found.high
    assert held[crossed_interval] / 600 > 0.91
    assert held[mean_interval] / 600 < 0.8  # which says nothing about other draws


def test_a_single_draw_has_the_interval_of_its_cases_and_equal_figures_none_to_speak_of():
    values, groups = [0.1, 0.4, 0.7], ["p", "q", "r"]
    assert crossed_interval([values], groups) == mean_interval(values, groups)
    assert crossed_interval([[0.5, 0.5]] * 3, ["p", "q"]) == Mean(0.5, 0.5, 0.5, 2)
    alone = crossed_interval([[0.5, 0.6], [0.6, 0.7]], ["p", "p"])
    assert alone.mean == pytest.approx(0.6) and math.isnan(alone.low)
