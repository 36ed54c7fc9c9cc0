"""A whole network is trained, judged, resumed and used as any model without prompts is."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.common.cli import run_program
from data_prep.common.components import Component
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from finetune.__main__ import COMMANDS
from finetune.config import ModelConfig, TrainConfig
from finetune.inference.loading import load_segmenter
from finetune.model.building import build_model
from finetune.stage import SegmentationStage
from helpers import networks

SHALLOW = """
from torch import nn
from finetune.model.network import Network

class Shallow(Network):
    def __init__(self, image_size, targets, width=8):
        super().__init__(image_size, targets)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, len(targets), 5, padding=2),
        )

    def forward(self, images, stacks=()):
        return self.layers(images)
"""
ADDED = """
from torch import nn
from finetune.model.network import Network

class Plain(Network):
    def __init__(self, image_size, targets):
        super().__init__(image_size, targets)
        self.layer = nn.Conv2d(3, len(targets) + 1, 3, padding=1)

    def forward(self, images, stacks=()):
        return self.layer(images)

class Added(Plain):
    def auxiliary_loss(self, maps, truth, valid):
        assert maps.shape[1] == truth.shape[1] + 1
        self.seen = truth, valid
        return 3 * maps[:, -1].square().mean()
"""
SHALLOW_RUN = (
    "--model.network=shallow.Shallow",
    "--evaluators={v: {class_path: finetune.validation.Validation, init_args: {every: 20}}}",
)
NO_PROMPT = "v/no_prompt"


@pytest.fixture(autouse=True)
def shallow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shallow.py").write_text(SHALLOW)
    (tmp_path / "added.py").write_text(ADDED)
    monkeypatch.syspath_prepend(tmp_path)


def train(shards: Path, run: Path, *options: str) -> Path:
    return networks.train(shards, run, *SHALLOW_RUN, *options)


def test_a_network_learns_is_judged_and_finds_all_targets(labelled_shards, tmp_path) -> None:
    run = train(labelled_shards, tmp_path / "run", "--optim.steps=60")
    score = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row[NO_PROMPT] for row in score if NO_PROMPT in row]
    assert judged[-1] > 0.6
    given = [f"--run={run}", "--device=cpu"]
    out = tmp_path / "results"
    words = [*given, f"--data.shards={labelled_shards}", f"--output={out}"]
    run_program("finetune", COMMANDS, ["evaluate", *words, "--protocols=[TargetOnly]"])
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert {row["protocol"] for row in rows} == {"no prompt"}
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    files = [f"--input={tmp_path / 'photo.png'}", f"--output={tmp_path / 'mask.png'}"]
    run_program("finetune", COMMANDS, ["predict", *given, *files])
    assert Image.open(tmp_path / "mask.png").size == (70, 50)


def test_a_run_that_was_stopped_goes_on_to_the_same_end(labelled_shards, tmp_path) -> None:
    """Also the running statistics of its normalisation."""
    whole = train(labelled_shards, tmp_path / "whole", "--optim.steps=6", "--save_every=3")
    state = load_segmenter(whole, torch.device("cpu"), last=True).state_dict()
    parts = tmp_path / "parts"
    train(labelled_shards, parts, "--optim.steps=6", "--save_every=3")
    checkpoints = sorted((parts / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[-1])
    (parts / "DONE").unlink(missing_ok=True)
    train(labelled_shards, parts, "--optim.steps=6", "--save_every=3", "--resume=auto")
    again = load_segmenter(parts, torch.device("cpu"), last=True).state_dict()
    assert any("running_mean" in key for key in state)
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_the_loss_that_a_network_adds_is_added(labelled_shards) -> None:
    """In value and in every gradient; without one nothing changes."""
    found = {}
    for name in ("Plain", "Added"):
        given = [f"--model.network=added.{name}", f"--data.shards={labelled_shards}", "--output=x"]
        config, _ = parse(TrainConfig, "train", [*given, *networks.OPTIONS])
        torch.manual_seed(0)
        stage = SegmentationStage(config, torch.device("cpu"))
        batch = stage.collate([stage.dataset[index, index] for index in range(3)])
        loss, _ = stage.losses(stage.model, batch, 0)
        loss.backward()
        network = stage.segmenter.image_encoder
        found[name] = loss.item(), network.layer.weight.grad.clone()
    extra = 3 * stage.model._encode(batch, np.random.default_rng(0))[:, -1].square().mean()
    gradient = torch.autograd.grad(extra, network.layer.weight)[0]
    assert found["Added"][0] == pytest.approx(found["Plain"][0] + extra.item(), rel=1e-5)
    assert torch.allclose(found["Added"][1], found["Plain"][1] + gradient, atol=1e-5)
    assert found["Plain"][1][-1].abs().max() == 0 < gradient[-1].abs().max()
    truth, valid = network.seen
    assert torch.equal(valid, batch.valid) and truth.any()
    for mask, image, target in zip(batch.masks, batch.image, batch.targets, strict=True):
        assert torch.equal(truth[image, target], mask)


def test_a_loss_that_asks_nothing_of_a_network_without_its_own_is_refused(labelled_shards) -> None:
    """Otherwise such a run would train nothing, and say nothing."""
    words = ["--model.network=shallow.Shallow", "--model.image_size=64", "--output=x"]
    words += ["--prompts=TargetsOnly", "--loss=NoMaskLoss", f"--data.shards={labelled_shards}"]
    with pytest.raises(UserError, match="loss: NoMaskLoss is for networks with a loss of their"):
        SegmentationStage(parse(TrainConfig, "train", words)[0], torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder_size": "vit_b"}, "model.encoder_size: Shallow is a whole network without SAM"),
        ({"recompute_blocks": True}, "model.recompute_blocks: Shallow is a whole network"),
    ],
)
def test_what_is_sams_is_refused(change, named) -> None:
    config = ModelConfig(network=Component("shallow.Shallow"), **change)
    with pytest.raises(UserError, match=named):
        build_model(config, ("a",))
    with pytest.raises(UserError, match="encoder: Shallow is a whole network"):
        build_model(ModelConfig(network=Component("shallow.Shallow")), ("a",), "encoder.pth")
