"""The dense encoder against segment_anything's."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from pretrain.benchmark.clock import Bench, images_of, precisions
from pretrain.benchmark.steps import train
from pretrain.encoder.flops import encoder_flops
from pretrain.encoder.sam import SamEncoder, build_encoder
from pretrain.engine.cpu import keep_freed_memory
from pretrain.sizes import ATTENTION_WINDOW, NATIVE_GRID, PATCH

DEFAULT_ALLOCATOR = "stock, default allocator"
"""segment_anything's encoder where the C library gives freed memory back to the kernel."""


def encoder_tables(bench: Bench) -> None:
    """A table for each image size."""
    untuned: dict[int, dict[str, float]] = {}
    if bench.device.type == "cpu":
        untuned = {size: stock_seconds(bench, size) for size in bench.config.sizes}
        keep_freed_memory()
    for size in bench.config.sizes:
        dense_table(bench, size, untuned.get(size, {}))


def stock_encoder(encoder: SamEncoder, pixels: int) -> ImageEncoderViT:
    """segment_anything's encoder with the same weights, for images of `pixels`."""
    size = encoder.size
    stock = ImageEncoderViT(
        img_size=NATIVE_GRID * PATCH,
        depth=size.depth,
        embed_dim=size.width,
        num_heads=size.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=ATTENTION_WINDOW,
        global_attn_indexes=size.global_blocks,
    ).to(encoder.pos_embed.device)
    stock.load_state_dict(encoder.state_dict())
    grid = [pixels // PATCH] * 2
    stock.pos_embed = nn.Parameter(resample_abs_pos_embed_nhwc(stock.pos_embed.detach(), grid))
    return stock


def forward(model: nn.Module, images: Tensor, bf16: bool) -> None:
    """A forward pass without gradient."""
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        model(images)


KINDS = (("forward", forward, 1), ("forward + backward", train, 3))
"""Name, call, and cost in forward passes."""


def stock_seconds(bench: Bench, pixels: int) -> dict[str, float]:
    """Seconds of segment_anything's encoder on a CPU, in fp32, where freed memory is not kept."""
    stock = stock_encoder(build_encoder(bench.config.encoder_size), pixels)
    batch = images_of(bench.config, pixels, bench.device)
    images = torch.randn(batch, 3, pixels, pixels)
    return {
        kind: bench.clock({kind: partial(call, stock, images, False)})[kind]
        for kind, call, _ in KINDS
    }


def dense_table(bench: Bench, pixels: int, untuned: dict[str, float]) -> None:
    """The dense encoder against segment_anything's.

    Args:
        untuned: Seconds of segment_anything's by kind, where freed memory is not kept.
    """
    config, device = bench.config, bench.device
    ours = build_encoder(config.encoder_size).to(device)
    models: dict[str, nn.Module] = {"stock": stock_encoder(ours, pixels), "ours": ours}
    if config.compile and device.type == "cuda":
        compiled = copy.deepcopy(ours)
        for block in compiled.blocks:
            block.compile()
        models["ours, compiled"] = compiled
    batch = images_of(config, pixels, device)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    flops = batch * encoder_flops(ours.size, pixels // PATCH)
    kept = ""
    if untuned:
        kept = (
            f" Freed memory is kept for the next tensor, as training does on a CPU, but not in "
            f"the rows of {DEFAULT_ALLOCATOR}."
        )
    name = f"Dense {config.encoder_size}, {flops / 1e9:.0f} GFLOP forward."
    bench.results.add(f"{name} {bench.measure_rates()}{kept}")
    header = ["images", "pass", "encoder", "precision", "seconds", "images per second"]
    header += ["speed against stock in the same precision", "share of the matrix rate"]

    def rows() -> Iterator[list[str]]:
        for kind, call, factor in KINDS:
            calls: dict[tuple[str, str], Callable[[], object]] = {
                (model, precision): partial(call, models[model], images, precision == "bf16")
                for model in models
                for precision in precisions(device)
            }
            seconds = bench.clock(calls)
            if kind in untuned:
                seconds[DEFAULT_ALLOCATOR, "fp32"] = untuned[kind]
            achieved = [(key[1], factor * flops / value) for key, value in seconds.items()]
            shares = bench.shares(achieved)
            for (key, value), share in zip(seconds.items(), shares, strict=True):
                shape = f"{batch} x {pixels} x {pixels}"
                speed = f"{seconds['stock', key[1]] / value:.2f} x"
                numbers = [f"{value:.3f}", f"{batch / value:.2f}", speed, f"{share:.0%}"]
                yield [shape, kind, *key, *numbers]

    bench.results.table(header, rows())
