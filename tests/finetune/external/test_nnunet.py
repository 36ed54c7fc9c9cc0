"""nnU-Net's commands in their order, with programs that stand in for them."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.common.cli import run_program
from data_prep.loader.dataset import ShardDataset
from finetune.__main__ import COMMANDS
from finetune.config import CaseSelection
from finetune.data.cases import LabelledCases
from finetune.evaluation.comparison.results import read_results
from finetune.external.encoding import Encoding
from finetune.external.files import write_labels
from finetune.external.raw import folds_of
from helpers.recipes import ROOT, command_of

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}
IMPORTS_OURS = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def shards(make_split, organs, tmp_path: Path) -> Path:
    """Volumes of six patients, four to train on; the test masks are in the folder `truth`."""
    made = make_split([organs(seed, (30, 40), 5) for seed in range(6)], LABELS)
    (tmp_path / "truth").mkdir()
    dataset, encoding = ShardDataset(made, "test"), Encoding(LABELS)
    for index in range(len(dataset)):
        record = dataset.record(index)
        write_labels(encoding.encode(record.mask), record, tmp_path / "truth")
    return made


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a test's time."""
    monkeypatch.setattr("finetune.external.score.draw_masks", lambda *arguments: None)


@pytest.fixture
def nnunet(shards, tmp_path: Path, capsys):
    """Run the command into `run`, with more options; the calls of programs, and what is printed."""

    def start(*options: str, fails: bool = False) -> tuple[list[str], str]:
        calls = tmp_path / "calls.txt"
        calls.write_text("")
        words = [f"--data.shards={shards}", f"--output={tmp_path / 'run'}", "--device=cpu"]
        if fails:
            with pytest.raises(SystemExit) as stopped:
                run_program("python -m finetune", COMMANDS, ["nnunet", *words, *options])
            assert stopped.value.code == 2
            printed = capsys.readouterr().err.splitlines()[-1]
        else:
            run_program("python -m finetune", COMMANDS, ["nnunet", *words, *options])
            printed = capsys.readouterr().out
        return [line.removeprefix("nnUNetv2_") for line in calls.read_text().splitlines()], printed

    return start


def test_masks_that_come_back_as_they_were_are_right(nnunet, stand_ins, tmp_path, request) -> None:
    calls, printed = nnunet()
    assert [call.split()[0] for call in calls] == ["plan_and_preprocess", "train", "predict"]
    assert calls[1].startswith("train Dataset001_Cases 3d_fullres all -tr nnUNetTrainer -p nnUNetP")
    assert "Epoch 0" in printed
    rows = read_results(tmp_path / "run" / "results.csv")
    assert len(rows) == 6 and {row.protocol for row in rows} == {"no prompt"}
    assert all(row.dice == row.nsd == 1 and row.hd95 == 0 for row in rows)
    assert (tmp_path / "run" / "figures" / "worst_volume.png").is_file()
    described = json.loads((tmp_path / "run/raw/Dataset001_Cases/dataset.json").read_text())
    assert described["numTraining"] == 4 and described["regions_class_order"] == [3, 1, 2]
    # what is done is not done again; the scores are
    request.getfixturevalue("no_figures")
    (tmp_path / "run" / "results.csv").unlink()
    assert nnunet("--tolerance=2")[0] == []
    assert len(read_results(tmp_path / "run" / "results.csv")) == 6
    # scores of another tolerance than the recorded one are not left behind
    nnunet("--until=files", "--tolerance=2")
    assert (tmp_path / "run" / "results.csv").is_file()
    nnunet("--until=files", "--tolerance=3")
    assert not (tmp_path / "run" / "results.csv").exists()
    assert "data.cases None, not 2" in nnunet("--data.cases=2", fails=True)[1]


