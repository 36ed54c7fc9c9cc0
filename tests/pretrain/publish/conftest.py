"""A short run of stage one, with what must not leave its folder."""

import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command, run_program
from pretrain.__main__ import COMMANDS
from pretrain.train import COMMAND

NAME = "clinic/encoder"


@pytest.fixture(scope="package")
def trained(image_shards, tmp_path_factory) -> Path:
    """Three steps of a vit_t, with two checkpoints."""
    run = tmp_path_factory.mktemp("secretfolder") / "run"
    options = ["--optim.steps=3", "--optim.warmup_steps=1", "--optim.batch_size=4", "--keep=2"]
    options += ["--save_every=1", "--log_every=1", "--data.workers=0", "--threads=1"]
    recipe = "--config=configs/pretrain/quickstart.yaml"
    places = [f"--data.shards={image_shards}", f"--output={run}"]
    run_command("pretrain/train.py", COMMAND, [recipe, *options, *places])
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """That run, which a test may change."""
    copy = tmp_path / "secretfolder" / "run"
    shutil.copytree(trained, copy)
    (copy / "nonfinite-0.json").write_text('{"step": 2, "keys": ["secretkey"]}')
    (copy / "figures" / "reconstructions.png").write_bytes(b"secretpicture")
    return copy


@pytest.fixture
def publish(run):
    """Publish the run."""

    def start(*options: str) -> None:
        given = [f"--run={run}", f"--repo={NAME}", "--license=cc-by-4.0", *options]
        run_program("python -m pretrain", COMMANDS, ["publish", *given])

    return start
