"""TransBTS: a transformer inside a 3D U-Net.

Wang et al. 2021, "TransBTS: multimodal brain tumor segmentation using transformer" (MICCAI 2021,
arXiv 2103.04430).

Constants of the paper and of the code that its authors published: residual blocks of 16, 32, 64 and
128 channels, 1, 2, 2 and 4 of them, halving the resolution three times by convolutions of stride 2
(columns, rows and slices); 4 transformer layers of width 512 with 8 heads and an MLP of 4096 on
each of the voxels that remain; dropout 0.1 there, 0.2 on the first channels; a decoder with skips.
Crops of 128^3 voxels, Adam with rate 0.0004 and weight decay 0.00001, batch 16, 8000 epochs,
softmax Dice.

What differs:
- A stack has the slices that `data.stack` gives it, at their own spacing, and is lengthened to a
  multiple of 8 by its last slice. An image by itself is a stack of one. The table of positions is
  made for `slices` and interpolated over the depth for stacks of others.
- Three channels of the images that this project gives, instead of four MR sequences.
- Group normalisation in the decoder, too, where the code has batch normalisation, so that what a
  stack gives does not depend on the others of its batch; and its residual blocks are those of the
  encoder (normalisation first).
- In the encoder, too, group normalisation before the tokens, where the code has batch
  normalisation; and dropout once behind attention, where the code has it twice.
- One output for each target by itself; AdamW without AMSGrad; no weights of another data set, as in
  the paper.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from finetune.baselines.spatial import whole_precision
from finetune.model.network import Network, require_positive

STRIDE = 8
"""Voxels to a token along each axis."""
BLOCKS = (1, 2, 2, 4)
"""Residual blocks of each level."""
GROUPS = 8
"""Of group normalisation."""


class TransBTS(Network):
    """A 3D U-Net whose coarsest features go through a transformer.

    Args:
        slices: Slices of the stacks it is trained on, as `data.stack`.
        width: Channels of the first level.
        embedding: Width of the transformer.
        depth: Its layers.
        heads: Its attention heads.
        hidden: Width of its MLP.
        dropout: Dropout inside the transformer.
    """

    for_stacks = True

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        slices: int = 16,
        width: int = 16,
        embedding: int = 512,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 4096,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(image_size, targets)
        sizes = {"slices": slices, "width": width, "embedding": embedding}
        require_positive(**sizes, depth=depth, heads=heads, hidden=hidden)
        if width % GROUPS or embedding % heads:
            raise UserError(
                f"model.network: width {width} must be a multiple of {GROUPS}, and embedding"
                f" {embedding} one of heads {heads}"
            )
        widths = [width * 2**level for level in range(len(BLOCKS))]
        self.first = nn.Sequential(nn.Conv3d(3, width, 3, padding=1), nn.Dropout3d(0.2))
        self.down = nn.ModuleList(
            nn.Sequential(*(Residual(each) for _ in range(count)))
            for each, count in zip(widths, BLOCKS, strict=True)
        )
        self.halve = nn.ModuleList(
            nn.Conv3d(*pair, 3, stride=2, padding=1) for pair in pairwise(widths)
        )
        self.embed = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[-1]),
            nn.ReLU(),
            nn.Conv3d(widths[-1], embedding, 3, padding=1),
        )
        side, deep = image_size // STRIDE, -(-slices // STRIDE)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, embedding, deep, side, side))
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            *(
                Block(embedding, heads, hidden / embedding, proj_drop=dropout, attn_drop=dropout)
                for _ in range(depth)
            ),
            nn.LayerNorm(embedding),
        )
        self.mapped = nn.Sequential(
            *normalised(embedding, widths[-1]),
            *normalised(widths[-1], widths[-1]),
            Residual(widths[-1]),
        )
        self.up = nn.ModuleList(Doubled(each) for each in reversed(widths[:-1]))
        self.head = nn.Conv3d(width, len(targets), 1)

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Logits (B, T, S, S), each stack by itself."""
        parts = images.split(list(stacks) or 1)
        with whole_precision(images.device):
            return torch.cat([self.segment(part) for part in parts])

    def segment(self, stack: Tensor) -> Tensor:
        """Logits (D, T, S, S) of neighbouring slices (D, 3, S, S)."""
        depth = len(stack)
        volume = stack.transpose(0, 1)[None]  # (1, 3, D, S, S)
        x = self.first(F.pad(volume, (0, 0, 0, 0, 0, -depth % STRIDE), mode="replicate"))
        skips = []
        for level, halve in zip(self.down[:-1], self.halve, strict=True):
            x = level(x)
            skips.append(x)
            x = halve(x)
        embedded = self.embed(self.down[-1](x))  # (1, E, D / 8, S / 8, S / 8)
        table = F.interpolate(self.pos_embed, embedded.shape[2:], mode="trilinear")
        tokens = self.layers((embedded + table).flatten(2).transpose(1, 2))
        x = self.mapped(tokens.transpose(1, 2).unflatten(2, embedded.shape[2:]))
        for level in self.up:
            x = level(x, skips.pop())
        logits: Tensor = self.head(x)[0, :, :depth]
        return logits.transpose(0, 1)


def normalised(before: int, after: int) -> list[nn.Module]:
    """A 3x3x3 convolution with group normalisation and ReLU behind it."""
    return [nn.Conv3d(before, after, 3, padding=1), nn.GroupNorm(GROUPS, after), nn.ReLU()]


class Residual(nn.Module):
    """Two 3x3x3 convolutions, each after group normalisation and ReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(GROUPS, channels), nn.ReLU()]
            layers.append(nn.Conv3d(channels, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return x + self.layers(x)


class Doubled(nn.Module):
    """From twice the channels at half the resolution, and the encoder's features, to these."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv3d(2 * channels, channels, 1),
            nn.ConvTranspose3d(channels, channels, 2, stride=2),
        )
        self.merge = nn.Conv3d(2 * channels, channels, 1)
        self.block = Residual(channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(1, 2 C, d, h, w), (1, C, 2 d, 2 h, 2 w) -> the latter's shape."""
        merged: Tensor = self.block(self.merge(torch.cat([skip, self.up(x)], dim=1)))
        return merged
