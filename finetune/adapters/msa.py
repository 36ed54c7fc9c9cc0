"""Adapters of the Medical SAM Adapter in the image encoder (MSA, arXiv 2304.12620, section 3.2)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from pretrain.encoder.block import BlockAdapter, EncoderBlock
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import EncoderSize

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class Adapter(nn.Module):
    """Bottleneck of MSA: down-projection, ReLU, up-projection, in that order.

    The up-projection starts at zero, so that an adapted model starts as the model it adapts.

    Args:
        width: Channels C in and out.
        ratio: Share of the width kept inside, above 0; at least one channel is.
        activation: Between the projections, one of `ACTIVATIONS`.
        zero_start: False: the up-projection starts as any linear layer.

    Raises:
        UserError: Another activation.
    """

    def __init__(
        self,
        width: int,
        ratio: float = 0.25,
        activation: str = "relu",
        zero_start: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"activation is {activation!r}; there are {', '.join(ACTIVATIONS)}")
        inner = max(1, round(width * ratio))
        self.activation = ACTIVATIONS[activation]
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        if zero_start:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), without a residual."""
        return self.up(self.activation(self.down(x)))


class MsaAdapter(BlockAdapter):
    """The two adapters of an encoder block: after attention, and beside the MLP.

    With a the output of attention and x the normed tokens, the branches added to the residual
    become a + Adapter(a) and MLP(x) + scale * Adapter(x).

    Args:
        size: Size of the encoder.
        ratio: Width inside an adapter as a share of the encoder's.
        scale: Weight of the adapter beside the MLP.
        activation: Inside an adapter: `relu` as in the paper, `gelu` as in its authors' code.
        zero_start: Whether the adapted model starts as the model it adapts. In the authors' code it
            does not: all projections start at random.
    """

    def __init__(
        self,
        size: EncoderSize,
        ratio: float = 0.25,
        scale: float = 0.5,
        activation: str = "relu",
        zero_start: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.after_attention = Adapter(size.width, ratio, activation, zero_start)
        self.beside_mlp = Adapter(size.width, ratio, activation, zero_start)

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
