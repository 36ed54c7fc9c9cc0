"""The mean of several losses whose graphs need not be in memory together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_one_by_one(
    losses: Callable[[Tensor], Iterable[Tensor]], shared: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """The mean of losses, each differentiated and freed before the next one is computed.

    Value and gradients are those of `torch.stack(list(losses(shared))).mean()`, to rounding, at the
    memory of one loss. The result has a single backward pass, so that whatever waits for gradients
    (DistributedDataParallel, accumulation, clipping) sees nothing of this. How many losses there
    are need not be known before the last one.

    Args:
        losses: From what they share to at least one scalar loss. It computes each when it is asked
            for.
        shared: What all are computed from, such as image embeddings, with or without gradient.
        parameters: What they depend on besides. Those that no loss depends on get no gradient.

    Returns:
        () the mean, in the losses' type.
    """
    if not torch.is_grad_enabled():
        return torch.stack(list(losses(shared))).mean()
    mean: Tensor = _MeanOneByOne.apply(losses, shared, *parameters)
    return mean


class _MeanOneByOne(torch.autograd.Function):
    """Computes gradients while it computes losses, and hands them out in its backward pass."""

    @staticmethod
    def forward(
        context: Any,
        losses: Callable[[Tensor], Iterable[Tensor]],
        shared: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        leaf = shared.detach().requires_grad_(shared.requires_grad)
        inputs = [leaf, *parameters]
        wanted = [place for place, tensor in enumerate(inputs) if tensor.requires_grad]
        sums: list[Tensor | None] = [None] * len(inputs)
        values: list[Tensor] = []
        kind = shared.device.type
        # Each loss casts weights for itself: a cast that autocast kept for the next one would be
        # part of a graph that is freed.
        autocast = torch.is_autocast_enabled(kind)
        with torch.enable_grad(), torch.autocast(kind, enabled=autocast, cache_enabled=False):
            for loss in losses(leaf):
                values.append(loss.detach())
                if not loss.requires_grad:
                    continue
                with torch.autocast(kind, enabled=False):  # a backward pass has its own types
                    found = torch.autograd.grad(
                        loss, [inputs[place] for place in wanted], allow_unused=True
                    )
                for place, gradient in zip(wanted, found, strict=True):
                    # not in place: two gradients may be one tensor
                    before = sums[place]
                    if gradient is not None:
                        sums[place] = gradient if before is None else before + gradient
        context.sums, context.count = sums, len(values)
        return torch.stack(values).mean()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if context.sums is None:
            raise RuntimeError("gradients are handed out once; there is no second time")
        sums, context.sums = context.sums, None
        scale = gradient / context.count
        return None, *(None if each is None else each * scale for each in sums)
