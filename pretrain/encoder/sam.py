"""SAM's image encoder, forward-compatible with segment_anything and able to drop tokens.

`SamEncoder` keeps segment_anything's parameters and names, at their native 1024-pixel shapes; the
resolution is a matter of the forward pass. Its state dict is the `image_encoder.*` part of a SAM
checkpoint.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding_from_grid
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from data_prep.common.errors import UserError
from pretrain.encoder.attention import attend
from pretrain.encoder.weights import load_encoder
from pretrain.encoder.windows import TokenLayout, dense_layout, sparse_layout

PATCH = 16
WINDOW = 14
NATIVE_GRID = 64


@dataclass(frozen=True)
class EncoderSize:
    """Width, depth and heads of an encoder, and which blocks attend over the whole image."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SIZES = {
    "vit_t": EncoderSize(192, 12, 3, (2, 5, 8, 11)),
    "vit_s": EncoderSize(384, 12, 6, (2, 5, 8, 11)),
    "vit_b": EncoderSize(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": EncoderSize(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": EncoderSize(1280, 32, 16, (7, 15, 23, 31)),
}


class BlockAdapter(nn.Module):
    """What an adapter may change in an encoder block; this base changes nothing.

    Set as `block.adapter`. Tokens are (B, n, C), after the block's own norm.
    """

    def attention(
        self, attention: Callable[[Tensor], Tensor], tokens: Tensor, layout: TokenLayout
    ) -> Tensor:
        """The attention branch, before its residual."""
        return attention(tokens)

    def mlp(self, mlp: Callable[[Tensor], Tensor], tokens: Tensor, layout: TokenLayout) -> Tensor:
        """The MLP branch, before its residual."""
        return mlp(tokens)


