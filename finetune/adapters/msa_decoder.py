"""Adapters of the Medical SAM Adapter in the mask decoder (MSA, arXiv 2304.12620, section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.adapters.msa import Adapter
from finetune.model.mask_decoder import DecoderBlock, DecoderBlockAdapter


class PromptAdapter(Adapter):
    """An `Adapter` that also sees the prompt, down-projected and added before the ReLU."""

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__(width, ratio)
        # The down-projection of the tokens already has a bias.
        self.down_prompt = nn.Linear(width, self.down.out_features, bias=False)

    def forward(self, x: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Tokens and prompt, each (M, T, C) -> (M, T, C), without a residual."""
        inner = self.down(x)
        return self.up(F.relu(inner if prompt is None else inner + self.down_prompt(prompt)))


class MsaDecoderAdapter(DecoderBlockAdapter):
    """The three adapters of a decoder block; MSA sets them in the first block only.

    1. After the cross attention from prompt to image, before its residual: a + Adapter(a, prompt).
    2. Beside the MLP: MLP(x) + scale * Adapter(x).
    3. After the residual of the cross attention from image to prompt: k + Adapter(k), then a norm.

    MSA has a residual and a layer norm follow the third adapter. A further norm would change SAM's
    output before any training, so the block's last norm serves: it is applied once, after the
    adapter, and the adapted decoder starts equal to SAM's.

    Args:
        width: Channels C of the decoder.
        ratio: Width inside an adapter as a share of the decoder's.
        scale: Weight of the adapter beside the MLP.
    """

    def __init__(self, width: int, ratio: float = 0.25, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.after_token_attention = PromptAdapter(width, ratio)
        self.beside_mlp = Adapter(width, ratio)
        self.after_image_attention = Adapter(width, ratio)

    def token_attention(self, block: DecoderBlock, attended: Tensor, prompt: Tensor) -> Tensor:
        """(M, T, C), (M, T, C) -> (M, T, C)."""
        return attended + self.after_token_attention(attended, prompt)

    def mlp(self, block: DecoderBlock, tokens: Tensor) -> Tensor:
        """(M, T, C) -> (M, T, C)."""
        return block.mlp(tokens) + self.scale * self.beside_mlp(tokens)

    def image(self, block: DecoderBlock, image: Tensor) -> Tensor:
        """(M, N, C) -> (M, N, C)."""
        return image + self.after_image_attention(image)
