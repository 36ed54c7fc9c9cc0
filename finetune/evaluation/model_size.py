"""How large the model is that was evaluated, and what it ran on."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.common.files import write_json
from data_prep.common.results import processor
from finetune.evaluation.details import MODEL


def write_model(folder: Path, model: nn.Module, trained: bool) -> None:
    """Write how many parameters a model has, and what it ran on.

    Args:
        trained: Whether any were trained: not in SAM as it is.
    """
    sizes = {p: p.numel() for p in model.parameters()}
    device = next(iter(sizes)).device
    cuda = device.type == "cuda"
    values: dict[str, Any] = {
        "parameters": sum(sizes.values()),
        "trained_parameters": sum(n for p, n in sizes.items() if p.requires_grad and trained),
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / MODEL, values)
