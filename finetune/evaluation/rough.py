"""A simulated user who has a rough mask, of another program, say, and wants a better one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.evaluation.protocols import Protocol
from finetune.evaluation.tables import AS_GIVEN, ROUGH
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.segmenting import check_kinds
from finetune.model.segmenter import Segmenter
from finetune.prompts.masks import rough_mask


@dataclass(frozen=True)
class RoughMask(Protocol):
    """The truth, distorted, as a mask prompt; beside it what that mask itself is worth."""

    roughness: float = 0.2
    """How rough the mask is: it is shifted, bent, and grown or shrunk by up to about this share of
    the object's radius."""

    def __post_init__(self) -> None:
        if self.roughness < 0:
            raise UserError(f"protocols: RoughMask.roughness {self.roughness} must not be negative")

    def begin(self, segmenter: Segmenter, targets: Sequence[str]) -> None:
        """Refuse a model that has seen no masks."""
        check_kinds(segmenter, target=False, mask=True)

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """Two rows."""
        rough = np.stack([rough_mask(truth, rng, self.roughness) for truth in truths])
        masks, logits = prompted.predict(previous=prompted.mask_prompts(rough))
        better = [
            Answer(mask, logits=logits[place : place + 1], others=1)
            for place, mask in enumerate(masks)
        ]
        return {ROUGH: better, AS_GIVEN: [Answer(mask, others=1, seconds=0) for mask in rough]}
