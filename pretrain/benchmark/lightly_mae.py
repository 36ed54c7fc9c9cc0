"""Masked autoencoding put together from lightly's components on timm's ViT, for comparison."""

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from pretrain.sizes import ATTENTION_WINDOW, PATCH, EncoderSize


class LightlyMae(nn.Module):
    """The step of lightly's MAE example, with our sizes of encoder and decoder.

    timm's ViT has a class token, and no relative positions.

    Args:
        size: Width, depth and heads of the encoder.
        decoder_width, decoder_depth, decoder_heads: As of `MaskedAutoencoding`.
        mask_ratio: Share of tokens that is dropped.
    """

    def __init__(
        self,
        size: EncoderSize,
        decoder_width: int = 256,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        vit = VisionTransformer(
            img_size=PATCH * ATTENTION_WINDOW,
            patch_size=PATCH,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            num_classes=0,
        )
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.sequence = self.backbone.sequence_length
        self.embed = nn.Linear(size.width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.position = nn.Parameter(torch.zeros(1, self.sequence, decoder_width), False)
        blocks = (Block(decoder_width, decoder_heads, qkv_bias=True) for _ in range(decoder_depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(decoder_width)
        self.predict = nn.Linear(decoder_width, 3 * PATCH**2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> ()."""
        size = (len(images), self.sequence)
        keep, masked = utils.random_token_mask(size, self.mask_ratio, device=images.device)
        encoded = self.embed(self.backbone.encode(images, idx_keep=keep))
        tokens = self.mask_token.to(encoded.dtype).expand(*size, -1)
        tokens = utils.set_at_index(tokens, keep, encoded) + self.position
        decoded = self.norm(self.blocks(tokens))
        predicted = self.predict(utils.get_at_index(decoded, masked))
        patches = utils.patchify(images, PATCH)
        target = utils.normalize_mean_var(utils.get_at_index(patches, masked - 1))
        return nn.functional.mse_loss(predicted.float(), target)
