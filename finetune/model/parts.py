"""What a model is made of, part by part, as a run prints it."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

NEW = "new"
"""Source of weights that were drawn at random."""
PARTS = (
    "image_encoder.neck",
    "image_encoder",
    "prompt_encoder",
    "mask_decoder.transformer.layers.0",
    "mask_decoder.transformer.layers.1",
    "mask_decoder",
    "text_encoder.tower",
)
"""What `describe_parts` tells apart; a parameter belongs to the first part that it starts with, and
adapters to parts named after them."""


class Part(NamedTuple):
    """One row of `describe_parts`."""

    name: str
    parameters: int
    state: str
    """trained, frozen or mixed."""
    source: str
    """Files that the weights came from; "new" where they were drawn at random."""


def describe_parts(model: nn.Module, sources: Mapping[str, str]) -> list[Part]:
    """Parameters of each part, whether they are trained, and where they came from.

    Args:
        sources: The file that each loaded parameter came from.
    """
    members: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        members.setdefault(_part_of(name), []).append((name, parameter))
    parts = []
    for part, parameters in members.items():
        states = {parameter.requires_grad for _, parameter in parameters}
        state = "mixed" if len(states) == 2 else "trained" if states == {True} else "frozen"
        files = dict.fromkeys(sources.get(name, NEW) for name, _ in parameters)
        parts.append(Part(part, sum(p.numel() for _, p in parameters), state, ", ".join(files)))
    return parts


def _part_of(name: str) -> str:
    top = name.split(".")[0]
    if ".adapter." in name:
        return f"{top} adapters"
    return next((part for part in PARTS if name.startswith(f"{part}.")), top)
