"""Labelled shard sets of three kinds of images, two views of each case."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main as data_prep

KINDS = ("bright", "dark", "striped")


def write_images(folder: Path, cases: int = 12, unlabelled: int = 0) -> None:
    """`case0_dark_0.png` and so on: wide images, of two views of each case; and others."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        kind = KINDS[case % 3]
        for view in range(2):
            base = {"bright": 190.0, "dark": 70.0, "striped": 130.0}[kind]
            pixels = base + rng.normal(0, 12, (40, 60))
            if kind == "striped":
                pixels += 40 * np.sign(np.sin(np.arange(60) + case))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / f"case{case}_{kind}_{view}.png")
    for number in range(unlabelled):
        Image.fromarray(np.full((40, 40), 99, np.uint8)).save(folder / f"other{number}.png")


def shard(folder: Path, output: Path, *options: str) -> Path:
    words = [f"--input={folder}", f"--output={output}", "--shard_records=16"]
    data_prep(["shard", "--layout=folder", *words, *options])
    return output


LABELS = ("--label=" + "|".join(KINDS), r"--group=^(case[0-9]+|other[0-9]+)")


@pytest.fixture(scope="session")
def make_set():
    """Shard such images; returns the set."""

    def make(folder: Path, name: str, *options: str, cases: int = 12, unlabelled: int = 0) -> Path:
        write_images(folder / f"{name} files", cases, unlabelled)
        return shard(folder / f"{name} files", folder / name, *(options or LABELS))

    return make


@pytest.fixture(scope="session")
def divided(make_set, tmp_path_factory) -> Path:
    """24 labelled images of 12 cases and 3 without a label; a quarter of all cases is `test`."""
    options = (*LABELS, "--split={train: 0.7, test: 0.3}", "--seed=1")
    return make_set(tmp_path_factory.mktemp("divided"), "divided", *options, unlabelled=3)


@pytest.fixture(scope="session")
def undivided(make_set, tmp_path_factory) -> Path:
    """24 labelled images of 12 cases, all in `train`."""
    return make_set(tmp_path_factory.mktemp("undivided"), "undivided")
