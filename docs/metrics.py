"""The tables of docs/metrics.md: `python docs/metrics.py` prints them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import gaussian_filter

from data_prep.common.results import markdown_table
from finetune.evaluation.metrics import edge_distances, hd95
from finetune.evaluation.statistics import mean_interval

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

SPACINGS = ((1.0, 1.0), (2.0, 0.5), (1.0, 1.0, 1.0), (5.0, 0.8, 0.8))
PAIRS = 50
CASES = (2, 3, 5, 10, 30)
SAMPLES = 500


def medpy_hd95(prediction: Mask, target: Mask, spacing: Sequence[float]) -> float:
    """MedPy's `binary.hd95`: one percentile over the edge pixels of both masks together."""
    return float(np.percentile(np.hstack(edge_distances(prediction, target, spacing)), 95))


def ellipsoid(
    shape: Sequence[int], spacing: Sequence[float], centre: Sequence[float], radius: float
) -> Mask:
    """Pixels within `radius` mm of `centre` (mm from the middle of the array)."""
    squared = np.zeros(shape)
    for axis, places in enumerate(np.indices(shape)):
        squared += ((places - (shape[axis] - 1) / 2) * spacing[axis] - centre[axis]) ** 2
    return squared <= radius**2


def examples() -> Iterator[tuple[str, Mask, Mask, tuple[float, ...]]]:
    """What is wrong, prediction, truth, spacing."""
    flat, cube, thick = (1.0, 1.0), (1.0, 1.0, 1.0), (5.0, 0.8, 0.8)
    disc = ellipsoid((96, 96), flat, (0, 0), 20)
    yield "disc of 20 mm, 2 mm too large", ellipsoid((96, 96), flat, (0, 0), 22), disc, flat
    yield "the same disc, 3 mm to one side", ellipsoid((96, 96), flat, (0, 3), 20), disc, flat
    island = disc | ellipsoid((96, 96), flat, (30, 30), 3)
    yield "the same disc, with a false island of 3 mm", island, disc, flat
    shape = (48, 48, 48)
    ball, moved = (ellipsoid(shape, cube, (0, offset, 0), 15) for offset in (0, 3))
    yield "ball of 15 mm, 3 mm to one side", moved, ball, cube
    shape = (11, 60, 60)
    ball, moved = (ellipsoid(shape, thick, (0, offset, 0), 15) for offset in (0, 3))
    yield "the same ball in thick slices, 3 mm to one side", moved, ball, thick
    cut = ball.copy()
    cut[: np.flatnonzero(ball.any((1, 2)))[0] + 1] = False
    yield "the same, its first slice missed", cut, ball, thick
    small = ellipsoid((32, 32), flat, (0, 0), 2)
    yield "disc of 2 mm, 1 mm to one side", ellipsoid((32, 32), flat, (0, 1), 2), small, flat


def example_table() -> list[str]:
    """HD95 of every example by each definition."""
    rows = []
    for name, prediction, truth, spacing in examples():
        cells = [hd95(prediction, truth, spacing, definition=each) for each in ("surface", "monai")]
        cells.append(medpy_hd95(prediction, truth, spacing))
        rows.append([name, _mm(spacing), *(f"{cell:.2f}" for cell in cells)])
    return markdown_table(["prediction", "spacing, mm", "surface", "monai", "MedPy"], rows)


def blobs(rng: np.random.Generator, spacing: Sequence[float]) -> tuple[Mask, Mask]:
    """A smooth object of about 30 mm and a prediction that differs in places."""
    shape = [round(32 / step) for step in spacing]
    smooth = [6 / step for step in spacing]
    truth = gaussian_filter(rng.normal(size=shape), smooth)
    error = gaussian_filter(rng.normal(size=shape), [size / 2 for size in smooth])
    fields = truth / truth.std(), truth / truth.std() + 0.5 * error / error.std()
    one, other = (field > np.quantile(field, 0.75) for field in fields)
    return other, one


def difference_table() -> list[str]:
    """How far the other definitions are from `surface`, over seeded pairs of masks."""
    rows = []
    for spacing in SPACINGS:
        rng = np.random.default_rng(0)
        found = []
        for _ in range(PAIRS):
            pair = blobs(rng, spacing)
            ours = hd95(*pair, spacing)
            others = hd95(*pair, spacing, definition="monai"), medpy_hd95(*pair, spacing)
            found.append([ours, *(other - ours for other in others)])
        ours, monai, medpy = np.array(found).T
        cells = [f"{np.median(ours):.2f}"]
        for other in (monai, medpy):
            cells += [f"{np.median(other):+.2f}", f"{other.min():+.2f} to {other.max():+.2f}"]
        rows.append([_mm(spacing), *cells])
    head = ["spacing, mm", "surface, median", "monai, median of the difference", "range"]
    return markdown_table([*head, "MedPy, median of the difference", "range"], rows)


def near_one(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores of which most are near 0.9, some far lower."""
    return rng.beta(9, 1.5, shape)


def spread(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores about 0.5."""
    return rng.beta(3, 3, shape)


def some_missed(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores about 0.86, but of every tenth case about 0.14."""
    return np.where(rng.random(shape) < 0.1, rng.beta(1, 6, shape), rng.beta(18, 3, shape))


SCORES: dict[str, tuple[Callable[..., Floats], float]] = {
    "skewed: Beta(9, 1.5)": (near_one, 9 / 10.5),
    "symmetric: Beta(3, 3)": (spread, 0.5),
    "every tenth missed": (some_missed, 0.1 / 7 + 0.9 * 18 / 21),
}
"""Scores like Dice: how they are drawn, and their true mean."""


def coverage_table() -> list[str]:
    """How often 95 % intervals of a mean hold the true one, by the number of cases."""
    rows = []
    for (name, (draw, truth)), n in product(SCORES.items(), CASES):
        held = [t_coverage(draw, truth, n)]
        held += [bootstrap_coverage(draw, truth, n, method) for method in ("percentile", "BCa")]
        rows.append([name, n, *(f"{100 * share:.0f} %" for share in held)])
    return markdown_table(["scores", "cases", "t", "percentile bootstrap", "BCa"], rows)


def t_coverage(draw: Callable[..., Floats], truth: float, n: int) -> float:
    """Share of samples of n cases whose interval in the tables of `evaluate` holds the truth."""
    samples = draw(np.random.default_rng(n), (SAMPLES, n))
    groups = [f"{case}" for case in range(n)]
    found = [mean_interval(values, groups, (0, 1)) for values in samples]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def bootstrap_coverage(draw: Callable[..., Floats], truth: float, n: int, method: str) -> float:
    """The same of SciPy's bootstrap by `method`."""
    samples = draw(np.random.default_rng(n), (SAMPLES, n))
    options = {"n_resamples": 500, "batch": 50, "rng": np.random.default_rng(n)}
    found = stats.bootstrap((samples,), np.mean, axis=1, method=method, **options)
    low, high = found.confidence_interval
    return float(np.mean((low <= truth) & (truth <= high)))


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:g}" for step in spacing)


if __name__ == "__main__":
    for table in (example_table, difference_table, coverage_table):
        print("\n".join([f"{table.__doc__}\n", *table(), ""]))
