"""How well classes were told, and how certain that is: resampling whole groups."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("accuracy", "balanced accuracy", "AUROC")
FEWEST_GROUPS = 10
"""With fewer groups a bootstrap interval is far too narrow, and none is given."""
CHUNK_VALUES = 2_000_000
"""Weights (resamples x images) in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval, whose ends are NaN where there are too few groups."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def measure(
    labels: NDArray[np.int64], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Accuracy, balanced accuracy and AUROC, for several weightings of the images at once.

    Balanced accuracy is the mean of the classes' recalls. AUROC is the mean over classes of that of
    the class against all others: the probability that an image of the class has a higher score for
    it than another image, ties counting half. Classes without any image, or without any other, are
    not in a mean.

    Args:
        labels: (N,) true classes.
        scores: (N, K) scores of each class.
        weights: (R, N), each image's weight in each of R weightings.

    Returns:
        (R, 3), in the order of `METRICS`; NaN where nothing has a weight.
    """
    right = scores.argmax(axis=1) == labels
    recalls, areas = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = weights @ right / weights.sum(axis=1)
        for number in range(scores.shape[1]):
            mine = labels == number
            total = weights[:, mine].sum(axis=1)
            recalls.append(weights[:, mine] @ right[mine] / total)
            areas.append(_area(scores[:, number], mine, weights))
        balanced, area = (_mean_of_known(np.stack(each)) for each in (recalls, areas))
    return np.stack([accuracy, balanced, area], axis=1)


def resampled(
    groups: NDArray[np.int64],
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """The metrics (R, 3) of `resamples` draws of groups with replacement, all images of each.

    Draws depend on the groups and the seed alone, so that those of several features are paired.
    """
    _, members = np.unique(groups, return_inverse=True)  # (N,)
    count = int(members.max()) + 1
    generator = np.random.default_rng(seed)
    found = []
    chunk = max(1, CHUNK_VALUES // len(labels))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size)  # (size, groups)
        found.append(measure(labels, scores, drawn[:, members].astype(np.float64)))
    return np.concatenate(found)


def estimates(
    labels: NDArray[np.int64], scores: NDArray[np.float64], draws: NDArray[np.float64] | None
) -> dict[str, Estimate]:
    """Each metric with its percentile interval.

    Args:
        draws: See `resampled`; None where there are too few groups for an interval.
    """
    values = measure(labels, scores, np.ones((1, len(labels))))[0]
    if draws is None:
        return {name: Estimate(float(v)) for name, v in zip(METRICS, values, strict=True)}
    return {
        name: Estimate(float(value), *interval(draws[:, number]))
        for number, (name, value) in enumerate(zip(METRICS, values, strict=True))
    }


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of resampled values; NaN ones are left out."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _area(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) area under the ROC curve of one class, by Mann and Whitney's statistic."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of runs of equal scores
    of_positive = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    of_negative = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(of_negative, axis=1) - of_negative / 2
    pairs = of_positive.sum(axis=1) * of_negative.sum(axis=1)
    area: NDArray[np.float64] = (of_positive * below).sum(axis=1) / pairs
    return area


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) mean over classes of (K, R) values; classes with NaN are left out."""
    known = ~np.isnan(values)
    mean: NDArray[np.float64] = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return mean
