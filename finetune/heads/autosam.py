"""AutoSAM's head: SAM's mask decoder without its prompt encoder (arXiv 2306.13731, section 3)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from finetune.model.decoder import Decoded, Decoder
from finetune.model.mask_decoder import DECODER_WIDTH, build_mask_decoder
from finetune.model.prompt_encoder import Prompts
from pretrain.encoder.stock import PositionEmbeddingRandom

PART = "mask_decoder"
POSITIONS = "pe_layer.positional_encoding_gaussian_matrix"
MASK_TOKENS = 2
"""Per target, as in the published code; the mask is that of the first."""
NOT_TAKEN = (
    f"{PART}.iou_token.",
    f"{PART}.mask_tokens.",
    f"{PART}.iou_prediction_head.",
    *(f"{PART}.output_hypernetworks_mlps.{n}." for n in "123"),
)
"""SAM's output tokens, and what it needs for several masks of one prompt and to choose among
them."""


class ClassDecoder(nn.Module):
    """SAM's mask decoder whose output tokens differ from target to target.

    SAM's decoder reads output tokens, one for the expected IoU and the others for masks, and those
    of the prompt. The latter are left out. The former, the paper's auxiliary embeddings, exist once
    for each target; all else is shared. They start at random: from equal ones all targets would
    have one mask at first, and hundreds of steps would go by before they part.

    Args:
        targets: T, the number of targets.
    """

    def __init__(self, targets: int) -> None:
        super().__init__()
        sam = build_mask_decoder()
        self.transformer, self.output_upscaling = sam.transformer, sam.output_upscaling
        self.output_hypernetworks_mlps = sam.output_hypernetworks_mlps[:1]
        self.pe_layer = PositionEmbeddingRandom(DECODER_WIDTH // 2)
        self.auxiliary = nn.Parameter(torch.randn(targets, 1 + MASK_TOKENS, DECODER_WIDTH))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """Masks of one target each.

        Args:
            embeddings: (M, 256, h, w), the image of each, repeated where it is asked several times.
            target: (M,) int64.

        Returns:
            (M, 1, 4 h, 4 w) logits.
        """
        size = embeddings.shape[-2:]
        with torch.autocast(embeddings.device.type, enabled=False):  # as SAM's, see encode_prompts
            position = self.pe_layer(size)[None]  # (1, C, h, w)
        tokens, image = self.transformer(
            embeddings, position.expand_as(embeddings), self.auxiliary[target]
        )
        pixels = self.output_upscaling(image.mT.unflatten(2, size))  # (M, C / 8, 4 h, 4 w)
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])  # (M, C / 8)
        return torch.einsum("mc,mchw->mhw", weights, pixels)[:, None]


class AutoSam(Decoder):
    """One mask for each target, by SAM's mask decoder with output tokens of the target's own.

    It starts from SAM's decoder where a SAM checkpoint is given, but for the tokens, which start
    new and are trained in any case; the rest only if `model.trained` names it.
    """

    takes_prompts = False
    new = (f"{PART}.auxiliary",)

    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        self.mask_decoder = ClassDecoder(len(targets))
        self.parts = {PART: self.mask_decoder}

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """One mask for each prompt's target; no IoU is expected of it."""
        assert prompts.target is not None  # see `require_prompts`
        repeated = embeddings.index_select(0, prompts.image)
        return Decoded(self.mask_decoder(repeated, prompts.target).float(), None)

    def sam_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """SAM's decoder but for its output tokens, and its position encoding."""
        taken = {
            key: tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{PART}.") and not key.startswith(NOT_TAKEN)
        }
        if (positions := tensors.get(f"prompt_encoder.{POSITIONS}")) is not None:
            taken[f"{PART}.{POSITIONS}"] = positions
        return taken
