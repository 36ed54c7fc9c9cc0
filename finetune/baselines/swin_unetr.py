"""Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), as MONAI has it."""

from collections.abc import Sequence

from finetune.baselines.spatial import SpatialNetwork, import_monai
from finetune.model.network import require_positive


class SwinUnetr(SpatialNetwork):
    """A Swin transformer of four stages, and a convolutional decoder with skips from each of them.

    Sizes are the paper's: patches of 2 pixels, two blocks per stage with 3, 6, 12 and 24 heads,
    windows of 7.

    Args:
        width: Channels of the first stage, a multiple of 12; they double after each stage.
        volumes: Segment stacks of slices as volumes, as the paper does.
    """

    divisor = 32

    def __init__(
        self, image_size: int, targets: Sequence[str], width: int = 48, volumes: bool = False
    ) -> None:
        super().__init__(image_size, targets, volumes)
        require_positive(width=width)
        self.network = import_monai().SwinUNETR(
            in_channels=3,
            out_channels=len(targets),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            window_size=7,
            feature_size=width,
            spatial_dims=self.dimensions,
        )
