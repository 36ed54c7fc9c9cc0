"""ResUNet (Zhang et al. 2018, "Road extraction by deep residual U-Net", arXiv 1711.10684)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune.baselines.spatial import SpatialNetwork, import_monai
from finetune.model.network import require_positive


class ResUNet(SpatialNetwork):
    """A U-Net of seven residual units with full pre-activation: three down, a bridge, three up.

    Three of the units halve the resolution by a stride of 2; on the way up it is doubled by
    repeating pixels.

    Args:
        width: Channels of the first unit; they double three times.
        volumes: Segment stacks of slices as volumes, which the paper does not.
    """

    divisor = 8

    def __init__(
        self, image_size: int, targets: Sequence[str], width: int = 64, volumes: bool = False
    ) -> None:
        super().__init__(image_size, targets, volumes)
        require_positive(width=width)
        self.network = ResidualUNet(self.dimensions, width, len(targets))


class ResidualUNet(nn.Module):
    """See `ResUNet`; the sigmoid after its last convolution is left to the loss."""

    def __init__(self, dimensions: int, width: int, outputs: int) -> None:
        super().__init__()
        import_monai()
        from monai.networks.layers.factories import Conv

        widths = [width * 2**level for level in range(4)]
        stem = ResidualUnit(dimensions, 3, width, stem=True)
        pairs = list(pairwise(widths))
        rest = [ResidualUnit(dimensions, above, below, stride=2) for above, below in pairs]
        self.down = nn.ModuleList([stem, *rest])
        self.up = nn.ModuleList(
            ResidualUnit(dimensions, above + below, above) for above, below in reversed(pairs)
        )
        self.last = Conv[Conv.CONV, dimensions](width, outputs, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, *sides) -> (B, outputs, *sides)."""
        skips = [pixels]
        for unit in self.down:
            skips.append(unit(skips[-1]))
        features = skips.pop()
        for unit in self.up:
            skip = skips.pop()
            features = unit(torch.cat([interpolate(features, skip.shape[2:]), skip], dim=1))
        logits: Tensor = self.last(features)
        return logits


class ResidualUnit(nn.Module):
    """Batch normalisation, ReLU and a 3x3 convolution, twice, beside a 1x1 convolution.

    Args:
        stride: Of the first convolution.
        stem: Leave out what is before the first convolution, as the paper does for the image.
    """

    def __init__(
        self, dimensions: int, inputs: int, outputs: int, stride: int = 1, stem: bool = False
    ) -> None:
        super().__init__()
        from monai.networks.layers.factories import Conv, Norm

        convolution, norm = Conv[Conv.CONV, dimensions], Norm[Norm.BATCH, dimensions]
        before = [] if stem else [norm(inputs), nn.ReLU(inplace=False)]
        self.body = nn.Sequential(
            *before,
            convolution(inputs, outputs, 3, stride, 1),
            norm(outputs),
            nn.ReLU(inplace=True),
            convolution(outputs, outputs, 3, 1, 1),
        )
        self.shortcut = convolution(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, *sides) -> (B, outputs, *(sides / stride))."""
        added: Tensor = self.body(features) + self.shortcut(features)
        return added
