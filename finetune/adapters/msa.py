"""Adapters of the Medical SAM Adapter in the image encoder (MSA, arXiv 2304.12620, section 3.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoder.block import BlockAdapter, EncoderBlock
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import EncoderSize


class Adapter(nn.Module):
    """Bottleneck of MSA: down-projection, ReLU, up-projection, in that order.

    The up-projection starts at zero, so that an adapted model starts as the model it adapts.

    Args:
        width: Channels C in and out.
        ratio: Share of the width kept inside, above 0; at least one channel is.
    """

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        inner = max(1, round(width * ratio))
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), without a residual."""
        return self.up(F.relu(self.down(x)))


class MsaAdapter(BlockAdapter):
    """The two adapters of an encoder block: after attention, and beside the MLP.

    With a the output of attention and x the normed tokens, the branches added to the residual
    become a + Adapter(a) and MLP(x) + scale * Adapter(x).

    Args:
        size: Size of the encoder.
        ratio: Width inside an adapter as a share of the encoder's.
        scale: Weight of the adapter beside the MLP.
    """

    def __init__(self, size: EncoderSize, ratio: float = 0.25, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.after_attention = Adapter(size.width, ratio)
        self.beside_mlp = Adapter(size.width, ratio)

    def attention(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return self.space(block, self.qkv(block, tokens, groups), groups)

    def space(self, block: EncoderBlock, qkv: Tensor, groups: TokenGroups) -> Tensor:
        """Attention inside each image, adapted: (B, n, 3 C) projected tokens -> (B, n, C)."""
        attended = block.attend(qkv, groups)
        return attended + self.after_attention(attended)

    def mlp(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return block.mlp(tokens) + self.scale * self.beside_mlp(tokens)
