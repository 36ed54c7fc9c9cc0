"""Whole networks in the place of SAM's encoder and decoder: what SAM is compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.model.decoder import Decoded, Decoder
from finetune.model.prompt_encoder import Prompts


class Network(nn.Module, ABC):
    """From images to one map of logits for each target, without prompts.

    It stands where SAM's image encoder does, so that an image or a volume is segmented once for all
    of its targets. Adding a network takes a subclass of this one. One that is trained by a loss
    besides that of the masks has `auxiliary_loss`; one that is shown the truth in training has
    `training_maps`; one that takes prompts says so and has `make_decoder`.
    """

    for_stacks: bool = False
    """Whether it looks at neighbouring slices."""
    takes_prompts: ClassVar[bool] = False
    """As that of the decoder that `make_decoder` makes."""

    @abstractmethod
    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        """Draw new weights from the global torch random state.

        Args:
            image_size: S, side of the square input in pixels.
            targets: Names of the T targets, in the order of the maps.
        """
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        """Logits (B, T, S, S); maps that `auxiliary_loss` needs besides may follow those T.

        Args:
            images: (B, 3, S, S), normalised by the mean and deviation that SAM uses; grey images
                have three equal channels before that.
            stacks: Lengths of runs of images that are neighbouring slices of one volume, B in sum;
                empty for images without any.
        """

    def training_maps(
        self, images: Tensor, stacks: Sequence[int], truth: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """What is trained on, in the place of what `forward` gives; by default that.

        Args:
            images: As in `forward`.
            stacks: As in `forward`.
            truth: As in `auxiliary_loss`.
            rng: Source of all randomness; a run that goes on draws what it would have drawn.
        """
        maps: Tensor = self(images, stacks)
        return maps

    def encoder(self) -> nn.Module:
        """The part that may be pretrained, from images (B, 3, S, S) to features (B, C, h, w).

        Its weights are what the option `encoder` names, and are trained on.

        Raises:
            UserError: The network has no such part.
        """
        name = type(self).__name__
        raise UserError(f"encoder: {name} is a whole network without SAM; leave it out")

    def auxiliary_loss(self, maps: Tensor, truth: Tensor, valid: Tensor) -> Tensor | None:
        """A loss that is added to that of the masks; None, as by default, for none.

        Args:
            maps: (B, T or more, S, S), what `forward` gave.
            truth: (B, T, S, S) bool masks; empty where a target is absent or is not asked for.
            valid: (B, S, S) bool, False on padding.

        Returns:
            A scalar.
        """
        return None

    def make_decoder(self, image_size: int, targets: Sequence[str]) -> Decoder:
        """What makes masks of what `forward` gives: by default each target's own map is taken."""
        return Maps(image_size, targets)


def require_positive(**sizes: int) -> None:
    """Refuse sizes of a network that are not positive, given by the names of its options.

    Raises:
        UserError: One is 0 or negative.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.network.{name} is {size}; it must be at least 1")


class Maps(Decoder):
    """Picks the map of each prompt's target out of those that a network gives."""

    takes_prompts = False

    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        self.parts = {}

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """`pick_maps`, the embeddings being maps (B, T, S, S)."""
        return pick_maps(embeddings, prompts)


def pick_maps(maps: Tensor, prompts: Prompts) -> Decoded:
    """The map of each prompt's target in its image; no IoU is expected of it.

    Args:
        maps: (B, T, h, w) logits.
        prompts: M targets.
    """
    assert prompts.target is not None  # see `require_prompts`
    return Decoded(maps[prompts.image, prompts.target][:, None].float(), None)
