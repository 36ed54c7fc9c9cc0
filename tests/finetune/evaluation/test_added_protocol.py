"""A protocol from outside the package, as CONTRIBUTING.md adds it."""

import csv

import pytest

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS

LABELS = {"liver": [1], "tumour": [2]}


def test_its_rows_are_in_the_tables_and_pictures(contributed, make_shards, organs, run_folder):
    shards = make_shards([organs(0), organs(1)], LABELS)
    output = contributed / "results"
    arguments = [f"--run={run_folder}", f"--data.shards={shards}", "--data.split=train"]
    arguments += [f"--output={output}", "--protocols=[centre.CentreClick, Box]", "--device=cpu"]
    run_program("finetune", COMMANDS, ["evaluate", *arguments])
    rows = list(csv.DictReader((output / "results.csv").read_text().splitlines()))
    assert [row["protocol"] for row in rows[:4]] == [
        "centre click",
        "box",
        "filled box",
        "centre click",
    ]
    assert "| liver | centre click | 1 | 2 |" in (output / "summary.md").read_text()
    assert (output / "figures" / "best.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / "figures" / "dice_by_clicks.png").exists()


def test_two_protocols_of_one_name_are_refused(
    contributed, make_shards, organs, run_folder, capsys
):
    arguments = [f"--run={run_folder}", f"--data.shards={make_shards([organs(0)], LABELS)}"]
    arguments += ["--data.split=train", f"--output={contributed / 'results'}", "--device=cpu"]
    with pytest.raises(SystemExit):
        run_program("finetune", COMMANDS, ["evaluate", *arguments, "--protocols=[Box, Box]"])
    assert "error: protocols: two of them give the row 'box'" in capsys.readouterr().err
