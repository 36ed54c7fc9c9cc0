"""SAM's mask decoder without prompts, with one output for each class (SAMed, arXiv 2304.13785)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.model.decoder import Decoded
from finetune.model.mask_decoder import SamDecoder, build_mask_decoder
from finetune.model.prompt_encoder import Prompts, build_prompt_encoder, encode_prompts


class SamedDecoder(SamDecoder):
    """SAM's decoder with a mask token for each target and one for the background, and no prompts.

    A pixel belongs to one target or to the background, so targets that overlap cannot both be found
    there. In training the loss is that of the softmax over them; in use the largest output says
    which it is.

    As in SAMed, what has a row or a part for each mask (`new`) starts new, and the rest as SAM's.
    """

    takes_prompts = False
    new = (
        "mask_decoder.mask_tokens.",
        "mask_decoder.output_hypernetworks_mlps.",
        "mask_decoder.iou_prediction_head.",
    )

    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        self.gives_log_odds = len(targets) == 1  # against the background alone
        self.prompt_encoder = build_prompt_encoder(image_size)
        self.mask_decoder = build_mask_decoder(masks=len(targets))
        self.parts = {"prompt_encoder": self.prompt_encoder, "mask_decoder": self.mask_decoder}

    def outputs(self, embeddings: Tensor) -> Tensor:
        """(B, 1 + T, S / 4, S / 4) float32 logits of the background and of each target."""
        nothing = Prompts(torch.arange(len(embeddings), device=embeddings.device))
        sparse, dense, position = encode_prompts(self.prompt_encoder, nothing)
        logits, _ = self.mask_decoder.predict_masks(
            image_embeddings=embeddings.new_zeros(1, 1, 1, 1),  # as `SamDecoder.decode` does
            image_pe=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=embeddings + dense,
        )
        return logits.float()

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """One mask, K = 1, for the target of each prompt.

        In training its logits are the log odds of the target's softmax probability. In evaluation
        mode they are what the target's output has over the largest other one, so that they are
        above 0 where it is the largest.
        """
        assert prompts.target is not None  # whoever prompts was checked, see `require_prompts`
        logits = self.outputs(embeddings)[prompts.image]  # (M, 1 + T, h, w)
        asked = (prompts.target + 1)[:, None, None, None]
        own = logits.take_along_dim(asked, 1)  # (M, 1, h, w)
        others = logits.scatter(1, asked.expand_as(own), -torch.inf)
        training = self.mask_decoder.training
        rival = others.logsumexp(1, keepdim=True) if training else others.amax(1, keepdim=True)
        return Decoded(own - rival, None)