def test_a_failing_program_ends_it_and_the_same_command_goes_on(
    nnunet, stand_ins, tmp_path, no_figures
) -> None:
    (tmp_path / "broken").touch()
    calls, error = nnunet("--folds=[0, 2]", fails=True)
    assert [call.split()[0] for call in calls] == ["plan_and_preprocess", "train"]
    log = tmp_path / "run" / "logs" / "fold_0.txt"
    assert error == (
        "error: nnUNetv2_train failed with status 1 (RuntimeError: no memory); all that it printed"
        f" is in {log}"
    )
    assert log.read_text() == "Epoch 0\nRuntimeError: no memory\n\n"
    (tmp_path / "broken").unlink()
    calls, _ = nnunet("--folds=[0, 2]", "--until=training")
    assert [call.split()[:4] for call in calls] == [
        ["train", "Dataset001_Cases", "3d_fullres", fold] for fold in ("0", "2")
    ]
    assert calls[0].endswith(" --c") and not calls[1].endswith(" --c")
    masks = tmp_path / "run" / "masks"
    masks.mkdir()
    kept, cut = sorted((tmp_path / "truth").iterdir())
    (masks / kept.name).write_bytes(kept.read_bytes())
    (masks / cut.name).write_bytes(cut.read_bytes()[:50])  # a process was killed
    ((call,), _) = nnunet("--folds=[0, 2]")
    assert " -f 0 2 " in call and call.endswith(" --continue_prediction")
    assert all(row.dice == 1 for row in read_results(tmp_path / "run" / "results.csv"))


