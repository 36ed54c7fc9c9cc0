"""What prompting is: how a batch is prompted in training, round by round."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import Decoded, Multimask
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter


class Truth(NamedTuple):
    """What a round asked for, where that is not all of the batch's masks."""

    masks: Tensor
    """(M, S, S) bool; empty where nothing should be found."""
    image: Tensor
    """(M,) int64: the image in the batch that each is in."""


class Round(NamedTuple):
    """One round of prompts."""

    decoded: Decoded
    """The decoder's output for M masks."""
    trained: bool
    """False for a round that has no gradient and no loss."""
    truth: Truth | None = None
    """The M masks that were asked for; None: those of the batch."""


class Prompting(ABC):
    """Prompts for every mask of a batch, once or in several rounds.

    Attributes:
        previous_mask: Whether each prompt after the first includes the logits of the last
            prediction.
        multimask: Whether a first prompt that may mean several objects, a single click or a box,
            is answered by the best of SAM's three masks; in use it is then the same. `ALWAYS`: so
            is every prompt.
        text_multimask: The same for a text without clicks.
        rough_masks: Whether a rough mask is the first prompt in a share of the steps.
        asks_for_absent: Whether it also asks for what an image does not hold, so that images
            without any target can be trained on.
        every_target: Whether a batch is to have a mask of every target in every image, empty ones
            included, and not only some of those that the image holds.
        steps: Optimiser steps per batch: one for the mean of all rounds or, if more, as many as
            there are rounds, all of them trained, each by a step of its own.
    """

    digest: str | None = None
    """SHA-256 of what prompts are drawn from besides the batch; None for nothing."""
    previous_mask: bool = False
    multimask: Multimask = False
    text_multimask: bool = False
    rough_masks: bool = False
    asks_for_absent: bool = False
    every_target: bool = False
    steps: int = 1
    gives_prompts: ClassVar[bool] = True
    """Whether it gives clicks, boxes and the like: False for decoders that take none."""
    for_stacks: bool = False
    """Whether it prompts in one slice of a stack for its neighbours, too."""

    @property
    def gives_masks(self) -> bool | None:
        """Whether any of its prompts includes the logits of a mask; in use they then do, too.

        None: none does, for want of a prompt after the first. A model that has seen no mask must be
        given none in use, but one that another kind of prompts gives masks to may be.
        """
        return self.previous_mask

    def begin(self, segmenter: Segmenter) -> None:
        """Called once before training, with the model.

        Raises:
            UserError: It cannot prompt this model, or for these targets.
        """
        return

    def posed(self, batch: SegmentationBatch, rng: np.random.Generator) -> SegmentationBatch:
        """The batch with the objects that are asked for as its masks, and `first` set.

        By default it asks for each mask there is. It runs in the loader's workers, while the device
        computes.
        """
        return replace(batch, first=self.prepare(batch, rng))

    def prepare(self, batch: SegmentationBatch, rng: np.random.Generator) -> Any:
        """What `predictions` wants of a batch before any prediction: `batch.first`, see `posed`."""
        return None

    @abstractmethod
    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """Predictions of the batch's masks, at least one of them trained on.

        Args:
            embeddings: (B, 256, h, w) of `Segmenter.encode`.
            batch: Images, and masks that lie inside the valid pixels, as `posed` gave them.
            rng: Source of all randomness.
        """


class TargetsOnly(Prompting):
    """No prompt but the name of the target, for decoders that take no others.

    Every target is asked for in every image: where it is absent, the truth is an empty mask.
    """

    gives_prompts = False
    asks_for_absent = True
    every_target = True

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """One round."""
        prompts = Prompts(batch.image, target=batch.targets)
        yield Round(segmenter.decode(embeddings, prompts), True)
