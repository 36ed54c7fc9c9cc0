"""No group is on both sides, and intervals know that images of one group are alike."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from pretrain.probes import judge as judging
from pretrain.probes import linear
from pretrain.probes.judge import ENCODER, KNN, LINEAR, Protocol, judge
from pretrain.probes.labelled import Labelled, choose_groups
from pretrain.probes.metrics import estimates, interval, resampled
from pretrain.probes.splits import divide, group_folds


def labelled(labels, groups, is_test=None, classes="abc"):
    places = np.zeros((len(labels), 2), np.int64)
    return Labelled("made", (), places, labels, list(classes), groups, is_test)


def cases(n=90, seed=0, classes=3):
    """Groups of one to four images; some have images of two classes."""
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, n // 3, n))
    labels = np.where(rng.random(n) < 0.8, groups % classes, rng.integers(0, classes, n))
    return labels.astype(np.int64), groups.astype(np.int64)


@pytest.mark.parametrize("folds", [1, 2, 5, 1000])
def test_no_group_is_on_both_sides_and_all_are_scored_once(folds):
    labels, groups = cases()
    pairs = divide(labels, groups, None, folds, seed=3)
    for fit, score in pairs:
        assert not set(groups[fit]) & set(groups[score])
        assert len(fit) + len(score) == len(labels)
    scored = np.concatenate([score for _, score in pairs])
    assert len(np.unique(scored)) == len(scored)
    assert len(scored) == len(labels) if folds > 1 else 10 < len(scored) < 30
    again = divide(labels, groups, None, folds, seed=3)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(pairs, again, strict=True))


def test_classes_smaller_than_the_number_of_folds_are_divided_too():
    pairs = list(group_folds(np.arange(6), np.arange(6), 5, seed=0))
    assert sorted(np.concatenate([score for _, score in pairs])) == list(range(6))


def test_a_given_split_is_kept():
    is_test = np.array([True, False, True, False])
    ((fit, score),) = divide(np.zeros(4, int), np.arange(4), is_test, 5, 0)
    assert fit.tolist() == [1, 3] and score.tolist() == [0, 2]


def test_inner_divisions_cut_no_group_either(monkeypatch):
    labels, groups = cases()
    features = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    seen = []

    def watched(inner_labels, inner_groups, parts, seed):
        for fit, score in group_folds(inner_labels, inner_groups, parts, seed):
            seen.append((set(inner_groups), set(inner_groups[fit]), set(inner_groups[score])))
            yield fit, score

    monkeypatch.setattr(linear, "group_folds", watched)
    judge(labelled(labels, groups), {ENCODER: features}, Protocol(folds=3), (LINEAR,))
    assert len(seen) == 3
    for whole, fit, score in seen:
        assert fit | score == whole and not fit & score and score
        assert whole < set(groups)  # nor is the scored part of the outer division in it


def test_some_images_are_whole_groups_of_every_class():
    labels, groups = cases(n=600, seed=1)
    labels[np.isin(groups, [5, 6, 7])] = 3  # a rare class
    is_test = groups % 4 == 0
    is_test[np.isin(groups, [7])] = True
    whole = labelled(labels, groups, is_test, "abcd")
    chosen = choose_groups(whole, 120, seed=0)
    assert 100 < len(chosen) < 160
    assert set(np.unique(labels[chosen])) == {0, 1, 2, 3}
    assert len(set(groups[chosen][labels[chosen] == 3])) == 3
    for group in np.unique(groups[chosen]):
        assert (groups[chosen] == group).sum() == (groups == group).sum()
    share = is_test[chosen].mean()
    assert share == pytest.approx(is_test.mean(), abs=0.06)
    assert np.array_equal(chosen, choose_groups(whole, 120, seed=0))
    assert not np.array_equal(chosen, choose_groups(whole, 120, seed=1))


def simulated(rng, groups=30, per_group=6):
    """Two classes, told rightly with a probability that differs from group to group."""
    members = np.repeat(np.arange(groups), per_group)
    skill = np.repeat(rng.beta(2, 1, groups), per_group)  # mean 2/3
    labels = rng.integers(0, 2, len(members))
    right = rng.random(len(members)) < skill
    told = np.where(right, labels, 1 - labels)
    return members, labels, np.eye(2)[told]


def coverage(by_group: bool) -> float:
    """Share of simulations in which the interval of the accuracy holds the true one."""
    rng = np.random.default_rng(0)
    held = 0
    for number in range(200):
        members, labels, scores = simulated(rng)
        units = members if by_group else np.arange(len(members))
        low, high = interval(resampled(units, labels, scores, 200, number)[:, 0])
        held += low <= 2 / 3 <= high
    return held / 200


def test_intervals_over_groups_hold_the_truth_about_as_often_as_they_say():
    assert 0.89 <= coverage(by_group=True) <= 0.99
    assert coverage(by_group=False) < 0.87  # as if images were cases of their own


def test_resamples_are_paired_and_seeded():
    rng = np.random.default_rng(0)
    members, labels, scores = simulated(rng)
    one = resampled(members, labels, scores, 50, seed=4)
    assert np.array_equal(one, resampled(members, labels, scores, 50, seed=4))
    assert not np.array_equal(one, resampled(members, labels, scores, 50, seed=5))
    found = estimates(labels, scores, one)["accuracy"]
    assert found.low < found.value < found.high


def test_better_features_are_ranked_better_and_clearly_so():
    labels, groups = cases(n=150, seed=2)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(150, 8)).astype(np.float32)
    means = rng.normal(0, 1, (3, 8))
    weak, good = ((noise + factor * means[labels]).astype(np.float32) for factor in (0.5, 2))
    features = {"thumbnail": noise, "untrained": weak, ENCODER: good}
    rows = judge(labelled(labels, groups), features, Protocol(resamples=200))
    assert len(rows) == 6
    for probe in (KNN, LINEAR):
        found = {row.features: row for row in rows if row.probe == probe}
        for metric in ("accuracy", "balanced accuracy", "AUROC"):
            values = [found[name].metrics[metric].value for name in features]
            assert values == sorted(values) and values[2] > values[1] > values[0]
            lead = found["thumbnail"].ahead[metric]
            assert lead.value == pytest.approx(values[2] - values[0]) and lead.low > 0
        assert found[ENCODER].ahead == {} and found[ENCODER].images == 150


def test_with_few_groups_there_is_no_interval():
    labels, groups = cases(n=24, seed=0)
    features = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    assert len(np.unique(groups)) < judging.FEWEST_GROUPS
    rows = judge(labelled(labels, groups), {ENCODER: features}, Protocol(folds=2), (KNN,))
    assert math.isnan(rows[0].metrics["accuracy"].low)
    assert "to" not in str(rows[0].metrics["accuracy"])


def test_nearest_neighbours_get_their_options(monkeypatch):
    got = SimpleNamespace()
    monkeypatch.setattr(
        judging,
        "knn_scores",
        lambda *a: got.__dict__.update(neighbours=a[4]) or np.ones((len(a[2]), 3)) / 3,
    )
    labels, groups = cases()
    features = np.ones((90, 2), np.float32)
    judge(labelled(labels, groups), {ENCODER: features}, Protocol(neighbours=3), (KNN,))
    assert got.neighbours == 3