@pytest.mark.parametrize("targets", [None, ["tumour"]])
def test_masks_of_a_program_trained_on_the_files_are_scored_as_printed(
    make_split, organs, no_figures, tmp_path, capsys, targets
) -> None:
    """The labels of the files are not the values of the shard set."""
    samples = [organs(seed, (30, 40), 5) for seed in range(4)]
    for sample in samples:
        sample.mask *= 2  # 2 and 4
    labels = {"organ": [2, 3], "tumour": [4]}
    made = make_split(samples, labels)
    words = [f"--data.shards={made}", f"--output={tmp_path / 'run'}", "--until=files"]
    words += [f"--data.targets={targets}"] if targets else []
    run_program("python -m finetune", COMMANDS, ["nnunet", *words])
    (line,) = (each for each in capsys.readouterr().out.splitlines() if "finetune score" in each)
    dataset = ShardDataset(made, "test")
    encoding = Encoding({name: labels[name] for name in targets or labels})
    (tmp_path / "masks").mkdir()
    for index in range(len(dataset)):
        record = dataset.record(index)
        write_labels(encoding.encode(record.mask), record, tmp_path / "masks")
    places = {"MASKS": str(tmp_path / "masks"), "RESULTS": str(tmp_path / "results")}
    printed = shlex.split(line.partition(": ")[2])[3:]
    run_program("python -m finetune", COMMANDS, [places.get(word, word) for word in printed])
    rows = read_results(tmp_path / "results" / "results.csv")
    assert {row.target for row in rows} == set(targets or labels)
    assert all(row.dice == 1 for row in rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_ends_with_the_command(tmp_path, number) -> None:
    """Also what it has started itself: nothing goes on training in the folder."""
    code = (
        "from pathlib import Path\nfrom finetune.external.programs import run_logged\n"
        "inner = 'sleep 300 & echo $! > children; echo $$ >> children; wait'\n"
        "run_logged(['bash', '-c', inner], Path('log.txt'), {})\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=IMPORTS_OURS, stderr=subprocess.DEVNULL
    ) as command:
        children = tmp_path / "children"
        wait_until(lambda: children.exists() and len(children.read_text().split()) == 2)
        command.send_signal(number)
        assert command.wait(60) != 0
    for child in children.read_text().split():
        wait_until(lambda child=child: not is_alive(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_ends_with_a_command_that_is_ended_while_it_starts(tmp_path, number) -> None:
    code = (
        "import os, subprocess\nfrom pathlib import Path\n"
        "from finetune.external.programs import run_logged\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        super().__init__(*arguments, **options)\n"
        "        Path('child').write_text(str(self.pid))\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "subprocess.Popen = Popen\n"
        "run_logged(['sleep', '300'], Path('log.txt'), {})\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=IMPORTS_OURS, capture_output=True, timeout=60)
    assert done.returncode != 0
    child = (tmp_path / "child").read_text()
    wait_until(lambda: not is_alive(child))


def is_alive(process: str) -> bool:
    status = Path("/proc", process, "stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_few_cases_are_those_of_other_methods(nnunet, shards, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")  # files need no nnU-Net
    nnunet("--data.cases=2", "--until=files", "--seed=3")
    cases = LabelledCases(CaseSelection(shards=shards, cases=2), seed=3)
    keys = {cases.shards.key(image.record) for image in cases.images}
    raw = tmp_path / "run" / "raw" / "Dataset001_Cases"
    assert {path.name.split(".")[0] for path in (raw / "labelsTr").iterdir()} == keys
    assert len(keys) == 2 and len(list((raw / "imagesTs").iterdir())) == 2
    _, error = nnunet("--data.cases=2", "--seed=3", fails=True)
    assert "pip install 'samaritan[baselines]'" in error


def test_what_cannot_be_is_refused(nnunet, stand_ins, shards, tmp_path) -> None:
    for message, *options in (
        ("folds: 4 needs 5 groups, and there are 4", "--folds=[4]"),
        ("folds: 0 needs 2 groups, and there are 1", "--folds=[0]", "--data.cases=1"),
        ("folds: [0, 0]; give different ones", "--folds=[0, 0]"),
        ("folds: [7]; there are folds 0 to 4, and all", "--folds=[7]"),
        ("test_split: train is what is trained on", "--test_split=train"),
    ):
        assert message in nnunet(*options, fails=True)[1]
    assert not (tmp_path / "run").exists()
    _, error = nnunet("--configuration=3d_lowres", fails=True)
    assert "nnU-Net plans no 3d_lowres for these cases, only 2d, 3d_fullres" in error


def test_pictures_are_planned_in_2d_in_the_colours_of_all(
    make_split, organs, stand_ins, tmp_path, capsys
) -> None:
    samples = [organs(seed, (30, 40)) for seed in range(3)]
    samples[2].image = np.repeat(samples[2].image[..., None], 3, axis=2)
    words = [f"--data.shards={make_split(samples, LABELS, 1)}", "--device=cpu", "--until=plans"]
    words += [f"--output={tmp_path / 'run'}"]
    with pytest.raises(SystemExit):
        run_program("python -m finetune", COMMANDS, ["nnunet", *words, "--configuration=3d_lowres"])
    assert "3d_lowres is for volumes; pictures take 2d" in capsys.readouterr().err
    run_program("python -m finetune", COMMANDS, ["nnunet", *words])
    assert " -c 2d " in (tmp_path / "calls.txt").read_text()
    raw = tmp_path / "run" / "raw" / "Dataset001_Cases"
    described = json.loads((raw / "dataset.json").read_text())
    assert list(described["channel_names"].values()) == ["red", "green", "blue"]
    assert described["file_ending"] == ".png"
    assert len(list((raw / "imagesTr").iterdir())) == 6  # grey ones, too, have three channels


def test_folds_do_not_cut_a_group_in_two(make_split, organs) -> None:
    samples = [organs(seed, (30, 40)) for seed in range(9)]
    for number, sample in enumerate(samples):
        sample.group = f"p{number // 2}"
    cases = LabelledCases(CaseSelection(shards=make_split(samples, {"any": [1, 2]}, 1)))
    group_of = {cases.shards.key(n): cases.shards.meta(n)["group"] for n in range(8)}
    folds = folds_of(cases, seed=0)
    assert len(folds) == 4
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(group_of)
        assert len({group_of[key] for key in fold["val"]}) == 1 and len(fold["val"]) == 2
        assert not {group_of[key] for key in fold["val"]} & {group_of[k] for k in fold["train"]}
    judged = [key for fold in folds for key in fold["val"]]
    assert sorted(judged) == sorted(group_of)
    assert np.array_equal(judged, [key for fold in folds_of(cases, 0) for key in fold["val"]])


def test_the_recipe_is_started_as_its_header_says(
    shards, stand_ins, tmp_path, monkeypatch, no_figures
) -> None:
    words = command_of("configs/baselines/nnunet.yaml")
    assert words[:4] == ["python", "-m", "finetune", "nnunet"]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "hippocampus").symlink_to(shards)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs" / "truth").parent.mkdir()
    (tmp_path / "runs" / "truth").symlink_to(tmp_path / "truth")
    monkeypatch.chdir(tmp_path)
    run_program("python -m finetune", COMMANDS, words[3:])
    run = tmp_path / words[words.index("--output") + 1]
    assert all(row.dice == 1 for row in read_results(run / "results.csv"))
    chosen = yaml.safe_load((run / "config.yaml").read_text())
    assert chosen["folds"] == ["all"]
