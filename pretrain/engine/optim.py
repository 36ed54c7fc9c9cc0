"""AdamW, its parameter groups, and the learning rate as a pure function of the step."""

import numpy as np
import torch
from lightly.utils.scheduler import cosine_warmup_schedule
from torch import nn

from data_prep.common.errors import UserError
from pretrain.engine.run_options import OptimConfig, Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then a cosine to 0."""
    return cosine_warmup_schedule(
        step,
        max_steps=schedule.steps + 1,  # the last step still moves
        start_value=schedule.peak,
        end_value=0.0,
        warmup_steps=schedule.warmup_steps,
        warmup_start_value=0.0,
    )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters, grouped by weight decay and by depth.

    Each group carries `scale`, its factor of the learning rate.
    """
    blocks = [_block_of(name) for name, _ in model.named_parameters()]
    depth = 1 + max((block for block in blocks if block is not None), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w", "rel_pos_d"))
        decay = 0.0 if parameter.ndim <= 1 or is_table else config.weight_decay
        groups.setdefault((decay, layer_scale(name, depth, config.layer_decay)), []).append(
            parameter
        )
    if not groups:
        raise UserError("nothing is trained: every weight was loaded and is frozen (model.trained)")
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=0.0,  # set before each step
        betas=config.betas,
        fused=True,  # the kernels that can skip a step without a look at `found_inf`
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Seed of one forward pass, so that a resumed run draws what it would have drawn."""
    return int(
        np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> 1
    )


def layer_scale(name: str, depth: int, layer_decay: float | None) -> float:
    """Factor of the learning rate of a parameter (BEiT's layer-wise decay).

    Args:
        name: Name in `model.named_parameters()`.
        depth: Number of encoder blocks.
        layer_decay: Factor from each block to the one below; None for 1.

    Returns:
        1 for heads, decay for the top block, decay ** (depth + 1) for embeddings.
    """
    if layer_decay is None:
        return 1.0
    block = _block_of(name)
    if block is not None:
        return layer_decay ** (depth - block)
    return layer_decay ** (depth + 1) if ".patch_embed." in name or "pos_embed" in name else 1.0


def _block_of(name: str) -> int | None:
    """Index of the image encoder's block that a parameter belongs to, or None."""
    parts = name.split(".")
    for owner, part, index in zip(parts, parts[1:], parts[2:], strict=False):
        if owner.endswith("encoder") and part == "blocks":
            return int(index)
    return None
