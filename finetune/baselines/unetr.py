"""UNETR (Hatamizadeh et al. 2022, arXiv 2103.10504), as MONAI has it."""

from collections.abc import Sequence

from data_prep.common.errors import UserError
from finetune.baselines.spatial import SpatialNetwork, import_monai
from finetune.model.network import require_positive


class Unetr(SpatialNetwork):
    """A vision transformer of 12 layers on patches of 16 pixels, and a convolutional decoder.

    Sizes are the paper's: ViT-B/16. Its table of positions is made for one size of input, so that
    stacks of fewer slices are extended to `slices`.

    Args:
        width: Token width of the transformer; its MLPs are four times as wide.
        heads: Attention heads, which divide the width.
        filters: Channels of the finest level of the decoder.
        volumes: Segment stacks of slices as volumes, as the paper does.
        slices: With `volumes`, the most slices of a stack, see data.stack; a multiple of 16.
    """

    divisor = 16

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        width: int = 768,
        heads: int = 12,
        filters: int = 16,
        volumes: bool = False,
        slices: int = 32,
    ) -> None:
        super().__init__(image_size, targets, volumes)
        require_positive(width=width, heads=heads, filters=filters, slices=slices)
        if slices % self.divisor:
            raise UserError(
                f"model.network.slices is {slices}; it must be a multiple of {self.divisor}"
            )
        self.slices = slices
        sides = (image_size, image_size)
        self.network = import_monai().UNETR(
            in_channels=3,
            out_channels=len(targets),
            img_size=(slices, *sides) if volumes else sides,
            feature_size=filters,
            hidden_size=width,
            mlp_dim=4 * width,
            num_heads=heads,
            spatial_dims=self.dimensions,
        )

    def sides(self, given: Sequence[int]) -> list[int]:
        """Those that the table of positions is for.

        Raises:
            UserError: A stack has more slices.
        """
        if not self.for_stacks:
            return list(given)
        depth, *others = given
        if depth > self.slices:
            raise UserError(
                f"model.network.slices is {self.slices}, and a stack has {depth} slices; it must be"
                " data.stack or more"
            )
        return [self.slices, *others]
