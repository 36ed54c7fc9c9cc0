"""A study of tiny networks whose commands run in this process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command, run_program
from finetune.__main__ import COMMANDS
from finetune.few_shot.process import Commands, Ended
from finetune.train import COMMAND

SHALLOW = """
from torch import nn
from finetune.model.network import Network

class Shallow(Network):
    def __init__(self, image_size, targets, width=4):
        super().__init__(image_size, targets)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, len(targets), 3, padding=1),
        )

    def forward(self, images, stacks=()):
        return self.layers(images)
"""
RECIPE = {
    "model": {"network": "few_layers.Shallow", "image_size": 32},
    "loss": {"class_path": "finetune.model.losses.SegmentationLoss", "iou": 0},
    "prompts": "TargetsOnly",
    "data": {"without_targets": None},
    "optim": {"steps": 3, "batch_size": 2, "warmup_steps": 0, "lr": 0.02, "scale_lr": False},
    "save_every": 1,
    "trackers": [],
}


def run_here(words: Sequence[str]) -> int:
    """Run a command of a study in this process; its exit status."""
    try:
        if words[0] == "finetune.train":
            run_command("finetune/train.py", COMMAND, words[1:])
        else:
            run_program("python -m finetune", COMMANDS, words[1:])
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return 0


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with the network and a recipe of it, from which the network can be imported."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "few_layers.py").write_text(SHALLOW)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    return folder


@pytest.fixture(scope="module")
def in_process(here):
    """Commands of studies run in this process, and without pictures; gives those that ran."""
    ran: list[list[str]] = []

    def run(self: Commands, words: Sequence[str]) -> Ended:
        ran.append(list(words))
        return Ended(run_here(words), "")

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.setattr(Commands, "run", run)
        patch.setattr("finetune.evaluation.evaluate.draw_results", lambda *arguments: None)
        yield ran


@pytest.fixture(scope="module")
def options(here, labelled_shards) -> Callable[..., list[str]]:
    """The options of a study of two arms, with others after them."""
    recipe = here / "recipe.yaml"
    arms = {
        "narrow": {"config": str(recipe), "precision": False},  # which YAML makes of `no`
        "Wide net": {"config": str(recipe), "model.network.width": 8},
    }

    def words(output: Path, *others: str) -> list[str]:
        given = [f"--arms={json.dumps(arms)}", f"--shards={labelled_shards}", "--threads=1"]
        return [*given, f"--output={output}", "--cases=1,3", "--draws=2", *others]

    return words


@pytest.fixture(scope="module")
def few_shot() -> Callable[[Sequence[str]], None]:
    """Start `python -m finetune few_shot` in this process."""
    return lambda words: run_program("python -m finetune", COMMANDS, ["few_shot", *words])
