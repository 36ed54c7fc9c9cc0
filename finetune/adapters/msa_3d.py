"""Adapters of the Medical SAM Adapter for volumes (MSA, arXiv 2304.12620, section 3.2, SD-Trans).

A volume comes as stacks of neighbouring slices. Attention has two branches: that of space, inside
each slice, and that of depth, in which the same weights attend over the slices at each position.
"""

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.adapters.msa import Adapter, MsaAdapter
from pretrain.encoder.block import EncoderBlock
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import EncoderSize


class Msa3dAdapter(MsaAdapter):
    """The adapters of `MsaAdapter`, and a third one after attention over the depth of a stack.

    With a the output of attention inside a slice and d that of attention over the slices, the
    branch added to the residual becomes a + Adapter(a) + Adapter_d(d). It starts as SAM's, since
    the adapters do; and a slice that is alone in its stack has no branch of depth, so that it is
    encoded as `MsaAdapter` does it.

    Attention over the slices has a table of relative positions of its own: the logit of slice i
    towards slice j is scale q_i . k_j + q_i . table[i - j]. It starts at zero, where a stack is a
    set of slices without an order.

    Args:
        size: Size of the encoder.
        ratio: Width inside an adapter as a share of the encoder's.
        scale: Weight of the adapter beside the MLP.
        reach: Largest distance, in slices, that the table tells from others; larger ones count as
            this one.
    """

    for_stacks = True

    def __init__(
        self, size: EncoderSize, ratio: float = 0.25, scale: float = 0.5, reach: int = 15
    ) -> None:
        super().__init__(size, ratio, scale)
        if reach < 1:
            raise UserError(f"Msa3dAdapter.reach is {reach}; it must be at least 1")
        self.after_depth = Adapter(size.width, ratio)
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * reach + 1, size.width // size.heads))

    def attention(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C); B slices of the stacks of `groups`."""
        qkv = self.qkv(block, tokens, groups)
        space = self.space(block, qkv, groups)
        return space + self.depth(block, qkv, groups.stacks) if groups.stacks else space

    def depth(self, block: EncoderBlock, qkv: Tensor, stacks: tuple[int, ...]) -> Tensor:
        """Attention over the slices of each stack, adapted; 0 for a slice that is alone.

        Args:
            qkv: (B, n, 3 C) projected tokens.
            stacks: Lengths of the stacks, B in sum.

        Returns:
            (B, n, C).
        """
        if len(set(stacks)) == 1:
            return self._adapted(block, qkv.unflatten(0, (-1, stacks[0]))).flatten(0, 1)
        parts = []
        for part in qkv.split(list(stacks)):  # (D, n, 3 C)
            alone = part.new_zeros(1, part.shape[1], part.shape[2] // 3)
            parts.append(self._adapted(block, part[None])[0] if len(part) > 1 else alone)
        return torch.cat(parts)

    def _adapted(self, block: EncoderBlock, qkv: Tensor) -> Tensor:
        """(stacks, D, n, 3 C) -> (stacks, D, n, C)."""
        attended = attend_depth(qkv, block.attn.num_heads, self.rel_pos_d)
        return self.after_depth(block.attn.proj(attended))


def attend_depth(qkv: Tensor, heads: int, table: Tensor) -> Tensor:
    """Multi-head attention over the slices of stacks, at each position by itself.

    Args:
        qkv: (B, D, n, 3 * C) queries, keys and values of B stacks of D slices, in
            segment_anything's order.
        table: (2 * R + 1, C / heads), the row of distance i - j in slices at i - j + R.

    Returns:
        (B, D, n, C), before the output projection.
    """
    # each (B, n, heads, D, C / heads)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 2, 4, 1, 5)
    reach, slices = len(table) // 2, torch.arange(qkv.shape[1], device=qkv.device)
    distance = (slices[:, None] - slices).clamp(-reach, reach)  # (D, D)
    bias = torch.einsum("...id,ijd->...ij", q, table[distance + reach].to(q.dtype))
    weights = torch.softmax(q.shape[-1] ** -0.5 * q @ k.mT + bias, dim=-1)
    return (weights @ v).permute(0, 3, 1, 2, 4).flatten(-2)
