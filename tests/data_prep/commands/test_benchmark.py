"""The benchmark compares equal work, and its report holds what it promises."""

import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.commands.benchmark import _plain_sharding, make_photographs, measure
from data_prep.common.errors import UserError
from data_prep.options import BenchmarkOptions, ReadOptions
from data_prep.readers.images import read_image


def test_report_of_a_tiny_run(tmp_path):
    config = BenchmarkOptions(images=6, photographs=2, workers=1, repeats=1)
    lines = list(measure(config, tmp_path))
    assert lines[0].endswith("1 workers, shortest of 1 times")
    patterns = [
        r"sharding 224-px PNG: \d+ images/s .*: \d+\.\d times faster",
        r"sharding 6-MP JPEG to 512: \d+ images/s .*: \d+\.\d times faster",
        r"loading 224-px PNG: \d+ images/s, \d+ % of bare decoding by Pillow \(\d+\), "
        r"\d+ % of bare decoding by libpng, which the loader uses \(\d+\)",
        r"memory of loader and workers: \d+ MB after 256 images, \d+ MB after 256",
    ]
    for pattern, line in zip(patterns, lines[1:], strict=True):
        assert re.fullmatch(pattern, line), line


def test_both_ways_of_scaling_give_the_same_picture(tmp_path):
    make_photographs(tmp_path / "photographs", 1)
    _plain_sharding(tmp_path / "photographs", tmp_path / "plain", 512)
    with tarfile.open(tmp_path / "plain" / "000000.tar") as tar:
        plain = np.asarray(Image.open(io.BytesIO(tar.extractfile("000000.jpg").read())))
    ours = read_image(tmp_path / "photographs" / "000000.jpg", ReadOptions(), 512)
    assert ours.array.shape == plain.shape == (341, 512, 3)
    assert np.abs(ours.array.astype(int) - plain).mean() < 3


def test_counts_must_be_positive():
    with pytest.raises(UserError, match="at least 1"):
        BenchmarkOptions(repeats=0)
