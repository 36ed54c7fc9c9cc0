"""SAM's image encoder, forward-compatible with segment_anything and able to drop tokens.

`SamEncoder` keeps segment_anything's parameters and names, at their native 1024-pixel shapes; the
resolution is a matter of the forward pass. Its state dict is the `image_encoder.*` part of a SAM
checkpoint.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from data_prep.common.errors import UserError
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.records import Unreadable
from pretrain.encoder import positions
from pretrain.encoder.block import EncoderBlock
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD, as_pixels, normalise_pixels
from pretrain.encoder.stock import ImageEncoderViT
from pretrain.encoder.weights import (
    choose_size,
    encoder_weights,
    find_weights,
    image_size_of,
    load_strictly,
    read_weights,
)
from pretrain.encoder.windows import TokenGroups, checked_stacks, dense_groups, sparse_groups
from pretrain.sizes import (
    ATTENTION_WINDOW,
    DEFAULT_SIZE,
    NATIVE_GRID,
    PATCH,
    SIZES,
    EncoderSize,
    check_size,
)


class SamEncoder(ImageEncoderViT):
    """SAM's image encoder for any image size that is a multiple of 16.

    Args:
        size: One of `SIZES`.

    Attributes:
        image_size: Side in pixels of the images that the weights were trained on; it takes others
            too.
        pixel_mean: Red, green and blue mean, in 0..255, that the images are normalised with.
        pixel_std: Their standard deviation.
        recompute_blocks: Recompute each block in the backward pass instead of storing it
            (activation checkpointing).
    """

    # Not buffers: those would be sent from process to process in each step of training.
    pixel_mean, pixel_std = PIXEL_MEAN, PIXEL_STD

    def __init__(self, size: EncoderSize) -> None:
        super().__init__(
            depth=0,
            embed_dim=size.width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=ATTENTION_WINDOW,
        )
        self.size, self.image_size = size, NATIVE_GRID * PATCH
        self.blocks = nn.ModuleList(
            EncoderBlock(size, 0 if i in size.global_blocks else ATTENTION_WINDOW)
            for i in range(size.depth)
        )
        self.recompute_blocks = False
        self._initialise()

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "SamEncoder":
        """An encoder ready for features, in evaluation mode on the CPU.

        Args:
            source: A run folder, an encoder file (`.safetensors`), a SAM checkpoint (`.pth`), a
                published folder, or `hf:org/name` on the Hugging Face Hub.

        Raises:
            UserError: There is none, or it does not hold SAM's image encoder.
        """
        encoder = build_encoder(None, source)
        encoder.eval()
        return encoder

    def preprocess(self, image: NDArray[np.generic] | str | Path) -> Tensor:
        """An image as this encoder takes it: resized, padded and normalised.

        Args:
            image: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, in which white is the largest
                value; or the path of a picture such as a PNG or JPEG file.

        Returns:
            (1, 3, S, S), S being `image_size`: the longest side is resized to S, and the rest is
            padded right and below with SAM's mean colour, which is 0.

        Raises:
            UserError: Another shape or type, or a file that cannot be read.
        """
        if not isinstance(image, np.ndarray):
            try:
                image = read_image(Path(image), ReadOptions()).array
            except (OSError, Unreadable) as error:
                raise UserError(f"{image}: cannot be read as a picture: {error}") from None
        pixels = as_pixels(image)  # (C, H, W)
        resize = Resize((image.shape[0], image.shape[1]), self.image_size)
        device = self.pos_embed.device
        square, valid = resize.image(pixels)[None].to(device), resize.valid()[None].to(device)
        return normalise_pixels(square, valid)

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
        axis = (np.arange(NATIVE_GRID, dtype=np.float32) + 0.5) * (ATTENTION_WINDOW / NATIVE_GRID)
        x, y = (each.ravel() for each in np.meshgrid(axis, axis))  # row-major
        table = positions.sine_cosine(x, y, self.size.width)
        with torch.no_grad():
            self.pos_embed.copy_(torch.from_numpy(table).view_as(self.pos_embed))

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Image embedding, equal to segment_anything's `ImageEncoderViT` at any size.

        Args:
            images: (B, 3, H, W), SAM-normalised; H and W multiples of 16.
            stacks: Lengths of runs of images that are neighbouring slices of one volume, B in sum,
                for adapters that look at neighbours; empty for images without any.

        Returns:
            (B, 256, H / 16, W / 16).
        """
        embedding: Tensor = self.neck(self.features(images, stacks))
        return embedding

    def features(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """What the neck is given: (B, C, H / 16, W / 16). Arguments as in `forward`."""
        embeddings, grid = self.embed(images)
        tokens = self.encode(embeddings, grid, stacks=stacks).view(len(images), *grid, -1)
        return tokens.permute(0, 3, 1, 2)

    def forward_tokens(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Token features before the neck, of all tokens or of the kept ones only.

        Args:
            images: (B, 3, H, W), SAM-normalised.
            keep: (B, n) int64 row-major token indices, any order, the same number in each attention
                window; None for all.

        Returns:
            (B, n, C), in the order of `keep`.

        Raises:
            ValueError: Sizes that are not multiples of 16, or padded or unequal windows with
                `keep`.
        """
        embeddings, grid = self.embed(images)
        if keep is not None:
            embeddings = take(embeddings, keep.to(embeddings.device, non_blocking=True))
        return self.encode(embeddings, grid, keep)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch embeddings (B, N, C) before position is added, and the token grid (H, W)."""
        height, width = images.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"image size {height} x {width} is not a multiple of {PATCH} pixels")
        grid = (height // PATCH, width // PATCH)
        if min(grid) < NATIVE_GRID and (grid[0] % ATTENTION_WINDOW or grid[1] % ATTENTION_WINDOW):
            warnings.warn(
                f"{height} x {width} pixels pad SAM's attention windows; multiples of "
                f"{PATCH * ATTENTION_WINDOW} cost less for what they see",
                stacklevel=2,
            )
        return self.patch_embed(images).flatten(1, 2), grid

    def encode(
        self,
        embeddings: Tensor,
        grid: tuple[int, int],
        keep: Tensor | None = None,
        stacks: Sequence[int] = (),
    ) -> Tensor:
        """Add position to patch embeddings and run the blocks.

        Args:
            embeddings: (B, n, C) before position, of the kept tokens in the order of `keep`, or of
                all tokens of the grid.
            keep: Token indices as in `forward_tokens`; if they are on the CPU, a GPU need not wait
                for them.
            stacks: As in `forward`; only without `keep`.

        Returns:
            (B, n, C) in the order of `keep`.
        """
        device = embeddings.device
        position = positions.resize(self.pos_embed, grid).flatten(1, 2)
        if keep is None:
            groups = dense_groups(*grid, ATTENTION_WINDOW, device)
            groups = replace(groups, stacks=checked_stacks(stacks, len(embeddings)))
            return self._run_blocks(embeddings + position, groups)
        if stacks:
            raise ValueError("slices of a stack have all their tokens; leave out keep")
        groups = sparse_groups(*grid, ATTENTION_WINDOW, keep)
        assert groups.order is not None
        tokens = embeddings + take(
            position.expand(len(keep), -1, -1), keep.to(device, non_blocking=True)
        )
        if torch.equal(groups.order, keep):
            return self._run_blocks(tokens, groups.to(device))
        # Both orders are permutations of the same indices: into window order and back.
        to_windows = keep.argsort(1).gather(1, groups.order.argsort(1).argsort(1))
        to_windows = to_windows.to(device, non_blocking=True)
        tokens = self._run_blocks(take(tokens, to_windows), groups.to(device))
        return take(tokens, to_windows.argsort(1))

    @property
    def for_stacks(self) -> bool:
        """Whether an adapter looks at neighbouring slices."""
        return any(getattr(block.adapter, "for_stacks", False) for block in self.blocks)

    def _run_blocks(self, tokens: Tensor, groups: TokenGroups) -> Tensor:
        for block in self.blocks:
            if self.recompute_blocks and torch.is_grad_enabled():
                tokens = recompute(block, tokens, groups, use_reentrant=False)
            else:
                tokens = block(tokens, groups)
        return tokens


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, C) at `index` (B, n), as (B, n, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def build_encoder(name: str | None, checkpoint: str | Path | None = None) -> SamEncoder:
    """An image encoder with new weights or those of a checkpoint.

    Args:
        name: One of vit_t, vit_s, vit_b, vit_l and vit_h. None: the size of the checkpoint's
            weights, or vit_b without a checkpoint.
        checkpoint: A SAM checkpoint (`.pth`), an encoder file (`.safetensors`), a run folder, or
            `hf:org/name` of an encoder on the Hugging Face Hub. None: new weights, drawn from
            PyTorch's global random state.

    Raises:
        UserError: An unknown name, or a checkpoint of another size or with a missing, unexpected or
            mis-shaped key.
    """
    check_size(name, "encoder")
    if checkpoint is None:
        return SamEncoder(SIZES[name or DEFAULT_SIZE])
    path = find_weights(checkpoint)
    weights = encoder_weights(read_weights(path))
    encoder = SamEncoder(SIZES[choose_size(name, weights, path)])
    load_strictly(encoder, weights, path)
    encoder.image_size = image_size_of(path)
    return encoder
