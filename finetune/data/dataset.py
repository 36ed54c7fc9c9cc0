"""Training samples of stage two: labelled images in SAM's frame, augmented, balanced by target."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.common.errors import UserError
from finetune.config import SegmentationDataConfig
from finetune.data.augment import change_intensity, random_affine, warp
from finetune.data.cases import LabelledCases, LabelledImage, Part
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels, stack_pixels

VIEWS_VERSION = 1
"""To be raised when a view of an image comes to have other pixels: kept embeddings then count no
more."""


class View(NamedTuple):
    """One of the finite number of ways in which an image is shown, see `data.views`."""

    key: str
    """Record key, for a slice with its depth."""
    number: int
    """Which of the views."""
    warped: bool
    """False where no target would have been left in sight."""


@dataclass
class SegmentationSample:
    """One training image in SAM's frame of S x S pixels."""

    key: str
    """Record key, for a slice with its depth."""
    image: Tensor
    """(1, S, S) grey or (3, S, S) RGB in 0..255, uint8, or float32 of a 16-bit image."""
    valid: Tensor
    """(S, S) bool: where the frame shows the image."""
    masks: Tensor
    """(M, S, S) bool, none of them empty; M >= 1, but for slices of a stack and images without
    targets. Where every target is asked for, one for each, empty ones included."""
    targets: Tensor
    """(M,) int64 positions in `SegmentationDataset.targets`."""
    draw: int = 0
    """Position in the stream of samples."""
    view: View | None = None
    """What decides `image`; None where augmentation is endless."""
    held: tuple[int, ...] = ()
    """All targets that the image holds, with those that have no mask here."""


@dataclass
class SegmentationStack:
    """Neighbouring slices of a volume as one training sample."""

    slices: list[SegmentationSample]
    """The slices in their order, all with the key of the one that was drawn. They are changed
    alike; a target has a mask in each slice that it reaches, and one of them at least."""
    draw: int = 0
    """Position in the stream of samples."""

    @property
    def key(self) -> str:
        """Record key, with the depth of the slice that was drawn."""
        return self.slices[0].key


