"""SAM-Med2D's adapter: identity at the start, its formula afterwards, on whole images alone."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.adapters.sam_med2d import Doubling, SamMed2dAdapter
from finetune.config import ModelConfig
from finetune.model.building import build_model
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.windows import balanced_keep, dense_groups
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))
ADAPTER = Component("finetune.adapters.SamMed2dAdapter")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)


def kernel_of(doubling: Doubling) -> Tensor:
    """The weight (C in, C out, 4, 4) of the transposed convolution that it is."""
    width = doubling.parts[0].out_features
    kernel = torch.zeros(width, width, 4, 4)
    for place, part in enumerate(doubling.parts):
        row, column = divmod(place, 2)
        weights = part.weight.unflatten(1, (2, 2, width))  # (C out, 2, 2, C in)
        for i in range(2):
            for j in range(2):
                kernel[:, :, 3 - row - 2 * i, 3 - column - 2 * j] = weights[:, i, j].T
    return kernel


@pytest.mark.parametrize("size", [(3, 5), (1, 4)])
def test_doubling_is_a_transposed_convolution(size) -> None:
    doubling = Doubling(6)
    x = torch.randn(2, *size, 6)
    kernel = kernel_of(doubling)
    assert kernel.abs().min() > 0  # each of its weights has a place
    expected = F.conv_transpose2d(x.permute(0, 3, 1, 2), kernel, stride=2, padding=1)
    torch.testing.assert_close(doubling(x).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


def literal(adapter: SamMed2dAdapter, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The adapter of one image after the other, its channels first."""
    rows = []
    for image in tokens:  # (n, C)
        x = image.T.unflatten(1, grid)  # (C, h, w)
        squeezed = (adapter.squeeze.weight @ image.mean(0)).clamp(min=0)
        gated = (1 / (1 + (-adapter.excite.weight @ squeezed).exp()))[:, None, None] * x
        down = F.conv2d(gated[None], adapter.down.weight, stride=2, padding=1).clamp(min=0)
        up = F.conv_transpose2d(down, kernel_of(adapter.up), stride=2, padding=1).clamp(min=0)
        added = (x + up[0, :, : grid[0], : grid[1]]).flatten(1).T
        mean, spread = added.mean(1, keepdim=True), added.var(1, keepdim=True, unbiased=False)
        normed = (added - mean) / (spread + 1e-5).sqrt()
        rows.append(normed * adapter.norm.weight + adapter.norm.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("place", ["mlp", "attention"])
@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (5, 7)])
def test_a_block_follows_the_formula_at_any_grid(grid, place) -> None:
    block = SamEncoder(TINY).blocks[0]
    adapter = block.adapter = SamMed2dAdapter(TINY, ratio=0.5, place=place)
    randomise(block)
    groups = dense_groups(*grid, 14, torch.device("cpu"))
    tokens = torch.randn(2, grid[0] * grid[1], TINY.width)

    branch = block.attention(block.norm1(tokens), groups)
    middle = tokens + branch
    if place == "attention":
        middle = middle + literal(adapter, branch, grid)
    normed = block.norm2(middle)
    expected = middle + block.mlp(normed)
    if place == "mlp":
        expected = expected + literal(adapter, normed, grid)
    torch.testing.assert_close(block(tokens, groups), expected, atol=1e-4, rtol=1e-4)


def test_it_starts_as_the_model_it_adapts_learns_whole_and_is_gone_when_off() -> None:
    segmenter = build_model(ModelConfig("tiny", 224, ADAPTER))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        out = segmenter.encode(images)
        with segmenter.without_adapters():
            plain = segmenter.encode(images)
    assert torch.equal(out, plain)

    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the gain, from which the rest then learns
        optimizer.zero_grad()
        segmenter.encode(images).square().mean().backward()
        optimizer.step()
    for name, parameter in segmenter.image_encoder.named_parameters():
        if ".adapter." in name:
            assert parameter.grad.abs().max() > 0, name

    base = build_model(ModelConfig("tiny", 224))
    state = segmenter.state_dict()
    base.load_state_dict({key: value for key, value in state.items() if ".adapter." not in key})
    with torch.no_grad():
        for block in segmenter.image_encoder.blocks:
            block.adapter.norm.weight.fill_(1)
        with segmenter.without_adapters():
            assert torch.equal(segmenter.encode(images), base.encode(images))
        assert not torch.allclose(segmenter.encode(images), base.encode(images), atol=1e-2)


def test_dropped_tokens_and_wrong_options_are_refused() -> None:
    encoder = SamEncoder(TINY)
    for block in encoder.blocks:
        block.adapter = SamMed2dAdapter(TINY)
    keep = balanced_keep(1, (14, 14), 14, 0.5, torch.Generator())
    with pytest.raises(ValueError, match="needs all tokens of an image"):
        encoder.forward_tokens(torch.randn(1, 3, 224, 224), keep)
    for options, message in (
        ({"place": "neck"}, "SamMed2dAdapter.place is 'neck'"),
        ({"ratio": 0.0}, "SamMed2dAdapter.ratio is 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            SamMed2dAdapter(TINY, **options)
