"""How certain a mean over few cases is.

Cases of one group (patient) are alike, so that the interval is that of a mean over clusters:
Student's t with the variance CR2 and the degrees of freedom of Bell and McCaffrey (2002, "Bias
reduction in standard errors for linear regression with multi-stage samples"). With one case per
group, or as many in each, this is the textbook's t interval of the groups' means.

A percentile bootstrap needs 30 cases and more, and so does its refinement BCa: `docs/metrics.md`
shows how often each holds the true mean.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

FEW_GROUPS = 10
"""Below this number of groups a note says how far the interval can be trusted."""

ANY = (-math.inf, math.inf)
"""Range of a figure without bounds."""


@dataclass(frozen=True)
class Mean:
    """A mean over cases with its interval, whose ends are NaN if all cases are of one group.

    The mean is NaN too if there is no case.
    """

    mean: float
    low: float
    high: float
    groups: int
    """Groups that the cases are of."""

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        digits = 3 if (self.mean if math.isnan(self.high) else self.high) <= 1 else 2
        if math.isnan(self.low):
            return f"{self.mean:.{digits}f} (no interval)"
        return f"{self.mean:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def mean_interval(
    values: ArrayLike,
    groups: Sequence[str],
    bounds: tuple[float, float] = ANY,
    confidence: float = 0.95,
) -> Mean:
    """Mean of `values`, and an interval that holds the mean of all cases there could be.

    Args:
        values: (cases,) one finite figure per case.
        groups: Group of each case.
        bounds: Smallest and largest value that a case can have; the interval ends there.
        confidence: How often the interval is to hold the true mean, in (0, 1).
    """
    cases = np.asarray(values, dtype=np.float64)
    if cases.ndim != 1 or len(cases) != len(groups) or not np.isfinite(cases).all():
        raise ValueError("mean_interval needs one finite value and one group for each case")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number in (0, 1)")
    if not len(cases):
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(cases.mean())
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    share = np.bincount(member) / len(cases)  # (groups,)
    if len(share) == 1:
        return Mean(mean, math.nan, math.nan, 1)
    residuals = np.bincount(member, cases - mean) / len(cases)  # (groups,)
    error = math.sqrt((residuals**2 / (1 - share)).sum())
    # 1 / tr(M^2) for M the covariance of the adjusted residuals of independent cases, tr(M) = 1.
    shared = share**2 / (1 - share)
    freedom = 1 / ((share**2).sum() + shared.sum() ** 2 - (shared**2).sum())
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    low, high = max(mean - half, bounds[0]), min(mean + half, bounds[1])
    return Mean(mean, low, high, len(share))


def notes_on_groups(means: Iterable[Mean]) -> list[str]:
    """What to write below a table of means whose groups are few."""
    numbers = {mean.groups for mean in means}
    notes = []
    if 1 in numbers:
        notes.append(
            "No interval: all cases of that mean are of one group, which does not show how much"
            " groups differ."
        )
    if any(1 < number < FEW_GROUPS for number in numbers):
        notes.append(
            f"Some means are over fewer than {FEW_GROUPS} groups: too few to see rare failures, so"
            " their intervals are wide and may still be too narrow."
        )
    return notes
