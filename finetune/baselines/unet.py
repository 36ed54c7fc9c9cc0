"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597), as MONAI's BasicUNet."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from data_prep.common.errors import UserError
from finetune.baselines.spatial import SpatialNetwork, import_monai

LEVELS = 5


class UNet(SpatialNetwork):
    """Four halvings by max pooling, two 3x3 convolutions with ReLU per level, skips.

    The widths are the paper's. Unlike it, convolutions are padded, so that a map is as large as its
    image, and each is followed by instance normalisation, MONAI's default.

    Args:
        features: Channels of the five levels, the finest first.
        volumes: Segment stacks of slices as volumes (Cicek et al. 2016, arXiv 1606.06650).
    """

    divisor = 2 ** (LEVELS - 1)

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        features: tuple[int, ...] = (64, 128, 256, 512, 1024),
        volumes: bool = False,
    ) -> None:
        super().__init__(image_size, targets, volumes)
        if len(features) != LEVELS or min(features) < 1:
            raise UserError(
                f"model.network.features is {list(features)}; give {LEVELS} positive numbers"
            )
        self.network = import_monai().BasicUNet(
            self.dimensions,
            in_channels=3,
            out_channels=len(targets),
            features=(*features, features[0]),
            act=("RELU", {"inplace": True}),
        )

    def encoder(self) -> nn.Module:
        """The way down: images (B, 3, S, S) -> features (B, C, S / 16, S / 16)."""
        names = ("conv_0", *(f"down_{level}" for level in range(1, LEVELS)))
        return nn.Sequential(OrderedDict((name, getattr(self.network, name)) for name in names))
