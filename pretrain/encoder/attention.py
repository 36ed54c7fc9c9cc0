"""Attention with SAM's decomposed relative positions, on flat tokens, in three equal forms.

SAM adds to each attention logit a bias that splits over rows and columns (segment_anything's
`add_decomposed_rel_pos`, after MViTv2):

    logit[i, j] = scale * q_i . k_j + row_bias[i, row_j] + column_bias[i, column_j]
    row_bias[i, r] = q_i . table_h[row_i - r + G - 1],    likewise for columns

The stock code materialises the (N, N) logits several times. Here the same numbers come from

- `folded`: one plain dot product of extended vectors, q' = [scale q, row_bias, column_bias] and
  k' = [k, onehot(row), onehot(column)]. Exact, takes any subset of tokens, needs no (N, N) bias.
- `biased`: fused attention with the bias as a tensor. The fewest operations for small windows.
- `blockwise`: a block of queries at a time, so the logits of one block stay in the processor's
  cache, in the precision of the queries; the backward pass recomputes them. For large grids on a
  CPU.

`choose_backend` picks by device and size; for CPUs from the figures that
`python -m pretrain benchmark` prints.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Where the tokens of an attention call sit in its grid.

    Attributes:
        rows, columns: (B or 1, n) int64 coordinates of each token.
        grid: (height, width) of the grid that the coordinates refer to.
        dense: The tokens are all of the grid's, in row-major order.
    """

    rows: Tensor
    columns: Tensor
    grid: tuple[int, int]
    dense: bool

    def to(self, device: torch.device) -> "Positions":
        """The same positions on another device."""
        rows, columns = (t.to(device, non_blocking=True) for t in (self.rows, self.columns))
        return Positions(rows, columns, self.grid, self.dense)


def dense_positions(height: int, width: int, device: torch.device) -> Positions:
    """Positions of a whole grid in row-major order."""
    index = torch.arange(height * width, device=device)
    return Positions((index // width)[None], (index % width)[None], (height, width), dense=True)


def resize_table(table: Tensor, size: int) -> Tensor:
    """Relative-position table for a grid of `size` tokens, as segment_anything's `get_rel_pos`.

    Args:
        table: (2 * S - 1, d) for a grid of S tokens.
        size: Number of tokens along the axis.

    Returns:
        (2 * size - 1, d), linearly interpolated where the sizes differ. Differentiable.
    """
    if table.shape[0] == 2 * size - 1:
        return table
    resized = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")
    return resized[0].T


def relative_biases(
    q: Tensor, table_h: Tensor, table_w: Tensor, positions: Positions
) -> tuple[Tensor, Tensor]:
    """Row and column bias of each query against each row and column of the grid.

    Args:
        q: (B, heads, n, d) unscaled queries.
        table_h, table_w: (2 * H - 1, d), (2 * W - 1, d) tables of the grid's size.

    Returns:
        (B, heads, n, H) and (B, heads, n, W).
    """
    height, width = positions.grid
    by_offset = q @ torch.cat([table_h, table_w]).to(q.dtype).T  # (B, heads, n, 2H - 1 + 2W - 1)
    every_row = torch.arange(height, device=q.device)
    every_column = torch.arange(width, device=q.device)
    row_offsets = positions.rows[..., None] - every_row + height - 1  # (B or 1, n, H)
    column_offsets = positions.columns[..., None] - every_column + width - 1 + 2 * height - 1
    offsets = torch.cat([row_offsets, column_offsets], dim=-1)[:, None]  # (B or 1, 1, n, H + W)
    biases = by_offset.gather(-1, offsets.expand(*q.shape[:3], -1))
    return biases[..., :height], biases[..., height:]


def folded(
    q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, positions: Positions, scale: float
) -> Tensor:
    """Attention with the relative bias folded into longer queries and keys. Any token subset."""
    # PyTorch's memory-efficient CUDA kernels take bf16 vectors of 8 n numbers only.
    q, k = fold(q, k, row, column, positions, scale, multiple=8 if q.is_cuda else 1)
    if q.device.type == "cpu":
        # PyTorch's fused CPU kernel wants values as long as the queries; padding them costs more
        # than the plain product for the short sequences that come here.
        return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def fold(
    q: Tensor,
    k: Tensor,
    row: Tensor,
    column: Tensor,
    positions: Positions,
    scale: float,
    multiple: int = 1,
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, heads, n, d) extended so that their product has scale and bias in it.

    Returns:
        Both (B, heads, n, e), e = d + H + W rounded up by zeros to a multiple of `multiple`.
    """
    height, width = positions.grid
    row_of_key = F.one_hot(positions.rows, height)
    column_of_key = F.one_hot(positions.columns, width)
    one_hot = torch.cat([row_of_key, column_of_key], dim=-1).to(k.dtype)[:, None]  # (B|1, 1, n, .)
    zeros = q.new_zeros(()).expand(*q.shape[:3], -(q.shape[-1] + height + width) % multiple)
    q = torch.cat([q * scale, row, column, zeros], dim=-1)
    k = torch.cat([k, one_hot.expand(*k.shape[:3], -1), zeros.to(k.dtype)], dim=-1)
    return q, k


def biased(
    q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, positions: Positions, scale: float
) -> Tensor:
    """Fused attention with the relative bias as a (B, heads, n, n) tensor. Dense grids."""
    _require_dense(positions)
    bias = (row[..., :, None] + column[..., None, :]).flatten(-2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def blockwise(
    q: Tensor, k: Tensor, v: Tensor, row: Tensor, column: Tensor, positions: Positions, scale: float
) -> Tensor:
    """Attention a block of queries at a time, memory linear in the tokens. Dense grids."""
    _require_dense(positions)
    return _Blockwise.apply(q, k, v, row, column, scale)


def _require_dense(positions: Positions) -> None:
    if not positions.dense:
        raise ValueError("this attention backend takes whole grids only; use 'folded' for subsets")


class _Blockwise(torch.autograd.Function):
    """Exact attention that keeps no weights for the backward pass but computes them again."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        row: Tensor,
        column: Tensor,
        scale: float,
    ) -> Tensor:
        shape = q.shape
        q, k, v, row, column = (t.flatten(0, 1) for t in (q * scale, k, v, row, column))
        # Once for all blocks: a product copies what lies otherwise in memory, such as the parts of
        # a joint projection.
        keys, v = k.mT.contiguous(), v.contiguous()  # (heads, d, N), (heads, N, d)
        out = torch.empty_like(v)
        for heads, part in _blocks(q):
            weights = _weights(q[heads, part], keys[heads], row[heads, part], column[heads, part])
            out[heads, part] = weights @ v[heads]
        ctx.save_for_backward(q, keys, v, row, column)
        ctx.scale, ctx.shape = scale, shape
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, v, row, column = ctx.saved_tensors
        grad = grad.reshape(q.shape).contiguous()
        grad_q, grad_row, grad_column = (torch.empty_like(t) for t in (grad, row, column))
        k, values = keys.mT.contiguous(), v.mT.contiguous()
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)  # (heads, d, N)
        for heads, part in _blocks(q):
            weights = _weights(q[heads, part], keys[heads], row[heads, part], column[heads, part])
            grad_values[heads].baddbmm_(grad[heads, part].mT.contiguous(), weights)
            grad_weights = grad[heads, part] @ values[heads]
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, q.dtype)
            by_grid = grad_logits.unflatten(-1, (row.shape[-1], column.shape[-1]))
            torch.sum(by_grid, -1, out=grad_row[heads, part])
            torch.sum(by_grid, -2, out=grad_column[heads, part])
            grad_q[heads, part] = grad_logits @ k[heads]
            grad_keys[heads].baddbmm_(q[heads, part].mT.contiguous(), grad_logits)
        grads = (grad_q.mul_(ctx.scale), grad_keys.mT, grad_values.mT, grad_row, grad_column)
        return *(t.unflatten(0, ctx.shape[:2]) for t in grads), None


