"""Who is fitted and who is scored: no group is ever on both sides."""

from collections.abc import Iterator
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

PARTS = 5
"""Of a single division into fitted and scored, and of the inner ones: one part is held out."""

Indices = NDArray[np.int64]


def divide(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    is_test: NDArray[np.bool_] | None,
    folds: int,
    seed: int,
) -> list[tuple[Indices, Indices]]:
    """Pairs of images to fit and to score.

    Args:
        labels: (N,) class of each image.
        groups: (N,) group of each image.
        is_test: (N,) a division that is given; None: by folds.
        folds: Number of pairs, which together score every image once; 1 scores a fifth of them.
    """
    if is_test is not None:
        return [(np.flatnonzero(~is_test), np.flatnonzero(is_test))]
    pairs = list(group_folds(labels, groups, folds if folds > 1 else PARTS, seed))
    return pairs if folds > 1 else pairs[:1]


def group_folds(
    labels: NDArray[np.int64], groups: NDArray[np.int64], parts: int, seed: int
) -> Iterator[tuple[Indices, Indices]]:
    """Folds of whole groups, in which classes are as frequent as in all, as far as groups allow.

    There are fewer than `parts` where there are fewer groups.
    """
    parts = min(parts, len(np.unique(groups)))
    if np.bincount(labels).max() < parts:  # every class is too small to be in each
        labels = np.zeros_like(labels)
    folds = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with catch_warnings():
        simplefilter("ignore")  # it warns of classes with fewer images than folds
        for fit, score in folds.split(labels, labels, groups):
            if len(score):
                yield fit.astype(np.int64), score.astype(np.int64)
