"""Stage two as a user runs it: killed and resumed, what is loaded frozen, bad input one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.common.cli import run_command
from finetune import stage as stage_two
from finetune.inference.loading import SEGMENTER, load_segmenter
from finetune.train import COMMAND
from pretrain.encoder.sam import build_encoder
from pretrain.engine.checkpoint import latest_checkpoint

RECIPE = ("finetune/train.py", "--config=configs/finetune/quickstart.yaml")
STEPS = 7
TINY = (
    f"--optim.steps={STEPS}",
    "--optim.warmup_steps=2",
    "--optim.batch_size=2",
    "--model.image_size=64",
    "--prompts.rounds=1",
    "--log_every=1",
    "--save_every=2",
)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory) -> Path:
    """Weights as stage one leaves them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_file(build_encoder("vit_t").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tiny(labelled_shards, encoder_file) -> list[str]:
    return [*TINY, f"--data.shards={labelled_shards}", f"--encoder={encoder_file}"]


@pytest.fixture(scope="module")
def never_stopped(tiny, tmp_path_factory, launch) -> dict[int, Path]:
    """Runs of one and two processes."""
    runs = {n: tmp_path_factory.mktemp("runs") / f"processes{n}" for n in (1, 2)}
    for processes, run in runs.items():
        done = launch(*RECIPE, *tiny, f"--output={run}", processes=processes)
        assert done.returncode == 0, done.stderr
    return runs


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    return latest_checkpoint(run).weights(SEGMENTER)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(
    processes, tiny, tmp_path, launch, read_losses, never_stopped
) -> None:
    run = tmp_path / "run"
    options = (*tiny, f"--output={run}", "--resume=auto")
    launch.killed_and_resumed(
        *RECIPE, *options, output=run, lines=4, steps=STEPS, processes=processes
    )
    expected = never_stopped[processes]
    assert [row["step"] for row in read_losses(run)] == list(range(1, STEPS + 1))
    assert read_losses(run) == read_losses(expected)
    found, wanted = trained_weights(run), trained_weights(expected)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_trained_file_holds_the_neck_adapters_and_decoder_but_nothing_frozen(
    never_stopped, encoder_file
) -> None:
    run = never_stopped[1]
    keys = set(trained_weights(run))
    trunk = {f"image_encoder.{key}" for key in load_file(encoder_file) if "neck" not in key}
    assert not keys & trunk
    for part in ("image_encoder.neck.", "prompt_encoder.", "mask_decoder.", ".adapter."):
        assert any(part in key for key in keys), part
    segmenter = load_segmenter(run, torch.device("cpu"))
    assert keys | trunk == set(segmenter.state_dict())


def test_training_leaves_the_loaded_encoder_bit_for_bit_and_moves_what_is_new(
    tiny, encoder_file, tmp_path, monkeypatch
) -> None:
    built = []

    def build_and_keep(*arguments):
        segmenter = build(*arguments)
        before = {key: value.clone() for key, value in segmenter.state_dict().items()}
        built.append((segmenter, before))
        return segmenter

    build = stage_two.build_model
    monkeypatch.setattr(stage_two, "build_model", build_and_keep)
    options = [*RECIPE, *tiny, "--optim.steps=4", f"--output={tmp_path / 'run'}"]
    monkeypatch.setattr("sys.argv", options)
    run_command("finetune/train.py", COMMAND)
    ((segmenter, before),) = built
    after = segmenter.state_dict()
    loaded = load_file(encoder_file)
    for key, value in loaded.items():
        if not key.startswith("neck."):
            assert torch.equal(after[f"image_encoder.{key}"].cpu(), value), key
    for part in ("image_encoder.neck", "image_encoder.blocks.0.adapter", "mask_decoder"):
        keys = [key for key in after if key.startswith(part)]
        assert any(not torch.equal(after[key].cpu(), before[key]) for key in keys), part


def test_without_an_encoder_all_is_trained(labelled_shards, tmp_path, launch) -> None:
    run = tmp_path / "run"
    options = [*TINY, f"--data.shards={labelled_shards}", f"--output={run}", "--optim.steps=2"]
    done = launch(*RECIPE, *options)
    assert done.returncode == 0, done.stderr
    assert "frozen" not in done.stdout
    assert {path.name for path in (run / "figures").iterdir()} == {"losses.png", "rates.png"}
    segmenter = load_segmenter(run, torch.device("cpu"))
    assert set(trained_weights(run)) == set(segmenter.state_dict())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--optim.lrr=1"], "optim.lrr"),
        (["--encoder=missing.safetensors"], "missing.safetensors"),
        (["--model.encoder_size=vit_s"], "holds vit_t weights, and vit_s is asked for"),
        (["--model.image_size=70"], "image_size is 70"),
        (["--data.targets=[cup]"], "'cup', only disc, square"),
        (["--data.split=val"], "'val'"),
        (["--data.shards=absent"], "no shard set"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    change, named, tiny, tmp_path, capfd, monkeypatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", [*RECIPE, *tiny, f"--output={run}", *change])
    with pytest.raises(SystemExit) as stopped:
        run_command("finetune/train.py", COMMAND)
    assert stopped.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert named in lines[0]
    assert not run.exists()
