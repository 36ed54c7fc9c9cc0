"""Recipes of stage two: each starts as its header says, and states its rate itself.

`tests/test_documents.py` starts one of them through `accelerate launch`; here the same options are
given to the same script in this process.
"""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from data_prep.common.cli import run_command
from data_prep.common.parsing import parse
from finetune.config import ModelConfig, TrainConfig
from finetune.evaluation.protocols import Box, Clicks
from finetune.model.building import build_model
from finetune.prompts.prompting import Prompting
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.train import COMMAND
from finetune.validation import Validation
from helpers.recipes import ROOT, header_of, options_of_command, recipes_of
from pretrain.engine.optim import learning_rate

pytestmark = pytest.mark.usefixtures("shallow")

RECIPES = recipes_of("configs/finetune")
BASELINES = recipes_of("configs/baselines", "finetune/train.py")
"""Started in `baselines/test_baseline_recipes.py`."""
SMALL = (
    *("--optim.epochs=null", "--optim.warmup_epochs=null", "--optim.steps=2"),
    *("--optim.batch_size=2", "--optim.accumulate=1", "--optim.warmup_steps=1"),
    *("--data.workers=0", "--model.image_size=64"),
)
"""What makes a recipe run in a second."""
SMALL_TEXT = [f"--model.text.{option}" for option in ("width=32", "heads=2", "layers=1")]


@pytest.fixture
def workspace(tmp_path, make_shards, organs, monkeypatch) -> Path:
    """A folder with the recipes, labelled volumes and checkpoints that the headers name."""
    for name in ("configs", "finetune"):
        (tmp_path / name).symlink_to(ROOT / name)
    volumes = [organs(seed, (40, 50), 6) for seed in range(6)]
    make_shards(volumes, {"anterior": [1], "posterior": [2]}, "shards/hippocampus")
    torch.manual_seed(0)
    weights = build_model(ModelConfig("vit_t")).state_dict()
    torch.save(weights, tmp_path / "sam_vit_b_01ec64.pth")
    encoder = {
        name.removeprefix("image_encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("image_encoder.")
    }
    for run in ("quickstart", "laptop"):
        folder = tmp_path / "runs" / run / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True)
        save_file(encoder, folder / "encoder.safetensors")
    text = {"width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    clip = open_clip.CLIP(512, vision, text).state_dict()
    save_file(clip, tmp_path / "clip_vit_b_16.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_as_its_header_says(recipe, workspace, capsys) -> None:
    options = options_of_command(recipe)
    small = [*SMALL, *(SMALL_TEXT if "--model.text.pretrained" in options else ())]
    run_command("finetune/train.py", COMMAND, [*options, *small])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "2 steps of 2, 1 process on cpu" in capsys.readouterr().out
    assert (workspace / options[options.index("--output") + 1] / "DONE").is_file()


@pytest.mark.parametrize("recipe", [*RECIPES, *BASELINES])
def test_it_is_validated_by_prompts_that_it_is_trained_on(recipe) -> None:
    given = [f"--config={ROOT / recipe}", "--data.shards=unused", "--output=unused"]
    config, _ = parse(TrainConfig, "train", given)
    prompting, validation = config.prompts.build(Prompting), config.evaluators.get("validation")
    if validation is None or not isinstance(prompting, ClicksAndBoxes):
        return
    protocols = validation.build(Validation).prompting
    boxes = any(isinstance(each, Box) for each in protocols)
    clicks = [number for each in protocols if isinstance(each, Clicks) for number in each.numbers]
    assert boxes <= (prompting.box_share > 0)
    if not prompting.rounds + prompting.skipped_rounds:
        assert max(clicks, default=0) <= (prompting.box_share < 1)


@pytest.mark.parametrize("recipe", [*RECIPES, *BASELINES])
def test_its_header_has_memory_and_time_and_its_rate_is_absolute(recipe) -> None:
    header = header_of(recipe)
    assert re.search(r"Memory: .*\d [MG]B", header), "no memory is stated"
    assert re.search(r"Time: .*\d", header), "no time is stated"
    options = [f"--config={ROOT / recipe}", "--data.shards=x", "--output=y"]
    optim = parse(TrainConfig, "train", [*options, "--optim.batch_size=1"])[0].optim
    schedule = optim.schedule(1000)
    assert max(learning_rate(schedule, step) for step in range(schedule.steps)) == optim.lr
    assert 1e-5 <= optim.lr <= 1e-2
