"""A block of SAM's image encoder on flat tokens, and what an adapter may change in it."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from pretrain.encoder.attention import attend
from pretrain.encoder.stock import Block
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import NATIVE_GRID, EncoderSize


class BlockAdapter(nn.Module):
    """What an adapter may change in an encoder block; this base changes nothing.

    Set as `block.adapter`. Tokens are (B, n, C), after the block's norm; `groups` says how they
    fall into attention windows, and which images are neighbouring slices of a volume.
    """

    for_stacks: ClassVar[bool] = False
    """Whether it looks at neighbouring slices (`groups.stacks`)."""

    def qkv(self, block: "EncoderBlock", tokens: Tensor, groups: TokenGroups) -> Tensor:
        """Queries, keys and values (B, n, 3 C) of tokens."""
        return block.attn.qkv(tokens)

    def attention(self, block: "EncoderBlock", tokens: Tensor, groups: TokenGroups) -> Tensor:
        """The attention branch (B, n, C), before its residual."""
        return block.attention(tokens, groups)

    def mlp(self, block: "EncoderBlock", tokens: Tensor, groups: TokenGroups) -> Tensor:
        """The MLP branch (B, n, C), before its residual."""
        return block.mlp(tokens)

    def merge(self, block: "EncoderBlock") -> None:
        """Change the block's own weights so that they do alone what the two do together.

        Raises:
            UserError: There are no such weights.
        """
        raise UserError(f"{type(self).__name__} cannot be merged into the weights of SAM")


_NO_ADAPTER = BlockAdapter()


class EncoderBlock(Block):
    """segment_anything's encoder block on flat tokens, with room for an adapter."""

    def __init__(self, size: EncoderSize, window: int) -> None:
        super().__init__(
            dim=size.width,
            num_heads=size.heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window,
            input_size=(NATIVE_GRID, NATIVE_GRID),
        )
        self.adapter: BlockAdapter | None = None

    def forward(self, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        adapter = self.adapter or _NO_ADAPTER
        tokens = tokens + adapter.attention(self, self.norm1(tokens), groups)
        return tokens + adapter.mlp(self, self.norm2(tokens), groups)

    def attention(self, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """Window or global attention of normed tokens, (B, n, C) -> (B, n, C)."""
        adapter = self.adapter or _NO_ADAPTER
        return self.attend(adapter.qkv(self, tokens, groups), groups)

    def attend(self, qkv: Tensor, groups: TokenGroups) -> Tensor:
        """Window or global attention of projected tokens, (B, n, 3 C) -> (B, n, C)."""
        batch, _, width = qkv.shape
        positions = groups.window_positions if self.window_size else groups.positions
        if self.window_size and groups.to_windows is not None:
            # SAM's padded slots are zeros before the projection, hence its bias after it.
            padded = self.attn.qkv.bias.to(qkv.dtype).expand(batch, 1, -1)
            qkv = torch.cat([qkv, padded], dim=1).index_select(1, groups.to_windows)
        if self.window_size:
            qkv = qkv.reshape(batch * groups.windows, -1, width)
        out = attend(qkv, self.attn.num_heads, self.attn.rel_pos_h, self.attn.rel_pos_w, positions)
        out = out.reshape(batch, -1, width // 3)
        if self.window_size and groups.from_windows is not None:
            out = out.index_select(1, groups.from_windows)
        return self.attn.proj(out)
