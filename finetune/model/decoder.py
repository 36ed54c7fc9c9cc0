"""What a decoder is: masks for prompts, made of image embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.model.prompt_encoder import Prompts

Multimask = bool | Literal["always"]
"""Whether prompts are answered by the best of several masks: ambiguous first ones, or all."""
ALWAYS: Multimask = "always"


class Decoded(NamedTuple):
    """Masks predicted for M prompts."""

    low_res: Tensor
    """(M, K, S / 4, S / 4) logits."""
    iou: Tensor | None
    """(M, K) IoU that the model expects of each mask; None if it expects none."""

    def picked(self) -> "Decoded":
        """For each prompt the one mask of which the model expects most, K = 1."""
        if self.low_res.shape[1] == 1:
            return self
        assert self.iou is not None  # whoever gives several masks says which to take
        best = self.iou.argmax(1, keepdim=True)  # (M, 1)
        low_res = self.low_res.take_along_dim(best[..., None, None], 1)
        return Decoded(low_res, self.iou.take_along_dim(best, 1))


class Decoder(ABC):
    """Makes masks of image embeddings.

    It is not a module itself: its parts become parts of the segmenter, under the names that they
    have in a SAM checkpoint where SAM has them. Adding a decoder takes a subclass of this one.

    Attributes:
        parts: Its modules by name.
    """

    takes_prompts: ClassVar[bool] = True
    """Whether clicks and boxes say what is segmented; else the prompt's target alone does."""
    gives_log_odds: bool = True
    """Whether logits are the log odds of a pixel; otherwise only their sign means something."""
    new: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of weights that SAM's checkpoints lack, or have in another shape;
    they start new."""

    parts: dict[str, nn.Module]

    @abstractmethod
    def __init__(self, image_size: int, targets: Sequence[str]) -> None:
        """Draw new weights from the global torch random state.

        Args:
            image_size: S, side of the square input in pixels.
            targets: Names of what the model segments, in the order of `Prompts.target`.
        """

    @abstractmethod
    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool) -> Decoded:
        """Masks for M prompts.

        Args:
            embeddings: (B, 256, S / 16, S / 16).
            prompts: Each for one of the images.
            multimask: K = 3 masks for an ambiguous prompt, where the decoder can; else K = 1.
        """

    def sam_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What it starts from in a SAM checkpoint.

        Args:
            tensors: All of the checkpoint but the image encoder.

        Returns:
            A tensor for each key that it has in the segmenter's state, where the checkpoint is
            whole; None, as by default, for a decoder that has no part of SAM's.
        """
        return None

    def set_adapter(self, build: Callable[[int], Any]) -> None:
        """Set an adapter, made from the decoder's width.

        Raises:
            UserError: This decoder takes none.
        """
        raise UserError(f"model.decoder_adapter: {type(self).__name__} takes no adapter")


class PromptGiver(Protocol):
    """What prompts a decoder: in training, or as a simulated user."""

    gives_prompts: ClassVar[bool]
    """Whether it gives clicks, boxes and the like."""


def require_prompts(decoder: Decoder, option: str, giver: PromptGiver) -> None:
    """Refuse prompts that a decoder does not take, and their absence where it needs some.

    Args:
        option: The option that chose `giver`.

    Raises:
        UserError: Names both.
    """
    if decoder.takes_prompts and not giver.gives_prompts:
        raise UserError(
            f"{option}: {type(giver).__name__} gives no prompts, and decoder"
            f" {type(decoder).__name__} needs some"
        )
    if giver.gives_prompts and not decoder.takes_prompts:
        raise UserError(
            f"{option}: {type(giver).__name__} gives prompts, and decoder {type(decoder).__name__}"
            " takes none; choose TargetsOnly for training and TargetOnly for evaluation"
        )
