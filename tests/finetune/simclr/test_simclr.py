"""SimCLR of a network's encoder: lightly's loss, reproducible views, and a start for U-Net."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from lightly.loss import NTXentLoss
from safetensors.torch import load_file

from data_prep.common.cli import run_program
from data_prep.common.parsing import parse
from finetune.__main__ import COMMANDS
from finetune.baselines import UNet
from finetune.inference.loading import load_segmenter
from finetune.simclr.config import SimclrConfig
from finetune.simclr.stage import Simclr, SimclrStage
from helpers.networks import train
from pretrain.encoder.pixels import normalise_pixels
from pretrain.engine.checkpoint import latest_checkpoint

UNET = "{class_path: finetune.baselines.UNet, init_args: {features: [8, 8, 16, 16, 32]}}"
OPTIONS = (
    *(f"--network={UNET}", "--image_size=32", "--data.workers=0", "--threads=1", "--log_every=1"),
    *("--optim.batch_size=8", "--optim.warmup_steps=0", "--optim.lr=0.002", "--seed=3"),
    *("--optim.scale_lr=false", "--jitter=0.1", "--min_scale=0.9", "--save_every=3"),
)


def simclr(shards: Path, run: Path, *options: str) -> list[float]:
    """Losses of a run."""
    words = ["simclr", f"--data.shards={shards}", f"--output={run}", *OPTIONS, *options]
    run_program("finetune", COMMANDS, words)
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def stage_of(shards: Path, *options: str) -> SimclrStage:
    words = [f"--data.shards={shards}", "--output=unused", *OPTIONS, *options]
    torch.manual_seed(0)
    return SimclrStage(parse(SimclrConfig, "simclr", words)[0], torch.device("cpu"))


def test_the_loss_is_that_of_lightly_and_of_the_paper(image_shards) -> None:
    stage = stage_of(image_shards, "--temperature=0.2")
    batch = stage.collate([stage.dataset[(index, index)] for index in range(4)])
    assert batch.first.shape == (4, 3, 32, 32) and 1 < batch.first.max() <= 255
    found, _ = stage.losses(stage.model, batch, 0)
    views = [normalise_pixels(each) for each in (batch.first, batch.second)]
    convolution, projection = stage.model.head[0], stage.model.head[-1]
    features = convolution(stage.encoder(torch.cat(views))).relu()
    vectors = projection(features.mean((2, 3)))  # (8, 128)
    torch.testing.assert_close(found, NTXentLoss(0.2)(vectors[:4], vectors[4:]))
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    terms = []
    for one in range(8):  # equation 1
        likeness = (unit @ unit[one] / 0.2).exp()
        others = sum(likeness[k] for k in range(8) if k != one)
        terms.append(-(likeness[(one + 4) % 8] / others).log())
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_what_is_pooled_differs_between_images_behind_an_instance_norm() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    waves = [(columns / k).sin() * (k % 3) + (rows / (k + 2)).cos() for k in range(2, 10)]
    images = torch.stack(waves)[:, None].expand(-1, 3, -1, -1)
    encoder = UNet(64, ("any",), features=(16, 32, 64, 128, 256)).encoder()
    pooled = Simclr(encoder, 256, 0.5).head[:4]  # without the projection
    with torch.no_grad():
        features = encoder(images)
        plain, ours = (
            (each.std(0).mean() / each.mean()).item()
            for each in (features.mean((2, 3)), pooled(features))
        )
    assert ours > 2 * plain


def test_views_are_a_function_of_the_draw_and_leave_the_random_state(image_shards) -> None:
    dataset = stage_of(image_shards).dataset
    torch.manual_seed(1)
    np.random.seed(1)
    expected = (torch.rand(1), np.random.random_sample())
    torch.manual_seed(1)
    np.random.seed(1)
    first = dataset[(5, 70)]
    assert (torch.rand(1), np.random.random_sample()) == expected
    again, other = dataset[(5, 70)], dataset[(5, 71)]
    assert torch.equal(first.first, again.first) and torch.equal(first.second, again.second)
    assert not torch.equal(first.first, first.second)
    assert not torch.equal(first.first, other.first)


def test_it_learns_goes_on_where_it_was_stopped_and_starts_a_unet(
    image_shards, labelled_shards, tmp_path
) -> None:
    whole, parts, run = tmp_path / "whole", tmp_path / "parts", tmp_path / "run"
    losses = simclr(image_shards, whole, "--optim.steps=24")
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.2
    simclr(image_shards, parts, "--optim.steps=24", "--keep=100")
    for folder in sorted((parts / "checkpoints").iterdir())[2:]:
        folder.rename(tmp_path / folder.name)
    (parts / "DONE").unlink()
    again = simclr(image_shards, parts, "--optim.steps=24", "--keep=100", "--resume=auto")
    assert again == losses

    last = latest_checkpoint(whole)
    assert last is not None
    encoder = load_file(last.weights_file("encoder"))
    options = (f"--model.network={UNET}", "--optim.steps=1", "--model.image_size=32")
    train(labelled_shards, run, *options, f"--encoder={whole}", "--optim.lr=1e-9")
    (whole / "checkpoints").rename(tmp_path / "moved")  # the run keeps what it started from
    state = load_segmenter(run, torch.device("cpu")).state_dict()
    for name, tensor in encoder.items():
        found = state[f"image_encoder.network.{name}"]
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-6)
    assert load_file(run / "sources" / "encoder.safetensors").keys() == encoder.keys()


def test_weights_of_another_network_are_refused(image_shards, labelled_shards, tmp_path, capsys):
    simclr(image_shards, tmp_path / "simclr", "--optim.steps=1")
    options = ("--optim.steps=1", f"--encoder={tmp_path / 'simclr'}", "--model.image_size=32")
    for network, said in (
        (UNET.replace("[8,", "[9,"), "does not fit: "),
        ("finetune.baselines.SegResNet", "encoder: SegResNet is a whole network without SAM"),
    ):
        with pytest.raises(SystemExit):
            train(labelled_shards, tmp_path / "run", f"--model.network={network}", *options)
        assert said in capsys.readouterr().err


def test_a_single_image_per_pass_is_refused(image_shards, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        simclr(image_shards, tmp_path, "--optim.steps=1", "--optim.accumulate=8")
    assert "a pass of one image has nothing to tell it from" in capsys.readouterr().err
