"""The encoder and its objectives as one module, with as few encoder calls as possible."""

import functools
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain.encoder.flops import TRAINING, blocks_flops, embedding_flops
from pretrain.encoder.sam import SamEncoder
from pretrain.objectives.base import Inputs, Objective, Plan, View
from pretrain.sizes import PATCH


class PretrainModel(nn.Module):
    """Losses of one batch.

    Args:
        encoder: The image encoder.
        objectives: The losses by name.
    """

    def __init__(self, encoder: SamEncoder, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict(objectives)
        self._objectives = dict(objectives)
        # Stage one ends at the tokens: the neck gets no gradient, and stage two trains it.
        self.encoder.neck.requires_grad_(False)

    def forward(
        self, images: Tensor, generator: torch.Generator, groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss of each objective, unweighted.

        Args:
            images: (B, 3, H, W) normalised images.
            generator: Source of all randomness of the step, on the CPU.
            groups: (B,) int64, equal where images show the same patient. None: each shows another.
        """
        embeddings, grid = self.encoder.embed(images)
        plans, views = self._plan(Inputs(images, embeddings, grid, generator, groups))
        encoded = self._encode(views, grid)
        return {
            name: plan.loss([encoded[view] for view in plan.views]) for name, plan in plans.items()
        }

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile no objective waits for other processes, see `Objective.alone`."""
        for objective in self._objectives.values():
            objective.alone = True
        try:
            yield
        finally:
            for objective in self._objectives.values():
                objective.alone = False

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of weight x loss."""
        weighted = [self._objectives[name].weight * loss for name, loss in losses.items()]
        return functools.reduce(operator.add, weighted)

    @torch.no_grad()
    def flops(self, image_size: int) -> float:
        """Floating-point operations of training on one image, what is recomputed not counted.

        Those of the encoder's blocks are counted for each view that the objectives ask for.
        """
        side = image_size // PATCH
        device, size = self.encoder.pos_embed.device, self.encoder.size
        inputs = Inputs(
            torch.zeros(2, 3, image_size, image_size, device=device),
            torch.zeros(2, side**2, size.width, device=device),
            (side, side),
            torch.Generator().manual_seed(0),
        )
        views = self._plan(inputs)[1]
        shares = [view.embeddings.shape[1] / side**2 for view in views]
        heads = sum(objective.flops(side**2) for objective in self._objectives.values())
        blocks = sum(blocks_flops(size, side, share) for share in shares)
        return TRAINING * (embedding_flops(size, side) + blocks + heads)

    def _plan(self, inputs: Inputs) -> tuple[dict[str, Plan], list[View]]:
        """Plan of each objective, and their views, each once, in order."""
        plans = {name: objective.plan(inputs) for name, objective in self._objectives.items()}
        views = {view: None for plan in plans.values() for view in plan.views}
        return plans, list(views)

    def _encode(self, views: list[View], grid: tuple[int, int]) -> dict[View, Tensor]:
        """Encode all views, one encoder call for each number of tokens, dense or kept."""
        groups: dict[tuple[int, bool], list[View]] = {}
        for view in views:
            groups.setdefault((view.embeddings.shape[1], view.keep is None), []).append(view)
        encoded: dict[View, Tensor] = {}
        for group in groups.values():
            kept = [view.keep for view in group if view.keep is not None]
            keep = torch.cat(kept) if kept else None
            tokens = self.encoder.encode(torch.cat([v.embeddings for v in group]), grid, keep)
            sizes = [len(view.embeddings) for view in group]
            encoded |= zip(group, torch.split(tokens, sizes), strict=True)
        return encoded
