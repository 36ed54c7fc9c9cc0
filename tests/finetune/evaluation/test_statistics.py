"""Intervals of means: the textbook's, their coverage for few skewed cases, and for groups."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation.statistics import (
    Mean,
    holm,
    mean_interval,
    notes_on_groups,
    sign_flip_test,
)


def alone(values) -> list[str]:
    """Every case as its own group."""
    return [f"{index}" for index in range(len(values))]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_without_groups_it_is_the_textbook_interval(n):
    values = np.random.default_rng(n).beta(9, 1.5, n)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = mean_interval(values, alone(values), confidence=0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), *expected))


def test_groups_of_one_size_count_as_their_means():
    values = np.random.default_rng(0).normal(size=(6, 4))
    groups = np.repeat(list("abcdef"), 4)
    order = np.random.default_rng(1).permutation(24)
    found = mean_interval(values.ravel()[order], groups[order])
    expected = mean_interval(values.mean(1), list("abcdef"))
    assert (found.mean, found.low, found.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert found.groups == expected.groups == 6


def literal_interval(values, groups):
    """CR2 and Bell and McCaffrey's degrees of freedom, by matrices as in a regression on 1."""
    n = len(values)
    ones = np.ones((n, 1))
    hat = ones @ ones.T / n
    parts = [np.flatnonzero(np.asarray(groups) == group) for group in sorted(set(groups))]
    residual = (np.eye(n) - hat) @ values
    variance, columns = 0.0, []
    for part in parts:
        eigenvalues, vectors = np.linalg.eigh(np.eye(len(part)) - hat[np.ix_(part, part)])
        adjusted = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T
        variance += (np.ones(len(part)) @ adjusted @ residual[part]) ** 2 / n**2
        columns.append((np.eye(n) - hat)[:, part] @ adjusted @ np.ones(len(part)) / n)
    inner = np.stack(columns, 1)
    eigenvalues = np.linalg.eigvalsh(inner.T @ inner)
    freedom = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return values.mean() - half, values.mean() + half


@pytest.mark.parametrize("groups", ["ab", "abb", "aabccccc", "abcdefghhhhhiiiii", "abcabca"])
def test_groups_of_any_size_are_those_of_the_regression(groups):
    values = np.random.default_rng(len(groups)).normal(size=len(groups))
    found = mean_interval(values, list(groups))
    assert (found.low, found.high) == pytest.approx(literal_interval(values, list(groups)))


def coverage(draw, truth: float, n: int, groups=None, repeats: int = 2000) -> float:
    """Share of samples of n cases whose interval holds the true mean."""
    rng = np.random.default_rng(n)
    groups = groups or alone(range(n))
    held = 0
    for values in draw(rng, (repeats, n)):
        found = mean_interval(values, groups, (0, 1))
        held += found.low <= truth <= found.high
    return held / repeats


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
@pytest.mark.parametrize(("a", "b"), [(9, 1.5), (4, 1), (3, 3)])
def test_the_interval_holds_the_truth_of_skewed_scores(n, a, b):
    """The percentile bootstrap holds it in 0.48 of samples of 2 and 0.8 of samples of 5."""
    held = coverage(lambda rng, shape: rng.beta(a, b, shape), a / (a + b), n)
    assert 0.89 < held < 0.97


def alike(rng, shape, sizes):
    """Scores whose groups differ more than the cases of one."""
    level = np.repeat(rng.beta(6, 2, (shape[0], len(sizes))), sizes, axis=1)
    return np.clip(level + rng.uniform(-0.02, 0.02, level.shape), 0, 1)


@pytest.mark.parametrize("sizes", [[6] * 4, [1, 1, 2, 2, 10], [1] * 8 + [10, 10], [1] * 20 + [9]])
def test_cases_of_one_group_do_not_count_as_independent(sizes):
    groups = [f"{group}" for group in np.repeat(range(len(sizes)), sizes)]
    n = sum(sizes)
    held = coverage(lambda rng, shape: alike(rng, shape, sizes), 0.75, n, groups)
    assert held > 0.91
    assert coverage(lambda rng, shape: alike(rng, shape, sizes), 0.75, n) < held - 0.04


def test_intervals_stay_within_the_range_of_a_score():
    found = mean_interval([0.99, 0.6], ["a", "b"], (0, 1))
    assert (found.low, found.high) == (0, 1)
    assert mean_interval([0.1, 9.0], ["a", "b"], (0, math.inf)).low == 0
    assert mean_interval([0.99, 0.6], ["a", "b"]).high > 1


