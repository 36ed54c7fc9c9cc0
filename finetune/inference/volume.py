"""A volume as slices that are encoded when they are needed, and a mask carried through it."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.inference.clock import Clock
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.stacks import encode_around
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import box_of

KEEP_BYTES = 2**30
"""Embeddings of slices kept in memory; one takes 0.2 MB at 224 pixels and 4 MB at 1024."""


class PromptedVolume:
    """The slices of a volume, each encoded when it is first asked for, with its neighbours where
    the model was trained so.

    Args:
        segmenter: The model, in evaluation mode.
        depth: Number of slices.
        read: Gives the pixels of a slice, as `PromptedImage` takes them.
        keep_bytes: Limit of the embeddings kept; those not used for longest are dropped.

    Attributes:
        clock: Counts the seconds of `predict` and `segment_several` in any slice.
        encoding: Seconds that the encoding of each slice took; one of a stack has its share.
        used: Slices that were asked for; whoever wants to know which were since then clears it.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        depth: int,
        read: Callable[[int], NDArray[Any]],
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._segmenter, self._depth, self._read = segmenter, depth, read
        self._limit = keep_bytes
        self._kept: OrderedDict[int, PromptedImage] = OrderedDict()
        self.clock = Clock(next(segmenter.parameters()).device)
        self.encoding: dict[int, float] = {}
        self.used: set[int] = set()

    def __len__(self) -> int:
        return self._depth

    def __getitem__(self, depth: int) -> PromptedImage:
        if not 0 <= depth < self._depth:
            raise IndexError(f"slice {depth} of {self._depth}")
        self.used.add(depth)
        if depth not in self._kept:
            encoding = Clock(self.clock.device)
            with encoding.running():
                encoded = encode_around(self._segmenter, self._read, depth, self._depth)
            for place, prompted in encoded.items():
                prompted.clock = self.clock
                self.encoding[place] = encoding.seconds / len(encoded)
            self._kept |= encoded
            size = self._kept[depth].embedding.nbytes
            while len(self._kept) > len(encoded) and len(self._kept) * size > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(depth)
        return self._kept[depth]


def propagate(
    volume: PromptedVolume, start: int, mask: NDArray[np.bool_], logits: Tensor
) -> NDArray[np.bool_]:
    """Carry the mask of one slice to both ends of a volume: see `carry_through`.

    Args:
        start: The slice in which `mask` (H, W) was predicted.
        logits: (1, 1, S / 4, S / 4), of that prediction.

    Returns:
        (D, H, W).
    """
    return carry_through(volume, {start: Answer(mask, logits=logits)})


def carry_through(volume: PromptedVolume, answers: Mapping[int, Answer]) -> NDArray[np.bool_]:
    """The masks (D, H, W) of some slices and of those that they are carried to: see `carried`."""
    size = next(iter(answers.values())).mask.shape
    found = np.zeros((len(volume), *size), dtype=bool)
    for depth, answer in carried(volume, answers):
        found[depth] = answer.mask
    return found


def carried(volume: PromptedVolume, answers: Mapping[int, Answer]) -> Iterator[tuple[int, Answer]]:
    """Carry the masks of some slices to all others, to each from the nearest of them.

    From each it goes on slice by slice, half-way to the next prompted one or to the end of the
    volume, until nothing is left of it. Each next slice is prompted with the box of the last
    slice's mask and, where the model was trained so, with its logits. What no longer overlaps the
    slice before counts as nothing left.

    Args:
        answers: What was predicted, with its logits, by slice; at least one.

    Returns:
        These, and the answers in the slices where something is left, with their probabilities if
        those that they come from have them.
    """
    starts = sorted(answers)
    borders = [0, *((low + high) // 2 + 1 for low, high in pairwise(starts)), len(volume)]
    for start, (first, end) in zip(starts, pairwise(borders), strict=True):
        answer = answers[start]
        assert answer.logits is not None
        yield start, answer
        for slices in (range(start + 1, end), range(start - 1, first - 1, -1)):
            last, previous = answer.mask, answer.logits
            for depth in slices:
                box = box_of(last)
                if box is None:
                    break
                prompted = volume[depth]
                known = previous if prompted.segmenter.previous_mask else None
                masks, previous = prompted.predict(boxes=box[None], previous=known)
                if not (masks[0] & last).any():
                    break
                last = masks[0]
                sure = None if answer.probability is None else prompted.averaged(previous)[1]
                yield depth, Answer(last, logits=previous, probability=sure)