@dataclass
class SegmentationBatch:
    """Several samples; the masks of all images in one row."""

    keys: list[str]
    """Record key of each sample."""
    images: Tensor
    """(B, 1, S, S) or (B, 3, S, S) in 0..255, uint8 or float32."""
    valid: Tensor
    """(B, S, S) bool."""
    masks: Tensor
    """(sum of M, S, S) bool."""
    image: Tensor
    """(sum of M,) int64: the image in the batch that each mask belongs to."""
    targets: Tensor
    """(sum of M,) int64: the target of each mask."""
    first: Any = None
    """What the loader has prepared for the first prompts, see `Prompting.prepare`."""
    stacks: tuple[int, ...] = ()
    """Lengths of the runs of images that are neighbouring slices of one volume, B in sum; empty
    where no image has a neighbour."""
    views: Sequence[View] = ()
    """What decides each image; none where augmentation is endless."""
    embeddings: Tensor | None = None
    """(n, 256, S / 16, S / 16) of the images that a cache knows, in their order."""
    missing: Sequence[int] = ()
    """The other images, where there is a cache."""
    held: Sequence[tuple[int, ...]] = ()
    """For each image all targets that it holds, with those that have no mask here."""

    def to(self, device: torch.device | str) -> "SegmentationBatch":
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "SegmentationBatch":
        """The same batch in page-locked memory (called by DataLoader)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> "SegmentationBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})


class SegmentationDataset(Dataset):
    """Map-style dataset of training samples, to be read through `data_prep.loader.build_loader`.

    Rare targets are drawn as often as common ones: `order` lets the targets take turns; an
    image with more targets than `masks_per_image` is trained on some of them,
    chosen with weights inverse to how many images hold each.

    Args:
        size: Side S of the frame, in pixels; a multiple of 16.
        seed: Seed of the order, the choice of few cases and all augmentation.
        every_target: Give a mask of every target in every image, empty where it is absent.

    Attributes:
        without: Share of the samples that are images without targets.

    Raises:
        UserError: See `LabelledCases`; or the set has no images of a kind that is asked for.
    """

    def __init__(
        self,
        config: SegmentationDataConfig,
        size: int,
        seed: int = 0,
        every_target: bool = False,
    ) -> None:
        self.config, self.size, self.seed = config, size, seed
        self.every_target = every_target
        part = Part(config.validation, False) if config.validation else None
        self.cases = LabelledCases(config, seed, part)
        self.targets = list(self.cases.targets)
        every = len(self.cases.empty) + len(self.cases.images)
        wanted = config.without_targets
        self.without = len(self.cases.empty) / every if wanted is None else wanted
        self._empty = self.cases.empty if self.without else []
        self._holding = [
            np.array([n for n, image in enumerate(self.cases.images) if target in image.targets])
            for target in range(len(self.targets))
        ]

        if config.stack > 1 and all(image.depth is None for image in self.cases.images):
            raise UserError(
                f"data.stack is {config.stack}, and {config.shards} has no volumes; set it to 1"
            )

    def __len__(self) -> int:
        return len(self.cases.images)

    @property
    def images(self) -> int:
        """How many images one view of each sample shows at most, slices of stacks among them."""
        return (len(self) + len(self._empty)) * self.config.stack

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(n,) int64, n = len(self): the images of one epoch, a pure function of (seed, epoch).

        Targets take turns, in random order within each round. Each draws, from the images that hold
        it, one of those drawn least so far in this epoch. So where all images hold all targets an
        epoch is a permutation, and where a target is rare its images come several times. Numbers
        from n on are images without targets, which replace others.
        """
        generator = np.random.default_rng([self.seed, epoch])
        rank = generator.permutation(len(self))  # decides between images drawn equally often
        queues = [[(0, rank[n], n) for n in images] for images in self._holding if len(images)]
        for queue in queues:
            heapify(queue)
        drawn = np.zeros(len(self), np.int64)
        order: list[int] = []
        while len(order) < len(self):
            for target in generator.permutation(len(queues)):
                queue = queues[target]
                while queue[0][0] < drawn[queue[0][2]]:  # drawn for another target meanwhile
                    _, tie, image = queue[0]
                    heapreplace(queue, (drawn[image], tie, image))
                image = queue[0][2]
                drawn[image] += 1
                order.append(image)
        found = np.array(order[: len(self)], np.int64)
        if self._empty:
            empty = len(self) + generator.integers(len(self._empty), size=len(self))
            return np.where(generator.random(len(self)) < self.without, empty, found)
        return found

    def __getitem__(self, item: int | tuple[int, int]) -> SegmentationSample | SegmentationStack:
        """A sample, which is a pure function of (seed, index, draw).

        With `data.views`, its image is one of (seed, record, epoch mod views).

        Args:
            item: An index, or (index, draw), draw being the position in the stream of samples.
        """
        index, draw = item if isinstance(item, tuple) else (item, item)
        generator = np.random.default_rng([self.seed, draw])
        more = index - len(self)
        found = self.cases.images[index] if more < 0 else self._empty[more]
        if self.every_target:
            image = replace(found, targets=tuple(range(len(self.targets))))
        else:
            image = self._some_targets(found, generator)
        view = None
        if self.config.views is not None:  # of which an image shows another in each epoch
            view = draw // len(self) % self.config.views
            place = 0 if image.depth is None else image.depth + 1
            generator = np.random.default_rng([self.seed, image.record, place, view + 1])
        sample = self._augmented(image, generator, view)
        if isinstance(sample, SegmentationSample):
            return replace(sample, draw=draw, held=found.targets)
        # of a neighbour only the chosen targets are known: where they have no mask, they are absent
        others = tuple(n for n in self.cases.held(found.record) if n not in image.targets)
        slices = [replace(s, held=(*others, *_seen(s))) for s in sample.slices]
        return replace(sample, draw=draw, slices=slices)

    def _some_targets(self, image: LabelledImage, generator: np.random.Generator) -> LabelledImage:
        """The image with at most `masks_per_image` of its targets, rare ones preferred."""
        limit = self.config.masks_per_image
        if len(image.targets) <= limit:
            return image
        weights = np.array([1 / len(self._holding[target]) for target in image.targets])
        chosen = generator.choice(
            image.targets, size=limit, replace=False, p=weights / weights.sum()
        )
        return replace(image, targets=tuple(sorted(chosen.tolist())))

    def _augmented(
        self, image: LabelledImage, rng: np.random.Generator, view: int | None
    ) -> SegmentationSample | SegmentationStack:
        """Targets that the warp moves out of sight are left out; if all are, nothing is warped."""
        key, stored, stored_masks = self.cases.read_stack(image, self.config.stack)
        resize = Resize(stored.shape[1:3], self.size)
        height, width = resize.resized
        framed = torch.cat([resize.image(as_pixels(each)) for each in stored])  # (D C, S, S)
        pixels = framed[:, :height, :width]
        masks = torch.cat([_framed_masks(resize, each) for each in stored_masks])  # (D M, S, S)
        planes = torch.cat([masks, resize.valid()[None]])
        matrix = random_affine(self.config.augmentation, resize.resized, rng)
        warped = warp(planes.float(), matrix, "nearest") > 0.5
        if warped[:-1].any() or not masks.any():
            planes = warped
        else:
            matrix = torch.eye(2, 3)
        masks, valid = planes[:-1].unflatten(0, stored_masks.shape[:2]), planes[-1]
        changed = warp(pixels.float(), matrix, "bilinear", self.size)
        changed = change_intensity(changed, valid, self.config.augmentation, rng)
        if pixels.dtype == torch.uint8:
            changed = changed.round().to(torch.uint8)
        samples, targets = [], torch.tensor(image.targets, dtype=torch.int64)
        for place, each in enumerate(changed.chunk(len(stored))):
            held = masks[place]
            seen = held.flatten(1).any(dim=1) | self.every_target  # (M,)
            shown = None if view is None else View(f"{key}+{place}", view, planes is warped)
            sample = SegmentationSample(key, each, valid, held[seen], targets[seen], view=shown)
            samples.append(sample)
        return samples[0] if len(samples) == 1 else SegmentationStack(samples)


