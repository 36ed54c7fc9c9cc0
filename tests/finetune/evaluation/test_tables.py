"""Summaries over cases and groups, and the tables made of them."""

import csv
import math
from dataclasses import replace

import pytest

from finetune.evaluation.statistics import mean_interval
from finetune.evaluation.tables import Row, results_csv, summarise, summary_csv, summary_markdown


def row(
    case: str, target: str, dice: float, hd95: float, protocol: str = "box", group: str = ""
) -> Row:
    return Row(case, target, protocol, dice, dice / 2, hd95, dice / 4, "mm", 3, group)


def test_summary_averages_cases_and_counts_what_was_missed():
    rows = [
        row("p", "liver", 0.5, 2.0),
        row("q", "liver", 0.7, math.inf),
        row("p", "tumour", 0.1, math.inf),
        row("p", "liver", 0.9, 1.0, "1 click"),
    ]
    liver, click, tumour, everything, _ = summarise(rows)
    assert (liver.target, liver.protocol, liver.cases, liver.missed) == ("liver", "box", 2, 1)
    assert liver.groups == 2
    assert liver.dice == mean_interval([0.5, 0.7], ["p", "q"], (0, 1))
    assert liver.hd95.mean == 2.0 and math.isnan(liver.hd95.low)  # one case has a distance
    assert (click.protocol, click.cases, click.hd95.mean) == ("1 click", 1, 1.0)
    assert tumour.missed == 1 and math.isnan(tumour.hd95.mean) and str(tumour.hd95) == "-"
    assert (everything.target, everything.protocol) == ("all targets", "box")
    # Case p counts once, by the mean of its two targets.
    assert everything.dice.mean == pytest.approx((0.3 + 0.7) / 2)
    assert (everything.cases, everything.missed) == (2, 2)
    assert everything.hd95.mean == 2.0


def test_intervals_are_over_groups():
    scores = {"a1": 0.9, "a2": 0.92, "a3": 0.91, "b1": 0.7, "b2": 0.71, "c1": 0.8}
    alone = [row(case, "liver", dice, 1.0) for case, dice in scores.items()]
    grouped = [row(case, "liver", dice, 1.0, group=case[0]) for case, dice in scores.items()]
    (one,), (other,) = summarise(alone), summarise(grouped)
    assert (one.cases, one.groups, other.cases, other.groups) == (6, 6, 6, 3)
    assert one.dice.mean == other.dice.mean
    assert other.dice.high - other.dice.low > 1.5 * (one.dice.high - one.dice.low)
    assert other.dice == mean_interval(list(scores.values()), list("aaabbc"), (0, 1))


def test_a_target_without_a_case_is_a_row():
    rows = [row("p", "liver", 0.5, 2.0), row("q", "liver", 0.7, 2.0, "1 click")]
    summaries = summarise(rows, ["spleen", "liver"])
    assert [(each.target, each.protocol, each.cases) for each in summaries] == [
        ("spleen", "box", 0),
        ("spleen", "1 click", 0),
        ("liver", "box", 1),
        ("liver", "1 click", 1),
        ("all targets", "box", 1),
        ("all targets", "1 click", 1),
    ]
    assert "| spleen | box | - | 0 | 0 | - | - | - | - | - |" in summary_markdown(summaries, 1.0)
    line = next(csv.DictReader(summary_csv(summaries).splitlines()))
    assert (line["target"], line["cases"], line["dice"], line["dice_low"]) == (
        "spleen",
        "0",
        "",
        "",
    )


def test_answers_for_all_targets_alone_have_a_row():
    (summary,) = summarise([row("p", "all targets", 0.5, 2.0), row("q", "all targets", 0.7, 2.0)])
    assert (summary.target, summary.cases, summary.dice.mean) == ("all targets", 2, 0.6)
    assert summarise([]) == []


def test_tables_hold_the_figures():
    rows = [row("p", "liver", 0.5, 2.0, group="x"), row("q", "liver", 0.7, math.inf)]
    (line, _) = list(csv.DictReader(results_csv(rows).splitlines()))
    assert line["case"] == "p" and float(line["iou"]) == 0.25 and line["unit"] == "mm"
    assert (line["group"], line["hd95_definition"]) == ("x", "surface")
    (summary,) = list(csv.DictReader(summary_csv(summarise(rows)).splitlines()))
    assert float(summary["dice"]) == pytest.approx(0.6)
    assert (float(summary["dice_low"]), float(summary["dice_high"])) == (0, 1)
    assert (summary["cases"], summary["groups"], summary["hd95_low"]) == ("2", "2", "")
    table = summary_markdown(summarise(rows), 1.0)
    assert "| liver | box | 3 | 2 | 2 | 0.600 (0.000 to 1.000) |" in table
    assert "HD95 mm" in table and "2.00 (no interval)" in table
    assert "fewer than 10 groups" in table and "No interval: all cases of that mean" in table
    assert "surface-distance" in table
    assert "as MONAI" in summary_markdown(summarise(rows), 1.0, "monai")


def test_the_table_says_how_volumes_were_prompted_and_at_what_cost():
    rows = [row("p", "liver", 0.5, 2.0, "box per slice"), row("q", "liver", 0.7, 1.0)]
    table = summary_markdown(summarise(rows), 1.0)
    assert "only somebody who knows the truth" in table and "one slice" not in table
    rows = [replace(row("p", "liver", 0.5, 2.0, "box in one slice"), prompts=n) for n in (1, 4)]
    (summary,) = summarise(rows)
    assert summary.prompts == 2.5
    assert "| liver | box in one slice | 2.5 |" in summary_markdown([summary], 1.0)
    unknown = [replace(each, prompts=math.nan) for each in rows]  # of an earlier version
    assert "| liver | box in one slice | - |" in summary_markdown(summarise(unknown), 1.0)
    assert next(csv.DictReader(summary_csv(summarise(unknown)).splitlines()))["prompts"] == ""
