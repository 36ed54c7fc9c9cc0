"""What an objective asks of the encoder, and what it makes of the answer.

An objective looks at a batch and returns a plan: the token sequences that it wants encoded, and a
function from the encoded sequences to its loss. Sequences of all objectives that have the same
number of tokens share one encoder call, and a clean sequence that two objectives ask for is encoded
once (see `together.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pretrain.encoder.sam import SamEncoder, take
from pretrain.encoder.windows import balanced_keep, kept_of_window
from pretrain.sizes import ATTENTION_WINDOW


@dataclass(frozen=True, eq=False)
class View:
    """A token sequence to be encoded.

    Attributes:
        embeddings: (B, n, C) patch embeddings before position.
        keep: (B, n) row-major token indices on the CPU; None for all tokens in order.
    """

    embeddings: Tensor
    keep: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Sequences to encode, and the loss of their (B, n, C) encodings, in the same order."""

    views: Sequence[View]
    loss: Callable[[Sequence[Tensor]], Tensor]


class Inputs:
    """A batch as the objectives see it.

    Args:
        images: (B, 3, H, W) normalised images.
        embeddings: (B, N, C) their patch embeddings, before position.
        grid: (height, width) in tokens.
        generator: The only source of randomness, on the CPU.
        groups: (B,) int64, equal where images show the same patient. None: each shows another.
    """

    def __init__(
        self,
        images: Tensor,
        embeddings: Tensor,
        grid: tuple[int, int],
        generator: torch.Generator,
        groups: Tensor | None = None,
    ) -> None:
        self.images, self.embeddings, self.grid = images, embeddings, grid
        self.generator, self.groups = generator, groups
        self._clean: dict[float, View] = {}

    def clean(self, keep_ratio: float) -> View:
        """The uncorrupted images, on one random subset of tokens for all who ask for this ratio."""
        if keep_ratio not in self._clean:
            self._clean[keep_ratio] = self._draw(keep_ratio)
        return self._clean[keep_ratio]

    def _draw(self, keep_ratio: float) -> View:
        keep = self.draw_keep(keep_ratio)
        if keep is None:
            return View(self.embeddings, None)
        index = keep.to(self.embeddings.device, non_blocking=True)
        return View(take(self.embeddings, index), keep)

    def draw_keep(self, keep_ratio: float) -> Tensor | None:
        """Another random subset of tokens for each image: `View.keep`."""
        if keep_ratio == 1.0:
            return None
        batch = len(self.embeddings)
        return balanced_keep(batch, self.grid, ATTENTION_WINDOW, keep_ratio, self.generator)


def inputs_of(encoder: SamEncoder, images: Tensor, seed: int = 0) -> Inputs:
    """Images (B, 3, S, S), normalised, as the objectives see them."""
    embeddings, grid = encoder.embed(images)
    return Inputs(images, embeddings, grid, torch.Generator().manual_seed(seed))


class Objective(nn.Module, ABC):
    """A self-supervised loss with its heads.

    Args:
        weight: Factor of this loss in the sum.
        keep_ratio: Share of tokens that the encoder sees, in (0, 1].

    Attributes:
        alone: A pass must not wait for other processes: it is a trial, looks for a faulty record,
            or judges images that each process has for itself.

    Raises:
        ValueError: A share outside, or one that keeps no token or, but for 1, every token.
    """

    alone = False

    def __init__(self, weight: float, keep_ratio: float) -> None:
        super().__init__()
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio is {keep_ratio}; expected a share in (0, 1]")
        kept_of_window(keep_ratio, ATTENTION_WINDOW)
        self.weight, self.keep_ratio = weight, keep_ratio

    def contrasted(self, per_pass: int, processes: int) -> int:
        """Images that are compared with each other; 0 if each is scored by itself.

        A run that goes on must have as many, however its batch is divided then.

        Args:
            per_pass: Images of one forward pass in one process.
        """
        return 0

    @abstractmethod
    def plan(self, inputs: Inputs) -> Plan:
        """What to encode and how to score it."""

    def flops(self, tokens: int) -> float:
        """Floating-point operations of its heads in the forward pass of one image.

        Only what is large beside rounding is counted: 0 for a single linear layer.

        Args:
            tokens: Patches of the image, kept or not.
        """
        return 0.0

    def draw(self, encoder: SamEncoder, images: Tensor) -> dict[str, Figure]:
        """Pictures of what was learned, by file name; none by default.

        Args:
            images: (B, 3, S, S) normalised, on the encoder's device.
        """
        return {}
