"""Counts and sums of a shard, and `dataset.json` of a set from those of its shards.

Sums are integers, so that they are exact and the mean and std of a set do not depend on the order
in which its records were read.
"""

import platform
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from data_prep.records import Sample

FORMAT = 1
"""Version of the shard set format."""

EXACT_PIXELS = 1 << 20
"""So many squares of 16-bit integers sum to less than 2^53: doubles hold every step exactly."""

SOFTWARE = ("samaritan", "numpy", "pillow", "pydicom", "nibabel")


class Figures(NamedTuple):
    """What is counted of the pixels of one record."""

    shape: tuple[int, ...]
    """(H, W), or (D, H, W) of a volume."""
    volume: bool
    kind: str
    """Type and channels, such as uint8x3."""
    sums: list[tuple[int, int, int]]
    """Number, sum and sum of squares of the values of each channel."""


def count_pixels(sample: Sample) -> Figures:
    """The figures of a sample."""
    image = sample.image
    colour = image.ndim == 3 and not sample.volume
    pixels = image.reshape(-1, 3 if colour else 1)
    return Figures(
        image.shape if sample.volume else image.shape[:2],
        sample.volume,
        f"{image.dtype.name}x{pixels.shape[1]}",
        [exact_sums(channel) for channel in pixels.T],
    )


class Summary:
    """Running counts and sums over the records of one shard."""

    def __init__(self) -> None:
        self.records = 0
        self.volumes = False
        self.groups: set[str] = set()
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.classes: Counter[str] = Counter()
        self.modalities: Counter[str] = Counter()
        self.present: Counter[str] = Counter()
        self.burned_in = 0
        self.sums: dict[str, list[list[int]]] = {}

    def add(self, figures: Figures, meta: dict[str, Any]) -> None:
        """Count one record."""
        self.records += 1
        self.volumes |= figures.volume
        self.groups.add(meta["group"])
        self.shapes[figures.shape] += 1
        self.classes.update([meta["label"]] if meta["label"] else [])
        self.modalities.update([meta["modality"]] if meta["modality"] else [])
        self.present.update(meta.get("present", []))
        self.burned_in += bool(meta.get("burned_in"))
        totals = self.sums.setdefault(figures.kind, [[0, 0, 0] for _ in figures.sums])
        for total, sums in zip(totals, figures.sums, strict=True):
            total[:] = (before + more for before, more in zip(total, sums, strict=True))

    def document(self) -> dict[str, Any]:
        """As stored in the shard's index."""
        return {
            "records": self.records,
            "volumes": self.volumes,
            "groups": sorted(self.groups),
            "shapes": [[list(shape), count] for shape, count in sorted(self.shapes.items())],
            "classes": dict(sorted(self.classes.items())),
            "modalities": dict(sorted(self.modalities.items())),
            "present": dict(sorted(self.present.items())),
            "sums": dict(sorted(self.sums.items())),
            **({"burned_in": self.burned_in} if self.burned_in else {}),
        }


def exact_sums(values: np.ndarray) -> tuple[int, int, int]:
    """Number, sum and sum of squares of unsigned integers of up to 16 bits."""
    total = squares = 0
    for start in range(0, values.size, EXACT_PIXELS):
        part = values[start : start + EXACT_PIXELS].astype(np.float64)
        total += int(part.sum())
        # not `part @ part`, whose threads would compete with the other workers
        squares += int((part * part).sum())
    return values.size, total, squares


def mean_and_std(summaries: Iterable[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Per-channel mean and std of pixels on [0, 1], white being the maximum of the stored dtype.

    One channel if all images are grey; otherwise three, to which a grey image counts alike.
    """
    totals: dict[str, np.ndarray] = {}
    for summary in summaries:
        for kind, sums in summary["sums"].items():
            # Python's integers: the sum of squares of a large set exceeds 64 bits
            totals[kind] = totals.get(kind, 0) + np.array(sums, dtype=object)
    channels = max((len(sums) for sums in totals.values()), default=1)
    count, first, second = (np.zeros(channels) for _ in range(3))
    for kind, sums in sorted(totals.items()):
        top = np.iinfo(kind.split("x")[0]).max
        parts = np.broadcast_to(sums, (channels, 3))
        count += parts[:, 0].astype(float)
        first += (parts[:, 1] / top).astype(float)
        second += (parts[:, 2] / top**2).astype(float)
    count = np.maximum(count, 1)
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in std]


def dataset_document(
    labels: dict[str, list[int]] | None, indexes: list[dict[str, Any]]
) -> dict[str, Any]:
    """The contents of `dataset.json`.

    Args:
        labels: Mask values of each target; None for stage one.
        indexes: The index documents of all shards, in order of name; their records are not used.
    """
    splits: dict[str, Any] = {}
    members: dict[str, list[dict[str, Any]]] = {}
    for index in indexes:
        members.setdefault(index["shard"].rsplit("-", 1)[0], []).append(index)
    for split, parts in members.items():
        splits[split] = {
            "records": sum(part["summary"]["records"] for part in parts),
            "groups": len(set().union(*(part["summary"]["groups"] for part in parts))),
            "shards": [
                {
                    "name": part["shard"],
                    "records": part["summary"]["records"],
                    "bytes": part["bytes"],
                    "sha256": part["sha256"],
                    "index_sha256": part["index_sha256"],
                }
                for part in parts
            ],
        }
    summaries = [index["summary"] for index in indexes]
    mean, std = mean_and_std(index["summary"] for index in members.get("train", indexes))
    kinds = Counter(kind for index in indexes for _, kind, _, _ in index["quarantined"])
    document = {
        "format": FORMAT,
        "kind": "pretraining" if labels is None else "segmentation",
        "source": indexes[0]["options"],
        "records": sum(split["records"] for split in splits.values()),
        "splits": splits,
        "classes": _total(summaries, "classes"),
        "modalities": _total(summaries, "modalities"),
        "sizes": _sizes(summaries),
        "mean": mean,
        "std": std,
        "skipped": kinds["skipped"],
        "unreadable": kinds["unreadable"],
        "software": {"python": platform.python_version()}
        | {name: version(name) for name in SOFTWARE},
    }
    if burned_in := sum(summary.get("burned_in", 0) for summary in summaries):
        document["burned_in"] = burned_in
    if labels is not None:
        document["labels"] = labels
        document["present"] = _total(summaries, "present")
    return document


def _total(summaries: list[dict[str, Any]], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary[name])
    return dict(sorted(counts.items()))


def _sizes(summaries: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Smallest, median and largest (depth,) height and width, each axis by itself.

    In a set that has volumes, the depth of an image is 1.
    """
    axes = 3 if any(summary["volumes"] for summary in summaries) else 2
    counts: Counter[tuple[int, ...]] = Counter()
    for summary in summaries:
        for shape, count in summary["shapes"]:
            counts[(1,) * (axes - len(shape)) + tuple(shape)] += count
    if not counts:
        return {}
    shapes = np.array(sorted(counts))  # (distinct shapes, axes)
    weights = np.array([counts[tuple(shape)] for shape in shapes.tolist()])
    median = []
    for axis in range(axes):
        order = np.argsort(shapes[:, axis], kind="stable")
        middle = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
        median.append(int(shapes[order[middle], axis]))
    return {
        "smallest": shapes.min(axis=0).tolist(),
        "median": median,
        "largest": shapes.max(axis=0).tolist(),
    }
