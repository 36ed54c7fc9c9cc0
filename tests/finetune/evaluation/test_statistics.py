"""Bootstrap intervals: the textbook's for normal values, and their coverage."""

import math

import numpy as np
import pytest

from finetune.evaluation.statistics import bootstrap_interval


def test_interval_of_normal_values_is_the_textbook_one():
    rng = np.random.default_rng(6)
    values = rng.normal(0.8, 0.1, 200)
    low, high = bootstrap_interval(values, rng)
    half = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)
    narrow = bootstrap_interval(values, rng, confidence=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.random(40), rng, n=200, confidence=0.8)
        covered += low <= 0.5 <= high
    assert 140 <= covered <= 180


def test_interval_of_special_values():
    rng = np.random.default_rng(8)
    assert bootstrap_interval([0.3], rng) == (0.3, 0.3)
    low, high = bootstrap_interval([1.0, 2.0, 3.0, math.inf], rng)
    assert low < 3 and high == math.inf
    values = np.arange(10.0)
    runs = [bootstrap_interval(values, np.random.default_rng(s)) for s in (1, 1)]
    assert runs[0] == runs[1]
    for bad in ([], [[1.0]], [1.0, math.nan]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap_interval(bad, rng)
