"""Adapter of SAM-Med2D in the image encoder (Cheng et al. 2023, arXiv 2308.16184)."""

from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.common.errors import UserError
from pretrain.encoder.block import BlockAdapter, EncoderBlock
from pretrain.encoder.windows import TokenGroups
from pretrain.sizes import EncoderSize

Place = Literal["mlp", "attention"]


class Doubling(nn.Module):
    """A transposed convolution of kernel 4, stride 2 and padding 1, without a bias.

    Each pixel that it makes depends on the four that lie nearest to it, and which of the kernel's
    weights these meet depends on whether its row and its column are even or odd. So it is four
    matrix products, which CPUs do up to three times as fast as a library's transposed convolution.

    Args:
        width: Channels C in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4 * width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, 2 h, 2 w, C)."""
        _, height, width, _ = x.shape
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        made = []
        for part, (row, column) in zip(self.parts, product((0, 1), (0, 1)), strict=True):
            near = [
                padded[:, top : top + height, left : left + width]
                for top in (row, row + 1)
                for left in (column, column + 1)
            ]
            made.append(part(torch.cat(near, -1)))  # (B, h, w, C), of this row and column in 2 x 2
        pixels = torch.stack(made, 3).unflatten(3, (2, 2))  # (B, h, w, 2, 2, C)
        return pixels.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SamMed2dAdapter(BlockAdapter):
    """Weighs channels by what the whole image holds, then mixes neighbouring tokens.

    With x the tokens of an image on their grid:

        gate(x)    = sigmoid(W2 relu(W1 mean(x))), one weight per channel
        spatial(x) = relu(up(relu(down(gate(x) * x))))
        adapter(x) = norm(x + spatial(x))

    where `down` is a 3 x 3 convolution of stride 2, and `up` a 4 x 4 transposed one back. As in the
    published code, adapter(x) is added beside the MLP, with the MLP's normed input as x. The norm
    starts with gain 0, and not 1, so that an adapted model starts as the model that it adapts.

    Args:
        size: Size of the encoder.
        ratio: Channels between W1 and W2 as a share of the encoder's width, above 0.
        place: `mlp`, or `attention`: added to the output of attention, with that as x.

    Raises:
        UserError: A ratio or a place that is none.
    """

    def __init__(self, size: EncoderSize, ratio: float = 0.25, place: Place = "mlp") -> None:
        super().__init__()
        if ratio <= 0:
            raise UserError(f"SamMed2dAdapter.ratio is {ratio}; it must be above 0")
        if place not in get_args(Place):
            raise UserError(f"SamMed2dAdapter.place is {place!r}; choose mlp or attention")
        width, inner = size.width, max(1, round(size.width * ratio))
        self.place = place
        self.squeeze = nn.Linear(width, inner, bias=False)
        self.excite = nn.Linear(inner, width, bias=False)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)
        self.up = Doubling(width)
        for weight in (*self.down.parameters(), *self.up.parameters()):
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        self.norm = nn.LayerNorm(width)
        # Were the last weights before the ReLU zero, none would ever have a gradient.
        nn.init.zeros_(self.norm.weight)

    def attention(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        attended = block.attention(tokens, groups)
        return attended + self.adapt(attended, groups) if self.place == "attention" else attended

    def mlp(self, block: EncoderBlock, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        branch = block.mlp(tokens)
        return branch + self.adapt(tokens, groups) if self.place == "mlp" else branch

    def adapt(self, tokens: Tensor, groups: TokenGroups) -> Tensor:
        """What is added to the block, (B, n, C) -> (B, n, C).

        Raises:
            ValueError: Tokens were dropped, so that some have no neighbours.
        """
        if groups.order is not None:
            raise ValueError("SamMed2dAdapter needs all tokens of an image; leave out keep")
        height, width = groups.grid
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(tokens.mean(1, keepdim=True)))))
        grid = (gate * tokens).mT.unflatten(2, groups.grid).contiguous()  # (B, C, h, w)
        coarse = F.relu(self.down(grid)).permute(0, 2, 3, 1)  # (B, h / 2, w / 2, C)
        spatial = F.relu(self.up(coarse))[:, :height, :width]  # odd sides come back one longer
        return self.norm(tokens + spatial.flatten(1, 2))
