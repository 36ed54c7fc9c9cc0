"""Stage one as a user runs it: losses fall, a killed run goes on, bad input is one line."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import latest_checkpoint
from pretrain.encoder import build_encoder
from pretrain.run import INTERRUPTED

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
    return load_file(latest_checkpoint(run) / name)


@pytest.fixture(scope="module")
def never_stopped(image_shards, tmp_path_factory, launch) -> dict[int, Path]:
    """Runs of one and two processes."""
    runs = {n: tmp_path_factory.mktemp("runs") / f"processes{n}" for n in (1, 2)}
    for processes, run in runs.items():
        options = (*TINY, f"--data.shards={image_shards}", f"--output={run}")
        done = launch(*RECIPE, *options, processes=processes)
        assert done.returncode == 0, done.stderr
    return runs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(
    processes, image_shards, tmp_path, launch, read_losses, never_stopped
) -> None:
    run = tmp_path / "run"
    options = (*TINY, f"--data.shards={image_shards}", f"--output={run}", "--resume=auto")
    killed = launch.signalled(
        *RECIPE, *options, output=run, lines=5, number=signal.SIGKILL, processes=processes
    )
    assert killed.returncode != 0
    assert not (run / "DONE").exists()
    saved = int(latest_checkpoint(run).name.removeprefix("step-"))
    assert 2 <= saved < STEPS

    again = launch(*RECIPE, *options, processes=processes)
    assert again.returncode == 0, again.stderr
    assert f"resuming after step {saved}" in again.stdout
    expected = never_stopped[processes]
    assert [row["step"] for row in read_losses(run)] == list(range(1, STEPS + 1))
    assert read_losses(run) == read_losses(expected)
    for name in ("encoder.safetensors", "objectives.safetensors"):
        own, other = weights(run, name), weights(expected, name)
        assert all(torch.equal(own[key], other[key]) for key in other)


def test_two_processes_learn_the_same_encoder_shape_and_log_each_step_once(
    never_stopped, read_losses
) -> None:
    for run in never_stopped.values():
        rows = read_losses(run)
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows[-1]["mae"] < rows[0]["mae"]


def test_term_finishes_the_step_saves_and_asks_to_be_started_again(
    image_shards, tmp_path, launch
) -> None:
    run = tmp_path / "run"
    options = (*TINY, "--optim.steps=500", f"--data.shards={image_shards}", f"--output={run}")
    stopped = launch.signalled(
        *RECIPE, *options, "--save_every=500", output=run, lines=3, number=signal.SIGUSR2
    )
    assert stopped.returncode != 0
    assert str(INTERRUPTED) in stopped.stdout  # the launcher reports the script's exit status
    state = json.loads((latest_checkpoint(run) / "state.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert state["step"] == logged[-1]["step"] < 500
    assert state["samples_seen"] == 4 * state["step"]


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
    encoder = build_encoder("vit_t", run)
    saved = weights(run, "encoder.safetensors")
    assert all(torch.equal(tensor, saved[key]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--optim.lrr=1"], "optim.lrr"),
        (["--image_size=230"], "image_size 230"),
        (["--image_size=256"], "image_size 256"),
        (["--encoder=vit_x"], "vit_x"),
        (["--start_from=missing.pth"], "missing.pth"),
        (["--optim.batch_size=5", "--optim.accumulate=2"], "optim.batch_size 5"),
        (["--objectives.mae.keep_ratio=0"], "keep_ratio is 0"),
        (["--data.split=val"], "'val'"),
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
    from data_prep.cli import run_command
    from pretrain.config import PretrainConfig
    from pretrain.train import pretrain

    monkeypatch.setattr("sys.argv", ["pretrain/train.py", *options])
    with pytest.raises(SystemExit) as stopped:
        run_command("pretrain/train.py", PretrainConfig, pretrain)
    assert stopped.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
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
    message = failure([*options, "--objectives.emix.temperature=0"], capfd, monkeypatch)
    assert "not finite" in message
    named = json.loads((run / "nonfinite-0.json").read_text())
    assert named["step"] == 1 and len(named["keys"]) == 4
