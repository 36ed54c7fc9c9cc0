"""An objective from outside the package, as CONTRIBUTING.md adds it."""

from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from pretrain.engine.checkpoint import latest_checkpoint
from pretrain.train import COMMAND

TINY = ("--optim.steps=2", "--optim.batch_size=2", "--optim.warmup_steps=1", "--log_every=1")


def test_it_is_trained_logged_and_saved(contributed, image_shards, read_losses):
    run = contributed / "run"
    options = ["--config=configs/pretrain/quickstart.yaml", *TINY, "--data.workers=0"]
    options += [f"--data.shards={image_shards}", f"--output={run}"]
    options += ["--objectives.brightness", "brightness.Brightness"]
    run_command("pretrain/train.py", COMMAND, [*options, "--objectives.brightness.weight=0.1"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert [row["brightness"] > 0 for row in read_losses(run)] == [True, True]
    keys = latest_checkpoint(run).weights("objectives")
    assert {"brightness.predict.weight", "brightness.predict.bias"} < keys.keys()
    assert "weight: 0.1\n      keep_ratio: 0.25" in (run / "config.yaml").read_text()
