"""Training steps of the objectives against each other, and MAE against lightly's components."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pretrain.benchmark.clock import Bench, images_of, precisions
from pretrain.benchmark.steps import DENSE, LIGHTLY, MAE, MASK_TOKENS, STEPS, build_step

PIXELS = 224


def objective_tables(bench: Bench) -> None:
    """Steps without the optimiser: all kinds in the device's precision, and MAE in each."""
    config, device = bench.config, bench.device
    batch = images_of(config, PIXELS, device)
    images = torch.randn(batch, 3, PIXELS, PIXELS, device=device)
    steps = {name: build_step(name, config.encoder_size, device) for name in STEPS}
    precision = "bf16" if device.type == "cuda" else "fp32"
    bf16 = precision == "bf16"
    flops = {name: count_flops(step, images) for name, step in steps.items()}
    if device.type == "cuda" and config.compile:
        for name in (DENSE, MAE):
            compiled = f"{name}, compiled"
            steps[compiled] = build_step(name, config.encoder_size, device, compiled=True)
            flops[compiled] = flops[name]

    spoken = bench.measure_rates()
    seconds = bench.clock({name: partial(step, images, bf16) for name, step in steps.items()})
    shares = bench.shares((precision, flops[name] / s) for name, s in seconds.items())
    bench.results.add(
        f"Training steps of {batch} images of {PIXELS} pixels in {precision}, without the "
        f"optimiser; operations as PyTorch counts them. {spoken}"
    )
    header = ["step", "seconds", "images per second", "cost against dense"]
    rows = [
        [name, f"{s:.3f}", f"{batch / s:.1f}", f"{s / seconds[DENSE]:.2f} x", f"{share:.0%}"]
        for (name, s), share in zip(seconds.items(), shares, strict=True)
    ]
    bench.results.table([*header, "share of the matrix rate"], rows)
    faster = seconds[MASK_TOKENS] / seconds[MAE]
    bench.results.add(f"Dropping tokens makes the MAE step {faster:.2f} times faster.")
    compare_with_lightly(bench, {name: steps[name] for name in (MAE, LIGHTLY)}, images)


def count_flops(step: Callable[[Tensor, bool], None], images: Tensor) -> float:
    """Floating-point operations of a step on a batch like `images`, counted on one image."""
    with FlopCounterMode(display=False) as counter:
        step(images[:1], False)
    return float(counter.get_total_flops()) * len(images)


def compare_with_lightly(
    bench: Bench, steps: dict[str, Callable[[Tensor, bool], None]], images: Tensor
) -> None:
    """MAE on as many tokens, with the same decoder, in each precision."""
    rows = []
    for precision in precisions(bench.device):
        calls = {name: partial(step, images, precision == "bf16") for name, step in steps.items()}
        ours, theirs = bench.clock(calls).values()
        rows.append([precision, f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f} x"])
    bench.results.add(
        "MAE steps on 25 % of the tokens with the same decoder: ours on SAM's encoder with its "
        "relative positions, lightly's on timm's plain ViT."
    )
    header = ["precision", "ours, seconds", "lightly's, seconds", "speed against lightly's"]
    bench.results.table(header, rows)
