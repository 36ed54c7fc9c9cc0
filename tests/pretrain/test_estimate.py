"""Memory and time of a recipe without running it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_prep.common.cli import run_program
from data_prep.common.errors import UserError
from data_prep.common.parsing import parse
from pretrain.__main__ import COMMANDS
from pretrain.config import EstimateOptions
from pretrain.encoder.flops import blocks_flops, embedding_flops
from pretrain.encoder.sam import build_encoder
from pretrain.engine.memory import pass_memory
from pretrain.estimate import _build_model, estimate_recipe
from pretrain.objectives import MaskedAutoencoding
from pretrain.sizes import SIZES

pytestmark = pytest.mark.usefixtures("shallow")

QUICK = ("--config=configs/pretrain/quickstart.yaml",)


def options_of(*more: str) -> EstimateOptions:
    return parse(EstimateOptions, "estimate", [*QUICK, *more])[0]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_memory_counted_without_numbers_is_that_of_real_tensors(precision):
    options = options_of("--images=100", f"--precision={precision}")
    found = estimate_recipe(options)
    torch.manual_seed(0)
    model = _build_model(options)

    def bytes_of(count: int) -> int:
        images = torch.randn(count, 3, 224, 224)

        def one_pass():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return model.total(model(images, torch.Generator().manual_seed(0)))

        return pass_memory(list(model.parameters()), one_pass) + images.nbytes

    small, large = bytes_of(6), bytes_of(10)
    assert found.per_image == pytest.approx((large - small) / 4, rel=0.02)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.parameters == trained and found.fixed >= 16 * trained
    assert found.memory == found.fixed + 32 * found.per_image


def test_operations_are_those_that_pytorch_counts():
    """Relative positions, which make a few per cent of the products, are not counted by ours."""
    encoder, size = build_encoder("vit_t"), SIZES["vit_t"]
    images, keep = torch.randn(2, 3, 224, 224), torch.stack([torch.randperm(196)[:49]] * 2)
    for share, kept in ((1.0, None), (0.25, keep)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder.forward_tokens(images, kept)
        ours = embedding_flops(size, 14) + blocks_flops(size, 14, share)
        assert ours <= counter.get_total_flops() / 2 <= 1.12 * ours
    decoder = MaskedAutoencoding(192, decoder_width=64, decoder_depth=3, decoder_heads=4)
    for block in decoder.blocks:
        block.attn.fused_attn = False  # plain products, which the counter knows
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoded = decoder.decode(torch.randn(2, 49, 192), keep, (14, 14))
        decoder.predict(decoded[:, 49:])
    assert decoder.flops(196) == counter.get_total_flops() / 2


def test_views_are_counted_as_the_objectives_ask_for_them():
    def flops(*more: str) -> float:
        return estimate_recipe(options_of("--images=100", *more)).flops

    off = ("--objectives.emix.weight=0", "--objectives.shed.weight=0")
    size = SIZES["vit_t"]
    decoder = MaskedAutoencoding(192, decoder_width=128, decoder_depth=2, decoder_heads=4)
    once = embedding_flops(size, 14) + decoder.flops(196)
    assert flops(*off) == 3 * (once + blocks_flops(size, 14, 0.25))
    assert flops() == 3 * (once + 3 * blocks_flops(size, 14, 0.25))  # the clean view is shared
    full = ("--objectives.emix.keep_ratio=1", "--objectives.shed.keep_ratio=1")
    assert flops(*full) == 3 * (once + blocks_flops(size, 14, 0.25) + 3 * blocks_flops(size, 14))


def test_time_and_passes_follow_from_the_options(capsys):
    one = estimate_recipe(options_of("--images=1000"))
    assert one.hours == pytest.approx(75 * 32 * one.flops / (19.5e12 * 0.4) / 3600)
    more = ("--optim.steps=null", "--optim.epochs=10", "--gpus=4", "--gpu=H100", "--mfu=0.5")
    four = estimate_recipe(options_of("--images=1000", "--precision=bf16", *more))
    assert four.seen == 313 * 32 and four.share == 8
    assert four.hours == pytest.approx(313 * 32 * four.flops / (4 * 989e12 * 0.5) / 3600)
    recomputed = estimate_recipe(options_of("--images=1000", "--recompute_blocks=true"))
    assert recomputed.hours == pytest.approx(4 / 3 * one.hours)
    assert recomputed.per_image < one.per_image

    auto = ("--images=1000", "--optim.accumulate=auto")
    for fitting in (16, 20.5):  # images in a pass, of which the divisors of 32 count
        gigabytes = 1 + (one.fixed + (fitting + 0.1) * one.per_image) / 0.9e9
        assert estimate_recipe(options_of(*auto, f"--memory={gigabytes}")).passes == 2
    with pytest.raises(UserError, match=r"memory: 1\.01 GB hold"):
        estimate_recipe(options_of(*auto, "--memory=1.01"))

    run_program("python -m pretrain", COMMANDS, ["estimate", *QUICK, "--images=1000"])
    printed = capsys.readouterr().out
    assert all(line in printed.splitlines() for line in one.lines())
