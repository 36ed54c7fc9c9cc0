"""BEAL: masks with the help of their boundaries.

Wang et al. 2019, "Boundary and entropy-driven adversarial learning for fundus image segmentation"
(MICCAI 2019, arXiv 1906.11143).

Constants of the paper and of the code that its authors published: DeepLabv3+ on MobileNetV2 with
output stride 16, dilations 6, 12 and 18, and low-level features of 48 channels; a boundary branch
of three convolutions, and a mask branch of one, which gets the boundary with the features; binary
cross entropy of the masks and mean squared error of the boundary, both with weight 1. The truth of
the boundary is a band of 5 pixels either way of each contour, blurred with a deviation of 3 pixels,
at 512 pixels; here they scale with the input. Adam with rate 0.001 and betas 0.9 and 0.99, batch 8,
200 epochs.

What is left out: the two discriminators, of boundary maps and of entropy maps, and with them the
adversarial losses. They make the outputs on unlabelled images of a second collection look like
those on the first. Here there is one collection, in which they have nothing to align; what remains
is what the paper trains on its labelled collection. The entropy of the masks appears in nothing
else.

What differs: no weights of ImageNet; the targets are any, each with an output by itself, as disc
and cup have it in the paper; the band is dilated by squares, not by diamonds.
"""

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import Conv2dNormActivation
from torchvision.transforms.functional import gaussian_blur

from data_prep.common.errors import UserError
from finetune.model.network import Network

DILATIONS = (6, 12, 18)
BACKBONE = (24, 320)
"""Channels of MobileNetV2 at S / 4 and at S / 16."""
LOW_LEVEL, SHARED = 48, 256
PUBLISHED_SIZE, BAND, BLUR = 512, 5, 3.0
"""Side of the paper's input; half the band's width and the deviation of its blur, in pixels."""


class BEAL(Network):
    """DeepLabv3+ with a boundary branch that feeds the mask branch.

    Args:
        boundary_weight: Weight of the boundary's loss; that of the masks has 1.
    """

    def __init__(
        self, image_size: int, targets: Sequence[str], boundary_weight: float = 1.0
    ) -> None:
        super().__init__(image_size, targets)
        if boundary_weight < 0:
            raise UserError(
                f"model.network.boundary_weight is {boundary_weight}; it must not be negative"
            )
        self.boundary_weight = boundary_weight
        scale = image_size / PUBLISHED_SIZE
        self.band, self.blur = max(1, round(BAND * scale)), BLUR * scale
        self.backbone = timm.create_model(
            "mobilenetv2_100", features_only=True, output_stride=16, out_indices=(1, 4)
        )
        low, high = BACKBONE
        self.pyramid = ASPP(high, DILATIONS, SHARED)
        self.low_level = Conv2dNormActivation(low, LOW_LEVEL, 1)
        both = SHARED + LOW_LEVEL
        self.boundary = nn.Sequential(
            Conv2dNormActivation(both, SHARED),
            nn.Dropout(0.5),
            Conv2dNormActivation(SHARED, SHARED),
            nn.Dropout(0.1),
            nn.Conv2d(SHARED, 1, 1),
        )
        self.mask = nn.Sequential(
            nn.BatchNorm2d(both + 1),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(both + 1, len(targets), 1),
        )

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """(B, T + 1, S, S): logits of the targets, then that of their boundary.

        Raises:
            UserError: A batch of one image in training, which has no statistics.
        """
        if self.training and len(images) == 1:
            raise UserError(
                "optim.batch_size: BEAL normalises one value per image over the batch; give each"
                " process, and each pass of it, 2 images or more"
            )
        low, high = self.backbone(images)
        features = resized(self.pyramid(high), low.shape[-1])
        features = torch.cat([features, self.low_level(low)], dim=1)  # (B, 304, S / 4, S / 4)
        boundary = self.boundary(features)
        masks = self.mask(torch.cat([features, boundary], dim=1))
        return resized(torch.cat([masks, boundary], dim=1), images.shape[-1])

    def auxiliary_loss(self, maps: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Mean squared error of the boundary's probability over valid pixels, weighted."""
        wrong = (maps[:, -1:].float().sigmoid() - self.boundary_of(truth)).square()
        inside = valid[:, None].float()
        return self.boundary_weight * (wrong * inside).sum() / inside.sum().clamp(min=1)

    def boundary_of(self, truth: Tensor) -> Tensor:
        """Masks (B, T, S, S) to how near one of their contours is, (B, 1, S, S) in 0..1."""
        side = 2 * self.band + 1
        mask = truth.float()
        grown = F.max_pool2d(mask, side, stride=1, padding=self.band)
        shrunk = -F.max_pool2d(-mask, side, stride=1, padding=self.band)
        band = (grown - shrunk).amax(1, keepdim=True)
        kernel = 2 * round(4 * self.blur) + 1
        return gaussian_blur(band, [kernel, kernel], [self.blur, self.blur])


def resized(maps: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> (B, C, side, side), bilinear."""
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
