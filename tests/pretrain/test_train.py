"""Stage one as a user runs it: losses fall, a killed run goes on, bad input is one line."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.common.cli import run_command
from pretrain.encoder.sam import build_encoder
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.train import COMMAND

RECIPE = ("pretrain/train.py", "--config=configs/pretrain/quickstart.yaml")
STEPS = 9
TINY = (
    f"--optim.steps={STEPS}",
    "--optim.warmup_steps=2",
    "--optim.batch_size=4",
    "--log_every=1",
    "--save_every=2",
)


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return latest_checkpoint(run).weights(name)


@pytest.fixture(scope="module")
def mixed(image_shards, tmp_path_factory) -> tuple[str, str]:
    """Options for two shard sets of which the smaller gives two samples of three."""
    folder = tmp_path_factory.mktemp("colour")
    rng = np.random.default_rng(0)
    for number in range(10):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (folder / "files").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((64, 64)).save(folder / "files" / f"{number}.png")
    options = ["--layout=folder", f"--input={folder / 'files'}", "--shard_records=4"]
    data_prep(["shard", *options, f"--output={folder / 'shards'}"])
    return f"--data.shards=[{image_shards}, {folder / 'shards'}]", "--data.weights=[1, 2]"


@pytest.fixture(scope="module")
def never_stopped(mixed, tmp_path_factory, launch) -> dict[int, Path]:
    """Runs of one and two processes."""
    runs = {n: tmp_path_factory.mktemp("runs") / f"processes{n}" for n in (1, 2)}
    for processes, run in runs.items():
        options = (*TINY, *mixed, f"--output={run}")
        done = launch(*RECIPE, *options, processes=processes)
        assert done.returncode == 0, done.stderr
        assert f"steps of 4, {processes} process{'es' if processes > 1 else ''} on" in done.stdout
        for line in ("40 images, 34% of the samples", "10 images, 66% of the samples"):
            assert line in done.stdout
        peak = float(re.search(r"peak memory of a process: (\d+\.\d) GB", done.stdout)[1])
        assert 0.2 < peak < 20
    return runs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(
    processes, mixed, tmp_path, launch, read_losses, never_stopped
) -> None:
    run = tmp_path / "run"
    options = (*TINY, *mixed, f"--output={run}", "--resume=auto")
    launch.killed_and_resumed(
        *RECIPE, *options, output=run, lines=5, steps=STEPS, processes=processes
    )
    expected = never_stopped[processes]
    assert [row["step"] for row in read_losses(run)] == list(range(1, STEPS + 1))
    assert read_losses(run) == read_losses(expected)
    for name in ("encoder", "objectives"):
        found, wanted = weights(run, name), weights(expected, name)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_whose_newest_checkpoint_is_damaged_ends_the_same(
    mixed, tmp_path, never_stopped, read_losses, capsys
) -> None:
    run = shutil.copytree(never_stopped[1], tmp_path / "run")
    (run / "DONE").unlink()
    path = latest_checkpoint(run).weights_file("encoder")
    path.write_bytes(path.read_bytes()[:-1])
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}", "--resume=auto"]
    run_command("pretrain/train.py", COMMAND, options)
    AcceleratorState._reset_state(reset_partial_state=True)
    printed = capsys.readouterr()
    assert "step-00000009 is damaged" in printed.err
    assert f"resuming after step 8 of {STEPS}" in printed.out
    assert read_losses(run) == read_losses(never_stopped[1])
    found, wanted = weights(run, "encoder"), weights(never_stopped[1], "encoder")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_two_processes_draw_other_masks_but_the_same_images_in_all(
    never_stopped, read_losses
) -> None:
    one, two = (read_losses(run) for run in never_stopped.values())
    assert one[0]["mae"] == pytest.approx(two[0]["mae"], rel=0.1)
    assert one[0]["mae"] != two[0]["mae"]
    for rows in (one, two):
        assert rows[-1]["mae"] < rows[0]["mae"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_finishes_the_step_saves_and_asks_to_be_started_again(
    number, image_shards, tmp_path, launch
) -> None:
    run = tmp_path / "run"
    options = (*TINY, "--optim.steps=500", f"--data.shards={image_shards}", f"--output={run}")
    stopped = launch.signalled(
        *RECIPE, *options, "--save_every=500", output=run, lines=3, number=number
    )
    assert stopped.returncode != 0
    state = json.loads((latest_checkpoint(run).folder / "state.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state["step"] == logged[-1]["step"] < 500
    assert state["samples_seen"] == 4 * state["step"]
    assert (run / "INTERRUPTED").read_text() == f"after step {state['step']}\n"
    assert not (run / "DONE").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--objectives.emix.alpha=0.5", "objectives.emix.init_args.alpha 1.0, not 0.5"),
        ("--data.weights=[1, 3]", "data.weights [1.0, 2.0], not [1.0, 3.0]"),
    ],
)
def test_a_run_is_not_continued_with_other_options(
    change, named, mixed, never_stopped, capfd, monkeypatch
) -> None:
    run = never_stopped[1]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}"]
    assert named in failure([*options, "--resume=auto", change], capfd, monkeypatch)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_finished_run_is_left_as_it_is(mixed, never_stopped, capsys) -> None:
    run = never_stopped[1]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of(run)}
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}", "--resume=auto"]
    run_command("pretrain/train.py", COMMAND, options)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert capsys.readouterr().out == f"output {run} is done already\n"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_of(run)} == before


def files_of(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.is_file()]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a saved config.yaml."""
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def as_an_earlier_version_wrote_it(values: dict[str, Any]) -> None:
    """Without options that were added since, and with one under the name that it had then."""
    for name in ("compile", "recompute_blocks", "evaluators"):
        del values[name]
    values["encoder"] = values.pop("encoder_size")
    values["data"]["window"] = values["data"].pop("shuffle_shards")


