"""Recipes of networks of papers start as their headers say, and what they train is used."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from data_prep.common.parsing import parse
from finetune.config import CaseSelection, TrainConfig
from finetune.data.cases import LabelledCases
from finetune.evaluation import protocols
from finetune.evaluation.evaluate import evaluate
from finetune.inference.loading import load_segmenter
from finetune.stage import SegmentationStage
from finetune.train import COMMAND
from helpers.networks import PAPERS
from helpers.recipes import ROOT, header_of, options_of_command

EVALUATED = ("transbts", "ultraunet", "medsegdiff")
"""Those that are used in a way of their own: with neighbouring slices, with prompts, by drawing."""
SMALL = (
    *("--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=1"),
    *("--data.workers=0", "--model.image_size=32", "--threads=1"),
)


@pytest.fixture
def workspace(tmp_path, make_shards, organs, monkeypatch) -> Path:
    """A folder with the recipes and labelled volumes that the headers name."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    labels = {"anterior": [1], "posterior": [2]}
    make_shards([organs(seed, (40, 50), 6) for seed in range(6)], labels, "shards/hippocampus")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_starts_as_its_header_says_and_is_evaluated(name, workspace, capsys) -> None:
    recipe = f"configs/baselines/{name}.yaml"
    small = [f"--model.network.{option}" for option in PAPERS[name]]
    run_command("finetune/train.py", COMMAND, [*options_of_command(recipe), *SMALL, *small])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "2 steps of 2, 1 process on cpu" in capsys.readouterr().out
    if name not in EVALUATED:
        return
    named = re.search(r"--protocols '\[(\w+)\]'", header_of(recipe))
    model = load_segmenter(workspace / "runs" / name, torch.device("cpu"))
    cases = LabelledCases(CaseSelection(shards=workspace / "shards/hippocampus", cases=1))
    rows = evaluate(model, cases, [getattr(protocols, named[1])()])
    assert {row.target for row in rows} == {"anterior", "posterior"}
    assert all(0 <= row.dice <= 1 for row in rows)


def test_ultraunet_is_corrected_by_clicks_too(workspace) -> None:
    """Its maps have every pixel of the image, where SAM's have a sixteenth."""
    words = [
        f"--config={ROOT / 'configs/baselines/ultraunet.yaml'}",
        "--data.shards=shards/hippocampus",
    ]
    words += ["--output=x", "--prompts.rounds=2", *SMALL, "--model.network.width=4"]
    stage = SegmentationStage(parse(TrainConfig, "train", words)[0], torch.device("cpu"))
    batch = stage.collate([stage.dataset[index, index] for index in range(2)])
    embeddings = stage.model._encode(batch, np.random.default_rng(0))
    given = []
    decode = stage.segmenter.decoder.decode

    def watched(embeddings, prompts, multimask):
        given.append(prompts)
        return decode(embeddings, prompts, multimask)

    stage.segmenter.decoder.decode = watched
    rounds = stage.prompting.predictions(
        stage.segmenter, embeddings, batch, np.random.default_rng(0)
    )
    for number, asked in enumerate(rounds):
        assert asked.decoded.low_res.shape == (len(batch.masks), 1, 32, 32)
        clicks = given[number].points
        assert number == (0 if clicks is None else clicks.shape[1])
    assert number == 2 and (given[2].labels >= 0).any()
