"""An adapter from outside the package, as CONTRIBUTING.md adds it."""

import pytest
import torch

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.config import ModelConfig
from finetune.model import build_model
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


@pytest.fixture(autouse=True)
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    torch.manual_seed(0)


@pytest.mark.parametrize("pixels", [224, 64])  # 64 pads the attention windows
def test_low_rank_adapters_are_merged_weights(contributed, pixels):
    adapter = Component("low_rank.LowRank", {"rank": 3})
    encoder = build_model(ModelConfig("tiny", pixels, adapter)).image_encoder
    images = torch.randn(2, 3, pixels, pixels)
    plain = build_model(ModelConfig("tiny", pixels)).image_encoder
    state = {key: value for key, value in encoder.state_dict().items() if ".adapter." not in key}
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(encoder(images), plain(images))  # zero at the start
        for block, other in zip(encoder.blocks, plain.blocks, strict=True):
            block.adapter.up.weight.normal_(std=0.5)
            assert block.adapter.down.weight.shape == (3, 32)
            other.attn.qkv.weight += block.adapter.up.weight @ block.adapter.down.weight
        merged = plain(images)
    out = encoder(images)
    torch.testing.assert_close(out, merged, atol=1e-4, rtol=1e-4)
    out.sum().backward()
    assert all(block.adapter.up.weight.grad.any() for block in encoder.blocks)


def test_what_is_not_an_adapter_is_refused(contributed):
    for path, message in (
        ("low_rank.nn", "low_rank.nn is not a pretrain.encoder.block.BlockAdapter"),
        ("low_rank.Missing", "low_rank.Missing cannot be imported"),
        ("finetune.adapters.MsaDecoderAdapter", "is not a pretrain.encoder.block.BlockAdapter"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(ModelConfig("tiny", 64, Component(path, {}, "model.encoder_adapter")))
    with pytest.raises(UserError, match=r"model\.encoder_adapter\.rank: 'x' is not accepted"):
        adapter = Component("low_rank.LowRank", {"rank": "x"}, "model.encoder_adapter")
        build_model(ModelConfig("tiny", 64, adapter))
