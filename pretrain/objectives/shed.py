"""Shuffled embedding detection (ShED; DABS, arXiv 2111.12062): which tokens were moved?"""

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pretrain.encoder.sam import SamEncoder
from pretrain.objectives.base import Inputs, Objective, Plan, View
from pretrain.objectives.pictures import draw_moved


class ShED(Objective):
    """Some patch embeddings of an image are exchanged; each token is asked whether it was moved.

    Args:
        width: Token width of the encoder.
        weight: Factor of this loss in the sum.
        keep_ratio: Share of tokens that the encoder sees; 1 is the paper's form.
        moved: Share of the tokens that are exchanged.
    """

    def __init__(
        self, width: int, weight: float = 1.0, keep_ratio: float = 0.25, moved: float = 0.15
    ) -> None:
        super().__init__(weight, keep_ratio)
        if not 0 < moved <= 1:
            raise ValueError(f"moved is {moved}; expected a share in (0, 1]")
        self.moved = moved
        self.classify = nn.Linear(width, 2)

    def shuffle(self, inputs: Inputs) -> tuple[View, Tensor]:
        """A view with moved contents, and which tokens (B, n) have them: int64, 1 where moved."""
        clean = inputs.clean(self.keep_ratio)
        batch, n, width = clean.embeddings.shape
        if n < 2:
            raise ValueError(f"ShED needs at least 2 tokens to exchange, keep_ratio leaves {n}")
        device = clean.embeddings.device
        count = max(2, math.ceil(self.moved * n))
        noise = torch.rand(batch, n, generator=inputs.generator)
        chosen = noise.argsort(dim=1)[:, :count]
        chosen = chosen.to(device, non_blocking=True)  # (B, count)
        index = chosen[..., None].expand(-1, -1, width)
        # Rotated by one among themselves, so that each of them moves.
        contents = clean.embeddings.gather(1, index).roll(1, dims=1)
        shuffled = clean.embeddings.scatter(1, index, contents)
        is_moved = torch.zeros(batch, n, dtype=torch.long, device=device).scatter_(1, chosen, 1)
        return View(shuffled, clean.keep), is_moved

    def plan(self, inputs: Inputs) -> Plan:
        """One view with moved contents; cross entropy over all its tokens."""
        view, is_moved = self.shuffle(inputs)

        def loss(encoded: Sequence[Tensor]) -> Tensor:
            logits = self.classify(encoded[0]).float()  # (B, n, 2)
            return nn.functional.cross_entropy(logits.flatten(0, 1), is_moved.flatten())

        return Plan([view], loss)

    def draw(self, encoder: SamEncoder, images: Tensor) -> dict[str, Figure]:
        """Which tokens are taken for moved, and which were."""
        return {"moved_tokens": draw_moved(encoder, self, images)}