def test_a_run_started_before_an_option_existed_goes_on_with_its_default(
    mixed, never_stopped, tmp_path, capfd, monkeypatch, read_losses
) -> None:
    run = tmp_path / "run"
    shutil.copytree(never_stopped[1], run)
    rewrite(run / "config.yaml", as_an_earlier_version_wrote_it)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    (run / "DONE").unlink()
    for path in run.glob("checkpoints/*/state.json"):  # nor did it keep these
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bound": {}}))
        path.with_name("files.json").unlink()
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}", "--resume=auto"]
    refused = "was started with image_size 224, not 448"
    assert refused in failure([*options, "--image_size=448"], capfd, monkeypatch)

    monkeypatch.setattr("sys.argv", ["pretrain/train.py", *options])
    run_command("pretrain/train.py", COMMAND)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert f"resuming after step {STEPS - 1}" in capfd.readouterr().out
    assert read_losses(run) == read_losses(never_stopped[1])
    for name in ("encoder", "objectives"):
        after, expected = weights(run, name), weights(never_stopped[1], name)
        assert all(torch.equal(after[key], expected[key]) for key in expected)


def one_step_before_its_end(source: Path, run: Path) -> None:
    """A copy of a finished run that has its last step to do again."""
    shutil.copytree(source, run)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    (run / "DONE").unlink()