def test_one_group_has_no_interval():
    for values, groups in (([0.3], ["a"]), ([0.3, 0.5], ["a", "a"])):
        found = mean_interval(values, groups)
        assert math.isnan(found.low) and math.isnan(found.high)
        assert str(found) == f"{np.mean(values):.3f} (no interval)"
    assert str(mean_interval([], [])) == "-"
    assert str(Mean(12.3456, math.nan, math.nan, 1)) == "12.35 (no interval)"


def test_tables_say_when_there_are_too_few_groups():
    def notes(*groups: int) -> list[str]:
        return notes_on_groups([Mean(0.5, 0.4, 0.6, number) for number in groups])

    assert notes(30, 10, 0) == []
    (few,) = notes(30, 9)
    assert "fewer than 10 groups" in few
    (one,) = notes(30, 1)
    assert one.startswith("No interval")
    assert len(notes(1, 2, 3)) == 2


def test_bad_arguments_are_refused():
    for values, groups in (([[1.0]], ["a"]), ([1.0, math.nan], ["a", "b"]), ([1.0, 2.0], ["a"])):
        with pytest.raises(ValueError, match="one finite value and one group"):
            mean_interval(values, groups)
    with pytest.raises(ValueError, match="confidence is 95"):
        mean_interval([1.0, 2.0], ["a", "b"], confidence=95)


def literal_sign_flips(values, groups):
    """Every exchange of the two names in some groups, one by one."""
    names = sorted(set(groups))
    means = []
    for signs in product((1, -1), repeat=len(names)):
        of = dict(zip(names, signs, strict=True))
        means.append(abs(np.mean([of[g] * v for v, g in zip(values, groups, strict=True)])))
    return np.mean(np.array(means) >= means[0] - 1e-12)


@pytest.mark.parametrize("groups", ["ab", "abb", "aabccccc", "abcdefghhhhhiiiii", "abcabca"])
def test_p_counts_all_exchanges_of_groups(groups):
    values = np.random.default_rng(len(groups)).normal(0.5, 1, len(groups)).round(1)  # with ties
    found = sign_flip_test(values, list(groups))
    assert found == pytest.approx(literal_sign_flips(values, groups))
    assert found >= 2 / 2 ** len(set(groups))


def test_without_groups_it_is_the_paired_permutation_test():
    one, other = np.random.default_rng(0).beta(5, 2, (2, 10))
    expected = stats.permutation_test(
        (one, other), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(one - other, alone(one)) == pytest.approx(expected.pvalue)


def test_of_many_groups_some_exchanges_are_drawn(monkeypatch):
    values = np.random.default_rng(3).normal(0.4, 1, 12)
    exact = sign_flip_test(values, alone(values))
    monkeypatch.setattr("finetune.evaluation.statistics.EXACT_GROUPS", 5)
    drawn = [sign_flip_test(values, alone(values), seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn == pytest.approx([exact] * 3, abs=0.02)
    assert sign_flip_test([1.0] * 30, alone(range(30)), draws=99) == 0.01  # never 0


def test_p_is_seldom_small_without_a_difference():
    """Groups of several sizes that are skewed alike on both sides: 5 % of p are at most 0.05."""
    rng, groups = np.random.default_rng(0), list("abbcccddddeeeeefgh")
    sizes = [groups.count(group) for group in sorted(set(groups))]
    small = 0
    for _ in range(1000):
        level = rng.exponential(size=8) * rng.choice([-1, 1], 8)
        small += sign_flip_test(np.repeat(level, sizes), groups) <= 0.05
    assert 30 < small < 70


def test_one_group_has_no_p_value():
    assert math.isnan(sign_flip_test([0.1, 0.2], ["a", "a"]))
    assert math.isnan(sign_flip_test([], []))
    assert sign_flip_test([0.0, 0.0], ["a", "b"]) == 1
    with pytest.raises(ValueError, match="one finite value"):
        sign_flip_test([math.nan], ["a"])


def literal_holm(p_values):
    """Each p times the number of those not yet rejected, and no less than any before it."""
    p = np.array(p_values)
    return [max(min(1, sum(p >= other) * other) for other in p[p <= each]) for each in p]


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20):
        p_values = (rng.uniform(size=count) ** 3).tolist()
        assert holm(p_values) == pytest.approx(literal_holm(p_values))
    first, unknown, last = holm([0.01, math.nan, 0.5])
    assert (first, last) == (0.02, 0.5) and math.isnan(unknown)
    assert holm([]) == []