def _seen(sample: SegmentationSample) -> list[int]:
    """The targets whose mask is not empty."""
    return sample.targets[sample.masks.flatten(1).any(1)].tolist()


def collate(samples: Sequence[SegmentationSample | SegmentationStack]) -> SegmentationBatch:
    """Samples of one size to a batch."""
    stacks = [each.slices if isinstance(each, SegmentationStack) else [each] for each in samples]
    slices = [image for stack in stacks for image in stack]
    counts = torch.tensor([len(image.masks) for image in slices])
    return SegmentationBatch(
        keys=[sample.key for sample in samples],
        images=stack_pixels([image.image for image in slices]),
        valid=torch.stack([image.valid for image in slices]),
        masks=torch.cat([image.masks for image in slices]),
        image=torch.arange(len(slices)).repeat_interleave(counts),
        targets=torch.cat([image.targets for image in slices]),
        stacks=tuple(len(stack) for stack in stacks),
        views=[image.view for image in slices if image.view is not None],
        held=[image.held for image in slices],
    )


def _framed_masks(resize: Resize, masks: NDArray[np.bool_]) -> Tensor:
    """Masks (M, h, w) in the frame, (M, S, S). One too small to be hit keeps one pixel."""
    framed = resize.mask(masks)
    for mask, small in zip(masks, framed, strict=True):
        if mask.any() and not small.any():
            points = np.argwhere(mask)[:, ::-1]  # (n, 2) as (x, y)
            moved = resize.points(points[len(points) // 2]).round().astype(int)
            column, row = moved.clip(0, np.array(resize.resized)[::-1] - 1)
            small[row, column] = True
    return torch.from_numpy(framed)
