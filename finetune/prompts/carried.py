"""Prompts in one slice of a stack, and the mask carried from there to its neighbours, as in use."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import Decoded
from finetune.model.losses import mask_iou
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from finetune.prompts.boxes import boxes_of
from finetune.prompts.prompting import Round, Truth
from finetune.prompts.simulate import ClicksAndBoxes, First


@dataclass(frozen=True)
class Carried(ClicksAndBoxes):
    """Clicks and boxes in one slice of each stack, then prompts made of predictions.

    Of the slices of a stack that hold an object one is drawn, and prompted there in all rounds. The
    last prediction is carried to both ends of the stack as `finetune.inference.volume.propagate`
    does it: each next slice is prompted with the box of the last slice's mask and, with
    `previous_mask`, with its logits; until nothing is left of the mask, or what is left does not
    overlap the mask before. All of these predictions are trained on. Where the object has ended the
    truth is empty, so that the model learns to end. Each distance from the prompted slices is a
    round, and weighs as much as any other, however few masks have come so far; `dice_last` is that
    of the masks that came farthest.
    """

    for_stacks = True

    lost: float = 0.2
    """A mask whose IoU with its object is below this is carried no further: it does not say which
    object is meant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lost <= 1:
            raise UserError(f"prompts.lost is {self.lost}; it must lie in 0..1")

    @property
    def gives_masks(self) -> bool:
        """As `previous_mask` says, whatever `rounds` is: neighbours are prompted in any case."""
        return self.previous_mask

    def prepare(self, batch: SegmentationBatch, rng: np.random.Generator) -> Any:
        """The slice of each object that is prompted, and its first prompts: a `Start`."""
        objects = objects_of(batch)
        chosen = [list(each.masks)[int(rng.integers(len(each.masks)))] for each in objects]
        first = super().prepare(_only(batch, objects, chosen), rng)
        return Start(objects, chosen, first)

    def predictions(
        self,
        segmenter: Segmenter,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
    ) -> Iterator[Round]:
        """The rounds in the slices that are prompted, then one for each distance from them."""
        start: Start = batch.first or self.prepare(batch, rng)
        asked = replace(_only(batch, start.objects, start.chosen), first=start.first)
        truth = Truth(asked.masks, asked.image)
        for decoded, trained, _ in super().predictions(segmenter, embeddings, asked, rng):
            yield Round(decoded, trained, truth)
        found = self._found(segmenter, decoded, truth, batch)
        ways = [
            _Way(each.masks, slices, *prediction)
            for each, image, *prediction in zip(start.objects, start.chosen, *found, strict=True)
            for slices in (
                range(image + 1, each.stack.stop),
                range(image - 1, each.stack.start - 1, -1),
            )
        ]
        # what a mask should be where the object has none
        truths = torch.cat([batch.masks, torch.zeros_like(batch.masks[:1])])
        step = 0
        while ways := [way for way in ways if way.goes_on(step)]:
            images = torch.tensor([way.slices[step] for way in ways])
            prompts = Prompts(
                images,
                boxes=torch.from_numpy(boxes_of(np.stack([way.mask for way in ways]))).float(),
                masks=torch.stack([way.logits for way in ways]) if self.previous_mask else None,
            )
            decoded = segmenter.decode(
                embeddings,
                prompts.to(embeddings.device),
                self.multimask and not self.previous_mask,
            )
            rows = [way.truths.get(way.slices[step], len(batch.masks)) for way in ways]
            truth = Truth(truths[rows], images.to(embeddings.device))
            yield Round(decoded, True, truth)
            found = self._found(segmenter, decoded, truth, batch)
            for way, mask, logits, known in zip(ways, *found, strict=True):
                way.go(mask, logits, known)
            step += 1

    def _found(
        self, segmenter: Segmenter, decoded: Decoded, truth: Truth, batch: SegmentationBatch
    ) -> tuple[NDArray[np.bool_], Tensor, list[bool]]:
        """Masks (M, S, S) and logits (M, 1, S / 4, S / 4), and whether each still has its object.

        One that should have ended has none to lose.
        """
        low_res = decoded.picked().low_res.detach()
        logits = segmenter.upsample(low_res)
        valid = batch.valid[truth.image][:, None]
        iou = mask_iou(logits, truth.masks[:, None], valid)[:, 0]
        known = (iou >= self.lost) | ~truth.masks.flatten(1).any(1)
        return ((logits > 0) & valid)[:, 0].cpu().numpy(), low_res, known.tolist()


class Object(NamedTuple):
    """A target in a stack of slices."""

    masks: dict[int, int]
    """Positions of its masks in the batch, by the image that each is in."""
    stack: range
    """The images of its stack."""


class Start(NamedTuple):
    """What a batch's prompts start from."""

    objects: list[Object]
    chosen: list[int]
    """The image in which each of them is prompted."""
    first: First
    """The prompts there."""


@dataclass
class _Way:
    """A mask on its way from the slice that was prompted to one end of the stack."""

    truths: dict[int, int]
    """Positions of the object's masks in the batch, by image."""
    slices: range
    """The images it comes to."""
    mask: NDArray[np.bool_]
    """(S, S), the last prediction."""
    logits: Tensor
    """(1, S / 4, S / 4), of the last prediction."""
    known: bool
    """Whether the last prediction has not lost its object."""

    def goes_on(self, step: int) -> bool:
        """Whether it is carried to the next slice."""
        return step < len(self.slices) and self.known and bool(self.mask.any())

    def go(self, mask: NDArray[np.bool_], logits: Tensor, known: bool) -> None:
        """Take the prediction in the next slice; what is elsewhere is another object."""
        self.mask = mask if (mask & self.mask).any() else np.zeros_like(mask)
        self.logits, self.known = logits, known


def objects_of(batch: SegmentationBatch) -> list[Object]:
    """The objects of a batch, each with its masks in all slices of its stack."""
    stacks = batch.stacks or (1,) * len(batch.images)
    ends = np.cumsum(stacks).tolist()
    ranges = [range(end - length, end) for end, length in zip(ends, stacks, strict=True)]
    stack_of = [place for place, length in enumerate(stacks) for _ in range(length)]
    found: dict[tuple[int, int], Object] = {}
    pairs = zip(batch.image.tolist(), batch.targets.tolist(), strict=True)
    for mask, (image, target) in enumerate(pairs):
        stack = stack_of[image]
        found.setdefault((stack, target), Object({}, ranges[stack])).masks[image] = mask
    return list(found.values())


def _only(batch: SegmentationBatch, objects: list[Object], images: list[int]) -> SegmentationBatch:
    """The batch with one mask of each object, that in one of `images`."""
    rows = torch.tensor([each.masks[image] for each, image in zip(objects, images, strict=True)])
    rows = rows.to(batch.masks.device)
    return replace(
        batch, masks=batch.masks[rows], image=batch.image[rows], targets=batch.targets[rows]
    )
