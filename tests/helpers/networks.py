"""Runs of tiny networks without SAM."""

from pathlib import Path

from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from finetune.train import COMMAND

OPTIONS = (
    *("--model.image_size=64", "--loss.iou=0", "--prompts=TargetsOnly", "--threads=1"),
    *("--data.without_targets=null", "--data.workers=0", "--data.validation=0.2"),
    *("--optim.batch_size=4", "--optim.warmup_steps=0", "--optim.lr=0.02", "--log_every=1"),
    "--optim.scale_lr=false",
)
DIFFUSION = (
    *("channels=[8, 8, 16]", "attention=[false, false, true]", "blocks=1"),
    *("sampling_steps=2", "samples=2"),
)
PAPERS = {
    "transunet": ("width=16", "depth=1", "heads=2", "blocks=[1, 1, 1]"),
    "transbts": ("width=8", "embedding=16", "depth=1", "heads=2", "hidden=32"),
    "beal": (),
    "mtseg": ("width=4",),
    "ultraunet": ("width=4",),
    "segdiff": ("image_blocks=1", *DIFFUSION),
    "ensemdiff": DIFFUSION,
    "medsegdiff": DIFFUSION,
}
"""What makes networks of papers small, by the name of their recipe; all keep their depth."""


def train(shards: Path, run: Path, *options: str) -> Path:
    """Train a network as recipes without prompts do, and return the run folder."""
    words = [f"--data.shards={shards}", f"--output={run}", *OPTIONS, *options]
    run_command("finetune/train.py", COMMAND, words)
    AcceleratorState._reset_state(reset_partial_state=True)
    return run
