"""SAM's mask decoder, with room for an adapter in each block of its transformer."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from finetune.model.decoder import Decoded, Decoder
from finetune.model.prompt_encoder import Prompts, build_prompt_encoder, encode_prompts
from pretrain.encoder.stock import Attention, MaskDecoder, TwoWayAttentionBlock, TwoWayTransformer

DECODER_WIDTH = 256
DECODER_DEPTH = 2
DECODER_HEADS = 8
DECODER_MLP = 2048
CLICK_GAIN = 1.5
"""Scale of a new decoder's query and key projections.

With it a click attends to its own position with logit 4.5.
"""
ALTERNATIVES = 3
"""Masks that SAM gives for an ambiguous prompt."""


class DecoderBlockAdapter(nn.Module):
    """What an adapter may change in a decoder block; this base changes nothing.

    Set as `block.adapter`; each hook gets the block. C is the decoder's width, T the number of
    tokens (SAM's output tokens, then those of the prompt), N = h * w the number of pixels of the
    image embedding.
    """

    def token_attention(self, block: "DecoderBlock", attended: Tensor, prompt: Tensor) -> Tensor:
        """What the tokens took from the image, before its residual.

        Args:
            attended: (M, T, C), output of the cross attention from tokens to image.
            prompt: (M, T, C), the tokens as they entered the decoder.
        """
        return attended

    def mlp(self, block: "DecoderBlock", tokens: Tensor) -> Tensor:
        """The MLP branch (M, T, C), before its residual."""
        return block.mlp(tokens)

    def image(self, block: "DecoderBlock", image: Tensor) -> Tensor:
        """Image embedding (M, N, C) after it attended to the tokens, between residual and norm."""
        return image


class DecoderBlock(TwoWayAttentionBlock):
    """segment_anything's two-way block, with room for an adapter."""

    def __init__(self, first: bool) -> None:
        super().__init__(
            embedding_dim=DECODER_WIDTH,
            num_heads=DECODER_HEADS,
            mlp_dim=DECODER_MLP,
            activation=nn.ReLU,
            skip_first_layer_pe=first,
        )
        self.adapter: DecoderBlockAdapter | None = None

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (M, T, C) and image embedding (M, N, C) -> the same shapes.

        `query_pe` are the tokens as they entered the decoder, `key_pe` the positions of the image.
        """
        adapter = self.adapter or _NO_ADAPTER
        if self.skip_first_layer_pe:  # the queries still are `query_pe`
            queries = self.norm1(self.self_attn(q=queries, k=queries, v=queries))
        else:
            placed = queries + query_pe
            queries = self.norm1(queries + self.self_attn(q=placed, k=placed, v=queries))

        placed_keys = keys + key_pe
        attended = self.cross_attn_token_to_image(q=queries + query_pe, k=placed_keys, v=keys)
        queries = self.norm2(queries + adapter.token_attention(self, attended, query_pe))
        queries = self.norm3(queries + adapter.mlp(self, queries))

        attended = self.cross_attn_image_to_token(q=placed_keys, k=queries + query_pe, v=queries)
        return queries, self.norm4(adapter.image(self, keys + attended))


_NO_ADAPTER = DecoderBlockAdapter()


def build_mask_decoder(masks: int = ALTERNATIVES) -> MaskDecoder:
    """SAM's mask decoder; its state dict is the `mask_decoder.*` part of a SAM checkpoint.

    Without SAM's weights it starts ready to read clicks: in attention between prompt and image
    queries and keys are projected alike, so a click attends to the pixels around it, as equal
    Fourier features are the most similar; and what is read returns to the space it came from. From
    independent projections the same is learned in some hundred steps more.

    Args:
        masks: Masks beside the first one; a SAM checkpoint has `ALTERNATIVES`.
    """
    transformer = TwoWayTransformer(
        depth=0, embedding_dim=DECODER_WIDTH, num_heads=DECODER_HEADS, mlp_dim=DECODER_MLP
    )
    transformer.depth = DECODER_DEPTH
    transformer.layers = nn.ModuleList(DecoderBlock(first=i == 0) for i in range(DECODER_DEPTH))
    for name, module in transformer.named_modules():
        if isinstance(module, Attention):
            _initialise(module, across=not name.endswith("self_attn"))
    return MaskDecoder(
        transformer_dim=DECODER_WIDTH, transformer=transformer, num_multimask_outputs=masks
    )


@torch.no_grad()
def _initialise(attention: Attention, across: bool) -> None:
    """Orthogonal values and their transpose behind them; across, queries and keys alike."""
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.out_proj.weight.copy_(attention.v_proj.weight.T)
    parts = [attention.v_proj, attention.out_proj]
    if across:
        nn.init.orthogonal_(attention.q_proj.weight, gain=CLICK_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        parts += [attention.q_proj, attention.k_proj]
    for part in parts:
        nn.init.zeros_(part.bias)


class SamDecoder(Decoder):
    """SAM's prompt encoder and mask decoder: one mask, or three, for each prompt."""

    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        self.prompt_encoder = build_prompt_encoder(image_size)
        self.mask_decoder = build_mask_decoder()
        self.parts = {"prompt_encoder": self.prompt_encoder, "mask_decoder": self.mask_decoder}

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """Masks equal to SAM's run image by image; K is 3 with `multimask`, else 1."""
        sparse, dense, position = encode_prompts(self.prompt_encoder, prompts)
        # The stock decoder repeats one image embedding for all prompts and adds the dense prompts
        # to it. Handing it the sums as dense prompts, over a zero, lets each prompt have its image.
        low_res, iou = self.mask_decoder(
            image_embeddings=embeddings.new_zeros(1, 1, 1, 1),
            image_pe=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=embeddings.index_select(0, prompts.image) + dense,
            multimask_output=multimask,
        )
        return Decoded(low_res.float(), iou.float())

    def sam_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of it but what is new, under the names that it has there."""
        return {key: value for key, value in tensors.items() if not key.startswith(self.new)}

    def set_adapter(self, build: Callable[[int], DecoderBlockAdapter]) -> None:
        """Set an adapter in the first block."""
        self.mask_decoder.transformer.layers[0].adapter = build(DECODER_WIDTH)
