"""SAMed's low-rank adapters: SAM at the start, the paper's formula afterwards, and mergeable."""

import pytest
import torch

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.adapters import LoraAdapter
from finetune.config import ModelConfig
from finetune.model import build_model
from pretrain.encoder.block import EncoderBlock
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.windows import dense_groups
from pretrain.sizes import SIZES, EncoderSize

pytestmark = pytest.mark.filterwarnings("ignore:.*pad SAM's attention windows")

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


def adapted(pixels: int = 224, **options: float) -> SamEncoder:
    adapter = Component("finetune.adapters.LoraAdapter", options)
    return build_model(ModelConfig("tiny", pixels, adapter)).image_encoder


@torch.no_grad()
def move(encoder: SamEncoder) -> None:
    for block in encoder.blocks:
        for parameter in block.adapter.parameters():
            parameter.normal_(std=0.3)
        block.attn.qkv.bias.normal_()  # which the tokens of padded windows are


def merge(encoder: SamEncoder) -> None:
    for block in encoder.blocks:
        block.adapter.merge(block)
        block.adapter = None


def test_an_adapted_model_is_at_first_the_model_itself_and_learns() -> None:
    encoder = adapted()
    images = torch.randn(2, 3, 224, 224)
    out = encoder(images)
    adapters = [block.adapter for block in encoder.blocks]
    for block in encoder.blocks:
        block.adapter = None
    assert torch.equal(out, encoder(images))
    out.square().mean().backward()
    for adapter in adapters:
        for change in (adapter.query, adapter.value):
            assert change.down.weight.shape == (4, 32)  # the paper's rank
            assert change.up.weight.grad.any()
            assert not change.down.weight.grad.any()  # until the other is no longer zero


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_queries_and_values_are_the_papers_formula(scale) -> None:
    encoder = adapted(rank=3, scale=scale)
    move(encoder)
    block, adapter = encoder.blocks[0], encoder.blocks[0].adapter
    tokens = torch.randn(2, 9, 32)
    found = adapter.qkv(block, tokens, dense_groups(3, 3, 14, tokens.device))
    weights, biases = block.attn.qkv.weight.split(32), block.attn.qkv.bias.split(32)
    for place, change in enumerate((adapter.query, None, adapter.value)):
        part = found[..., 32 * place : 32 * (place + 1)]
        for image, position in ((0, 0), (1, 8)):
            x = tokens[image, position]
            expected = weights[place] @ x + biases[place]
            if change is not None:
                expected = expected + scale * change.up.weight @ (change.down.weight @ x)
            torch.testing.assert_close(part[image, position], expected)


@pytest.mark.parametrize("pixels", [224, 64, 448])  # one window, a padded one, several
def test_merged_weights_do_the_same(pixels) -> None:
    encoder = adapted(pixels, rank=3, scale=0.5)
    images = torch.randn(2, 3, pixels, pixels)
    plain = encoder(images)
    move(encoder)
    grid = pixels // 16
    windows = torch.arange(grid**2).view(1, grid // 14, 14, grid // 14, 14) if grid >= 14 else None
    keep = None
    if windows is not None:  # five tokens of each window
        keep = windows.permute(0, 1, 3, 2, 4).flatten(3)[..., :50:10].flatten(1).expand(2, -1)
    with torch.no_grad():
        before = encoder(images), encoder.forward_tokens(images, keep)
        merge(encoder)
        after = encoder(images), encoder.forward_tokens(images, keep)
    assert all(block.adapter is None for block in encoder.blocks)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert (before[0] - plain).abs().max() > 0.1


def test_recomputed_blocks_have_the_same_gradients() -> None:
    encoder = adapted(64)
    move(encoder)
    images, gradients = torch.randn(2, 3, 64, 64), []
    for recompute in (False, True):
        encoder.recompute_blocks = recompute
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            encoder(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.blocks[0].adapter.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one.any() and torch.equal(one, other)


@pytest.mark.parametrize("rank", [0, 33])
def test_an_impossible_rank_is_refused(rank) -> None:
    with pytest.raises(UserError, match=rf"LoraAdapter\.rank is {rank}; it must lie in 1\.\.32"):
        LoraAdapter(TINY, rank)


def test_an_adapter_without_a_merge_says_so() -> None:
    adapter = Component("finetune.adapters.MsaAdapter")
    (block, _) = build_model(ModelConfig("tiny", 64, adapter)).image_encoder.blocks
    assert isinstance(block, EncoderBlock)
    with pytest.raises(UserError, match="MsaAdapter cannot be merged into the weights of SAM"):
        block.adapter.merge(block)
