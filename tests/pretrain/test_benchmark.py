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
from pretrain.benchmark import memory, training
from pretrain.benchmark.attention import flexible
from pretrain.benchmark.clock import Bench
from pretrain.benchmark.steps import DENSE
from pretrain.encoder.attention import blockwise, dense_positions
from pretrain.encoder.flops import encoder_flops
from pretrain.engine.cpu import has_fast_bf16
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
    """In bf16, too, where that is fast."""
    tiny = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
    monkeypatch.setitem(SIZES, "vit_t", tiny)
    path = tmp_path / "results.md"
    options = ["--encoder_size=vit_t", "--sizes=[224]", "--repeats=1", "--batch_size=2"]
    options += ["--parts=attention,encoder,objectives"]
    words = ["benchmark", *options, f"--results={path}", "--device=cpu"]
    run_program("pretrain", COMMANDS, words)
    kept = path.read_text()
    assert kept.split("\n\n## ")[1].split("\n", 1)[1] in capsys.readouterr().out
    for pattern in (
        r"\n\n## Encoder and objectives: .+, \d+ threads, with --encoder_size .+\n",
        r"`python -m pretrain benchmark --encoder_size vit_t "
        r"--parts '\[attention, encoder, objectives\]' --sizes '\[224\]' .*`, .*",
        r"\| 25 \| 14 x 14 \| bf16 \|( \d+\.\d / \d+\.\d \|)+ \w+ \|",
        r"\| 2 x 224 x 224 \| forward \| ours \| bf16 (\| [\d.]+ ){2}\| \d+\.\d\d x \| \d+% \|",
        r"\| 2 x 224 x 224 \| forward \| stock \| bf16 \| [\d.]+ \| [\d.]+ \| 1\.00 x \| \d+% \|",
        r"\| dense forward \+ backward \| \d\.\d{3} \| [\d.]+ \| 1\.00 x \| \d+% \|",
        r"\| three objectives, shared 25 % \| \d\.\d{3} \| [\d.]+ \| \d+\.\d\d x \| \d+% \|",
        r"\| three objectives as three dense models \| \d\.\d{3} \| .* x \| \d+% \|",
        r"\| bf16 \| \d\.\d{3} \| \d\.\d{3} \| \d+\.\d\d x \|",
        r"Dropping tokens makes the MAE step \d+\.\d\d times faster\.",
    ):
        expected = has_fast_bf16() if "bf16" in pattern else True
        assert len(re.findall(pattern, kept)) == expected, pattern
    shares = [int(share) for share in re.findall(r"\| (\d+)% \|", kept)]
    assert min(shares) > 0


def test_training_from_shards_is_timed_as_a_run_of_several_processes(
    image_shards, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(training, "INTERVALS", 2)
    monkeypatch.setattr(training, "STEPS", 1)
    monkeypatch.setattr(training, "PROCESSES", (2,))
    options = ["--encoder_size=vit_t", "--parts=training", "--repeats=1", "--batch_size=1"]
    words = ["benchmark", *options, f"--shards={image_shards}", "--results=null", "--device=cpu"]
    run_program("pretrain", COMMANDS, words)
    out = capsys.readouterr().out
    (memory,) = re.findall(r"\| step on data in memory \| 1 \| (\d+\.\d) \| 100% \|", out)
    ((speed, share),) = re.findall(r"\| training from shards \| 2 \| (\d+\.\d) \| (\d+)% \|", out)
    lowest = (float(speed) - 0.05) / (float(memory) + 0.05)  # both are rounded
    highest = (float(speed) + 0.05) / (float(memory) - 0.05)
    assert 100 * lowest - 1 < float(share) < 100 * highest + 1

    with pytest.raises(SystemExit):
        run_program("pretrain", COMMANDS, [*words, "--shards=missing"])
    assert "missing" in capsys.readouterr().err


def test_recomputed_blocks_take_less_memory_for_each_image(capsys, monkeypatch) -> None:
    monkeypatch.setattr(memory, "KINDS", ((DENSE, False), (DENSE, True)))
    options = ["--encoder_size=vit_t", "--parts=memory", "--batch_size=4", "--repeats=1"]
    words = ["benchmark", *options, "--results=null", "--device=cpu"]
    run_program("pretrain", COMMANDS, words)
    rows = re.findall(r"\| (no|yes) \| (\d\.\d\d) \| (\d+) \|", capsys.readouterr().out)
    each = {recompute: float(further) for recompute, _, further in rows}
    assert 0 < each["yes"] < 0.7 * each["no"]


def test_flex_attention_adds_the_same_biases_as_the_backends() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 48, 16, generator=generator)
    row = torch.randn(2, 3, 48, 6, generator=generator)
    column = torch.randn(2, 3, 48, 8, generator=generator)
    inputs = (q, k, v, row, column, dense_positions(6, 8, q.device), 0.25)
    with torch.no_grad():  # PyTorch has no backward pass of it on a CPU
        torch.testing.assert_close(flexible(*inputs), blockwise(*inputs), atol=1e-5, rtol=1e-4)


def test_a_share_above_one_is_measured_against_a_better_rate(monkeypatch) -> None:
    rates = iter([{"fp32": 50.0}, {"fp32": 200.0}, {"fp32": 1.0}])
    monkeypatch.setattr("pretrain.benchmark.clock.matrix_rates", lambda *_: next(rates))
    bench = Bench(None, None, None, None, rates={"fp32": 80.0})
    assert bench.shares([("fp32", 100.0), ("fp32", 40.0)]) == [0.5, 0.2]
    assert bench.rates == {"fp32": 200.0}
    assert next(rates) == {"fp32": 1.0}, "it went on after the shares were possible"
