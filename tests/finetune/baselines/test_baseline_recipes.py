"""Recipes of networks without SAM: each starts as its header says, on tiny data."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command, run_program
from finetune.__main__ import COMMANDS
from finetune.train import COMMAND
from helpers.networks import PAPERS
from helpers.recipes import ROOT, command_of, options_of_command, recipes_of

ALL = recipes_of("configs/baselines", "finetune/train.py")
RECIPES = [recipe for recipe in ALL if Path(recipe).stem not in PAPERS]
"""The others are started in `test_paper_recipes.py`."""
(SIMCLR,) = recipes_of("configs/baselines", "finetune simclr")
SMALL = (
    *("--optim.steps=1", "--optim.batch_size=1", "--optim.warmup_steps=1", "--data.workers=0"),
    *("--threads=1", "--model.image_size=64"),
)
NARROW = {
    "unet": ["features=[4, 4, 4, 4, 4]"],
    "resunet": ["width=4"],
    "segresnet": ["width=8"],
    "unetr": ["width=12", "heads=2", "filters=4"],
    "swin_unetr": ["width=12"],
}
"""Options that make a network small, by the beginning of its recipe's name."""


def narrow(recipe: str) -> list[str]:
    """What makes a recipe run in a second."""
    name = max((name for name in NARROW if Path(recipe).stem.startswith(name)), key=len, default="")
    found = [f"--model.network.{option}" for option in NARROW.get(name, ())]
    return [*SMALL, *found]


@pytest.fixture
def workspace(tmp_path, make_shards, organs, image_shards, monkeypatch) -> Path:
    """A folder with the recipes and the shard sets that the headers name."""
    for name in ("configs", "finetune"):
        (tmp_path / name).symlink_to(ROOT / name)
    volumes = [organs(seed, (40, 50), 4) for seed in range(5)]
    make_shards(volumes, {"anterior": [1], "posterior": [2]}, "shards/hippocampus")
    (tmp_path / "shards" / "slices").symlink_to(image_shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pretrain(capsys: pytest.CaptureFixture) -> None:
    words = command_of(SIMCLR)
    assert words[:6] == ["python", "-m", "finetune", "simclr", "--config", SIMCLR]
    small = ["--optim.steps=1", "--optim.batch_size=2", "--optim.warmup_steps=1", "--threads=1"]
    small += ["--data.workers=0", "--image_size=32", "--network.features=[4, 4, 4, 4, 4]"]
    run_program("python -m finetune", COMMANDS, [*words[3:], *small])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "1 steps of 2, 1 process on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_starts_as_its_header_says(recipe, workspace, capsys) -> None:
    options = options_of_command(recipe)
    if "--encoder" in options:
        pretrain(capsys)
    run_command("finetune/train.py", COMMAND, [*options, *narrow(recipe)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "1 steps of 1, 1 process on cpu" in capsys.readouterr().out
    assert (workspace / options[options.index("--output") + 1] / "DONE").is_file()
