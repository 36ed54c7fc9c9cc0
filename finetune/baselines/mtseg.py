"""MTSeg: nodules and the region they lie in, learned together.

Gong et al. 2021, "Multi-task learning for thyroid nodule segmentation with thyroid region prior"
(ISBI 2021), where the network is called TRFE-Net. Read from its abstract and from the code that the
authors published; the paper itself was not at hand.

Constants of that code: a U-Net of width 64 with one encoder and two decoders; the region's
probability times the nodule decoder's features is added to these at three levels; soft Dice, that
of the region weighted by 0.5; SGD with rate 0.001 and momentum 0.9, 60 epochs at 224 pixels, each
batch 4 images of nodules and 4 of glands.

What differs:
- There the gland is labelled in images of its own (TG3K), in which nodules are not. Here a set of
  shards has both: `region` names the targets whose union is the region. Where none of the targets
  is one, it is the union of all targets, grown by `margin`, which says where to look, but is no
  anatomy.
- AdamW, whatever the recipe says; convolutions start as PyTorch starts them, not by Glorot's rule.
- Several targets, each with a map of its own. The region's own map is not among the results.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.common.errors import UserError
from finetune.baselines.unet_blocks import UNetDecoder, UNetEncoder
from finetune.model.losses import dice_loss, join_slices
from finetune.model.network import Network, require_positive


class MTSeg(Network):
    """A U-Net with a second decoder, for a region, that guides the first.

    Args:
        width: Channels of the first level.
        region: Names of the targets whose union is the region; none: all of them.
        margin: By how much the union is grown, as a share of the side of the input.
        region_weight: Weight of the region's soft Dice loss; the loss of the masks has 1.
    """

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        width: int = 64,
        region: tuple[str, ...] = (),
        margin: float = 0.0,
        region_weight: float = 0.5,
    ) -> None:
        super().__init__(image_size, targets)
        require_positive(width=width)
        if unknown := [name for name in region if name not in targets]:
            raise UserError(
                f"model.network.region: there is no target {unknown[0]!r}; there are"
                f" {', '.join(targets)}"
            )
        if not 0 <= margin < 1 or region_weight < 0:
            raise UserError(
                f"model.network: margin {margin} must lie in 0..1, below 1, and region_weight"
                f" {region_weight} must not be negative"
            )
        self.within = [index for index, name in enumerate(targets) if name in (region or targets)]
        self.margin, self.region_weight = round(margin * image_size), region_weight
        self.down = UNetEncoder(3, width)
        self.up_region = UNetDecoder(width, 1)
        self.up = UNetDecoder(width, len(targets))

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """(B, T + 1, S, S): logits of the targets, then that of the region."""
        features = self.down(images)
        region = self.up_region(features)  # (B, 1, S, S)
        probability = region.sigmoid()

        def guided(level: Tensor) -> Tensor:
            """Features (B, C, h, w) with themselves inside the region; not at the finest level."""
            if level.shape[-1] == images.shape[-1]:
                return level
            return level + level * F.interpolate(probability, level.shape[-2:], mode="nearest")

        return torch.cat([self.up(features, guided), region], dim=1)

    def auxiliary_loss(self, maps: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """The region's soft Dice loss over the batch, weighted."""
        region = self.region_of(truth)
        # Together: without the region, Dice by itself hardly pulls on a large wrong mask.
        together = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
        logits, region, inside = (
            join_slices(each, together) for each in (maps[:, -1:], region, valid[:, None])
        )
        return self.region_weight * dice_loss(logits, region, inside)

    def region_of(self, truth: Tensor) -> Tensor:
        """Masks (B, T, S, S) to the region (B, 1, S, S), bool.

        A pixel belongs to it if one of the masks holds a pixel no more than `margin` rows and
        columns away.
        """
        union = truth[:, self.within].any(1, keepdim=True)
        side = 2 * self.margin + 1
        return F.max_pool2d(union.float(), side, stride=1, padding=self.margin) > 0
