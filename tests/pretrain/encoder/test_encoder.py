"""The encoder equals segment_anything's, whole and with tokens dropped."""

import copy
from functools import partial

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from timm.layers import resample_abs_pos_embed_nhwc
from torch import nn

from pretrain.encoder.attention import (
    BACKENDS,
    Positions,
    attend,
    choose_backend,
    dense_positions,
    fold,
)
from pretrain.encoder.sam import SamEncoder, build_encoder
from pretrain.encoder.windows import balanced_keep
from pretrain.sizes import SIZES, EncoderSize

TINY = EncoderSize(width=32, depth=2, heads=2, global_blocks=(1,))


def randomised(encoder: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn at random: zeros (positions, biases) would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return encoder


def stock_encoder(size: EncoderSize, pixels: int, ours: SamEncoder) -> ImageEncoderViT:
    """segment_anything's encoder for `pixels`, with our weights (tables resize themselves)."""
    stock = ImageEncoderViT(
        img_size=1024,
        depth=size.depth,
        embed_dim=size.width,
        num_heads=size.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=size.global_blocks,
    )
    stock.load_state_dict(ours.state_dict())
    with torch.no_grad():
        resized = resample_abs_pos_embed_nhwc(stock.pos_embed, [pixels // 16] * 2)
    stock.pos_embed = nn.Parameter(resized.clone())
    return stock


@pytest.mark.parametrize("pixels", [224, 256, 448, 1024])
def test_forward_and_gradients_equal_segment_anything(pixels: int) -> None:
    torch.manual_seed(0)
    ours = randomised(SamEncoder(TINY))
    stock = stock_encoder(TINY, pixels, ours)
    images = torch.randn(1 if pixels == 1024 else 2, 3, pixels, pixels, requires_grad=True)
    stock_images = images.detach().clone().requires_grad_()

    out, expected = ours(images), stock(stock_images)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)

    weight = torch.randn_like(out)
    (out * weight).mean().backward()
    (expected * weight).mean().backward()
    torch.testing.assert_close(images.grad, stock_images.grad, atol=1e-4, rtol=1e-4)
    expected_grads = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        if name != "pos_embed":  # held at another resolution; covered by the test of its own below
            grad = expected_grads[name].grad
            assert grad.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, grad, atol=1e-4, rtol=1e-4, msg=name)
    upstream = stock.pos_embed.grad
    resized = resample_abs_pos_embed_nhwc(ours.pos_embed, [pixels // 16] * 2)
    (expected_grad,) = torch.autograd.grad(resized, ours.pos_embed, upstream)
    torch.testing.assert_close(ours.pos_embed.grad, expected_grad, atol=1e-4, rtol=1e-4)


def test_vit_b_state_dict_loads_in_the_sam_registry_and_computes_the_same() -> None:
    torch.manual_seed(0)
    ours = randomised(build_encoder("vit_b")).eval()
    sam = sam_model_registry["vit_b"]()
    sam.image_encoder.load_state_dict(ours.state_dict())
    sam.image_encoder.pos_embed = nn.Parameter(
        resample_abs_pos_embed_nhwc(ours.pos_embed.detach(), [14, 14])
    )
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), sam.image_encoder(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_l", "vit_h"])
def test_large_encoders_have_the_registrys_parameters(name: str) -> None:
    with torch.device("meta"):
        stock = sam_model_registry[name]().image_encoder.state_dict()
    size = SIZES[name]
    shallow = SamEncoder(EncoderSize(size.width, 1, size.heads, ())).state_dict()
    shallow_global = SamEncoder(EncoderSize(size.width, 1, size.heads, (0,))).state_dict()
    for key, tensor in stock.items():
        block = int(key.split(".")[1]) if key.startswith("blocks.") else 0
        shallow_block = shallow_global if block in size.global_blocks else shallow
        own_key = (
            ".".join(["blocks", "0", *key.split(".")[2:]]) if key.startswith("blocks.") else key
        )
        assert shallow_block[own_key].shape == tensor.shape, key
    assert 1 + max(int(k.split(".")[1]) for k in stock if k.startswith("blocks.")) == size.depth


def masked_dense_tokens(
    encoder: SamEncoder, images: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Literal form: the dense encoder with logits of dropped keys at minus infinity."""
    grid = images.shape[-2] // 16, images.shape[-1] // 16
    batch, n = images.shape[0], grid[0] * grid[1]
    dropped = torch.ones(batch, n, dtype=torch.bool)
    dropped.scatter_(1, keep, False)
    tokens = encoder.patch_embed(images)
    tokens = (tokens + resample_abs_pos_embed_nhwc(encoder.pos_embed, list(grid))).flatten(1, 2)
    rows, columns = torch.arange(n) // grid[1], torch.arange(n) % grid[1]
    for block in encoder.blocks:
        heads, width = block.attn.num_heads, tokens.shape[-1]
        q, k, v = (
            block.attn.qkv(block.norm1(tokens)).view(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
        )
        logits = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        side = 14 if block.window_size else grid[0]
        tables = []
        for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
            if table.shape[0] != 2 * side - 1:
                table = nn.functional.interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
            tables.append(table)
        for axis, table in zip((rows, columns), tables, strict=True):
            inside = axis % side
            relative = table[inside[:, None] - inside[None, :] + side - 1]  # (N, N, d)
            logits = logits + torch.einsum("bhid,ijd->bhij", q, relative)
        other_window = (rows[:, None] // side != rows[None] // side) | (
            columns[:, None] // side != columns[None] // side
        )
        logits = logits.masked_fill(other_window, float("-inf"))
        logits = logits.masked_fill(dropped[:, None, None, :], float("-inf"))
        attended = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        tokens = tokens + block.attn.proj(attended)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))


@pytest.mark.parametrize("pixels", [224, 448])
def test_dropped_tokens_equal_dense_attention_with_them_masked_out(pixels: int) -> None:
    torch.manual_seed(1)
    encoder = randomised(SamEncoder(TINY))
    images = torch.randn(2, 3, pixels, pixels)
    side = pixels // 16
    keep = balanced_keep(2, (side, side), 14, 0.25, torch.Generator().manual_seed(3))
    shuffle = torch.stack([torch.randperm(keep.shape[1]) for _ in range(2)])
    keep = keep.gather(1, shuffle)  # any order goes in, the same comes out

    out, expected = encoder.forward_tokens(images, keep), masked_dense_tokens(encoder, images, keep)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(out)
    parameters = [p for name, p in encoder.named_parameters() if not name.startswith("neck")]
    grads = torch.autograd.grad((out * weight).mean(), parameters)
    expected_grads = torch.autograd.grad((expected * weight).mean(), parameters)
    torch.testing.assert_close(grads, expected_grads, atol=1e-4, rtol=1e-4)


def test_all_tokens_kept_equals_the_dense_path() -> None:
    torch.manual_seed(2)
    encoder = randomised(SamEncoder(TINY))
    images = torch.randn(1, 3, 448, 448)
    keep = torch.randperm(28 * 28)[None]
    dense = encoder.forward_tokens(images)
    torch.testing.assert_close(
        encoder.forward_tokens(images, keep), dense[:, keep[0]], atol=1e-4, rtol=1e-4
    )


def test_keep_that_is_not_exact_is_refused() -> None:
    encoder = SamEncoder(TINY)
    with pytest.raises(ValueError, match="same number"):
        encoder.forward_tokens(torch.zeros(1, 3, 448, 448), torch.arange(40)[None])
    with pytest.raises(ValueError, match="multiple of 224"):
        encoder.forward_tokens(torch.zeros(1, 3, 256, 256), torch.arange(64)[None])
    with pytest.raises(ValueError, match="multiple of 16"):
        encoder(torch.zeros(1, 3, 230, 230))


@pytest.mark.parametrize("side", [14, 20])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_each_backend_equals_the_literal_sum(backend: str, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, heads, d, n = 2, 3, 8, side * side
    tables = [torch.randn(2 * side - 1, d, generator=generator, requires_grad=True) for _ in "hw"]
    qkv = torch.randn(batch, n, 3 * heads * d, generator=generator, requires_grad=True)
    positions = dense_positions(side, side, qkv.device)
    out = attend(qkv, heads, *tables, positions, backend)

    q, k, v = qkv.view(batch, n, 3, heads, d).permute(2, 0, 3, 1, 4)
    row, column = torch.arange(n) // side, torch.arange(n) % side
    relative = (
        tables[0][row[:, None] - row[None] + side - 1]
        + tables[1][column[:, None] - column[None] + side - 1]
    )
    logits = q @ k.transpose(-1, -2) / d**0.5 + torch.einsum("bhid,ijd->bhij", q, relative)
    expected = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)

    weight = torch.randn(out.shape, generator=generator)
    inputs = (qkv, *tables)
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(grads, expected_grads, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(attend(qkv, heads, *tables, positions, backend), out)


def test_folded_vectors_padded_for_fused_kernels_give_the_same_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 196, 64, generator=generator)
    row, column = torch.randn(2, 2, 3, 196, 14, generator=generator)
    arguments = (q, k, row, column, dense_positions(14, 14, q.device), 0.125)
    plain, padded = fold(*arguments), fold(*arguments, multiple=8)
    assert plain[0].shape[-1] == plain[1].shape[-1] == 92
    assert padded[0].shape[-1] == padded[1].shape[-1] == 96
    fused = nn.functional.scaled_dot_product_attention
    expected = fused(*plain, q, scale=1.0)
    torch.testing.assert_close(fused(*padded, q, scale=1.0), expected)
    for ours, theirs in zip(padded, plain, strict=True):
        assert torch.equal(ours[..., :92], theirs)
        assert not ours[..., 92:].any()


def test_dense_only_backends_refuse_subsets_and_are_not_chosen_for_them() -> None:
    rows = torch.tensor([[0, 5, 9]])
    subset = Positions(rows, rows, (14, 14), dense=False)
    qkv, table = torch.zeros(1, 3, 24), torch.zeros(27, 8)
    assert choose_backend(subset, qkv.device, qkv.dtype) == "folded"
    for backend in ("biased", "blockwise"):
        with pytest.raises(ValueError, match="whole grids"):
            attend(qkv, 1, table, table, subset, backend)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    encoder = randomised(SamEncoder(TINY))
    again = copy.deepcopy(encoder)
    again.recompute_blocks = True
    images = torch.randn(1, 3, 224, 224)
    encoder(images).square().mean().backward()
    again(images).square().mean().backward()
    for parameter, expected in zip(again.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_bf16_autocast_stays_close_to_fp32() -> None:
    torch.manual_seed(0)
    encoder = SamEncoder(TINY)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        exact = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            close = encoder(images)
    assert (close.float() - exact).abs().mean() < 0.02 * exact.abs().mean()
