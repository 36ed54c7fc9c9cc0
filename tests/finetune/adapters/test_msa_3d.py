"""MSA adapters for volumes: SAM at the start, MSA in 2D for one slice, the formula in between."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.adapters import BlockAdapter, Msa3dAdapter, MsaAdapter
from pretrain.encoder.block import EncoderBlock
from pretrain.encoder.sam import SamEncoder
from pretrain.encoder.windows import TokenGroups, checked_stacks, dense_groups
from pretrain.engine.optim import build_optimizer
from pretrain.engine.run_options import OptimConfig
from pretrain.sizes import EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def randomise(module: nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)


def encoder_with(adapter: type[MsaAdapter]) -> SamEncoder:
    encoder = SamEncoder(TINY)
    for block in encoder.blocks:
        block.adapter = adapter(TINY)
    return encoder


def encode(encoder: SamEncoder, images: Tensor, *stacks: int) -> Tensor:
    """Tokens, before the neck, which knows nothing of stacks."""
    return encoder.encode(*encoder.embed(images), stacks=stacks)


def stacked(side: int, *stacks: int) -> TokenGroups:
    """Groups of a (side, side) grid for images in such stacks."""
    groups = dense_groups(side, side, 14, torch.device("cpu"))
    return replace(groups, stacks=checked_stacks(stacks, sum(stacks)))


def test_a_fresh_model_is_sam_and_learns_depth_from_there() -> None:
    encoder = encoder_with(Msa3dAdapter)
    assert encoder.for_stacks and not encoder_with(MsaAdapter).for_stacks
    images = torch.randn(4, 3, 224, 224)
    out = encode(encoder, images, 3, 1)
    for block in encoder.blocks:
        block.adapter, kept = None, block.adapter
        block.kept = kept
    torch.testing.assert_close(out, encode(encoder, images), atol=0, rtol=0)
    assert not encoder.for_stacks
    out.square().mean().backward()
    for block in encoder.blocks:
        assert block.kept.after_depth.up.weight.grad.abs().max() > 0
        assert not block.kept.rel_pos_d.any()


@pytest.mark.parametrize("stacks", [(), (1, 1)])
def test_a_volume_of_one_slice_is_msa_in_2d(stacks: tuple[int, ...]) -> None:
    flat, deep = encoder_with(MsaAdapter), encoder_with(Msa3dAdapter)
    randomise(deep)
    state = deep.state_dict()
    new = {key for key in state if "after_depth" in key or "rel_pos_d" in key}
    assert len(new) == 5 * TINY.depth
    flat.load_state_dict({key: value for key, value in state.items() if key not in new})
    images = torch.randn(2, 3, 224, 224)
    outs = encode(flat, images), encode(deep, images, *stacks)
    torch.testing.assert_close(*outs, atol=0, rtol=0)
    for out in outs:
        out.square().mean().backward()
    deep_gradients = {name: parameter.grad for name, parameter in deep.named_parameters()}
    for name, parameter in flat.named_parameters():
        torch.testing.assert_close(deep_gradients.pop(name), parameter.grad, atol=0, rtol=0)
    assert deep_gradients.keys() == new
    assert all(gradient is None for gradient in deep_gradients.values())


def literal_depth(block: EncoderBlock, tokens: Tensor) -> Tensor:
    """The branch of depth of one stack (D, n, C) by loops over positions, heads and slices."""
    adapter, attn = block.adapter, block.attn
    slices, count, width = tokens.shape
    each = width // attn.num_heads
    reach = len(adapter.rel_pos_d) // 2
    joined = torch.zeros(slices, count, width)
    qkv = tokens @ attn.qkv.weight.T + attn.qkv.bias
    for position in range(count):
        for head in range(attn.num_heads):
            start = head * each
            q, k, v = (
                qkv[:, position, part * width + start : part * width + start + each]
                for part in range(3)
            )
            for i in range(slices):
                logits = []
                for j in range(slices):
                    row = adapter.rel_pos_d[max(-reach, min(reach, i - j)) + reach]
                    logits.append(q[i] @ k[j] / each**0.5 + q[i] @ row)
                weights = torch.stack(logits).softmax(0)
                mixed = sum(weight * value for weight, value in zip(weights, v, strict=True))
                joined[i, position, start : start + each] = mixed
    projected = joined @ attn.proj.weight.T + attn.proj.bias
    inner = projected @ adapter.after_depth.down.weight.T + adapter.after_depth.down.bias
    return inner.clamp(min=0) @ adapter.after_depth.up.weight.T + adapter.after_depth.up.bias


@pytest.mark.parametrize(
    ("place", "side", "stacks", "reach"),
    [(0, 3, (4,), 15), (1, 3, (2, 1, 3), 15), (0, 15, (2, 2), 1), (1, 3, (4, 4), 1)],
)
def test_a_block_follows_the_formula(place, side, stacks, reach) -> None:
    """Windows and global blocks, padded windows, stacks of one length and of several."""
    block = SamEncoder(TINY).blocks[place]
    block.adapter = Msa3dAdapter(TINY, ratio=0.5, scale=0.3, reach=reach)
    randomise(block)
    tokens = torch.randn(sum(stacks), side**2, TINY.width)
    groups = stacked(side, *stacks)
    with torch.no_grad():
        normed = block.norm1(tokens)
        attended = block.attention(normed, groups)
        depth = [
            literal_depth(block, part) if len(part) > 1 else torch.zeros_like(part)
            for part in normed.split(stacks)
        ]
        middle = tokens + attended + block.adapter.after_attention(attended) + torch.cat(depth)
        normed = block.norm2(middle)
        expected = middle + block.mlp(normed) + 0.3 * block.adapter.beside_mlp(normed)
        torch.testing.assert_close(block(tokens, groups), expected, atol=1e-4, rtol=1e-4)


def test_stacks_do_not_see_each_other_and_order_counts_once_it_is_learnt() -> None:
    encoder = encoder_with(Msa3dAdapter)
    for block in encoder.blocks:
        randomise(block.adapter)
        nn.init.zeros_(block.adapter.rel_pos_d)
    images = torch.randn(5, 3, 112, 112)
    changed = images.clone()
    changed[4] += 1
    with torch.no_grad(), pytest.warns(UserWarning, match="pad SAM's attention windows"):
        out, other = encode(encoder, images, 3, 2), encode(encoder, changed, 3, 2)
        torch.testing.assert_close(other[:3], out[:3], atol=0, rtol=0)
        assert (other[3] - out[3]).abs().max() > 1e-3
        backwards = encode(encoder, images[:3].flip(0), 3).flip(0)
        torch.testing.assert_close(backwards, out[:3], atol=1e-4, rtol=1e-4)
        for block in encoder.blocks:
            nn.init.normal_(block.adapter.rel_pos_d)
        ordered = encode(encoder, images[:3], 3)
        assert (encode(encoder, images[:3].flip(0), 3).flip(0) - ordered).abs().max() > 1e-3


@pytest.mark.parametrize("pixels", [224, 448])
def test_recomputed_blocks_give_the_same_gradients(pixels: int) -> None:
    """At one window and at several."""
    images = torch.randn(2, 3, pixels, pixels)
    gradients = []
    for again in (False, True):
        torch.manual_seed(3)
        encoder = encoder_with(Msa3dAdapter)
        randomise(encoder, 0.1)
        encoder.recompute_blocks = again
        encode(encoder, images, 2).square().mean().backward()
        gradients.append([p.grad for block in encoder.blocks for p in block.adapter.parameters()])
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_a_block_compiles_whole() -> None:
    block = SamEncoder(TINY).blocks[0]
    block.adapter = Msa3dAdapter(TINY)
    randomise(block, 0.1)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    tokens = torch.randn(4, 196, TINY.width)
    for stacks in ((4,), (3, 1)):
        groups = stacked(14, *stacks)
        torch.testing.assert_close(compiled(tokens, groups), block(tokens, groups))


def test_bf16_stays_close_to_fp32() -> None:
    encoder = encoder_with(Msa3dAdapter)
    for block in encoder.blocks:
        randomise(block.adapter, 0.1)
    images = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        exact = encode(encoder, images, 3)
        with torch.autocast("cpu", torch.bfloat16):
            close = encode(encoder, images, 3)
    assert (close.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_wrong_stacks_are_refused() -> None:
    encoder = SamEncoder(TINY)
    images = torch.zeros(3, 3, 224, 224)
    for stacks in ((2, 2), (3, 0), (4,)):
        with pytest.raises(ValueError, match="do not make up a batch of 3 images"):
            encoder(images, stacks)
    keep = torch.arange(10).expand(3, -1)
    with pytest.raises(ValueError, match="have all their tokens"):
        encoder.encode(*encoder.embed(images), keep, (3,))
    with pytest.raises(UserError, match=r"Msa3dAdapter\.reach is 0"):
        Msa3dAdapter(TINY, reach=0)


def test_the_table_of_depth_does_not_decay() -> None:
    block = SamEncoder(TINY).blocks[0]
    block.adapter = Msa3dAdapter(TINY)
    groups = build_optimizer(block, OptimConfig(weight_decay=0.1)).param_groups
    kept = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert id(block.adapter.rel_pos_d) in kept
    assert id(block.adapter.after_depth.up.weight) not in kept


def test_the_recipe_trains_stacks_with_these_adapters() -> None:
    path = Path(__file__).parents[3] / "configs" / "finetune" / "msa_3d.yaml"
    recipe = yaml.safe_load(path.read_text())
    chosen = Component.from_value(recipe["model"]["encoder_adapter"])
    adapter = chosen.checked("finetune.adapters.BlockAdapter", "").build(BlockAdapter, TINY)
    assert isinstance(adapter, Msa3dAdapter) and recipe["data"]["stack"] > 1
