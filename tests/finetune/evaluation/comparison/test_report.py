"""The command on result folders as evaluate writes them: every file, and what is in it."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
from finetune.evaluation.comparison.cases import TITLE, choose_cases, draw_cases, title_of
from finetune.evaluation.comparison.results import Evaluated, read_evaluation
from finetune.evaluation.comparison.tables import notes_on_missing, scores_table
from finetune.evaluation.details import ClickDice, Details, Seconds
from finetune.evaluation.tables import ALL_TARGETS, Row, results_csv
from finetune.evaluation.thumbnails import Thumbnail

CASES = [f"case{n}" for n in range(8)]
TARGETS = ("disc", "rim")


def results(folder: Path, shift: float, protocols: dict[str, int], details: bool = True) -> Path:
    """A result folder; the Dice of a case rises with its number, with clicks and with `shift`.

    Args:
        protocols: Clicks of each protocol.
        details: Whether there is more than an earlier version wrote.
    """
    folder.mkdir()
    rows, kept = [], Details(side=32)
    for number, case in enumerate(CASES):
        for target in TARGETS:
            for protocol, clicks in protocols.items():
                dice = 0.5 + 0.04 * number + 0.02 * clicks + shift
                group = f"p{number // 2}" if details else ""
                rows.append(Row(case, target, protocol, dice, dice / 2, 3, dice, "mm", 1, group))
                kept.seconds.append(Seconds(case, target, protocol, 0.25))
                if clicks:
                    kept.clicks.append(ClickDice(case, target, protocol, clicks, dice, group))
            if not details:
                continue
            mask = np.zeros((24, 32), bool)
            mask[4:12, 4 : 8 + number] = True
            image = mask.astype(np.uint8) * 200
            answers = dict.fromkeys(protocols, np.roll(mask, 2, 1))
            kept.thumbnails.add(Thumbnail(case, target, image, mask, answers))
    (folder / "results.csv").write_text(results_csv(rows))
    if details:
        (folder / "config.yaml").write_text("tolerance: 2.0\n")
        kept.write(folder)
        model = {"parameters": 91_000_000, "trained_parameters": 410_000}
        (folder / "model.json").write_text(json.dumps({**model, "device": "A", "threads": 1}))
    return folder


CLICKS = {"1 click": 1, "2 clicks": 2, "3 clicks": 3}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        results(tmp_path / "sam", 0, CLICKS),
        results(tmp_path / "msa", 0.1, CLICKS),
        results(tmp_path / "unet", 0.05, {"no prompt": 0}),
        results(tmp_path / "earlier", -0.1, {"1 click": 1, "3 clicks": 3}, details=False),
    ]


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_command_writes_every_form(folders, tmp_path, capsys) -> None:
    output = tmp_path / "comparison"
    options = ["compare", *map(str, folders), f"--output={output}", "--cases=1"]
    run_program("finetune", COMMANDS, options)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: earlier: ") and "; evaluate again" in warning

    scores = {(r["target"], r["prompt"], r["run"]): r for r in lines_of(output / "scores.csv")}
    assert len(scores) == 3 * (3 + 3 + 1 + 2)
    both = scores["all targets", "2 clicks", "msa"]
    assert float(both["dice"]) == pytest.approx(0.5 + 0.04 * 3.5 + 0.04 + 0.1)
    assert (both["cases"], both["groups"], both["prompts"]) == ("8", "4", "1.0")
    assert (both["trained_parameters"], both["parameters"]) == ("410000", "91000000")
    # a case takes as long as its targets together
    assert (float(both["seconds"]), scores["rim", "2 clicks", "msa"]["seconds"]) == (0.5, "0.25")
    earlier = scores["disc", "1 click", "earlier"]
    assert earlier["trained_parameters"] == earlier["seconds"] == ""

    differences = {(r["prompt"], r["run"]): r for r in lines_of(output / "differences.csv")}
    assert len(differences) == 3 + 1 + 2
    alone = differences["no prompt", "unet"]
    assert (alone["baseline_prompt"], float(alone["difference"])) == (
        "1 click",
        pytest.approx(0.03),
    )
    assert {row["p"] for row in differences.values()} == {str(2 / 2**4)}
    assert {row["p_holm"] for row in differences.values()} == {str(6 * 2 / 2**4)}

    clicks = {(r["target"], r["run"]): r for r in lines_of(output / "clicks.csv")}
    assert set(clicks) == {(t, r) for t in ("all targets", *TARGETS) for r in ("sam", "msa")}
    assert float(clicks["disc", "msa"]["never85_dice"]) == 5 / 8

    markdown = (output / "comparison.md").read_text()
    assert markdown.startswith("| prompt | sam | msa | unet | earlier |\n")
    for words in (
        *("## Scores", "## Differences to sam", "## Clicks needed", "NSD at 2 mm", "by Holm's"),
        "| disc | 1 click | earlier | 1 | 8 | 4 |",
        "| - | - | - |",
        "0.41 M | 91.00 M | 0.25 |",
        "With 4 groups no p-value is below 0.12",
        "earlier: evaluated by an earlier version, which kept no parameters, times,",
    ):
        assert words in markdown, words
    for link in re.findall(r"\]\((.*?)\)", markdown):
        assert (output / link).read_bytes().startswith(b"\x89PNG")
    latex = (output / "comparison.tex").read_text()
    for name, count in (("longtable", 4), ("landscape", 1)):
        assert latex.count(rf"\begin{{{name}}}") == latex.count(rf"\end{{{name}}}") == count

    page = (output / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 3
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert text.count("<table>") == 4
    for outside in ("http", "//", 'src="/', str(tmp_path)):
        assert outside not in text, outside
    assert "cases: 1" in (output / "config.yaml").read_text()
    assert not list(output.rglob("*.partial"))


def test_of_many_runs_latex_has_what_fits_a_page(folders, tmp_path) -> None:
    output = tmp_path / "comparison"
    fifth = results(tmp_path / "fifth", 0.2, CLICKS)
    options = ["compare", *map(str, folders), str(fifth), f"--output={output}", "--cases=0"]
    run_program("finetune", COMMANDS, options)
    titles = re.findall(r"caption\{(.*?)\}", (output / "comparison.tex").read_text())
    assert titles == ["Scores", "Differences to sam", "Clicks needed"]
    assert (output / "comparison.md").read_text().startswith("| run | 1 click |")


def test_the_best_worst_and_most_differing_cases_are_found() -> None:
    dice = {"a": (0.9, 0.9), "b": (0.1, 0.2), "c": (0.5, 0.5), "d": (0.3, 0.8), "e": (0.2, 0.1)}
    runs = {
        name: Evaluated(
            [Row(case, "t", "box", both[n], 0, 0, 0, "px") for case, both in dice.items()]
        )
        for n, name in enumerate(("one", "two"))
    }
    chosen = choose_cases(runs, dict.fromkeys(runs, "box"), 1)
    assert [(each.kind, each.case) for each in chosen] == [
        ("best", "a"),
        ("worst", "b"),
        ("differing", "d"),
    ]
    assert chosen[2].dice == {"one": 0.3, "two": 0.8}
    assert len(choose_cases(runs, dict.fromkeys(runs, "box"), 3)) == 5  # none twice
    assert choose_cases(runs, dict.fromkeys(runs, "box"), 0) == []


def test_a_run_without_pictures_is_left_out(folders, tmp_path, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(
        "finetune.evaluation.comparison.cases.draw_case",
        lambda image, truth, answers, title, path: shown.append((truth.shape, answers)),
    )
    runs = {folder.name: read_evaluation(folder) for folder in folders}
    captions = draw_cases(runs, "3 clicks", 1, tmp_path)
    assert [path.name for path in captions] == ["best-1.png", "worst-1.png", "differing-1.png"]
    shape, answers = shown[0]
    assert list(answers) == [
        "sam: 0.840\n3 clicks",
        "msa: 0.940\n3 clicks",
        "unet: 0.830\nno prompt",
    ]
    assert all(answer.mask.shape == shape == (24, 32) for answer in answers.values())
    assert draw_cases({"earlier": runs["earlier"]}, "1 click", 1, tmp_path) == {}


def test_a_slow_first_case_does_not_count(folders) -> None:
    run = read_evaluation(folders[0])
    slow = [replace(s, seconds=99.0) if s.case == CASES[0] else s for s in run.seconds]
    table = scores_table({"sam": replace(run, seconds=slow)})
    assert {row[-1].values for row in table.rows if row[0].text == "rim"} == {(0.25,)}


def test_a_text_for_all_targets_takes_its_own_time(folders) -> None:
    run, name = read_evaluation(folders[0]), "text that names all"
    rows = [replace(r, target=ALL_TARGETS, protocol=name) for r in run.rows if r.target == "rim"]
    rows = [r for r in rows if r.prompts == run.rows[0].prompts]
    rows = list({r.case: r for r in rows}.values())
    seconds = [Seconds(case, ALL_TARGETS, name, 1.0) for case in CASES]
    table = scores_table({"sam": replace(run, rows=rows, clicks=[], seconds=seconds)})
    assert [row[-1].values for row in table.rows] == [(1.0,)]


def test_names_are_drawn_as_they_are(folders, tmp_path, monkeypatch) -> None:
    legends, drawn = [], Figure.legend

    def legend(self, handles, names, **options):
        legends.append(drawn(self, handles, names, **options))

    monkeypatch.setattr(Figure, "legend", legend)
    names = ["a$x_$", "_b\\1"]
    words = ["compare", *map(str, folders[:2]), f"--names={json.dumps(names)}"]
    run_program("finetune", COMMANDS, [*words, f"--output={tmp_path / 'o'}"])
    assert names in [[text.get_text() for text in each.get_texts()] for each in legends]


def test_pictures_that_were_not_wanted_are_named(folders) -> None:
    (folders[0] / "pictures.zip").unlink()
    notes = notes_on_missing({folder.name: read_evaluation(folder) for folder in folders[:3]})
    assert len(notes) == 1 and notes[0].startswith("sam: no pictures were kept")


def test_times_of_different_machines_are_not_set_side_by_side(folders) -> None:
    runs = {folder.name: read_evaluation(folder) for folder in folders[:2]}
    notes = " ".join(scores_table(runs).notes)
    assert "on A (1 CPU thread)." in notes and "different machines" not in notes
    (folders[1] / "model.json").write_text('{"device": "B", "threads": 2}')
    runs = {folder.name: read_evaluation(folder) for folder in folders[:2]}
    notes = " ".join(scores_table(runs).notes)
    assert "on A (1 CPU thread) and B (2 CPU threads)." in notes and "different machines" in notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("clicks.csv", "case,target\n1,2\n"),
        ("clicks.csv", "case,target,protocol,clicks,dice\nother,disc,1 click,1,0.5\n"),
        ("times.csv", "case,target,protocol,seconds\na,b,c,d\n"),
        ("times.csv", "case,target,protocol,seconds\ncase0,cup,box,1\n"),
        ("model.json", "{"),
        ("model.json", "[]"),
        ("model.json", '{"parameters": "many"}'),
        ("config.yaml", "a: b: c"),
        ("config.yaml", "tolerance: [1]"),
        ("pictures.zip", "no zip"),
    ],
)
def test_a_damaged_file_is_one_line(name, text, tmp_path, capsys) -> None:
    folder = results(tmp_path / "sam", 0, CLICKS, details=False)
    (folder / name).write_text(text)
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["compare", str(folder), str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder / name}: ")


def test_a_long_name_is_broken_above_its_picture():
    title = title_of("msa_2d_equal-hippocampus: 0.831", "1 click after a text per slice")
    assert all(len(line) <= TITLE for line in title.split("\n"))
    assert title.replace("\n", "") == "msa_2d_equal-hippocampus: 0.8311 click after a textper slice"
