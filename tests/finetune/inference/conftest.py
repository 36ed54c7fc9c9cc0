"""A segmenter that sees what is bright, and the command `predict` with a stand-in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.common.cli import run_program
from finetune.__main__ import COMMANDS
from finetune.inference.loading import TrainedOn
from finetune.model.decoder import Decoded

SIDE = 64
SEEN = TrainedOn()


class Glow(nn.Module):
    """Stands in for a segmenter of 64 x 64 pixels: the bright pixels near what is prompted.

    Near are 20 pixels around a positive click, 2 around a box or a mask; a negative click clears 6.
    Its masks are as large as its images, so that nothing is blurred.
    """

    image_size, stack = SIDE, 1
    targets = ("bright", "dark")
    previous_mask, multimask, text_encoder = True, False, None

    def __init__(self, takes_prompts: bool = True) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.decoder = SimpleNamespace(takes_prompts=takes_prompts)
        self.encoded = 0

    def encode(self, images, *_):
        self.encoded += 1
        return images.mean(1, keepdim=True)  # (B, 1, S, S)

    def decode(self, embeddings, prompts, multimask=False):
        bright = embeddings[:, 0] > 0
        y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        masks = []
        for number in range(len(prompts)):
            seen = bright[prompts.image[number]]
            if prompts.target is not None:
                masks.append(seen if prompts.target[number] == 0 else ~seen)
                continue
            near = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            if prompts.boxes is not None:
                x0, y0, x1, y1 = prompts.boxes[number]
                near |= (x >= x0 - 2) & (x <= x1 + 2) & (y >= y0 - 2) & (y <= y1 + 2)
            elif prompts.masks is not None:
                mask = nn.functional.interpolate(prompts.masks[None, number], (SIDE, SIDE))
                near |= nn.functional.max_pool2d((mask[0, 0] > 0).float()[None], 5, 1, 2)[0] > 0
            if prompts.points is not None:
                clicks = zip(prompts.points[number], prompts.labels[number], strict=True)
                for (column, row), label in sorted(clicks, key=lambda click: -click[1]):
                    away = (x - column) ** 2 + (y - row) ** 2
                    near = near | (away < 400) if label else near & (away > 36)
            masks.append(near & seen)
        logits = torch.where(torch.stack(masks), 1.0, -1.0)[:, None]
        return Decoded(logits, logits.mean((2, 3)))


@pytest.fixture
def glow() -> Glow:
    return Glow()


@pytest.fixture
def headed() -> Glow:
    """One whose decoder takes no prompts."""
    return Glow(takes_prompts=False)


def wandering(depth: int, ends: tuple[int, int], column: int = 20) -> np.ndarray:
    """(depth, 64, 64) bool: a square that wanders down the slices from `ends[0]` to `ends[1]`."""
    mask = np.zeros((depth, SIDE, SIDE), bool)
    for number in range(ends[0], ends[1] + 1):
        mask[number, 10 + number : 26 + number, column : column + 16] = True
    return mask


@pytest.fixture
def wander():
    return wandering


@pytest.fixture
def predict(monkeypatch):
    """Run the command with a stand-in segmenter, whatever run is named."""

    def start(segmenter, *options: str, seen: TrainedOn = SEEN) -> None:
        loading = "finetune.inference.loading"
        monkeypatch.setattr(f"{loading}.load_model", lambda source, device, texts: segmenter)
        monkeypatch.setattr(f"{loading}.trained_on", lambda run: seen)
        monkeypatch.setattr("finetune.inference.table.digest_of", lambda config: None)
        arguments = ["predict", "--run=run", "--device=cpu", *map(str, options)]
        run_program("finetune", COMMANDS, arguments)

    return start


@pytest.fixture
def refused(predict, capsys):
    """The one line that a refused command prints."""

    def error_of(segmenter, *options: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            predict(segmenter, *options)
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(lines) == 1
        return lines[0]

    return error_of
