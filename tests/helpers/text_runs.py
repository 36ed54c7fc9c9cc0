"""Tiny labelled images, texts and towers, and runs of stage two that are prompted by texts."""

from pathlib import Path

import numpy as np
import open_clip
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from data_prep.common.cli import run_command
from data_prep.records import Sample
from finetune.train import COMMAND

ROOT = Path(__file__).parents[2]
LABELS = {"disc": [1], "square": [2]}
BANK = """
templates:
  train: ["{}", "the {}", "find the {}", "{} here"]
  held_out: ["the {} here"]
targets:
  disc: {train: {names: [disc, circle]}}
  square: {train: {names: [square, box]}, held_out: {names: [square box]}}
"""
TOWER = {"width": 32, "heads": 2, "layers": 1, "context_length": 8, "max_tokens": 6}


def shapes(seed: int) -> Sample:
    """A bright disc or a dark square, or both, or neither, on grey."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:64, :64]
    image, label = rng.normal(120, 6, (64, 64)), np.zeros((64, 64), np.uint8)
    places = rng.permutation([(18, 18), (18, 46), (46, 18), (46, 46)]) + rng.integers(-5, 6, (4, 2))
    if seed % 4 in (0, 1):
        disc = (rows - places[0, 0]) ** 2 + (columns - places[0, 1]) ** 2 < 80
        image[disc], label[disc] = image[disc] + 90, 1
    if seed % 4 in (0, 2):
        square = np.maximum(abs(rows - places[1, 0]), abs(columns - places[1, 1])) < 8
        image[square], label[square] = image[square] - 90, 2
    return Sample(image.clip(0, 255).astype(np.uint8), label, group=f"p{seed}")


def train(shards: Path, *options: str) -> Path:
    arguments = [f"--config={ROOT / 'configs/finetune/quickstart.yaml'}", f"--data.shards={shards}"]
    arguments += ["--output=run", "--model.encoder_size=tiny", "--model.image_size=64"]
    arguments += ["--data.workers=0", "--threads=1", "--prompts=Texts", "--prompts.bank=texts.yaml"]
    arguments += ["--model.text=ClipText"]
    arguments += [f"--model.text.{name}={value}" for name, value in TOWER.items()]
    run_command("finetune/train.py", COMMAND, [*arguments, *options])
    AcceleratorState._reset_state(reset_partial_state=True)
    return Path("run")


def official(path: Path) -> None:
    """A CLIP checkpoint as open_clip publishes them, of a small text tower."""
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 8}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    model = open_clip.CLIP(512, vision, text)
    save_file(model.state_dict(), path)
