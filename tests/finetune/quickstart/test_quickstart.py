"""The quickstart from end to end on tiny volumes, and what its report says."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
from finetune.evaluation.comparison.results import read_results
from finetune.evaluation.tables import results_csv
from finetune.quickstart.report import write_report

ROOT = Path(__file__).parents[3]
TINY = {"steps": 2, "batch_size": 2, "warmup_steps": 1}


def recipe(source: str, path: Path, **changes: dict) -> Path:
    """A recipe of the project with two steps of two images, and other changes by section."""
    values = yaml.safe_load((ROOT / source).read_text())
    for section, change in ({"optim": TINY, "data": {"workers": 0}} | changes).items():
        values[section] |= change
    path.write_text(yaml.safe_dump(values | {"log_every": 1}))
    return path


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, Path]:
    """Options of a quickstart on five volumes with two targets each; names hold a space."""
    folder = tmp_path_factory.mktemp("quick start")
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[:24, :28, :20]
    for number in range(5):
        label = np.zeros((24, 28, 20), np.uint8)
        label[((x - 9) / 6) ** 2 + ((y - 10) / 7) ** 2 + ((z - 9) / 3) ** 2 < 1] = 1
        label[((x - 17) / 4) ** 2 + ((y - 20) / 4) ** 2 + ((z - 9) / 2) ** 2 < 1] = 2
        image = 60.0 * label + rng.normal(20, 8, label.shape)
        for name, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            (folder / "data" / name).mkdir(parents=True, exist_ok=True)
            path = folder / "data" / name / f"case{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    document = {"labels": {"0": "background", "1": "left", "2": "right"}}
    (folder / "data" / "dataset.json").write_text(json.dumps(document))
    return {
        "input": folder / "data",
        "output": folder / "out",
        "pretrain_recipe": recipe("configs/pretrain/quickstart.yaml", folder / "pretrain.yaml"),
        "finetune_recipe": recipe(
            "configs/finetune/quickstart.yaml",
            folder / "finetune.yaml",
            model={"image_size": 64},
            prompts={"skipped_rounds": 1},
        ),
    }


def command_line(options: dict[str, Path], **changes) -> list[str]:
    return ["quickstart", *(f"--{name}={value}" for name, value in (options | changes).items())]


def call(arguments: list[str]) -> None:
    run_program("python -m finetune", COMMANDS, arguments)


def failure(arguments: list[str], capfd) -> str:
    """The last line of a quickstart that must exit with status 2."""
    with pytest.raises(SystemExit) as stopped:
        call(arguments)
    assert stopped.value.code == 2
    return capfd.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def finished(options) -> tuple[Path, str]:
    """Output folder of a whole quickstart, and what it printed."""
    command = [sys.executable, "-m", "finetune", *command_line(options)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # quicker for so little work
    done = subprocess.run(
        command, cwd=ROOT, env=one_thread, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return options["output"], done.stdout


def test_it_prints_its_commands_and_makes_everything(finished) -> None:
    out, printed = finished
    commands = [line for line in printed.splitlines() if line.startswith("$ ")]
    assert len(commands) == 8
    assert commands[2].startswith("$ accelerate launch ")
    assert sys.executable not in "".join(commands)
    assert [line[:5] for line in printed.splitlines() if re.match(r"\[\d/5\]", line)] == [
        f"[{number}/5]" for number in range(1, 6)
    ]
    for run in ("pretrained", "untrained"):
        assert (out / "finetune" / run / "DONE").is_file()
        assert (out / "evaluate" / run / "summary.md").is_file()
    assert "--encoder" in commands[3] and "--encoder" not in commands[4]


def test_stage_one_sees_no_held_out_case(finished) -> None:
    out, _ = finished
    seen, held = (
        {row["patient"] for row in csv.DictReader((out / table).read_text().splitlines())}
        for table in ("images/private/train-000000.csv", "labelled/private/test-000000.csv")
    )
    assert len(seen) == 4 and len(held) == 1
    assert not seen & held


def test_the_report_is_complete_and_refers_to_nothing_outside(finished, options) -> None:
    page = (finished[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    for outside in ("http", "//", 'src="/', str(options["output"].parent), str(ROOT)):
        assert outside not in text, outside
    for heading in ("Pretraining", "Adaptation", "Held-out results", "Click by click"):
        assert f"<h2>{heading}</h2>" in text
    for words in ("left", "right", "10 clicks", "box", "split by case", "No conclusion", "torch"):
        assert words in text, words
    assert "template" not in text  # said of the built-in images alone


def test_the_report_follows_the_results_whoever_wins(finished, tmp_path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)

    def scored(run: str, better: float) -> None:
        """Three patients of one score, in place of the only held-out one."""
        path = out / "evaluate" / run / "results.csv"
        rows = [row for row in read_results(path) if row.case in (first, "x")]
        path.write_text(
            results_csv(
                replace(row, case=patient, group=patient, dice=better)
                for patient in "xyz"
                for row in rows
            )
        )

    first = read_results(out / "evaluate" / "pretrained" / "results.csv")[0].case
    assert "All held-out cases are of one group" in write_report(out).read_text()

    for pretrained, untrained, ahead, behind in ((0.8, 0.6, 5, 0), (0.3, 0.7, 0, 5)):
        scored("pretrained", pretrained)
        scored("untrained", untrained)
        text = write_report(out).read_text()
        assert f"1 click per slice {pretrained:.3f} against {untrained:.3f}" in text
        assert f"the pretrained encoder is ahead in {ahead} and behind in {behind};" in text


def test_a_finished_quickstart_is_not_run_again(finished, options, monkeypatch, capfd) -> None:
    monkeypatch.chdir(ROOT)
    before = {path: path.stat().st_mtime_ns for path in finished[0].rglob("*.safetensors")}
    call(command_line(options))
    printed = capfd.readouterr().out
    assert "$ " not in printed
    assert printed.count("done before") == 8
    assert {path: path.stat().st_mtime_ns for path in finished[0].rglob("*.safetensors")} == before


def test_other_options_recipes_or_files_in_the_output_are_one_line(
    finished, options, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(ROOT)
    assert "another cases" in failure(command_line(options, cases=3), capfd)
    path = options["pretrain_recipe"]
    text = path.read_text()
    try:
        path.write_text(text.replace("steps: 2", "steps: 3"))
        assert "the text of" in failure(command_line(options), capfd)
    finally:
        path.write_text(text)
    (tmp_path / "mine.txt").touch()
    assert "other files" in failure(command_line(options, output=tmp_path), capfd)
    assert "is not a folder" in failure(command_line(options, input=tmp_path / "absent"), capfd)


def test_a_failing_step_is_named_and_the_next_call_tries_it_again(
    options, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(ROOT)
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(options["input"], data)
    (data / "dataset.json").rename(data / "away.json")
    arguments = command_line(options, input=data, output=out)
    for _ in range(2):
        message = failure(arguments, capfd)
        assert message.startswith("error: step 'labelled shards' ended with exit status 2")
    assert not (out / "images").exists()
