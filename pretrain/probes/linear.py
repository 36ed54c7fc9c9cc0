"""A linear classifier on frozen features: multinomial logistic regression."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pretrain.probes.splits import PARTS, group_folds

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 penalty among which one is chosen, the strongest penalty first."""
ITERATIONS = 300
FLOOR = 1e-6
"""Least probability of a true class in the choice, so that one image alone decides nothing."""

SMALL = 200_000
"""Values of fitted features up to which one thread fits as fast as several."""


def linear_scores(
    fit: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    score: NDArray[np.float32],
    classes: int,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Probability of each class for each scored image.

    Features are standardised by the mean and deviation of the fitted images. The penalty is the one
    with the smallest cross entropy on a fifth of the fitted groups, by a fit to the others; then
    all are fitted.

    Args:
        fit: (n, C) features of images whose classes are known.
        labels: (n,) these classes.
        groups: (n,) their groups.
        score: (m, C) features of the images to be classified.
        seed: Seed of the inner division.

    Returns:
        (m, classes), each row summing to 1.
    """
    strength = choose_strength(fit, labels, groups, classes, seed)
    strengths = [each for each in STRENGTHS if each <= strength]
    return _path(fit, labels, score, classes, strengths)[-1]


def choose_strength(
    fit: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    classes: int,
    seed: int,
) -> float:
    """The inverse penalty with the smallest cross entropy on groups that were not fitted."""
    if len(np.unique(groups)) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    inner, held = next(group_folds(labels, groups, PARTS, seed))
    losses = [
        -np.log(np.maximum(scores[np.arange(len(held)), labels[held]], FLOOR)).mean()
        for scores in _path(fit[inner], labels[inner], fit[held], classes, STRENGTHS)
    ]
    return STRENGTHS[int(np.argmin(losses))]


def _path(
    fit: NDArray[np.float32],
    labels: NDArray[np.int64],
    score: NDArray[np.float32],
    classes: int,
    strengths: list[float] | tuple[float, ...],
) -> list[NDArray[np.float64]]:
    """Scores (m, classes) for each strength; each fit starts from the one before."""
    found = np.unique(labels)
    results = []
    if len(found) == 1:  # nothing to fit: it is certain of the one class that it knows
        scores = np.zeros((len(score), classes))
        scores[:, found[0]] = 1
        return [scores] * len(strengths)
    mean, deviation = fit.mean(axis=0), fit.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    known = ((fit - mean) / deviation).astype(np.float64)
    asked = ((score - mean) / deviation).astype(np.float64)
    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    threads = 1 if known.size < SMALL else None  # several only wait for each other
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty needs no more
            model.fit(known, labels)
        scores = np.zeros((len(score), classes))
        scores[:, found] = model.predict_proba(asked)
        results.append(scores)
    return results
