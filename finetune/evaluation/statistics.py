"""How certain a mean over few cases is."""

import numpy as np
from numpy.typing import ArrayLike


def bootstrap_interval(
    values: ArrayLike, rng: np.random.Generator, n: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, resampling cases with replacement.

    Args:
        values: (cases,) one figure per case; may hold infinity (a missed object's HD95), not NaN.
        rng: Source of the resamples.
        n: Number of resamples.
        confidence: Share of resampled means inside the interval, in 0..1.

    Returns:
        Lower and upper end; both are means of resamples, not interpolated between two.
    """
    cases = np.asarray(values, dtype=np.float64)
    if cases.ndim != 1 or cases.size == 0 or np.isnan(cases).any():
        raise ValueError("bootstrap_interval needs at least one value, in one dimension, no NaN")
    if not 0 < confidence < 1 or n < 1:
        raise ValueError(f"confidence {confidence} must lie in 0..1 and n {n} be at least 1")
    means = [cases[rng.integers(cases.size, size=cases.size)].mean() for _ in range(n)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)
