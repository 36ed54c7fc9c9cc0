"""Adapters of the Medical SAM Adapter in the image encoder (MSA, arXiv 2304.12620, section 3.2)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoder.sam import BlockAdapter, EncoderSize
from pretrain.encoder.windows import TokenLayout


class Adapter(nn.Module):
    """Bottleneck of MSA: down-projection, ReLU, up-projection, in that order.

    The up-projection starts at zero, so that an adapted model starts as the model it adapts.

    Args:
        width: channels C in and out.
        ratio: share of the width kept inside, above 0; at least one channel is.
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
        size: of the encoder.
        ratio: width inside an adapter as a share of the encoder's.
        scale: weight of the adapter beside the MLP.
    """

    def __init__(self, size: EncoderSize, ratio: float = 0.25, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = scale
        self.after_attention = Adapter(size.width, ratio)
        self.beside_mlp = Adapter(size.width, ratio)

    def attention(
        self, attention: Callable[[Tensor], Tensor], tokens: Tensor, layout: TokenLayout
    ) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        attended = attention(tokens)
        return attended + self.after_attention(attended)

    def mlp(self, mlp: Callable[[Tensor], Tensor], tokens: Tensor, layout: TokenLayout) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return mlp(tokens) + self.scale * self.beside_mlp(tokens)
