"""A run needs nothing outside its folder, and old ones can be told where their weights are now."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from data_prep.common.cli import run_command, write_resolved_config
from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.common.parsing import parse
from finetune.config import ModelConfig, TrainConfig
from finetune.inference.loading import SEGMENTER, SOURCES, load_segmenter
from finetune.model import kept
from finetune.model.building import build_model
from finetune.model.segmenter import Segmenter
from finetune.train import COMMAND
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.sizes import SIZES, EncoderSize

CPU = torch.device("cpu")
RECOMPUTED = "--model.recompute_blocks=true"
ENCODER = Path("pretrained/checkpoints/step-00000001/encoder.safetensors")


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage-one run `pretrained` and a SAM checkpoint `sam.pth` in the folder of the test."""
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(build_model(ModelConfig("tiny")).state_dict(), "sam.pth")
    new_encoder(ENCODER)


def new_encoder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(build_model(ModelConfig("tiny")).image_encoder.state_dict(), path)


@pytest.fixture
def train(labelled_shards: Path, monkeypatch: pytest.MonkeyPatch):
    """Train for two steps, with a checkpoint after each."""
    recipe = Path(__file__).parents[2] / "configs" / "finetune" / "quickstart.yaml"

    def run(*options: str) -> Path:
        arguments = [f"--config={recipe}", f"--data.shards={labelled_shards}", "--output=run"]
        arguments += ["--optim.steps=2", "--optim.warmup_steps=0", "--optim.batch_size=2"]
        arguments += ["--model.encoder_size=tiny", "--model.image_size=64", "--prompts.rounds=0"]
        arguments += ["--save_every=1", "--data.workers=0", "--threads=1", *options]
        run_command("finetune/train.py", COMMAND, arguments)
        AcceleratorState._reset_state(reset_partial_state=True)
        return Path("run")

    return run


def make_run(*options: str, whole: bool = True) -> Path:
    """A run folder as two steps of training leave it, without its data and metrics."""
    arguments = ["--data.shards=unused", "--output=run", "--model.encoder_size=tiny"]
    arguments += ["--model.encoder_adapter=MsaAdapter", "--model.image_size=64", *options]
    config, resolved = parse(TrainConfig, "train", arguments)
    segmenter = build_model(config.model, (), config.encoder, config.sam, whole=whole)
    for step in (1, 2):
        checkpoint = Path(f"run/checkpoints/step-{step:08d}")
        checkpoint.mkdir(parents=True)
        save_file(segmenter.trained_state_dict(), checkpoint / f"{SEGMENTER}.safetensors")
        write_json(checkpoint / f"{SOURCES}.json", segmenter.frozen_sources())
    kept.keep_weights(Path("run"), segmenter)
    write_resolved_config(Path("run"), resolved)
    torch.manual_seed(1)  # loading it draws other values for what is not loaded
    return Path("run")


def same(one: Segmenter, other: Segmenter) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )


def elsewhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in another place, without anything that was beside it."""
    moved = Path("archive/2024/run").absolute()
    moved.parent.mkdir(parents=True)
    shutil.move(run, moved)
    shutil.rmtree("pretrained")
    Path("sam.pth").unlink()
    monkeypatch.chdir(moved.parent)
    return moved


@pytest.mark.parametrize(
    ("options", "kept_files"),
    [
        (["--encoder=pretrained", "--sam=sam.pth"], ["encoder.safetensors", "sam.pth"]),
        (["--encoder=sam.pth"], ["encoder.pth"]),
        (["--encoder=sam.pth", "--sam=./sam.pth"], ["encoder.pth"]),
        (["--sam=sam.pth"], ["sam.pth"]),
    ],
)
def test_a_run_can_be_moved_away_from_all_that_it_was_built_on(
    options, kept_files, monkeypatch
) -> None:
    run = make_run(*options)
    trained = load_segmenter(run, CPU)
    assert sorted(path.name for path in (run / "sources").iterdir()) == kept_files
    assert len(list((run / "checkpoints").iterdir())) == 2
    held = set(latest_checkpoint(run).weights(SEGMENTER))
    assert not any(key.startswith("image_encoder.blocks.0.attn.") for key in held)
    moved = elsewhere(run, monkeypatch)
    assert same(load_segmenter(moved, CPU), trained)
    assert same(load_segmenter(Path("run"), CPU), trained)  # by a relative path, too


def test_kept_files_are_links_where_that_is_possible_and_else_copies(monkeypatch) -> None:
    run = make_run("--encoder=pretrained", "--sam=sam.pth")
    assert (run / "sources" / "sam.pth").samefile("sam.pth")
    assert (run / "sources" / "encoder.safetensors").samefile(ENCODER)
    shutil.rmtree(run)

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run = make_run("--encoder=pretrained", "--sam=sam.pth")
    copy = run / "sources" / "sam.pth"
    assert not copy.samefile("sam.pth") and copy.read_bytes() == Path("sam.pth").read_bytes()
    assert {path.name for path in copy.parent.iterdir()} == {"encoder.safetensors", "sam.pth"}


def test_a_copy_that_fails_leaves_nothing_under_its_name(monkeypatch) -> None:
    segmenter = build_model(ModelConfig("tiny"), (), "pretrained", "sam.pth")

    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    def fill(source, target):
        target.write_bytes(source.read_bytes()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", fill)
    Path("run").mkdir()
    with pytest.raises(OSError, match="No space left"):
        kept.keep_weights(Path("run"), segmenter)
    assert list(Path("run/sources").iterdir()) == []


def test_a_source_replaced_while_the_run_started_is_noticed() -> None:
    segmenter = build_model(ModelConfig("tiny"), (), "pretrained")
    new_encoder(ENCODER)
    Path("run").mkdir()
    with pytest.raises(UserError, match=r"encoder\.safetensors: was replaced while the run"):
        kept.keep_weights(Path("run"), segmenter)
    assert kept.kept_weights(Path("run")) == {}


def test_the_pretraining_run_may_go_on(train) -> None:
    """Its next checkpoint replaces the one that stage two started from."""
    run = train("--encoder=pretrained")
    trained = load_segmenter(run, CPU)
    shutil.rmtree(ENCODER.parent)
    new_encoder(Path("pretrained/checkpoints/step-00000002/encoder.safetensors"))
    assert same(load_segmenter(run, CPU), trained)
    (run / "DONE").unlink()
    shutil.rmtree(latest_checkpoint(run).folder)
    train("--encoder=pretrained", "--resume=auto")
    assert same(load_segmenter(run, CPU), trained)


def test_a_run_goes_on_with_its_data_elsewhere_but_not_with_others(
    train, labelled_shards, tmp_path, capsys
) -> None:
    run = train("--encoder=pretrained")
    trained = load_segmenter(run, CPU)

    def go_on(shards: Path) -> None:
        (run / "DONE").unlink()
        shutil.rmtree(latest_checkpoint(run).folder)
        train("--encoder=pretrained", "--resume=auto", f"--data.shards={shards}", RECOMPUTED)

    moved = shutil.copytree(labelled_shards, tmp_path / "moved")
    go_on(moved)
    assert same(load_segmenter(run, CPU), trained)
    document = moved / "dataset.json"
    other = json.loads(document.read_text())
    other["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    document.write_text(json.dumps(other))
    with pytest.raises(SystemExit) as stop:
        go_on(moved)
    assert stop.value.code == 2
    assert "was started with data.shards of fingerprint" in capsys.readouterr().err
    assert latest_checkpoint(run).folder.name == "step-00000001"


def test_where_weights_are_now_can_be_said_and_is_checked() -> None:
    run = make_run("--encoder=pretrained", "--sam=sam.pth")
    trained = load_segmenter(run, CPU)
    shutil.rmtree(run / "sources")  # as a run of an earlier version
    assert same(load_segmenter(run, CPU), trained)
    moved = ENCODER.rename("moved.safetensors")
    with pytest.raises(UserError, match=r"pretrained has no encoder.*--encoder and --sam"):
        load_segmenter(run, CPU)
    assert same(load_segmenter(run, CPU, encoder=str(moved)), trained)
    moved_sam = str(Path("sam.pth").rename("other.pth"))
    assert same(load_segmenter(run, CPU, str(moved), moved_sam), trained)
    new_encoder(ENCODER)
    with pytest.raises(UserError, match=r"other image_encoder weights than pretrained.* holds"):
        load_segmenter(run, CPU, "pretrained", moved_sam)
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file or folder"):
        load_segmenter(run, CPU, str(moved), "nowhere.pth")


def test_a_whole_sam_checkpoint_gives_its_decoder_too(train, capsys) -> None:
    run = train("--encoder=sam.pth")
    line = "--encoder is a whole SAM checkpoint: prompt encoder and decoder are from it, too"
    assert line in capsys.readouterr().out
    loaded = torch.load("sam.pth", weights_only=True)
    state = load_segmenter(run, CPU).state_dict()
    for key in ("mask_decoder.iou_token.weight", "prompt_encoder.no_mask_embed.weight"):
        assert torch.equal(state[key], loaded[key])


def test_a_run_that_trained_a_new_decoder_beside_sams_encoder_still_loads() -> None:
    """As an earlier version did when --sam was forgotten."""
    run = make_run("--encoder=sam.pth", whole=False)
    shutil.rmtree(run / "sources")
    held = latest_checkpoint(run).weights(SEGMENTER)
    assert "mask_decoder.iou_token.weight" in held
    state = load_segmenter(run, CPU).state_dict()
    assert all(torch.equal(state[key], value) for key, value in held.items())
