"""AutoSAM's linear head (arXiv 2306.13731, section 3), and a plain linear probe."""

from collections.abc import Sequence

from torch import nn

from finetune.heads.maps import WIDTH, MapHead, with_relu
from finetune.model.mask_decoder import build_mask_decoder


class LinearHead(MapHead):
    """Two linear layers for each pixel of the embedding, enlarged four times by learned kernels.

    The enlargement is that of SAM's mask decoder: two transposed convolutions of stride 2, to 64
    and 32 channels, with a LayerNorm and GELUs.

    Args:
        upscaling: False: one linear layer on the embedding as it is, whose logits are enlarged
            bilinearly; so no more is learned than which of its directions mean a target.
    """

    def __init__(self, image_size: int, targets: Sequence[str], upscaling: bool = True) -> None:
        if upscaling:
            self.head: nn.Module = nn.Sequential(
                build_mask_decoder().output_upscaling,
                with_relu(nn.Conv2d(WIDTH // 8, WIDTH // 8, 1)),
                nn.Conv2d(WIDTH // 8, len(targets), 1),
            )
        else:
            self.head = nn.Sequential(
                nn.Conv2d(WIDTH, len(targets), 1),
                nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False),
            )
        self.parts = {"head": self.head}