def _blocks(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Some heads and a block of queries at a time, so that logits stay in a processor's cache.

    In bf16 12 heads x 256 queries in one call, because threads wait for each other at the end of
    every call: on a machine that runs other programs too, calls for one head each took three times
    as long. In fp32, with numbers twice as long, 2 x 512 took a tenth less time.
    """
    heads, block = (2, 512) if q.dtype == torch.float32 else (12, 256)
    for first in range(0, q.shape[0], heads):
        for start in range(0, q.shape[1], block):
            yield slice(first, first + heads), slice(start, start + block)


def _weights(q: Tensor, keys: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Attention weights (heads, block, N) of one block of scaled queries, in their precision.

    Args:
        keys: (heads, d, N).
    """
    logits = (row[..., :, None] + column[..., None, :]).flatten(-2)
    return torch.softmax(logits.baddbmm_(q, keys), dim=-1)


Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Positions, float], Tensor]
BACKENDS: dict[str, Backend] = {"folded": folded, "biased": biased, "blockwise": blockwise}


def choose_backend(positions: Positions, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the backend to use.

    On a CPU by measurement (see the module's text). Elsewhere `folded`, not measured: plain
    products of vectors are what fused kernels take.
    """
    if not positions.dense or device.type != "cpu":
        return "folded"
    if positions.grid[0] * positions.grid[1] >= 1024:
        return "blockwise"
    return "biased" if dtype == torch.float32 else "folded"


def attend(
    qkv: Tensor,
    heads: int,
    table_h: Tensor,
    table_w: Tensor,
    positions: Positions,
    backend: str | None = None,
) -> Tensor:
    """Multi-head attention with relative positions, from joint projections to joined heads.

    Args:
        qkv: (B, n, 3 * C) queries, keys and values, in segment_anything's order.
        table_h, table_w: (any odd length, C / heads) relative-position tables; resized as needed.
        backend: One of `BACKENDS`; None: that of `choose_backend`.

    Returns:
        (B, n, C), before the output projection.
    """
    batch, n, width = qkv.shape
    q, k, v = qkv.view(batch, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    table_h = resize_table(table_h, positions.grid[0])
    table_w = resize_table(table_w, positions.grid[1])
    row, column = relative_biases(q, table_h, table_w, positions)
    backend = backend or choose_backend(positions, qkv.device, q.dtype)
    out = BACKENDS[backend](q, k, v, row, column, positions, q.shape[-1] ** -0.5)
    return out.transpose(1, 2).reshape(batch, n, width // 3)
