"""SegResNet (Myronenko 2018, arXiv 1810.11654), as MONAI has it."""

from collections.abc import Sequence

from finetune.baselines.spatial import SpatialNetwork, import_monai
from finetune.model.network import require_positive


class SegResNet(SpatialNetwork):
    """Residual units with group normalisation: 1, 2, 2 and 4 on the way down, 1 each on the way up.

    Numbers of units and channels, groups of 8 and dropout are the paper's. Its autoencoder branch,
    which is for training only, is left out.

    Args:
        width: Channels of the finest level, a multiple of 8; they double three times.
        dropout: Share of the values dropped after the first convolution.
        volumes: Segment stacks of slices as volumes, as the paper does.
    """

    divisor = 8

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        width: int = 32,
        dropout: float = 0.2,
        volumes: bool = False,
    ) -> None:
        super().__init__(image_size, targets, volumes)
        require_positive(width=width)
        self.network = import_monai().SegResNet(
            self.dimensions,
            init_filters=width,
            in_channels=3,
            out_channels=len(targets),
            dropout_prob=dropout,
            blocks_down=(1, 2, 2, 4),
            blocks_up=(1, 1, 1),
        )
