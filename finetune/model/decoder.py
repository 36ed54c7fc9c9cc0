"""What a decoder is: masks for prompts, made of image embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.model.prompt_encoder import Prompts


class Decoded(NamedTuple):
    """Masks predicted for M prompts."""

    low_res: Tensor
    """(M, K, S / 4, S / 4) logits."""
    iou: Tensor | None
    """(M, K) IoU that the model expects of each mask; None if it expects none."""


class Decoder(ABC):
    """Makes masks of image embeddings.

    It is not a module itself: its parts become parts of the segmenter, under the names that they
    have in a SAM checkpoint where SAM has them. Adding a decoder takes a subclass of this one.

    Attributes:
        parts: Its modules by name.
    """

    takes_prompts: ClassVar[bool] = True
    """Whether clicks and boxes say what is segmented; else the prompt's target alone does."""

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

    def set_adapter(self, build: Callable[[int], Any]) -> None:
        """Set an adapter, made from the decoder's width.

        Raises:
            UserError: This decoder takes none.
        """
        raise UserError(f"model.decoder_adapter: {type(self).__name__} takes no adapter")
