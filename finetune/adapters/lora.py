"""Low-rank adapters of SAMed in the image encoder (arXiv 2304.13785, section 3.2)."""

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from pretrain.encoder.block import BlockAdapter, EncoderBlock
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import EncoderSize


class LowRank(nn.Module):
    """B A x: a change of a linear layer that has rank r at most (LoRA, arXiv 2106.09685, eq. 3).

    A starts as any linear layer and B at zero, so that the change starts at zero.

    Args:
        width: Channels C in and out.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(self.down(x))

    def matrix(self) -> Tensor:
        """B A, (C, C)."""
        return self.up.weight @ self.down.weight


class LoraAdapter(BlockAdapter):
    """Low-rank changes of the query and value projections of an encoder block; keys stay.

    With x the normed tokens, q = W_q x + b_q + scale B_q A_q x, and the same for v. That is linear,
    so the changes can be merged into the weights.

    Args:
        size: Size of the encoder.
        rank: r, the rank of each change.
        scale: Factor of each change, LoRA's alpha / r. SAMed has none, that is 1.
    """

    def __init__(self, size: EncoderSize, rank: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        if not 1 <= rank <= size.width:
            raise UserError(f"LoraAdapter.rank is {rank}; it must lie in 1..{size.width}")
        self.width, self.scale = size.width, scale
        self.query = LowRank(size.width, rank)
        self.value = LowRank(size.width, rank)

    def qkv(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, 3 C)."""
        qkv = block.attn.qkv(tokens)
        # In place: a new tensor of this size in each block would be the adapter's largest cost.
        qkv[..., : self.width] += self.scale * self.query(tokens)
        qkv[..., -self.width :] += self.scale * self.value(tokens)
        return qkv

    @torch.no_grad()
    def merge(self, block: EncoderBlock) -> None:
        """Add the changes to the block's projection."""
        weight = block.attn.qkv.weight  # (3 C, C): queries, keys, values
        weight[: self.width] += self.scale * self.query.matrix()
        weight[-self.width :] += self.scale * self.value.matrix()
