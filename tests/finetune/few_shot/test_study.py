"""A study of few cases: whole, stopped and resumed, shared by tasks, extended, and refused."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.common.parsing import parse
from finetune.few_shot import study
from finetune.few_shot.arms import find_arms
from finetune.few_shot.config import FewShotConfig
from finetune.few_shot.process import Commands, Ended
from finetune.few_shot.study import runs_of
from pretrain.engine.stop import INTERRUPTED, StopRequest


@pytest.fixture(scope="module")
def whole(tmp_path_factory, in_process, options, few_shot) -> Path:
    """Two arms, two numbers of cases and two draws, never stopped."""
    output = tmp_path_factory.mktemp("whole") / "study"
    few_shot(options(output))
    return output


def records(study: Path) -> dict[tuple[str, int | None, int], list[str]]:
    """The groups of each run that is done."""
    found = [json.loads(path.read_text()) for path in study.glob("evaluations/*/*/run.json")]
    return {(each["arm"], each["cases"], each["draw"]): each["groups"] for each in found}


def results(study: Path) -> dict[str, str]:
    paths = sorted(study.glob("evaluations/*/*/results.csv"))
    return {str(path.relative_to(study)): path.read_text() for path in paths}


def refusal(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_all_arms_have_the_same_cases_of_a_draw_and_more_include_fewer(whole):
    groups = records(whole)
    assert len(groups) == 8
    for cases in (1, 3):
        for draw in (0, 1):
            assert groups["narrow", cases, draw] == groups["Wide net", cases, draw]
            assert len(groups["narrow", cases, draw]) == cases
            assert {*groups["narrow", 1, draw]} <= {*groups["narrow", 3, draw]}
    assert groups["narrow", 3, 0] != groups["narrow", 3, 1]
    for arm, cases, draw in groups:
        folder = {"narrow": "narrow", "Wide net": "wide-net"}[arm]
        run = whole / "runs" / folder / f"cases{cases}-draw{draw}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        width = config["model"]["network"]["init_args"]["width"]
        assert (config["data"]["cases"], config["seed"], width) == (
            cases,
            draw,
            4 + 4 * (arm[0] == "W"),
        )


def test_a_second_start_makes_no_run_and_writes_the_same_table(
    whole, in_process, options, few_shot
):
    before, table = len(in_process), (whole / "few_shot.md").read_text()
    (whole / "few_shot.csv").unlink()
    few_shot(options(whole))
    assert len(in_process) == before
    assert (whole / "few_shot.md").read_text() == table
    assert (whole / "few_shot.png").is_file() and (whole / "few_shot.csv").is_file()
    assert "Not done yet" not in table


def test_what_was_stopped_in_training_and_killed_in_evaluation_goes_on_to_the_same_results(
    whole, tmp_path, in_process, options, few_shot, monkeypatch, capsys
):
    study, smaller = tmp_path / "study", ("--cases=3", "--draws=1")
    looks = iter([False, True])
    with monkeypatch.context() as patch:  # a signal after the first run's first step
        patch.setattr(StopRequest, "asked", property(lambda self: next(looks)))
        with pytest.raises(SystemExit) as stopped:
            few_shot(options(study, *smaller))
    assert stopped.value.code == INTERRUPTED
    assert refusal(capsys) == "stopped; the same command goes on from there"
    assert not records(study)
    run = study / "runs/narrow/cases3-draw0"
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    assert newest == "step-00000002" and not (run / "DONE").exists()

    (study / "evaluations/narrow/cases3-draw0").mkdir(parents=True)  # as a kill leaves it
    (study / "evaluations/narrow/cases3-draw0/config.yaml").write_text("")
    few_shot(options(study, *smaller))
    assert len((run / "resumes.jsonl").read_text().splitlines()) == 1
    found = results(study)
    assert len(found) == 2
    assert found == {path: text for path, text in results(whole).items() if path in found}


def test_tasks_share_the_runs_and_the_last_one_has_the_whole_table(
    whole, tmp_path, in_process, options, few_shot
):
    study = tmp_path / "study"
    begun = len(in_process)
    few_shot(options(study, "--cases=1", "--task=1", "--tasks=3"))
    assert [*records(study)] == [("Wide net", 1, 0)]
    table = (study / "few_shot.md").read_text()
    assert "- narrow, 1 case: draws 0, 1\n- Wide net, 1 case: draw 1\n" in table
    assert len(in_process) == begun + 2
    few_shot(options(study, "--cases=1", "--keep_runs=false"))
    assert len(in_process) == begun + 8
    # nor is what was kept before, or left by a process that was killed before it removed it
    assert not [*study.glob("runs/*/*")]
    expected = {path: text for path, text in results(whole).items() if "cases1-" in path}
    assert results(study) == expected


def test_a_run_that_fails_stops_no_other_is_named_and_can_be_mended(
    whole, tmp_path, in_process, options, few_shot, monkeypatch, capsys
):
    study, smaller = tmp_path / "study", ("--cases=1", "--draws=2")
    shutil.copytree(whole, study)
    shutil.rmtree(study / "evaluations/wide-net/cases1-draw0")
    for folder in ("runs", "evaluations"):
        shutil.rmtree(study / folder / "narrow")
    done = Commands.run

    def failing(self: Commands, words: list[str]) -> Ended:
        return Ended(-9, "") if "narrow" in " ".join(words) else done(self, words)

    with monkeypatch.context() as patch:
        patch.setattr(Commands, "run", failing)
        with pytest.raises(SystemExit) as stopped:
            few_shot(options(study, *smaller))
    assert stopped.value.code == 2
    last = refusal(capsys)
    assert "2 of 4 runs failed: narrow, 1 case, draw 0 | narrow, 1 case, draw 1: killed by" in last
    assert len(records(study)) == 4  # those of three cases are still there
    with (study / "few_shot.csv").open() as file:
        draws = {(row["arm"], row["cases"]): row["draws"] for row in csv.DictReader(file)}
    assert draws == {("Wide net", "1"): "2"}
    few_shot(options(study, *smaller, "--arms.narrow.optim.steps=1"))
    assert ("narrow", 1, 1) in records(study)


def test_what_another_process_makes_is_left_to_it(whole, tmp_path, options, few_shot, capsys):
    study = tmp_path / "study"
    shutil.copytree(whole, study)
    shutil.rmtree(study / "evaluations/narrow/cases1-draw0")
    lock = study / "locks" / "narrow-cases1-draw0"
    holding = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX)"
    holding += "; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        few_shot(options(study))
        other.communicate()
    assert (
        "narrow, 1 case, draw 0: skipped, since another process is making it"
        in capsys.readouterr().out
    )
    assert len(records(study)) == 7


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (("--training.optim.steps=5",), "begun with optim.steps 3 for the arm 'narrow', not 5"),
        (("--evaluation.tolerance=2",), "begun with tolerance 1.0 for the arm 'narrow', not 2.0"),
        (
            ("--arms.narrow.model.network.width=5",),
            "begun with model.network.init_args.width 4 for the arm 'narrow', not 5",
        ),
        (("--training.seed=5",), "training: seed is given to each run by the study"),
        (("--evaluation.run=x",), "evaluation: run is given to each run by the study"),
        (("--arms.narow.optim.steps=5",), "there is no arm 'narow'; did you mean narrow?"),
        (("--arms.narrow.optim.step=5",), "arms.narrow: --optim.step: there is no such option"),
        (("--evaluation.protocols=Box",), "arms.narrow: finetune.evaluation.protocols.Box"),
        (("--cases=1,17",), "data.cases is 17"),
        (("--cases=0",), "cases: 0 is not 1 or more"),
        (("--cases=1,1",), "cases: a number is given twice"),
        (("--baseline=wide",), "baseline: there is no arm 'wide'"),
        (("--arms={a b: {}, a-b: {}}",), "'a b' and 'a-b' are too much alike"),
        (("--arms={'?': {}}",), "has no letter or digit"),
        (("--arms={}",), "arms: there is none"),
        (("--arms={16: {}}",), "arms: the name 16 is not a text; put it in quotes"),
        (("--training={1: 3}",), "training: 1 is not the name of an option"),
        (("--arms={narrow: 3}",), "arms.narrow: 3 is not a mapping of options"),
        (("--task=2", "--tasks=2"), "task: 2 is not one of 0 to 1"),
        (("--draws=0",), "draws is 0"),
        (("--arms.narrow.data.split=test",), "arms.narrow: trains on the split 'test', which is"),
        (("--evaluation.data.split=train",), "arms.narrow: trains on the split 'train', which is"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    others, words, whole, in_process, options, few_shot, capsys
):
    before = len(in_process), (whole / "config.yaml").read_text()
    with pytest.raises(SystemExit) as stopped:
        few_shot(options(whole, *others))
    assert stopped.value.code == 2
    assert words in refusal(capsys)
    assert (len(in_process), (whole / "config.yaml").read_text()) == before


def test_other_images_and_other_files_are_refused(whole, tmp_path, options, few_shot, capsys):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit):
        few_shot(options(tmp_path))
    assert "holds other files" in refusal(capsys)
    study = tmp_path / "study"
    shutil.copytree(whole, study)
    sources = study / "arms/narrow/sources.json"
    for images in ("images", "test images"):
        before = sources.read_text()
        sources.write_text(before.replace(f'"{images}": "', f'"{images}": "0'))
        assert sources.read_text() != before
        few_shot(options(study))  # nothing is to be made of them
        with pytest.raises(SystemExit):
            few_shot(options(study, "--draws=3"))
        changed = f"the {images} have changed since the arm 'narrow' was started in"
        assert changed in refusal(capsys)
        sources.write_text(before)


def test_test_images_that_change_change_their_digest(
    labelled_shards, tmp_path, in_process, options
):
    shards = tmp_path / "shards"
    shutil.copytree(labelled_shards, shards)
    config, _ = parse(FewShotConfig, "few_shot", options(tmp_path, f"--shards={shards}"))
    arm, *_ = find_arms(config)
    runs = runs_of(config, [arm])
    before = study._find_sources(arm, runs)
    document = json.loads((shards / "dataset.json").read_text())
    document["splits"]["test"]["shards"][0]["sha256"] = "0" * 64
    (shards / "dataset.json").write_text(json.dumps(document))
    after = study._find_sources(arm, runs)
    assert {name for name in before if before[name] != after[name]} == {"test images"}


def test_the_weights_of_a_text_tower_are_watched_too(labelled_shards, tmp_path, options):
    tower = tmp_path / "clip.safetensors"
    arms = json.dumps(
        {"told": {"config": "configs/finetune/msa_text.yaml", "model.text.pretrained": str(tower)}}
    )
    config, _ = parse(FewShotConfig, "few_shot", options(tmp_path, f"--arms={arms}"))
    (arm,) = find_arms(config)
    found = []
    for weights in (b"one", b"other"):
        tower.write_bytes(weights)
        found.append(study._find_sources(arm, runs_of(config, [arm])))
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {"model.text.pretrained"}


def test_the_table_of_what_is_there_needs_nothing_else(
    whole, tmp_path, in_process, options, few_shot, capsys
):
    study = tmp_path / "study"
    shutil.copytree(whole, study)
    shutil.rmtree(study / "evaluations/narrow/cases1-draw0")
    (study / "few_shot.md").unlink()
    before, files = len(in_process), {path: path.read_bytes() for path in study.rglob("*.yaml")}
    few_shot(options(study, f"--shards={tmp_path / 'gone'}", "--table_only=true"))
    assert "- narrow, 1 case: draw 0\n" in (study / "few_shot.md").read_text()
    assert {path: path.read_bytes() for path in study.rglob("*.yaml")} == files
    assert len(in_process) == before
    with pytest.raises(SystemExit):
        few_shot(options(tmp_path / "none", "--table_only=true"))
    assert "none: holds no study; leave --table_only out to start one" in refusal(capsys)
    assert not (tmp_path / "none").exists()


def test_a_network_that_takes_prompts_is_prompted(tmp_path, options):
    arms = json.dumps({"marked": {"config": "configs/baselines/ultraunet.yaml"}})
    config, _ = parse(FewShotConfig, "few_shot", options(tmp_path, f"--arms={arms}"))
    (arm,) = find_arms(config)
    assert [each.class_path.rpartition(".")[2] for each in arm.evaluation.protocols] == [
        "Clicks",
        "Box",
    ]
