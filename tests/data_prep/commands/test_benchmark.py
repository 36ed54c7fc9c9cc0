"""The benchmark compares equal work, and its report holds what it promises."""

import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.commands.benchmark import _plain_sharding, make_photographs
from data_prep.common.errors import UserError
from data_prep.options import BenchmarkOptions, ReadOptions
from data_prep.readers.images import read_image


def test_figures_of_a_tiny_run_are_kept_and_replaced(tmp_path, capsys):
    path = tmp_path / "docs" / "results.md"
    options = ["--images=6", "--photographs=2", "--workers=1", "--repeats=1"]
    for _ in range(2):
        main(["benchmark", *options, f"--results={path}"])
        printed, kept = capsys.readouterr().out, path.read_text()
        for line in kept.split("\n\n## ")[1].splitlines()[1:]:
            assert line in printed
        for pattern in (
            r"\n\n## Sharding and loading: .+, \d+ cores, with --images 6 .+\n",
            r"`python -m data_prep benchmark --images 6 --photographs 2 --workers 1 .*, Python 3",
            r"\| PNG, 224 pixels \| 1 \| \d+ \| Decoded and encoded .+ \| \d+ \| \d+\.\d x \|",
            r"\| PNG, 224 pixels \| 1 \| \d+ \| Bytes copied .+ \| \d+ \| \d+\.\d x \|",
            r"\| JPEG, 6 megapixels to 512 pixels \| 1 \| \d+ \| Decoded .+ \| \d+ \| \d+\.\d x",
            r"\| loader \| 1 \| \d+ \| 100% \|",
            r"\| decoding alone, Pillow \| 1 \| \d+ \| \d+% \|",
            r"\d+ MB after 256 images, \d+ MB after 256\.\n$",
        ):
            assert len(re.findall(pattern, kept)) == 1, pattern


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
