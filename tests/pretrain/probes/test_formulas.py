"""Each formula of a probe against a slow literal version of it."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pretrain.probes import knn
from pretrain.probes.features import mean_token, thumbnail
from pretrain.probes.knn import knn_scores
from pretrain.probes.linear import STRENGTHS, choose_strength, linear_scores
from pretrain.probes.metrics import measure


def made(seed=0, n=60, width=5, classes=3, signal=1.0):
    """Features of classes whose means differ, labels, and groups of two images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.permutation(np.arange(n // 2) % classes), 2)
    means = rng.normal(0, signal, (classes, width))
    features = (means[labels] + rng.normal(0, 1, (n, width))).astype(np.float32)
    return features, labels.astype(np.int64), np.arange(n) // 2


@pytest.mark.parametrize("neighbours", [1, 7, 1000])
def test_nearest_neighbours_vote_by_similarity(neighbours, monkeypatch):
    monkeypatch.setattr(knn, "SIMILARITIES", 3 * 45)  # three images at once
    features, labels, _ = made()
    fit, score = features[:45], features[45:]
    found = knn_scores(fit, labels[:45], score, 4, neighbours, temperature=0.1)
    for vector, shares in zip(score, found, strict=True):
        similarity = [
            float(vector @ other / math.sqrt(vector @ vector) / math.sqrt(other @ other))
            for other in fit
        ]
        votes = [0.0] * 4
        for index in sorted(range(45), key=lambda i: -similarity[i])[:neighbours]:
            votes[labels[index]] += math.exp(similarity[index] / 0.1)
        assert shares == pytest.approx([vote / sum(votes) for vote in votes], rel=1e-4)


def test_nearest_neighbours_of_empty_images_are_no_error():
    fit = np.zeros((4, 3), np.float32)
    scores = knn_scores(fit, np.array([0, 0, 0, 1]), fit[:1], 2)
    assert scores.tolist() == [[0.75, 0.25]]


def test_linear_probe_is_logistic_regression_of_standardised_features():
    features, labels, groups = made(signal=0.7)
    features[:, 2] *= 1000
    features[:, 3] = 5  # says nothing, and has no deviation
    fit, score = slice(0, 40), slice(40, 60)
    found = linear_scores(features[fit], labels[fit], groups[fit], features[score], 4)
    strength = choose_strength(features[fit], labels[fit], groups[fit], 4, seed=0)
    mean, deviation = features[fit].mean(0), features[fit].std(0)
    deviation[3] = 1
    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-8)
    model.fit((features[fit] - mean) / deviation, labels[fit])
    expected = model.predict_proba((features[score] - mean) / deviation)
    assert found[:, :3] == pytest.approx(expected, abs=2e-3)
    assert (found[:, 3] == 0).all()  # a class that was never fitted


def test_the_penalty_is_the_one_that_unseen_groups_prefer():
    clear, labels, groups = made(signal=3.0, n=120)
    noise = np.random.default_rng(1).normal(size=clear.shape).astype(np.float32)
    weak = choose_strength(clear, labels, groups, 3, seed=0)
    strong = choose_strength(noise, labels, groups, 3, seed=0)
    assert strong in STRENGTHS[:2] and weak in STRENGTHS[2:]


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50)
    scores = rng.random((50, 3)).round(1)  # with ties
    scores /= scores.sum(axis=1, keepdims=True)
    accuracy, balanced, area = measure(labels, scores, np.ones((1, 50)))[0]
    told = scores.argmax(axis=1)
    assert accuracy == pytest.approx((told == labels).mean())
    assert balanced == pytest.approx(balanced_accuracy_score(labels, told))
    assert area == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))


def test_a_weight_of_two_is_an_image_counted_twice():
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 3, 30), rng.integers(0, 3, (4, 30))
    scores = rng.random((30, 3)).round(1)
    found = measure(labels, scores, weights.astype(float))
    for row, times in zip(found, weights, strict=True):
        one = measure(
            np.repeat(labels, times), np.repeat(scores, times, 0), np.ones((1, sum(times)))
        )
        assert row == pytest.approx(one[0])


def test_classes_that_were_not_drawn_are_not_in_a_mean():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.1, 0.9, 0]])
    (both, alone) = measure(labels, scores, np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]]))
    assert both == pytest.approx([0.75, 0.75, 0.75])
    assert alone[:2] == pytest.approx([0.5, 0.5]) and np.isnan(alone[2])


def test_padding_has_no_part_in_the_mean_token():
    tokens = torch.randn(2, 9, 4)
    valid = torch.zeros(2, 48, 48, dtype=torch.bool)
    valid[0, :24, :48] = True  # the second row of tokens is half image
    valid[1] = True
    found = mean_token(tokens, valid)
    weights = torch.tensor([1, 1, 1, 0.5, 0.5, 0.5, 0, 0, 0])
    expected = (tokens[0] * weights[:, None]).sum(0) / weights.sum()
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert torch.allclose(found[1], tokens[1].mean(0), atol=1e-6)


def test_a_thumbnail_is_the_mean_of_each_part():
    pixels = torch.randint(0, 256, (3, 40, 24), dtype=torch.uint8)
    found = thumbnail(pixels).view(3, 8, 8)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        part = pixels[:, 5 * row : 5 * row + 5, 3 * column : 3 * column + 3].float()
        assert torch.allclose(found[:, row, column], part.mean((1, 2)))
    grey = thumbnail(pixels[:1]).view(3, 8, 8)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
