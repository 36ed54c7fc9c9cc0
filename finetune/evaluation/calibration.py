"""Whether a pixel that is given a probability of 0.8 is on the object in 8 of 10 cases.

Pixels are sorted into `BINS` of equal width by the probability p of the object that they were
given. The expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599) is

    ECE = sum over bins b of n_b / n |mean of p in b - share of b that is on the object|

over the n pixels around an object: those of its box, enlarged by half of its side to each side (as
Mehrtash et al. 2020, arXiv 1911.13273, take a region around it). Nearly all others of an image are
plain background, which would make every model look calibrated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_prep.common.results import markdown_table
from finetune.evaluation.details import to_csv
from finetune.evaluation.statistics import Mean, mean_interval, notes_on_groups
from finetune.prompts.boxes import box_of
from pretrain.engine.figures import save_figure

BINS = 10
MARGIN = 0.5
"""By how much of its side a box is enlarged to each side."""


def around(truth: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Rows and columns around an object (H, W); None if there is none."""
    box = box_of(truth)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    wide, high = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    rows = slice(int(max(0, y0 - high)), int(np.ceil(y1 + high)))
    return rows, slice(int(max(0, x0 - wide)), int(np.ceil(x1 + wide)))


def count_bins(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(3, BINS): pixels, sum of their probabilities, and how many are on the object.

    Args:
        probability: (...) in 0..1; a bin holds its lower edge, and the last one 1, too.
        truth: (...) of the same shape.
    """
    place = np.minimum((probability * BINS).astype(np.int64), BINS - 1).ravel()
    weights = (None, probability.ravel(), truth.ravel())
    return np.stack([np.bincount(place, each, BINS) for each in weights]).astype(np.float64)


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """The ECE in 0..1 of bins as `count_bins` gives them, not all empty."""
    pixels, probability, found = bins
    return float(np.abs(probability - found).sum() / pixels.sum())


@dataclass
class Reliability:
    """Bins of each case, target and row of the tables."""

    bins: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)
    """By target, row and case."""
    groups: dict[str, str] = field(default_factory=dict)
    """Group of each case."""

    def add(
        self,
        case: str,
        group: str,
        target: str,
        row: str,
        probability: NDArray[np.floating],
        truth: NDArray[np.bool_],
    ) -> None:
        """Count the pixels around an object in an image or a slice (H, W)."""
        region = around(truth)
        if region is not None:
            self.groups[case] = group or case
            found = count_bins(probability[region], truth[region])
            key = (target, row, case)
            self.bins[key] = self.bins.get(key, 0) + found

    def pooled(self) -> dict[tuple[str, str], NDArray[np.float64]]:
        """Bins of all cases together, by target and row; the rows of a target follow each other."""
        sums: dict[tuple[str, str], NDArray[np.float64]] = {}
        for (target, row, _), bins in self.bins.items():
            sums[target, row] = sums.get((target, row), 0) + bins
        targets = [target for target, _ in sums]
        return dict(sorted(sums.items(), key=lambda item: targets.index(item[0][0])))

    def errors(self) -> dict[tuple[str, str], Mean]:
        """Mean ECE over cases, by target and row."""
        values: dict[tuple[str, str], dict[str, float]] = {key: {} for key in self.pooled()}
        for (target, row, case), bins in self.bins.items():
            values[target, row][case] = expected_calibration_error(bins)
        return {
            key: mean_interval([*each.values()], [self.groups[case] for case in each], (0.0, 1.0))
            for key, each in values.items()
        }

    def csv(self) -> str:
        """All bins: their pixels, mean probability and share on the object."""
        header = [
            "case",
            "group",
            "target",
            "protocol",
            "bin",
            "pixels",
            "probability",
            "on_object",
        ]
        lines: list[list[object]] = []
        for (target, row, case), bins in self.bins.items():
            for number, (pixels, probability, found) in enumerate(bins.T):
                means = [probability / pixels, found / pixels] if pixels else ["", ""]
                lines.append([case, self.groups[case], target, row, number, int(pixels), *means])
        return to_csv(header, lines)

    def markdown(self) -> str:
        """A table of the errors, with a note on what they are."""
        errors, pooled = self.errors(), self.pooled()
        rows = [
            [target, row, each, f"{expected_calibration_error(pooled[target, row]):.3f}"]
            for (target, row), each in errors.items()
        ]
        table = markdown_table(["target", "prompt", "ECE", "ECE, all pixels together"], rows)
        notes = [
            "ECE: expected calibration error of the probability of the object, over the pixels in"
            f" its box enlarged by half to each side, in {BINS} bins; mean over cases with its 95 %"
            " interval.",
            *notes_on_groups(errors.values()),
        ]
        return "\n".join([*table, "", " ".join(notes)]) + "\n"


def draw_reliability(pooled: Mapping[tuple[str, str], NDArray[np.float64]], path: Path) -> None:
    """One panel per target: the share of pixels on the object by the probability given to them."""
    targets = list(dict.fromkeys(target for target, _ in pooled))
    columns = min(len(targets), 4)
    lines = -(-len(targets) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, target in zip(panels.flat, targets, strict=False):
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        for (name, row), bins in pooled.items():
            if name == target:
                pixels, probability, found = bins[:, bins[0] > 0]
                label = f"{row}, ECE {expected_calibration_error(bins):.3f}"
                axes.plot(probability / pixels, found / pixels, marker="o", label=label)
        axes.set(title=target, xlabel="probability", xlim=(0, 1), ylim=(0, 1))
        axes.legend(fontsize="small")
    for axes in panels.flat[len(targets) :]:
        axes.axis("off")
    panels[0, 0].set_ylabel("share on the object")
    save_figure(figure, path)
