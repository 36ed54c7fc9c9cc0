"""Masked autoencoding (MAE, arXiv 2111.06377): reconstruct the patches the encoder did not see."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from lightly.models.utils import (
    get_2d_sine_cosine_positional_embedding_from_grid,
    get_at_index,
    normalize_mean_var,
    patchify,
    set_at_index,
)
from matplotlib.figure import Figure
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pretrain.encoder.pixels import to_common_scale
from pretrain.encoder.sam import SamEncoder
from pretrain.objectives.base import Inputs, Objective, Plan
from pretrain.objectives.reconstruction import draw_reconstructions
from pretrain.sizes import PATCH

PATCH_VALUES = 3 * PATCH**2


class MaskedAutoencoding(Objective):
    """Mean squared error on dropped patches, decoded by a light transformer.

    Args:
        width: Token width of the encoder.
        weight: Factor of this loss in the sum.
        keep_ratio: Share of tokens that the encoder sees; the rest are reconstructed.
        decoder_width: Token width of the decoder.
        decoder_depth: Transformer blocks in the decoder.
        decoder_heads: Attention heads in the decoder.
        normalise_patches: Predict each patch scaled to zero mean and unit variance (section 3 of
            the paper: better features), not the pixels themselves.
    """

    def __init__(
        self,
        width: int,
        weight: float = 1.0,
        keep_ratio: float = 0.25,
        decoder_width: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        normalise_patches: bool = True,
    ) -> None:
        super().__init__(weight, keep_ratio)
        if keep_ratio == 1:
            raise ValueError("masked autoencoding with keep_ratio 1 has nothing to reconstruct")
        self.normalise_patches = normalise_patches
        self.decoder_width = decoder_width
        self._positions: dict[tuple[tuple[int, int], torch.device], Tensor] = {}
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.blocks = nn.Sequential(
            *(
                Block(
                    decoder_width,
                    decoder_heads,
                    qkv_bias=True,
                    norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
                )
                for _ in range(decoder_depth)
            )
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.predict = nn.Linear(decoder_width, PATCH_VALUES)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def plan(self, inputs: Inputs) -> Plan:
        """One clean view of the kept tokens; the loss is on all the others."""
        view = inputs.clean(self.keep_ratio)
        assert view.keep is not None  # keep_ratio is below 1
        keep = view.keep.to(inputs.images.device, non_blocking=True)
        dropped = self.dropped(keep, inputs.grid)

        def loss(encoded: Sequence[Tensor]) -> Tensor:
            predicted = self.predict(
                get_at_index(self.decode(encoded[0], keep, inputs.grid), dropped)
            )
            target = get_at_index(self.targets(inputs.images), dropped)
            return nn.functional.mse_loss(predicted.float(), target)

        return Plan([view], loss)

    def targets(self, images: Tensor) -> Tensor:
        """Patches to predict, (B, N, 768), of images (B, 3, H, W).

        They are taken before SAM's shift of the channels: of a grey image, which has three equal
        ones, half of what is to be predicted would be the constants by which they differ.
        """
        patches: Tensor = patchify(to_common_scale(images), PATCH)
        return normalize_mean_var(patches) if self.normalise_patches else patches

    def decode(self, encoded: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decoder tokens (B, N, decoder_width) of all patches, from (B, n, C) of the kept ones."""
        tokens = self.embed(self.norm(encoded))
        every = self.mask_token.to(tokens.dtype).expand(len(keep), grid[0] * grid[1], -1)
        tokens = set_at_index(every, keep, tokens)
        decoded: Tensor = self.blocks(tokens + self._position(grid, tokens.device))
        normed: Tensor = self.decoder_norm(decoded)
        return normed

    def _position(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Sine-cosine position (N, decoder_width) of each patch, made once."""
        if (grid, device) not in self._positions:
            axes = np.stack(np.meshgrid(np.arange(grid[1]), np.arange(grid[0])))  # x first
            axes = axes[:, None].astype(np.float32)  # (2, 1, H, W)
            table = get_2d_sine_cosine_positional_embedding_from_grid(self.decoder_width, axes)
            self._positions[grid, device] = torch.from_numpy(table).to(device, torch.float32)
        return self._positions[grid, device]

    def flops(self, tokens: int) -> float:
        """Of the decoder, which sees all patches."""
        width, kept = self.decoder_width, self.keep_ratio * tokens
        blocks = len(self.blocks) * tokens * (24 * width**2 + 4 * width * tokens)
        embed = 2 * kept * self.embed.in_features * width
        return float(embed + blocks + 2 * (tokens - kept) * width * PATCH_VALUES)

    def draw(self, encoder: SamEncoder, images: Tensor) -> dict[str, Figure]:
        """Reconstructions of some images."""
        return {"reconstructions": draw_reconstructions(encoder, self, images)}

    @staticmethod
    def dropped(keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Row-major indices (B, N - n) of the tokens not in `keep` (B, n)."""
        batch, kept = keep.shape
        is_dropped = torch.ones(batch, grid[0] * grid[1], device=keep.device)
        is_dropped.scatter_(1, keep, 0.0)
        # A stable sort puts the dropped ones first, in order, with a size known without a look.
        return is_dropped.argsort(dim=1, descending=True, stable=True)[:, : -kept or None]
