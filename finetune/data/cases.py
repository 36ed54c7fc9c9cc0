"""The labelled images of a shard set: which there are, which targets they hold, and their pixels.

An image is a 2D record, or one axial slice of a volume. Images without any of the wanted targets
are left out; which ones hold a target is read from the records' JSON, not from the masks.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.loader.dataset import ShardDataset
from data_prep.options import Plane, Window
from finetune.config import CaseSelection


@dataclass(frozen=True)
class LabelledImage:
    """A 2D record, or one slice of a volume."""

    record: int
    """Index of the record in the shard set's split."""
    depth: int | None
    """Slice of the volume; None for a 2D record."""
    targets: tuple[int, ...]
    """The targets it holds, as positions in `LabelledCases.targets`; none: see `empty` there."""


class Part(NamedTuple):
    """A part of the groups: those kept from training, or the others."""

    share: float
    """Of the groups kept from training; their number is rounded, and may be 0."""
    validation: bool


class LabelledCases:
    """The records of a split that hold a wanted target, and the images in them.

    Args:
        part: Only these of the groups chosen.

    Attributes:
        targets: Mask values of each wanted target, by name, in the order of the shard set.
        window: Intensity window that the shard set was made with.
        plane: Plane of the slices of volumes; None where all records are 2D.
        images: Every image that holds a target, records in stored order, slices from the first.
        empty: The images and slices that hold none, in the same order: of the same groups and,
            unless `selection.cases` limits these, of groups that hold none anywhere, which are
            trained on and never judged in training.

    Raises:
        UserError: Not a segmentation shard set, an unknown split or target, no image with a target,
            fewer groups than `selection.cases`, or none left to train on.
    """

    def __init__(self, selection: CaseSelection, seed: int = 0, part: Part | None = None) -> None:
        self.shards = ShardDataset(selection.shards, selection.split, seed)
        self.targets = _wanted_targets(self.shards, selection.targets)
        window = self.shards.info["source"].get("window", "auto")
        self.window: Window = tuple(window) if isinstance(window, list) else window
        metas = {index: self.shards.meta(index) for index in range(len(self.shards))}
        images = {index: _images(index, meta, list(self.targets)) for index, meta in metas.items()}
        groups = sorted({metas[index]["group"] for index, found in images.items() if found})
        where = f"{selection.shards}, split {selection.split!r}"
        if not groups:
            names = ", ".join(self.targets) or "the targets, of which data.targets names none"
            raise UserError(f"{where}: no image holds any of {names}")
        if selection.cases is not None and selection.cases > len(groups):
            raise UserError(
                f"data.cases is {selection.cases}, and {where} has {len(groups)} groups"
            )
        chosen = np.random.default_rng([seed]).permutation(len(groups))[: selection.cases]
        if part is not None:
            held = round(part.share * len(chosen))
            if held == len(chosen):
                raise UserError(f"data.validation is {part.share}, which leaves no group of {held}")
            trained, judged = np.split(chosen, [len(chosen) - held])
            chosen = judged if part.validation else trained
        volumes = any(image.depth is not None for found in images.values() for image in found)
        self.plane: Plane | None = "axial" if volumes else None
        kept = {groups[index] for index in chosen}
        self.images = [
            image
            for index, found in images.items()
            if metas[index]["group"] in kept
            for image in found
        ]
        bare = selection.cases is None and not (part and part.validation)
        holding = set(groups)
        self.empty = [
            image
            for index, found in images.items()
            if (group := metas[index]["group"]) in kept or (bare and group not in holding)
            for image in _others(index, metas[index], found)
        ]

    def read(self, image: LabelledImage) -> tuple[str, NDArray[Any], NDArray[np.bool_]]:
        """One image and the masks of the targets it holds.

        Returns:
            key: of the record; for a slice followed by `/` and its depth.
            image: (H, W) or (H, W, 3), uint8 or uint16, white is the dtype's maximum.
            masks: (M, H, W) bool, in the order of `image.targets`.
        """
        key, images, masks = self.read_stack(image, 1)
        return key, images[0], masks[0]

    def read_stack(
        self, image: LabelledImage, slices: int
    ) -> tuple[str, NDArray[Any], NDArray[np.bool_]]:
        """An image with its neighbours, if it is a slice of a volume.

        Args:
            slices: D, the number of slices, see `neighbours`; a 2D record is one.

        Returns:
            key: As from `read`.
            images: (D, H, W) or (D, H, W, 3).
            masks: (D, M, H, W) bool, the targets of `image`; empty in slices that lack one.
        """
        around = None
        if image.depth is not None:
            around = neighbours(image.depth, self.slices_of(image.record), slices)
        record = self.shards.record(image.record, around)
        assert record.mask is not None
        key, images, labels = record.key, record.image, record.mask
        if around is None:
            images, labels = images[None], labels[None]
        else:
            key = f"{key}/{image.depth}"
        values = list(self.targets.values())
        held = [np.isin(labels, values[target]) for target in image.targets]
        masks = np.array(held, bool).reshape(-1, *labels.shape)  # (M, D, H, W)
        return key, images, masks.swapaxes(0, 1)

    def slices_of(self, record: int) -> int:
        """Number of slices of a volume."""
        return int(self.shards.meta(record)["size"][0])

    def held(self, record: int) -> list[int]:
        """The targets that a record holds, a volume in any of its slices."""
        present = self.shards.meta(record)["present"]
        return [n for n, name in enumerate(self.targets) if name in present]

    def names(self, image: LabelledImage) -> list[str]:
        """Names of the targets that an image holds, in the order of its masks."""
        names = list(self.targets)
        return [names[target] for target in image.targets]


def neighbours(depth: int, count: int, slices: int) -> slice:
    """The slices of a stack around one of a volume.

    As many before it as after it (one more before it in stacks of even length), moved to lie inside
    the volume where that ends.

    Args:
        depth: The slice.
        count: Slices of the volume.
        slices: Slices of the stack; there are fewer where the volume has no more.
    """
    first = max(0, min(depth - slices // 2, count - slices))
    return slice(first, min(first + slices, count))


def _wanted_targets(shards: ShardDataset, names: list[str] | None) -> dict[str, list[int]]:
    labels: dict[str, list[int]] | None = shards.info.get("labels")
    if labels is None:
        raise UserError(
            f"{shards.root}: has no masks; make a segmentation shard set with"
            " `python -m data_prep shard-seg`"
        )
    if unknown := [name for name in names or [] if name not in labels]:
        raise UserError(
            f"data.targets: {shards.root} has no target {unknown[0]!r}, only {', '.join(labels)}"
        )
    return {name: values for name, values in labels.items() if names is None or name in names}


def _images(record: int, meta: dict[str, Any], names: list[str]) -> list[LabelledImage]:
    """The images of one record that hold a wanted target."""
    if "slices" not in meta:
        found = tuple(n for n, name in enumerate(names) if name in meta["present"])
        return [LabelledImage(record, None, found)] if found else []
    held: dict[int, list[int]] = {}
    for target, name in enumerate(names):
        for depth in meta["slices"].get(name, ()):
            held.setdefault(depth, []).append(target)
    return [LabelledImage(record, depth, tuple(held[depth])) for depth in sorted(held)]


def _others(record: int, meta: dict[str, Any], found: list[LabelledImage]) -> list[LabelledImage]:
    """The images of one record that hold no wanted target, given those that hold one."""
    if "slices" not in meta:
        return [] if found else [LabelledImage(record, None, ())]
    held = {image.depth for image in found}
    depths = range(meta["size"][0])
    return [LabelledImage(record, depth, ()) for depth in depths if depth not in held]
