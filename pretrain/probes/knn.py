"""Nearest neighbours as a classifier (DINO, arXiv 2104.14294, appendix F)."""

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
SIMILARITIES = 20_000_000
"""Similarities in memory at once: 160 MB."""


def knn_scores(
    fit: NDArray[np.float32],
    labels: NDArray[np.int64],
    score: NDArray[np.float32],
    classes: int,
    neighbours: int = 20,
    temperature: float = TEMPERATURE,
) -> NDArray[np.float64]:
    """Share of the votes that each class gets for each scored image.

    The nearest images by cosine similarity s vote for their class with weight exp(s / temperature).

    Args:
        fit: (n, C) features of images whose classes are known.
        labels: (n,) these classes.
        score: (m, C) features of the images to be classified.
        neighbours: How many vote; all of them if there are fewer.

    Returns:
        (m, classes), each row summing to 1.
    """
    known, asked = _directions(fit), _directions(score)
    k = min(neighbours, len(known))
    votes = np.zeros((len(asked), classes))
    chunk = max(1, SIMILARITIES // len(known))
    for start in range(0, len(asked), chunk):
        similarity = asked[start : start + chunk] @ known.T  # (chunk, n)
        # stable, so that the first of equally near ones votes on every machine
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(similarity, nearest, axis=1)
        # against the nearest, which changes no share and cannot overflow
        weights = np.exp((values - values[:, :1]) / temperature)  # (chunk, k)
        rows = np.repeat(np.arange(start, start + len(weights)), k)
        np.add.at(votes, (rows, labels[nearest].ravel()), weights.ravel())
    shares: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
    return shares


def _directions(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each row divided by its length; a row of zeros stays one."""
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions: NDArray[np.float64] = features / np.maximum(lengths, 1e-12)
    return directions
