"""AutoSAM's convolutional head, as the decoder of a U-Net (arXiv 2306.13731, section 3)."""

from collections.abc import Sequence

from torch import nn

from data_prep.common.errors import UserError
from finetune.heads.maps import WIDTH, MapHead, with_relu

DOUBLINGS = 2
"""Stages that double the resolution: from S / 16 to S / 4."""


class CnnHead(MapHead):
    """Stages of convolutions, the last two of which double the resolution.

    Two 1x1 convolutions set the number of channels to `width` 2^k. Each of the k stages has two
    3x3 convolutions and halves the channels: the last two by a transposed convolution of stride 2,
    those before them in their second convolution. A 3x3 convolution and a 1x1 one give the logits.

    Args:
        stages: Number k of stages, at least 2.
        width: Channels after the last stage.
    """

    def __init__(
        self, image_size: int, targets: Sequence[str], stages: int = 2, width: int = 64
    ) -> None:
        if stages < DOUBLINGS or width < 1:
            raise UserError(
                f"model.decoder: stages {stages} must be at least {DOUBLINGS}, and width {width}"
                " at least 1"
            )
        wide = width * 2**stages
        layers: list[nn.Module] = [with_relu(nn.Conv2d(WIDTH, wide, 1))]
        layers.append(with_relu(nn.Conv2d(wide, wide, 1)))
        for stage in range(stages):
            here = width * 2 ** (stages - stage)
            doubles = stage >= stages - DOUBLINGS
            after = here if doubles else here // 2
            layers.append(with_relu(nn.Conv2d(here, here, 3, padding=1)))
            layers.append(with_relu(nn.Conv2d(here, after, 3, padding=1)))
            if doubles:
                layers.append(nn.ConvTranspose2d(here, here // 2, 2, stride=2))
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        layers.append(nn.Conv2d(width, len(targets), 1))
        self.head = nn.Sequential(*layers)
        self.parts = {"head": self.head}
