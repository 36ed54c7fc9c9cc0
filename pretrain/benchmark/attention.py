"""The attention backends against each other; `choose_backend` is set from this table."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from pretrain.benchmark.clock import Bench, precisions
from pretrain.encoder.attention import (
    BACKENDS,
    Backend,
    Positions,
    choose_backend,
    dense_positions,
    relative_biases,
)
from pretrain.sizes import ATTENTION_WINDOW, PATCH

HEADS, CHANNELS = 12, 64


def attention_table(bench: Bench) -> None:
    """Milliseconds of each backend, forward without gradient and forward + backward."""
    backends = dict(BACKENDS)
    if bench.device.type == "cuda":
        del backends["blockwise"]  # blocks of the size of a CPU's cache
        backends["flexible, compiled"] = torch.compile(flexible)
    bench.results.add(
        f"Attention of {HEADS} heads of {CHANNELS} channels, ms forward / forward + backward. "
        f"{bench.measure_rates()}"
    )
    header = ["sequences", "grid", "precision", *backends, "chosen"]
    bench.results.table(header, attention_rows(bench, backends))


def attention_rows(bench: Bench, backends: dict[str, Backend]) -> Iterator[list[str]]:
    """One row per grid and precision: windows of tokens, and all tokens of images of `sizes`."""
    device, clock = bench.device, bench.clock
    for side in sorted({ATTENTION_WINDOW, *(size // PATCH for size in bench.config.sizes)}):
        batch = 25 if side <= ATTENTION_WINDOW else 1
        positions = dense_positions(side, side, device)
        for precision, dtype in precisions(device).items():
            shape = (batch if device.type == "cpu" else 8 * batch, side * side, 3, HEADS, CHANNELS)
            # As parts of a joint projection, as the encoder gives them.
            joint = torch.randn(shape, device=device, dtype=dtype)
            q, k, v = joint.permute(2, 0, 3, 1, 4)  # (B, heads, n, d) each
            rows, columns = (torch.randn(2 * side - 1, CHANNELS).to(q) for _ in "hw")
            inputs = [q, k, v, *relative_biases(q, rows, columns, positions)]
            times = []
            for call in (_forward, _train):
                calls: dict[str, Callable[[], object]] = {
                    name: partial(call, backend, inputs, positions)
                    for name, backend in backends.items()
                }
                times.append(clock(calls))
            cells = [" / ".join(f"{1e3 * time[name]:.1f}" for time in times) for name in backends]
            chosen = choose_backend(positions, device, dtype)
            yield [str(shape[0]), f"{side} x {side}", precision, *cells, chosen]


def _forward(backend: Callable[..., Tensor], inputs: list[Tensor], positions: Positions) -> None:
    with torch.no_grad():
        backend(*inputs, positions, CHANNELS**-0.5)


def _train(backend: Callable[..., Tensor], inputs: list[Tensor], positions: Positions) -> None:
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = backend(*leaves, positions, CHANNELS**-0.5)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def flexible(
    q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, positions: Positions, scale: float
) -> Tensor:
    """FlexAttention, which adds the two biases to each logit inside its kernel. Dense grids."""
    width = positions.grid[1]

    def add_biases(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + row[b, h, query, key // width] + column[b, h, query, key % width]

    out: Tensor = flex_attention(q, k, v, score_mod=add_biases, scale=scale)
    return out
