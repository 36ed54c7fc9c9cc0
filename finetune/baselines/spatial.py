"""What networks of images or volumes have in common: their two forms, and sides that divide."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from data_prep.common.errors import UserError
from finetune.model.network import Network


class SpatialNetwork(Network):
    """A network that sees each image by itself or, as `volumes`, each stack as a volume.

    The sides of an image, and the depth of a stack, are extended to a multiple of `divisor` by
    repeating what lies at the edge, and the maps are cut back. So a slice that is alone is a volume
    whose slices are all the same.

    Args:
        volumes: Whether it takes stacks of neighbouring slices, by convolutions over three
            dimensions.

    Attributes:
        network: (B, 3, *sides) -> (B, T, *sides) logits for sides that `divisor` divides, where
            sides are (S, S) or (D, S, S).
    """

    divisor: ClassVar[int]
    """Each side is halved until it is this many times smaller."""

    network: nn.Module

    def __init__(self, image_size: int, targets: Sequence[str], volumes: bool = False) -> None:
        super().__init__(image_size, targets)
        self.for_stacks = volumes
        self.dimensions = 3 if volumes else 2
        if image_size <= self.divisor:  # a single pixel at the bottom cannot be normalised
            name = type(self).__name__
            least = 2 * self.divisor
            raise UserError(f"model.image_size is {image_size}; {name} needs at least {least}")

    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Logits (B, T, S, S) of images (B, 3, S, S), see `Network.forward`."""
        if not self.for_stacks:
            return self.extended(images)
        with whole_precision(images.device):
            lengths = list(stacks) or [1] * len(images)
            if len(set(lengths)) == 1:
                volumes = images.unflatten(0, (-1, lengths[0]))  # (V, D, 3, S, S)
                return self.extended(volumes.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
            parts = [
                part.transpose(0, 1)[None] for part in images.split(lengths)
            ]  # (1, 3, D, S, S)
            return torch.cat([self.extended(part)[0].transpose(0, 1) for part in parts])

    def extended(self, pixels: Tensor) -> Tensor:
        """Logits (B, T, *sides) of pixels (B, 3, *sides) with any sides."""
        sides = pixels.shape[2:]
        missing: list[int] = []  # the last side first, as `pad` takes them
        for side, needed in zip(reversed(sides), reversed(self.sides(sides)), strict=True):
            missing += [0, needed - side]
        logits: Tensor = self.network(pad(pixels, missing, mode="replicate"))
        for axis, side in enumerate(sides, start=2):
            logits = logits.narrow(axis, 0, side)
        return logits

    def sides(self, given: Sequence[int]) -> list[int]:
        """Sides to which an image or a volume is extended."""
        return [side + -side % self.divisor for side in given]


def whole_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Inside it, three-dimensional convolutions run in float32 on a CPU, whatever the precision.

    In bf16, PyTorch 2.15 leaves parts of the gradient of their weights unset where a volume has
    two slices, as it may have at the bottom of these networks.
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()


def import_monai() -> ModuleType:
    """`monai.networks.nets`, whose import takes seconds.

    Raises:
        UserError: MONAI is not installed, or einops, without which its transformers do not run.
    """
    try:
        import einops  # noqa: F401
        from monai.networks import nets
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(
            f"model.network: this network needs {package}, which is not installed; run"
            " `pip install 'samaritan[baselines]'`"
        ) from None
    return nets
