"""Probes of features: what each kind of feature tells about the classes of one set."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.probes.features import Features
from pretrain.probes.knn import knn_scores
from pretrain.probes.labelled import Labelled
from pretrain.probes.linear import linear_scores
from pretrain.probes.metrics import (
    FEWEST_GROUPS,
    METRICS,
    Estimate,
    estimates,
    interval,
    resampled,
)
from pretrain.probes.splits import divide

KNN, LINEAR = "kNN", "linear"
ENCODER = "encoder"
"""Name of the features that are judged."""


@dataclass(frozen=True)
class Row:
    """How well one classifier told the classes of one set from one kind of features."""

    set: str
    features: str
    probe: str
    images: int
    """Scored, by a classifier that saw none of their group."""
    groups: int
    """Of these images."""
    metrics: dict[str, Estimate]
    ahead: dict[str, Estimate]
    """How far `ENCODER` is ahead of these features, on the same resamples; empty for itself."""


@dataclass(frozen=True)
class Protocol:
    """How features are probed.

    Attributes:
        folds: See `divide`.
        neighbours: See `knn_scores`.
        resamples: Behind each interval; 0 gives no intervals.
        seed: Seed of folds and resamples.
    """

    folds: int = 5
    neighbours: int = 20
    resamples: int = 1000
    seed: int = 0


def judge(
    labelled: Labelled,
    features: Features,
    protocol: Protocol,
    probes: Sequence[str] = (KNN, LINEAR),
) -> list[Row]:
    """A row for each kind of features and each classifier, all on the same division of images."""
    pairs = divide(
        labelled.labels, labelled.groups, labelled.is_test, protocol.folds, protocol.seed
    )
    scored = np.concatenate([score for _, score in pairs])
    labels, groups = labelled.labels[scored], labelled.groups[scored]
    count = len(np.unique(groups))
    with_intervals = protocol.resamples > 0 and count >= FEWEST_GROUPS
    rows = []
    for probe in probes:
        scores = {
            name: np.concatenate(
                [_scores(probe, vectors, labelled, *pair, protocol) for pair in pairs]
            )
            for name, vectors in features.items()
        }
        draws = {
            name: resampled(groups, labels, each, protocol.resamples, protocol.seed)
            for name, each in scores.items()
            if with_intervals
        }
        metrics = {name: estimates(labels, each, draws.get(name)) for name, each in scores.items()}
        rows += [
            Row(
                labelled.name,
                name,
                probe,
                len(scored),
                count,
                found,
                _ahead(name, metrics, draws),
            )
            for name, found in metrics.items()
        ]
    return rows


def _scores(
    probe: str,
    vectors: NDArray[np.float32],
    labelled: Labelled,
    fit: NDArray[np.int64],
    score: NDArray[np.int64],
    protocol: Protocol,
) -> NDArray[np.float64]:
    """(m, K) scores of the images to be scored."""
    known, asked, classes = vectors[fit], vectors[score], len(labelled.classes)
    if probe == KNN:
        return knn_scores(known, labelled.labels[fit], asked, classes, protocol.neighbours)
    return linear_scores(
        known, labelled.labels[fit], labelled.groups[fit], asked, classes, protocol.seed
    )


def _ahead(
    name: str,
    metrics: dict[str, dict[str, Estimate]],
    draws: dict[str, NDArray[np.float64]],
) -> dict[str, Estimate]:
    """The lead of the judged features over others, with an interval of paired resamples."""
    if name == ENCODER or ENCODER not in metrics:
        return {}
    leads = {}
    for number, metric in enumerate(METRICS):
        value = metrics[ENCODER][metric].value - metrics[name][metric].value
        ends = (math.nan, math.nan)
        if name in draws:
            ends = interval(draws[ENCODER][:, number] - draws[name][:, number])
        leads[metric] = Estimate(value, *ends)
    return leads
