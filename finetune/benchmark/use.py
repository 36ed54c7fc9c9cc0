"""A model in use: from click to mask on an encoded image, and from the command to the model."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.common.errors import UserError
from finetune.benchmark.bench import Bench
from finetune.inference.prompted import PromptedImage

MISSING = "no-such-model.pth"
"""A model that is not there, at which `predict` ends where it would load it."""


def click_table(bench: Bench) -> None:
    """Milliseconds from a click to its mask, and from an image to its embedding."""
    config = bench.config
    segmenter = bench.segmenter(adapters=False).eval()
    segmenter.multimask = True
    size = config.image_size
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    prompted = PromptedImage(segmenter, image)
    first, second = [[[size // 2, size // 2]]], [[[size // 2, size // 2], [9, 9]]]
    _, logits = prompted.predict(first, [[1]])
    seconds = bench.clock(
        {
            "image to embedding": lambda: PromptedImage(segmenter, image),
            "first click to mask": lambda: prompted.predict(first, [[1]]),
            "next click to mask": lambda: prompted.predict(second, [[1, 0]], previous=logits),
        }
    )
    bench.results.add(
        f"In use: {config.encoder_size}, an image of {size} x {size} pixels, in fp32. The image is"
        " encoded once, whatever the number of clicks."
    )
    encoding = seconds["image to embedding"]
    bench.results.table(
        ["what", "ms", "share of encoding"],
        [[name, f"{1e3 * s:.1f}", f"{s / encoding:.3f}"] for name, s in seconds.items()],
    )


def startup_table(bench: Bench) -> None:
    """Seconds from the command `predict` to where it loads the model, and of importing PyTorch."""
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "image.png"
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
        options = [f"--sam={MISSING}", f"--input={image}", f"--output={name}/mask.png"]
        command = [sys.executable, "-m", "finetune", "predict", *options, "--clicks=9,9,1"]
        seconds = bench.clock(
            {
                "import torch": lambda: _start([sys.executable, "-c", "import torch"]),
                "predict, up to its model": lambda: _start(command),
            }
        )
    bench.results.add("Start of a command, in a process of its own.")
    plain = seconds["import torch"]
    bench.results.table(
        ["start", "seconds", "ratio"],
        [[name, f"{s:.2f}", f"{s / plain:.2f} x"] for name, s in seconds.items()],
    )


def _start(command: list[str]) -> None:
    """Run a command that ends well, or for want of its model.

    Raises:
        UserError: It ended otherwise.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and MISSING not in done.stderr:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command[1:4])} failed: {last}")
