"""TransUNet: a transformer on the features of a convolutional network, with a U-Net's decoder.

Chen et al. 2021, "TransUNet: transformers make strong encoders for medical image segmentation"
(arXiv 2102.04306), the hybrid R50-ViT-B/16.

Constants of the paper: the first three stages of ResNet-50 (3, 4 and 9 blocks, with group
normalisation and standardised weights), 12 transformer layers of width 768 on one token for each
16 x 16 pixels, a decoder of 256, 128, 64 and 16 channels with skips from 1/8, 1/4 and 1/2 of the
resolution; 224 pixels, SGD with rate 0.01, momentum 0.9 and weight decay 0.0001, batch 24, 14,000
steps, half cross entropy and half Dice.

What differs: no weights of ImageNet-21k, which the paper starts from and which tell most of its
numbers; the learned position table starts at random for the size in use; AdamW and one output for
each target by itself, trained as the recipe says. Nothing is left out of the network.
"""

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from data_prep.common.errors import UserError
from finetune.baselines.unet_blocks import double_convolution
from finetune.model.network import Network, require_positive

PATCH = 16
"""Pixels to a token."""
DECODER = (256, 128, 64, 16)
"""Channels of the decoder's levels, from S / 8 to S."""
STEM, STAGES = 64, (256, 512, 1024)
"""Channels of the stem, at S / 2, and of the three stages, from S / 4 to S / 16."""


class TransUNet(Network):
    """R50-ViT-B/16 with the cascaded upsampler.

    Args:
        width: Width of the transformer.
        depth: Its layers.
        heads: Its attention heads.
        blocks: Blocks of each stage of the residual network.
        dropout: Dropout inside the transformer.
    """

    def __init__(
        self,
        image_size: int,
        targets: Sequence[str],
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        blocks: tuple[int, ...] = (3, 4, 9),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(image_size, targets)
        require_positive(width=width, depth=depth, heads=heads)
        if len(blocks) != len(STAGES) or min(blocks) < 1 or width % heads:
            raise UserError(
                f"model.network: blocks {list(blocks)} must be three positive numbers, and width"
                f" {width} a multiple of heads {heads}"
            )
        convolutions = ResNetV2(
            list(blocks),
            STAGES,
            num_classes=0,
            global_pool="",
            preact=False,
            stem_type="same",
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )
        self.stem, self.pool = convolutions.stem[:-1], convolutions.stem[-1]
        self.stages = convolutions.stages
        self.embed = nn.Conv2d(STAGES[-1], width, 1)
        side = image_size // PATCH
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, proj_drop=dropout) for _ in range(depth))
        )
        for layer in self.layers:  # dropout is in the MLP alone
            layer.get_submodule("attn").proj_drop = nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.widen = Conv2dNormActivation(width, 512)
        skips = (STAGES[1], STAGES[0], STEM, 0)
        before = (512, *DECODER[:-1])
        self.levels = nn.ModuleList(
            double_convolution(each + skip, after)
            for each, skip, after in zip(before, skips, DECODER, strict=True)
        )
        self.enlarge = nn.UpsamplingBilinear2d(scale_factor=2)
        self.head = nn.Conv2d(DECODER[-1], len(targets), 3, padding=1)

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Logits (B, T, S, S)."""
        features = [self.stem(images)]  # (B, 64, S / 2, S / 2)
        x = self.pool(features[0])
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        embedded = self.embed(features.pop())  # (B, C, S / 16, S / 16)
        tokens = self.dropout(embedded.flatten(2).transpose(1, 2) + self.pos_embed)
        tokens = self.norm(self.layers(tokens))
        x = self.widen(tokens.transpose(1, 2).unflatten(2, embedded.shape[-2:]))
        for level in self.levels:
            x = self.enlarge(x)
            x = level(torch.cat([x, features.pop()], dim=1) if features else x)
        logits: Tensor = self.head(x)
        return logits