def test_a_run_goes_on_with_what_new_hardware_needs_and_moved_data(
    mixed, never_stopped, tmp_path, capfd, monkeypatch, read_losses
) -> None:
    run = tmp_path / "run"
    one_step_before_its_end(never_stopped[1], run)
    first, second = re.findall(r"[^\[\], ]+", mixed[0].partition("=")[2])
    moved = shutil.copytree(first, tmp_path / "moved")
    options = [RECIPE[1], *TINY, mixed[1], f"--output={run}", "--resume=auto"]
    data = f"--data.shards=[{moved}, {second}]"
    monkeypatch.setattr("sys.argv", ["train.py", *options, data, "--recompute_blocks=true"])
    run_command("pretrain/train.py", COMMAND)
    AcceleratorState._reset_state(reset_partial_state=True)
    losses, expected = read_losses(run), read_losses(never_stopped[1])
    assert losses[:-1] == expected[:-1]
    assert losses[-1]["mae"] == pytest.approx(expected[-1]["mae"], rel=1e-5)
    changed = json.loads((run / "resumes.jsonl").read_text())["changed"]
    assert changed == {
        "data.shards": [[first, second], [str(moved), second]],
        "recompute_blocks": [False, True],
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--optim.accumulate=2", "emix: contrasted images 4, not 2"),
        ("--data.shards=[{second}, {second}]", "data.shards of fingerprint"),
    ],
)
def test_a_run_is_not_continued_with_what_changes_its_result(
    change, named, mixed, never_stopped, tmp_path, capfd, monkeypatch
) -> None:
    run = tmp_path / "run"
    one_step_before_its_end(never_stopped[1], run)
    second = re.findall(r"[^\[\], ]+", mixed[0])[-1]
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}", "--resume=auto"]
    (run / ".lock").unlink()  # names the last process that took the folder
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert named in failure([*options, change.format(second=second)], capfd, monkeypatch)
    (run / ".lock").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_saved_option_that_differs_is_refused_by_name(
    mixed, never_stopped, tmp_path, capfd, monkeypatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(never_stopped[1], run)
    rewrite(run / "config.yaml", lambda values: values["data"].update(min_scale=0.5))
    options = [RECIPE[1], *TINY, *mixed, f"--output={run}", "--resume=auto"]
    refused = "was started with data.min_scale 0.5, not 0.2"
    assert refused in failure(options, capfd, monkeypatch)


def test_passes_add_up_to_one_step(image_shards, tmp_path, capfd, monkeypatch, read_losses) -> None:
    """Two accumulated passes see the same images as one; only their masks and partners differ."""
    rows = []
    for passes in (1, 2):
        run = tmp_path / f"passes{passes}"
        options = [RECIPE[1], *TINY, f"--data.shards={image_shards}", f"--output={run}"]
        options += ["--data.workers=0", "--objectives.emix.weight=0", "--objectives.shed.weight=0"]
        arguments = [*options, "--optim.steps=2", f"--optim.accumulate={passes}"]
        monkeypatch.setattr("sys.argv", ["pretrain/train.py", *arguments])
        run_command("pretrain/train.py", COMMAND)
        state = json.loads((latest_checkpoint(run).folder / "state.json").read_text())
        assert (state["step"], state["samples_seen"]) == (2, 8)
        rows.append(read_losses(run))
    assert rows[0][0]["mae"] == pytest.approx(rows[1][0]["mae"], rel=0.05)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_lines_are_means_over_their_steps_also_of_a_resumed_run(
    image_shards, tmp_path, monkeypatch, read_losses
) -> None:
    def run(name: str, *more: str) -> list[dict[str, float]]:
        options = [RECIPE[1], *TINY, f"--data.shards={image_shards}", "--optim.steps=6", *more]
        options += ["--data.workers=0", f"--output={tmp_path / name}", "--save_every=3"]
        monkeypatch.setattr("sys.argv", ["pretrain/train.py", *options])
        run_command("pretrain/train.py", COMMAND)
        AcceleratorState._reset_state(reset_partial_state=True)
        return read_losses(tmp_path / name)

    each = run("each")
    lines = run("lines", "--log_every=4")
    for line, part in zip(lines, (each[:4], each[4:]), strict=True):
        assert line["mae"] == pytest.approx(np.mean([row["mae"] for row in part]), rel=1e-12)
    shutil.rmtree(tmp_path / "lines" / "checkpoints" / "step-00000006")
    (tmp_path / "lines" / "DONE").unlink()
    assert run("lines", "--log_every=4", "--resume=auto") == lines


def test_the_run_folder_holds_what_stage_two_and_a_reader_need(never_stopped) -> None:
    run = never_stopped[1]
    assert (run / "DONE").read_text() == f"{STEPS} steps\n"
    assert "batch_size: 4" in (run / "config.yaml").read_text()
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000008",
        "step-00000009",
    ]
    for name in ("losses.png", "reconstructions.png"):
        assert (run / "figures" / name).read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").iterdir())
    for path in (run / "checkpoints").rglob("*.safetensors"):
        assert path.stat().st_mode == (run / "config.yaml").stat().st_mode, "not as the umask says"
    encoder = build_encoder("vit_t", run)
    saved = weights(run, "encoder")
    assert all(torch.equal(tensor, saved[key]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--optim.lrr=1"], "optim.lrr"),
        (["--image_size=230"], "image_size 230"),
        (["--image_size=256"], "image_size 256"),
        (["--encoder_size=vit_x"], "vit_x"),
        (["--start_from=missing.pth"], "missing.pth"),
        (["--optim.batch_size=5", "--optim.accumulate=2"], "optim.batch_size 5"),
        (["--objectives.mae.keep_ratio=0"], "keep_ratio is 0"),
        (["--data.split=val"], "'val'"),
        (["--data.weights=[1, 1]"], "weights: [1.0, 1.0] must be 1 positive numbers"),
        (["--data.weights=[0]"], "weights: [0.0] must be 1 positive numbers"),
        (["--data.shards+=absent"], "absent: no shard set"),
        (["--data.shards=[]"], "at least one shard set"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    change, named, image_shards, tmp_path, capfd, monkeypatch
) -> None:
    run = tmp_path / "run"
    options = [*RECIPE[1:], f"--data.shards={image_shards}", f"--output={run}", *change]
    message = failure(options, capfd, monkeypatch)
    assert named in message
    assert not run.exists()


def failure(options: list[str], capfd, monkeypatch) -> str:
    """The error line of stage one called in this process, which must exit with status 2."""
    monkeypatch.setattr("sys.argv", ["pretrain/train.py", *options])
    with pytest.raises(SystemExit) as stopped:
        run_command("pretrain/train.py", COMMAND)
    assert stopped.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    AcceleratorState._reset_state(reset_partial_state=True)
    return lines[0]


def test_missing_shards_and_a_used_output_are_one_line(
    image_shards, never_stopped, tmp_path, capfd, monkeypatch
) -> None:
    (tmp_path / "empty").mkdir()
    for shards in (tmp_path / "empty", tmp_path / "absent"):
        options = [RECIPE[1], f"--data.shards={shards}", f"--output={tmp_path / 'run'}"]
        assert "no shard set" in failure(options, capfd, monkeypatch)
    used = [RECIPE[1], f"--data.shards={image_shards}", f"--output={never_stopped[1]}"]
    before = (never_stopped[1] / "metrics.jsonl").read_bytes()
    assert "--resume auto" in failure(used, capfd, monkeypatch)
    assert (never_stopped[1] / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(
    image_shards, tmp_path, capfd, monkeypatch
) -> None:
    run = tmp_path / "run"
    options = [RECIPE[1], *TINY, f"--data.shards={image_shards}", f"--output={run}"]
    # Worker-free, since the clean end of a worker is not what is tested.
    broken = [*options, "--data.workers=0", "--objectives.emix.temperature=0"]
    message = failure(broken, capfd, monkeypatch)
    assert "not finite" in message
    named = json.loads((run / "nonfinite-0.json").read_text())
    assert named["step"] == 1 and len(named["keys"]) == 4
