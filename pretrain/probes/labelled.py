"""The labelled images of a shard set, and which of them a probe uses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record, ShardDataset

TRAIN, TEST = "train", "test"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of one shard set with their classes; what no label says is left out.

    Attributes:
        name: Of the set.
        parts: Its split `train`, and `test` if it has one.
        places: (N, 2) part of each image, and its index there.
        labels: (N,) index of each image's class.
        classes: Names of the classes, sorted.
        groups: (N,) number of each image's group.
        is_test: (N,) whether it is in the split `test`; None for a set without that.
        unlabelled: Records without a label.
        shared: Images left out of `train`, as their group is in `test` too.
    """

    name: str
    parts: Sequence[ShardDataset]
    places: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    groups: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None
    unlabelled: int = 0
    shared: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def images(self) -> "LabelledImages":
        """The images themselves."""
        return LabelledImages(self.parts, self.places)

    def describe(self) -> str:
        """One line: how many images, groups and classes, and what was left out."""
        counts = Counter(self.labels.tolist())
        most = max(counts.values()) / len(self)
        line = (
            f"{self.name}: {len(self)} images of {len(np.unique(self.groups))} groups,"
            f" {len(self.classes)} classes ({most:.0%} are of the largest)"
        )
        if self.unlabelled:
            line += f", {self.unlabelled} without a label left out"
        if self.shared:
            line += f", {self.shared} of {TRAIN} left out as their groups are in {TEST} too"
        return line


class LabelledImages(Dataset[Record]):
    """Records of some images; safe to pickle and to fork."""

    def __init__(self, parts: Sequence[ShardDataset], places: NDArray[np.int64]) -> None:
        self.parts, self.places = parts, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        part, position = self.places[index]
        return self.parts[part].record(int(position))


def read_labelled(root: str | Path, max_images: int | None = None, seed: int = 0) -> Labelled:
    """The labelled images of a shard set.

    Args:
        root: Folder or URL of the set.
        max_images: Use about so many, whole groups drawn at random, some of every class.
        seed: Seed of that choice.

    Raises:
        UserError: Not a shard set, or one whose labels cannot be probed: none, a single class or
            group, a class of fewer than two groups, or one that is in `test` alone.
    """
    train = ShardDataset(root, TRAIN)
    parts = [train] + ([ShardDataset(root, TEST)] if TEST in train.info["splits"] else [])
    labels: list[str] = []
    groups: list[str] = []
    places: list[tuple[int, int]] = []
    unlabelled = 0
    for number, part in enumerate(parts):
        for index in range(len(part)):
            meta = part.meta(index)
            if meta["label"] is None:
                unlabelled += 1
                continue
            labels.append(str(meta["label"]))
            groups.append(str(meta.get("group") or f"{number} {index}"))
            places.append((number, index))
    name = PurePosixPath(str(root).rstrip("/")).name
    if not labels:
        raise UserError(
            f"{root}: none of {unlabelled} records has a label; shard it with --label, or with a"
            " layout that knows classes"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    _, members = np.unique(groups, return_inverse=True)
    found = Labelled(
        name,
        parts,
        np.array(places, np.int64),
        codes.astype(np.int64),
        classes.tolist(),
        members.astype(np.int64),
        np.array([part == 1 for part, _ in places]) if len(parts) > 1 else None,
        unlabelled,
    )
    found = _without_shared_groups(found)
    _check(found, root)
    if max_images is not None and max_images < len(found):
        found = _select(found, choose_groups(found, max_images, seed))
    return found


def read_sets(
    roots: Sequence[str | Path], max_images: int | None = None, seed: int = 0
) -> list[Labelled]:
    """Several labelled sets, each under a name of its own; see `read_labelled`.

    Raises:
        UserError: See there; also two sets of one name.
    """
    sets = [read_labelled(root, max_images, seed) for root in roots]
    names = [labelled.name for labelled in sets]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"shards: two sets are called {doubled[0]!r}; rename one of the folders")
    return sets


def choose_groups(labelled: Labelled, max_images: int, seed: int) -> NDArray[np.int64]:
    """Indices of about `max_images` images: whole groups, drawn at random.

    The splits keep their shares, and of every class that a split has there are two groups, if it
    has so many.
    """
    generator = np.random.default_rng(seed)
    in_test = np.zeros(len(labelled), bool) if labelled.is_test is None else labelled.is_test
    chosen = np.zeros(len(labelled), bool)
    for side in (False, True):
        members = np.flatnonzero(in_test == side)
        wanted = max_images * len(members) / len(labelled)
        order = generator.permutation(np.unique(labelled.groups[members]))
        by_group = members[np.argsort(labelled.groups[members], kind="stable")]
        names, first = np.unique(labelled.groups[by_group], return_index=True)
        images = dict(zip(names, np.split(by_group, first[1:]), strict=True))
        seen: Counter[int] = Counter()
        needed = []
        for group in order:
            rare = [label for label in set(labelled.labels[images[group]]) if seen[label] < 2]
            seen.update(rare)
            if rare:
                needed.append(group)
        for group in needed:
            chosen[images[group]] = True
        count = int(chosen[members].sum())
        for group in order:
            if count >= wanted:
                break
            count += int((~chosen[images[group]]).sum())
            chosen[images[group]] = True
    return np.flatnonzero(chosen)


def _without_shared_groups(labelled: Labelled) -> Labelled:
    """Without those images of `train` whose group is in `test` too."""
    if labelled.is_test is None:
        return labelled
    shared = ~labelled.is_test & np.isin(labelled.groups, labelled.groups[labelled.is_test])
    if not shared.any():
        return labelled
    return _select(labelled, np.flatnonzero(~shared), int(shared.sum()))


def _select(labelled: Labelled, indices: NDArray[np.int64], shared: int | None = None) -> Labelled:
    return Labelled(
        labelled.name,
        labelled.parts,
        labelled.places[indices],
        labelled.labels[indices],
        labelled.classes,
        labelled.groups[indices],
        None if labelled.is_test is None else labelled.is_test[indices],
        labelled.unlabelled,
        labelled.shared if shared is None else shared,
    )


def _check(labelled: Labelled, root: str | Path) -> None:
    if len(labelled.classes) < 2:
        raise UserError(f"{root}: all labels are {labelled.classes[0]!r}; a probe needs 2 classes")
    if len(np.unique(labelled.groups)) < 2:
        raise UserError(f"{root}: all labelled images are of one group; a probe needs 2 or more")
    if labelled.is_test is not None and labelled.is_test.all():
        raise UserError(f"{root}: no labelled image is in {TRAIN} alone; a probe fits on these")
    if labelled.is_test is not None and not labelled.is_test.any():
        raise UserError(f"{root}: no image of its split {TEST} has a label; a probe scores these")
    for number, name in enumerate(labelled.classes):
        mine = labelled.labels == number
        count = len(np.unique(labelled.groups[mine]))
        if count < 2:
            raise UserError(
                f"{root}: class {name!r} has {count} group; a probe needs 2 or more of each class,"
                " so join it with another or leave it without a label (see shard --label)"
            )
        if labelled.is_test is not None and labelled.is_test[mine].all():
            raise UserError(
                f"{root}: class {name!r} is in {TEST} alone, so that nothing can learn it; shard"
                " with another --split or --seed"
            )
