"""Figures of a shard set from some of its records: intensities, areas of targets, spacing."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from data_prep.loader.dataset import Record

BINS = 32
BARS = " ▁▂▃▄▅▆▇█"


class Measured:
    """Figures over records, added one at a time.

    Args:
        labels: Mask values of each target; none for a set without masks.
    """

    def __init__(self, labels: dict[str, list[int]]) -> None:
        self.labels = labels
        self.records = 0
        self.histogram = np.zeros(BINS)
        """(BINS,): share of pixels from black to white, each record counting alike."""
        self.areas: dict[str, list[float]] = defaultdict(list)
        """Share of the image or volume that a target covers, where it is present."""
        self.spacings: list[tuple[float, ...]] = []
        """Millimetres along (depth,) row and column."""

    def add(self, record: "Record") -> None:
        """Count one record."""
        self.records += 1
        top = np.iinfo(record.image.dtype).max + 1
        counts = np.bincount((record.image.ravel().astype(np.int64) * BINS) // top, minlength=BINS)
        self.histogram += counts / counts.sum()
        if record.mask is not None:
            values = np.bincount(record.mask.ravel(), minlength=1)
            for name, members in self.labels.items():
                count = values[[value for value in members if value < len(values)]].sum()
                if count:
                    self.areas[name].append(float(count / record.mask.size))
        if record.meta["spacing"]:
            self.spacings.append(tuple(record.meta["spacing"]))

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of each figure, for people."""
        lines = [("measured on", f"{self.records} records")]
        lines.append(("intensity", f"black {bars(self.histogram)} white"))
        for name in self.labels:
            areas = np.array(self.areas.get(name, []))
            if len(areas):
                low, middle, high = 100 * np.quantile(areas, (0, 0.5, 1))
                text = f"{_percent(low)} to {_percent(high)} %, median {_percent(middle)} %"
                lines.append((f"area {name}", f"{text}, in {len(areas)} records"))
        for axes in sorted({len(spacing) for spacing in self.spacings}):
            some = np.array([spacing for spacing in self.spacings if len(spacing) == axes])
            low, middle, high = np.quantile(some, (0, 0.5, 1), axis=0)
            text = f"median {_times(middle)} mm, {_times(low)} to {_times(high)}"
            lines.append(("spacing", f"{text}, in {len(some)} records"))
        return lines


def measure(records: Iterable["Record"], labels: dict[str, list[int]]) -> Measured:
    """The figures of some records."""
    measured = Measured(labels)
    for record in records:
        measured.add(record)
    return measured


def bars(shares: np.ndarray) -> str:
    """A histogram as one line of block characters, the highest one full; 0 alone is blank."""
    heights = np.ceil(shares / max(shares.max(), 1e-12) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def _percent(value: float) -> str:
    """Two digits, but all of those before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _times(spacing: np.ndarray) -> str:
    return " x ".join(f"{value:.3g}" for value in spacing)
