"""The benchmark of stage one: what it counts, and what it keeps."""

import re
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data_prep.common.cli import run_program
from pretrain.__main__ import COMMANDS
from pretrain.encoder.flops import encoder_flops
from pretrain.sizes import SIZES, EncoderSize


@pytest.mark.parametrize("grid", [7, 14, 28])
def test_operations_are_those_that_torch_counts(grid):
    size = EncoderSize(width=48, depth=3, heads=3, global_blocks=(1,))
    stock = ImageEncoderViT(
        img_size=16 * grid,
        depth=3,
        embed_dim=48,
        num_heads=3,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=False,  # adds operations that encoder_flops leaves out, as it says
        window_size=min(grid, 14),
        global_attn_indexes=(1,),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stock(torch.zeros(1, 3, 16 * grid, 16 * grid))
    assert encoder_flops(size, grid) == counter.get_total_flops()


def test_figures_of_a_tiny_run_are_kept(tmp_path, capsys, monkeypatch):
    tiny = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SIZES, "vit_t", tiny)
    path = tmp_path / "results.md"
    options = ["--encoder_size=vit_t", "--sizes=[224]", "--repeats=1", "--batch_size=2"]
    words = ["benchmark", *options, f"--results={path}", "--device=cpu"]
    run_program("pretrain", COMMANDS, words)
    kept = path.read_text()
    assert kept.split("\n\n## ")[1].split("\n", 1)[1] in capsys.readouterr().out
    for pattern in (
        r"\n\n## Encoder and objectives: .+, \d+ threads, with --encoder_size .+\n",
        r"`python -m pretrain benchmark --encoder_size vit_t --sizes '\[224\]' .*`, .*, Python 3",
        r"\| 25 \| 14 x 14 \| bf16 \|( \d+\.\d / \d+\.\d \|)+ \w+ \|",
        r"\| 2 x 224 x 224 \| forward \| ours \| fp32 \| \d\.\d{3} \| \d+\.\d\d x \| \d+% \|",
        r"\| 2 x 224 x 224 \| forward \| stock \| fp32 \| \d\.\d{3} \| 1\.00 x \| \d+% \|",
        r"\| dense forward \+ backward \| \d\.\d{3} \| 1\.00 x \|",
        r"\| three objectives, shared 25 % \| \d\.\d{3} \| \d+\.\d\d x \|",
        r"Dropping tokens makes the MAE step \d+\.\d\d times faster\.",
    ):
        assert len(re.findall(pattern, kept)) == 1, pattern
    shares = [int(share) for share in re.findall(r"\| (\d+)% \|", kept)]
    assert max(shares) <= 110, "more than the machine's own matrix products reach"
