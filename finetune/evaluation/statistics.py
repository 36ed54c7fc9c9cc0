"""How certain a mean over few cases is, and a difference of two.

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
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

FEW_GROUPS = 10
"""Below this number of groups a note says how far the interval can be trusted."""

EXACT_GROUPS = 20
"""Up to this number of groups `sign_flip_test` counts all exchanges, half a million."""

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
    error = _error_of_mean(cases, groups)
    number, mean = len(set(groups)), float(cases.mean())
    return _interval(mean, error, number, bounds, confidence)


def crossed_interval(
    values: ArrayLike,
    groups: Sequence[str],
    bounds: tuple[float, float] = ANY,
    confidence: float = 0.95,
) -> Mean:
    """Mean over runs of one kind and over cases, and an interval that holds the mean of all runs of
    that kind and of all cases there could be.

    Runs that were trained on other cases differ, and so do the cases that each is tested on. The
    variance is the sum of two, as of errors that are clustered both ways (Cameron, Gelbach and
    Miller 2011, "Robust inference with multiway clustering"): that of the mean over cases, as
    `mean_interval` has it, of each case's mean over runs; and that of the mean over runs. What
    neither explains counts in both, so that the interval is rather too wide. Degrees of freedom are
    Satterthwaite's (1946).

    Args:
        values: (runs, cases) finite figures. With one run, the interval is that of the cases.
        groups: Group of each case.
        bounds: As in `mean_interval`.
        confidence: As in `mean_interval`.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError("crossed_interval needs a row of cases for each run")
    over_cases = mean_interval(table.mean(0), groups, bounds, confidence)
    if len(table) == 1 or over_cases.groups < 2:
        return over_cases
    of_cases, of_runs = _error_of_mean(table.mean(0), groups), _error_of_mean(table.mean(1))
    squares = np.array([of_cases.square, of_runs.square])
    freedom = np.array([of_cases.freedom, of_runs.freedom])
    parts = (squares**2 / freedom).sum()
    together = _Error(squares.sum(), squares.sum() ** 2 / parts if parts else math.inf)
    return _interval(over_cases.mean, together, over_cases.groups, bounds, confidence)


class _Error(NamedTuple):
    """Squared standard error of a mean, and its degrees of freedom."""

    square: float
    freedom: float


def _error_of_mean(cases: NDArray[np.float64], groups: Sequence[str] | None = None) -> _Error:
    """That of the mean of cases (cases,), NaN if all are of one group. None: each is its own."""
    members = np.arange(len(cases)) if groups is None else np.asarray(groups)
    _, member = np.unique(members, return_inverse=True)
    share = np.bincount(member) / len(cases)  # (groups,)
    if len(share) == 1:
        return _Error(math.nan, math.nan)
    residuals = np.bincount(member, cases - cases.mean()) / len(cases)  # (groups,)
    # 1 / tr(M^2) for M the covariance of the adjusted residuals of independent cases, tr(M) = 1.
    shared = share**2 / (1 - share)
    freedom = 1 / ((share**2).sum() + shared.sum() ** 2 - (shared**2).sum())
    return _Error(float((residuals**2 / (1 - share)).sum()), float(freedom))


def _interval(
    mean: float, error: _Error, groups: int, bounds: tuple[float, float], confidence: float
) -> Mean:
    if math.isnan(error.square):
        return Mean(mean, math.nan, math.nan, groups)
    half = float(stdtrit(error.freedom, (1 + confidence) / 2)) * math.sqrt(error.square)
    return Mean(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), groups)


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


def sign_flip_test(
    values: ArrayLike, groups: Sequence[str], draws: int = 19_999, seed: int = 0
) -> float:
    """p-value of the hypothesis that paired differences favour neither side: two-sided, NaN if all
    cases are of one group.

    It is the paired permutation test over groups. If there is no difference between two runs, their
    names could be exchanged in any group, which turns the sign of all differences of that group;
    p is the share of such exchanges whose mean is at least as far from 0. Up to `EXACT_GROUPS`
    groups all of them are counted, so with G groups p is at least 2 / 2^G. For more, some are
    drawn, and what was found counts among them (Phipson and Smyth 2010, "Permutation p-values
    should never be zero").

    Args:
        values: (cases,) difference of each case.
        groups: Group of each case.
        draws: Number of exchanges drawn where they are too many to be counted.
        seed: Seed of these.
    """
    cases = np.asarray(values, dtype=np.float64)
    if cases.ndim != 1 or len(cases) != len(groups) or not np.isfinite(cases).all():
        raise ValueError("sign_flip_test needs one finite value and one group for each case")
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(member, cases)  # (groups,)
    if len(sums) < 2:
        return math.nan
    found = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums in another order differ by rounding
    if len(sums) <= EXACT_GROUPS:
        totals = sums[:1]  # turning all signs changes nothing, so the first one stays
        for each in sums[1:]:
            totals = np.concatenate([totals + each, totals - each])
        return float((np.abs(totals) >= found).mean())
    rng, beyond = np.random.default_rng(seed), 0
    for start in range(0, draws, 1000):
        signs = 2.0 * rng.integers(0, 2, (min(1000, draws - start), len(sums))) - 1
        beyond += int((np.abs(signs @ sums) >= found).sum())
    return (beyond + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method (1979, "A simple sequentially rejective
    multiple test procedure").

    Rejecting those of at most a keeps the chance of any wrong rejection at a or less, whichever
    hypotheses hold and however the tests depend on each other. NaN stays, and does not count.
    """
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
