"""The encoder and the decoder of a U-Net (Ronneberger et al. 2015, arXiv 1505.04597), for networks
that are made of these in another way.

With batch normalisation and padding, as most U-Nets of today have them; channels double from one
level to the next, and the resolution halves.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

LEVELS = 5
"""Resolutions from S to S / 16."""


def double_convolution(channels_in: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""
    return nn.Sequential(
        Conv2dNormActivation(channels_in, channels), Conv2dNormActivation(channels, channels)
    )


class UNetEncoder(nn.Module):
    """Double convolutions with max pooling between them.

    Args:
        channels: Those of the input.
        width: Channels of the first level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [channels, *(width * 2**level for level in range(LEVELS))]
        self.levels = nn.ModuleList(double_convolution(*pair) for pair in pairwise(widths))
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of each level, (B, width 2^k, S / 2^k, S / 2^k)."""
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(self.pool(features[-1]) if features else images))
        return features


class UNetDecoder(nn.Module):
    """Transposed convolutions of stride 2 and double convolutions, with the encoder's features.

    Args:
        width: Channels of the first level of the encoder.
        maps: Number of maps it gives.
    """

    def __init__(self, width: int, maps: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in reversed(range(LEVELS - 1))]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * each, each, 2, stride=2) for each in widths)
        self.levels = nn.ModuleList(double_convolution(2 * each, each) for each in widths)
        self.head = nn.Conv2d(width, maps, 1)

    def forward(
        self,
        features: Sequence[Tensor],
        change: Callable[[Tensor], Tensor] = lambda features: features,
    ) -> Tensor:
        """Logits (B, maps, S, S).

        Args:
            features: Those of the encoder, the finest first.
            change: What is done to the features after the convolutions of each level.
        """
        x = features[-1]
        skips = reversed(features[:-1])
        for up, level, skip in zip(self.ups, self.levels, skips, strict=True):
            x = change(level(torch.cat([up(x), skip], dim=1)))
        logits: Tensor = self.head(x)
        return logits