class EncoderBlock(Block):
    """segment_anything's encoder block on flat tokens, with a place for an adapter."""

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

    def forward(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        adapter = self.adapter or _NO_ADAPTER
        attention = partial(self.attention, layout=layout)
        tokens = tokens + adapter.attention(attention, self.norm1(tokens), layout)
        return tokens + adapter.mlp(self.mlp, self.norm2(tokens), layout)

    def attention(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Window or global attention of normed tokens, (B, n, C) -> (B, n, C)."""
        batch, _, width = tokens.shape
        positions = layout.window_positions if self.window_size else layout.positions
        qkv = self.attn.qkv(tokens)
        if self.window_size and layout.to_windows is not None:
            # SAM's padded slots are zeros before the projection, hence its bias after it.
            padded = self.attn.qkv.bias.to(qkv.dtype).expand(batch, 1, -1)
            qkv = torch.cat([qkv, padded], dim=1).index_select(1, layout.to_windows)
        if self.window_size:
            qkv = qkv.reshape(batch * layout.windows, -1, 3 * width)
        out = attend(qkv, self.attn.num_heads, self.attn.rel_pos_h, self.attn.rel_pos_w, positions)
        out = out.reshape(batch, -1, width)
        if self.window_size and layout.from_windows is not None:
            out = out.index_select(1, layout.from_windows)
        return self.attn.proj(out)


_NO_ADAPTER = BlockAdapter()


class SamEncoder(ImageEncoderViT):
    """SAM's image encoder for any image size that is a multiple of 16.

    Args:
        size: one of `SIZES`.

    Attributes:
        recompute_blocks: recompute each block in the backward pass instead of storing it
            (activation checkpointing).
    """

    def __init__(self, size: EncoderSize) -> None:
        super().__init__(
            depth=0,
            embed_dim=size.width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=WINDOW,
        )
        self.size = size
        self.blocks = nn.ModuleList(
            EncoderBlock(size, 0 if i in size.global_blocks else WINDOW) for i in range(size.depth)
        )
        self.recompute_blocks = False
        self._initialise()

    def _initialise(self) -> None:
        """MAE's initialisation (arXiv 2111.06377, appendix A.1), with sine-cosine positions.

        The positions' unit is a token of a 224-pixel image, so that the interpolated embedding of
        small images keeps all its frequencies.
        """
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        axis = (np.arange(NATIVE_GRID, dtype=np.float32) + 0.5) * (WINDOW / NATIVE_GRID)
        grid = np.stack(np.meshgrid(axis, axis))[:, None]  # (2, 1, 64, 64), x first
        positions = get_2d_sine_cosine_positional_embedding_from_grid(self.size.width, grid)
        with torch.no_grad():
            self.pos_embed.copy_(torch.from_numpy(positions).view_as(self.pos_embed))

    def forward(self, images: Tensor) -> Tensor:
        """Image embedding, equal to segment_anything's `ImageEncoderViT` at any size.

        Args:
            images: (B, 3, H, W), SAM-normalised; H and W multiples of 16.

        Returns:
            (B, 256, H / 16, W / 16).
        """
        embeddings, grid = self.embed(images)
        tokens = self.encode(embeddings, grid)
        return self.neck(tokens.unflatten(1, grid).permute(0, 3, 1, 2))

    def forward_tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Token features before the neck, of all tokens or of the kept ones only.

        Args:
            images: (B, 3, H, W), SAM-normalised.
            keep: (B, n) int64 row-major token indices, any order, the same number in each attention
                window; None for all.

        Returns:
            (B, n, C), in the order of `keep`.

        Raises:
            ValueError: sizes no multiple of 16, padded windows or unequal windows with `keep`.
        """
        embeddings, grid = self.embed(images)
        if keep is not None:
            embeddings = take(embeddings, keep.to(embeddings.device, non_blocking=True))
        return self.encode(embeddings, grid, keep)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch embeddings (B, N, C) before position is added, and the token grid (H, W)."""
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"image size {height} x {width} is no multiple of {PATCH} pixels")
        grid = (height // PATCH, width // PATCH)
        if min(grid) < NATIVE_GRID and (grid[0] % WINDOW or grid[1] % WINDOW):
            warnings.warn(
                f"{height} x {width} pixels pad SAM's attention windows; multiples of "
                f"{PATCH * WINDOW} cost less for what they see",
                stacklevel=2,
            )
        return self.patch_embed(images).flatten(1, 2), grid

    def encode(
        self, embeddings: Tensor, grid: tuple[int, int], keep: Tensor | None = None
    ) -> Tensor:
        """Add position to patch embeddings and run the blocks.

        Args:
            embeddings: (B, n, C) before position, of the kept tokens in the order of `keep`, or of
                all tokens of the grid.
            keep: as in `forward_tokens`; on the CPU it costs a GPU no synchronisation.

        Returns:
            (B, n, C) in the order of `keep`.
        """
        device = embeddings.device
        position = resample_abs_pos_embed_nhwc(self.pos_embed, list(grid)).flatten(1, 2)
        if keep is None:
            return self._run_blocks(embeddings + position, dense_layout(*grid, WINDOW, device))
        layout = sparse_layout(*grid, WINDOW, keep)
        tokens = embeddings + take(
            position.expand(len(keep), -1, -1), keep.to(device, non_blocking=True)
        )
        if torch.equal(layout.order, keep):
            return self._run_blocks(tokens, layout.to(device))
        # Both orders are permutations of the same indices: into window order and back.
        to_windows = keep.argsort(1).gather(1, layout.order.argsort(1).argsort(1))
        to_windows = to_windows.to(device, non_blocking=True)
        tokens = self._run_blocks(take(tokens, to_windows), layout.to(device))
        return take(tokens, to_windows.argsort(1))

    def _run_blocks(self, tokens: Tensor, layout: TokenLayout) -> Tensor:
        for block in self.blocks:
            if self.recompute_blocks and torch.is_grad_enabled():
                tokens = recompute(block, tokens, layout, use_reentrant=False)
            else:
                tokens = block(tokens, layout)
        return tokens


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, C) at `index` (B, n), as (B, n, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def build_encoder(name: str, checkpoint: str | Path | None = None) -> SamEncoder:
    """An image encoder, from nothing or from a checkpoint.

    Args:
        name: vit_t, vit_s, vit_b, vit_l or vit_h.
        checkpoint: a SAM checkpoint (`.pth`), an encoder file (`.safetensors`), a run folder, or
            `org/name` of an encoder on the Hugging Face Hub. None initialises from the global torch
            random state.

    Raises:
        UserError: unknown name, or a checkpoint with a missing, unexpected or mis-shaped key.
    """
    if name not in SIZES:
        raise UserError(f"no encoder named {name!r}; choose one of {', '.join(SIZES)}")
    encoder = SamEncoder(SIZES[name])
    if checkpoint is not None:
        load_encoder(encoder, checkpoint)
    return encoder
