"""Comparison of runs: differences case by case, any number of runs, and the command."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from finetune.__main__ import COMMANDS
from finetune.evaluation.comparison.forms import markdown
from finetune.evaluation.comparison.paired import Comparison, Difference, compare
from finetune.evaluation.comparison.results import Evaluated, read_results
from finetune.evaluation.comparison.tables import prompts_table, scores_table
from finetune.evaluation.statistics import mean_interval
from finetune.evaluation.tables import ALL_TARGETS, Row, results_csv

CASES = [f"case{index}" for index in range(8)]


def comparison_markdown(comparison: Comparison) -> str:
    return markdown(prompts_table(comparison))


def rows(shift: float, cases: list[str] = CASES, protocol: str = "box") -> list[Row]:
    """Two targets per case; cases differ widely, and the run is ahead by `shift` in each."""
    return [
        Row(case, target, protocol, 0.1 * int(case[4:]) + shift, 0, 0, 0, "px")
        for case in cases
        for target in ("a", "b")
    ]


def test_differences_are_taken_case_by_case() -> None:
    runs = {"base": rows(0), "ahead": rows(0.02, CASES[::-1]), "same": rows(0), "behind": rows(-1)}
    comparison = compare(runs)
    assert comparison.baseline == "base"
    assert comparison.dice == {"box": pytest.approx(0.35)}
    ahead, same, behind = comparison.differences
    assert [row.run for row in comparison.differences] == ["ahead", "same", "behind"]
    found = ahead.difference
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))
    assert ahead.dice == pytest.approx(0.37)
    verdicts = [row.verdict for row in (ahead, same, behind)]
    assert verdicts == ["ahead", "no clear difference", "behind"]


def test_runs_on_other_cases_or_targets_are_refused() -> None:
    one_target = [row for row in rows(0) if row.target == "a"]
    for other, named in (
        (rows(0, CASES[1:]), f"a was evaluated on case '{CASES[0]}', and b was not"),
        (one_target, "a was evaluated on target 'b', and b was not"),
        (
            [*rows(0, CASES[1:]), *rows(0, protocol="1 click")],
            "a was evaluated on target 'a' of case 'case0' under 'box', and b was not",
        ),
    ):
        with pytest.raises(UserError, match=named):
            compare({"a": rows(0), "b": other})


def test_a_text_for_all_targets_is_no_target_of_its_own() -> None:
    texts = [
        Row(case, ALL_TARGETS, "text that names all", 0.5, 0, 0, 0, "px", group=case)
        for case in CASES
    ]
    clicked, told = rows(0, protocol="1 click"), [*rows(0.1, protocol="text"), *texts]
    found = {row.protocol: row for row in compare({"a": clicked, "b": told}).differences}
    assert found["text"].difference.mean == pytest.approx(0.1)
    assert found["text that names all"].verdict == "not compared"
    found = {row.protocol: row for row in compare({"b": told, "a": clicked}).differences}
    assert found["1 click"].difference.mean == pytest.approx(-0.1)


def test_cases_in_pixels_stand_beside_those_in_millimetres() -> None:
    mixed = [row if row.case < "case5" else replace(row, unit="mm", hd95=2.0) for row in rows(0)]
    table = scores_table({"run": Evaluated(mixed)})
    cases = {(row[0].text, row[4].values[0], row[8].text.split()[-1]) for row in table.rows}
    targets = ("all targets", "a", "b")
    assert cases == {(name, n, unit) for name in targets for n, unit in ((5, "px"), (3, "mm"))}


def test_other_prompts_are_compared_with_the_reference_of_the_baseline() -> None:
    prompted = [*rows(0.1, protocol="1 click"), *rows(0.2)]
    filled, absent = rows(0, protocol="filled box"), rows(0, CASES[:3], protocol="text, absent")
    runs = {"sam": prompted, "unet": [*rows(0.15, protocol="no prompt"), *filled, *absent]}
    comparison = compare(runs)
    assert comparison.dice == pytest.approx({"1 click": 0.45, "box": 0.55})
    found = {row.protocol: row for row in comparison.differences}
    assert list(found) == ["no prompt", "filled box", "text, absent"]
    assert found["no prompt"].against == comparison.reference == "1 click"
    assert found["no prompt"].difference.mean == pytest.approx(0.05)
    assert [found[name].verdict for name in list(found)[1:]] == ["not compared"] * 2
    text = comparison_markdown(comparison)
    assert "| no prompt | - | 0.500, +0.050 (+0.050 to +0.050) to 1 click: ahead |" in text
    assert "p-values corrected" not in text  # there is one
    assert "| box | 0.550 | - |" in text and "| filled box | - | 0.350 |" in text
    assert "What sam was not evaluated under is compared with its `1 click`." in text
    (first, *_) = compare(runs, "box").differences
    assert (first.against, first.verdict) == ("box", "behind")
    backwards = compare(dict(reversed(runs.items())))
    assert {row.against for row in backwards.differences} == {"no prompt"}
    with pytest.raises(UserError, match="sam has no rows under 'boxes'; did you mean box"):
        compare(runs, "boxes")


def test_many_runs_have_a_row_each() -> None:
    prompted = [*rows(0.1, protocol="1 click"), *rows(0.2)]
    runs = {"sam": prompted, "msa": [*rows(0.15), *rows(0, protocol="filled box")]}
    runs |= {"same": rows(0.2), "unet": rows(0.05, protocol="no prompt")}
    few = comparison_markdown(compare(runs))
    assert few.startswith("| prompt | sam | msa | same | unet |\n")
    many = comparison_markdown(compare(runs | {"behind": rows(0)}))
    assert many.splitlines()[0] == "| run | 1 click | box | filled box | no prompt |"
    assert many.splitlines()[2:7] == [
        "| sam | 0.450 | 0.550 | - | - |",
        "| msa | - | 0.500, -0.050 behind | 0.350 | - |",
        "| same | - | 0.550, +0.000 | - | - |",
        "| unet | - | - | - | 0.400, -0.050 behind |",
        "| behind | - | 0.350, -0.200 behind | - | - |",
    ]
    assert "What sam was not evaluated under is compared with its `1 click`." in many
    assert "interval (Student's t" in few and "; its interval is in the table" in many


def test_p_values_are_corrected_for_all_runs_and_prompts() -> None:
    given = rows(0, protocol="filled box")
    runs = {
        name: [*rows(shift), *rows(2 * shift, protocol="1 click"), *given]
        for name, shift in (("base", 0), ("one", 0.02), ("two", 0))
    }
    found = {(row.protocol, row.run): row for row in compare(runs).differences}
    assert found["box", "one"].p == found["1 click", "one"].p == 2 / 2**8
    assert found["box", "two"].p == 1
    # what boxes are worth by themselves is no hypothesis about a model: 4 are tested, not 6
    assert found["box", "one"].corrected == found["1 click", "one"].corrected == 4 * 2 / 2**8
    assert np.isnan([found["filled box", run].corrected for run in ("one", "two")]).all()
    assert "p-values corrected for all 4 are in" in comparison_markdown(compare(runs))


def grouped(shifts: dict[str, float], groups: dict[str, str]) -> list[Row]:
    return [
        Row(case, "a", "box", 0.5 + shift, 0, 0, 0, "px", group=groups.get(case, ""))
        for case, shift in shifts.items()
    ]


def test_cases_of_one_patient_do_not_count_as_independent() -> None:
    shifts = {f"case{n}": 0.02 + 0.03 * (n // 4) + 0.001 * n for n in range(8)}
    patients = {case: f"p{int(case[4:]) // 4}" for case in shifts}
    zeros = dict.fromkeys(shifts, 0.0)

    def difference(*known: dict[str, str]) -> Difference:
        base, run = grouped(zeros, known[0]), grouped(shifts, known[1])
        (found,) = compare({"base": base, "run": run}).differences
        return found

    apart, alike = difference({}, {}), difference(patients, patients)
    assert (apart.verdict, apart.difference.groups) == ("ahead", 8)
    assert (alike.verdict, alike.difference.groups) == ("no clear difference", 2)
    means = [np.mean([shifts[c] for c in shifts if patients[c] == p]) for p in ("p0", "p1")]
    expected = mean_interval(means, ["p0", "p1"], (-1, 1))
    assert (alike.difference.low, alike.difference.high) == pytest.approx(
        (expected.low, expected.high)
    )
    # Results of an earlier version know no groups; those of the other run do.
    assert difference({}, patients) == difference(patients, {}) == alike


def test_one_patient_has_no_interval() -> None:
    shifts = dict.fromkeys(CASES, 0.1)
    runs = {
        "base": grouped(dict.fromkeys(CASES, 0.0), dict.fromkeys(CASES, "p")),
        "run": grouped(shifts, dict.fromkeys(CASES, "p")),
    }
    comparison = compare(runs)
    assert comparison.differences[0].verdict == "no interval"
    text = comparison_markdown(comparison)
    assert "each case counts as its own" not in text
    assert "| box | 0.500 | 0.600, +0.100: no interval |" in text
    assert "No interval: all cases of that mean are of one group" in text


def test_results_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """They have no number of prompts, group and definition of the HD95."""
    path = tmp_path / "results.csv"
    lines = [line.split(",") for line in results_csv(rows(0)).splitlines()]
    assert lines[0][-3:] == ["prompts", "group", "hd95_definition"]
    path.write_text("".join(",".join(line[:-3]) + "\n" for line in lines))
    assert read_results(path) == rows(0)
    assert "each case counts as its own" in comparison_markdown(
        compare({"a": rows(0), "b": rows(0)})
    )
    path.write_text(results_csv(grouped({"c": 0.1}, {"c": "p"})))
    assert read_results(path)[0].group == "p"


def test_runs_scored_by_other_definitions_are_refused() -> None:
    monai = [replace(row, hd95_definition="monai") for row in rows(0)]
    message = "HD95 of a is by 'surface' and that of b by 'monai'; .* same --hd95"
    with pytest.raises(UserError, match=message):
        compare({"a": rows(0), "b": monai})
    assert compare({"a": monai, "b": monai}).differences


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(results_csv(rows(0)).splitlines()[0] + "\n")
    with pytest.raises(UserError, match="holds no results"):
        read_results(path)


def test_a_row_that_is_there_twice_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(results_csv([*rows(0), rows(0)[3]]))
    with pytest.raises(UserError, match="'box' of b of case case1 is there twice"):
        read_results(path)
    whole = results_csv(rows(0))
    for text, message in (
        (results_csv([replace(rows(0)[0], dice=np.nan)]), "dice is nan"),
        (results_csv([replace(rows(0)[0], hd95_definition="new")]), "hd95_definition is 'new'"),
        (whole.removesuffix(",,surface\n") + ",\n", "a line ends before its hd95_definition"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"is not a results.csv of evaluate \({message}\)"):
            read_results(path)


def evaluation(folder: Path, shift: float) -> Path:
    folder.mkdir()
    found = [*rows(shift), *rows(shift / 2, protocol="1 click")]
    (folder / "results.csv").write_text(results_csv(found))
    return folder


def test_the_command_writes_one_table(tmp_path: Path, capsys) -> None:
    folders = [evaluation(tmp_path / name, shift) for name, shift in (("u", 0), ("v", 0.1))]
    folders.append(evaluation(tmp_path / "w", -0.1))
    results = f"--results=[{', '.join(map(str, folders))}]"
    output = tmp_path / "table.md"
    run_program("finetune", COMMANDS, ["compare", results, f"--output={output}"])
    printed = capsys.readouterr().out
    lines = output.read_text().splitlines()
    assert lines[0] == "| prompt | u | v | w |"
    assert lines[2].startswith("| box | 0.350 | 0.450, +0.100 (+0.100 to +0.100): ahead | 0.250, -")
    assert lines[3].startswith("| 1 click | 0.350 | 0.400, +0.050 (")
    table, _, written = printed.rpartition("\nwritten: ")
    assert output.read_text().startswith(table + "\n## Scores\n")
    assert written == f"{output}\n"
    # the same folders, without the name of their option, and not written
    run_program("finetune", COMMANDS, ["compare", *map(str, folders)])
    assert capsys.readouterr().out == table


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys) -> None:
    one = evaluation(tmp_path / "one", 0)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "results.csv").write_text("a,b\n1,2\n")
    for results, message in (
        (f"[{one}]", "give at least two folders"),
        (f"[{one}, {tmp_path / 'gone'}]", "results.csv: cannot be read"),
        (f"[{one}, {tmp_path / 'text'}]", "is not a results.csv of evaluate"),
        (f"[{one}, {one}]", "give different names"),
    ):
        with pytest.raises(SystemExit):
            run_program("finetune", COMMANDS, ["compare", f"--results={results}"])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_options_that_fit_no_run_are_one_line(tmp_path: Path, capsys) -> None:
    folders = [str(evaluation(tmp_path / name, 0)) for name in ("one", "two")]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options, message in (
        (["--protocols=[boxes]"], "no run has rows for 'boxes'; did you mean box?"),
        (["--names=['', b]"], "names: a name is empty"),
        (["--reference=text"], "one has no rows under 'text'"),
        ([f"--output={tmp_path}/table.tex"], "is not a Markdown file"),
        ([f"--output={tmp_path}/full"], "is there already"),
        (["--cases=-1"], "must not be negative"),
        (["stray"], "results.csv: cannot be read"),
        (["--cases=1", "stray"], "'stray' is not an option"),
    ):
        with pytest.raises(SystemExit):
            run_program("finetune", COMMANDS, ["compare", *folders, *options])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    for name, tolerance in (("one", 1), ("two", 2)):
        (tmp_path / name / "config.yaml").write_text(f"tolerance: {tolerance}\n")
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["compare", *folders])
    assert "NSD of one is at 1 and that of two at 2" in capsys.readouterr().err


def test_a_case_has_one_group_in_all_runs(tmp_path: Path, capsys) -> None:
    for name, groups in (("one", "xxyyzzuu"), ("two", "xyzuvwrs"), ("none", "")):
        (tmp_path / name).mkdir()
        found = [replace(row, group=groups[int(row.case[4:])] if groups else "") for row in rows(0)]
        (tmp_path / name / "results.csv").write_text(results_csv(found))
    run_program("finetune", COMMANDS, ["compare", f"{tmp_path}/one", f"{tmp_path}/none"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["compare", f"{tmp_path}/one", f"{tmp_path}/two"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "two: case case1 belongs to another group" in line


def test_fewer_prompts_need_less_correction(tmp_path: Path) -> None:
    folders = [str(evaluation(tmp_path / name, shift)) for name, shift in (("u", 0), ("v", 0.1))]
    run_program(
        "finetune", COMMANDS, ["compare", *folders, "--protocols=[box]", f"--output={tmp_path}/o"]
    )
    (line,) = csv.DictReader((tmp_path / "o" / "differences.csv").read_text().splitlines())
    assert (line["prompt"], line["p"], line["p_holm"]) == ("box", str(2 / 2**8), str(2 / 2**8))
