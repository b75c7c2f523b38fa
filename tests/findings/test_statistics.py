"""Intervals and tests over prompts: against scipy's, against values by hand, and against truths that are known."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from mask_impact.findings import statistics
from mask_impact.findings.statistics import holm, mean_intervals, paired_test, share_interval, unpaired_test


def draws(name, n, columns, seed=0):
    """([n, columns], the mean that they are drawn from)"""
    rng = np.random.default_rng(seed)
    return {
        "normal": lambda: (rng.normal(3, 2, size=(n, columns)), 3.0),
        "uniform": lambda: (rng.random((n, columns)), 0.5),
        "skewed": lambda: (rng.gamma(4.0, size=(n, columns)), 4.0),
        "exponential": lambda: (rng.exponential(size=(n, columns)), 1.0),
    }[name]()


# --- intervals --------------------------------------------------------------------------------------------------------------


def test_the_bootstrap_is_scipy_s():
    """BCa of the same resamples, at the level that is asked for."""
    values, _ = draws("skewed", 30, 4)
    ours = statistics._intervals(values, 0.9, 999, 3, expanded=False)
    for column in range(4):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=999, confidence_level=0.9, method="BCa",
            rng=np.random.default_rng(3),
        ).confidence_interval  # fmt: skip
        assert (ours.low[column], ours.high[column]) == pytest.approx(tuple(theirs), rel=1e-12)
    np.testing.assert_allclose(ours.mean, values.mean(axis=0))


def coverage(rule, name, n):
    """In which share of 1,000 studies of n prompts the interval has the mean that they are drawn from."""
    values, mean = draws(name, n, 1000, seed=n)
    low, high = rule(values)
    return ((low <= mean) & (mean <= high)).mean()


def ours(values, **changes):
    found = mean_intervals(values, **changes)
    return found.low, found.high


def unexpanded(values):
    found = statistics._intervals(values, 0.95, 999, 0, expanded=False)
    return found.low, found.high


def by_deviation(values):
    """A broken version: the spread of the prompts in place of that of their mean."""
    return values.mean(axis=0) - 1.96 * values.std(axis=0), values.mean(axis=0) + 1.96 * values.std(axis=0)


@pytest.mark.parametrize(("name", "n"), [("normal", 12), ("normal", 40), ("uniform", 20), ("skewed", 40)])
def test_an_interval_has_the_true_mean_in_95_of_100_studies(name, n):
    assert 0.93 <= coverage(lambda values: ours(values, n_resamples=1999), name, n) <= 0.97


@pytest.mark.parametrize("rule", [by_deviation, unexpanded, lambda values: ours(values, level=0.9, n_resamples=999)])
def test_an_interval_that_is_too_wide_or_too_narrow_is_found(rule):
    assert not 0.93 <= coverage(rule, "normal", 8) <= 0.97


def test_there_is_an_interval_of_the_prompts_that_have_a_value_and_of_enough_of_them():
    values, _ = draws("normal", 40, 3)
    alone = mean_intervals(values[:, :1])
    values[10:, 1] = np.nan
    values[4:, 2] = np.nan
    found = mean_intervals(values)
    assert found.n.tolist() == [40, 10, 4]
    assert (found.low[0], found.high[0]) == (alone.low[0], alone.high[0])
    assert found.mean[1] == pytest.approx(values[:10, 1].mean())
    assert found.low[1] < found.mean[1] < found.high[1]
    assert np.isfinite(found.mean[2])
    assert np.isnan([found.low[2], found.high[2]]).all()
    same = mean_intervals(np.full((9, 1), 0.25))
    assert (same.low[0], same.mean[0], same.high[0]) == (0.25, 0.25, 0.25)
    assert mean_intervals(np.zeros((0, 2))).n.tolist() == [0, 0]


def test_many_prompts_and_many_columns_change_nothing(monkeypatch):
    values, _ = draws("skewed", 600, 6)
    bootstrap = mean_intervals(values)
    monkeypatch.setattr(statistics, "MANY", 100)
    student = mean_intervals(values)
    np.testing.assert_allclose(student.low, bootstrap.low, atol=0.08 * (bootstrap.high - bootstrap.low).max())
    monkeypatch.setattr(statistics, "MANY", 5000)
    monkeypatch.setattr(statistics, "WIDE", 4)
    monkeypatch.setattr(statistics, "AT_ONCE", 4999 * 600)
    np.testing.assert_allclose(mean_intervals(values).low, bootstrap.low, rtol=1e-12)


def test_the_interval_of_a_share_is_that_of_scipy_s_binomial_test():
    low, high = share_interval(np.array([0, 3, 12]), np.array([12, 12, 12]))
    for place, hits in enumerate((0, 3, 12)):
        theirs = stats.binomtest(hits, 12).proportion_ci(0.95, "exact")
        assert (low[place], high[place]) == pytest.approx(tuple(theirs), rel=1e-9)
    assert np.isnan(share_interval(np.array([0]), np.array([0]))).all()


# --- tests ------------------------------------------------------------------------------------------------------------------


def by_hand(seen, others):
    """Two-sided, twice the smaller tail."""
    others = np.array(others)
    return min(1.0, 2 * min((others <= seen + 1e-12).mean(), (others >= seen - 1e-12).mean()))


def test_a_paired_test_of_few_prompts_is_exact():
    """All 64 ways to exchange the values of six prompts, by hand and by scipy."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, (6, 2)), rng.normal(0, 1, (6, 2))
    found = paired_test(first, second)
    for column in (0, 1):
        change = first[:, column] - second[:, column]
        means = [np.mean(change * signs) for signs in product((1, -1), repeat=6)]
        assert found.p[column] == pytest.approx(by_hand(change.mean(), means))
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    np.testing.assert_allclose(found.p, theirs.pvalue, rtol=1e-12)
    assert found.paired
    all_above = paired_test(np.ones((6, 1)), np.zeros((6, 1)))
    assert (all_above.p[0], all_above.difference[0]) == (2 / 64, 1.0)


def test_a_paired_test_of_more_prompts_draws_what_scipy_counts():
    """16,384 ways are more than are drawn: of the share that scipy finds in all of them, within five standard errors."""
    rng = np.random.default_rng(7)
    first, second = rng.normal(0.5, 1, (14, 6)), rng.normal(0, 1, (14, 6))
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=2**14,
    ).pvalue  # fmt: skip
    error = 2 * np.sqrt(theirs / 2 * (1 - theirs / 2) / statistics.N_PERMUTATIONS)
    found = paired_test(first, second).p
    assert (np.abs(found - theirs) <= 5 * error + 1e-3).all()
    assert (theirs < 0.2).any()
    unpaired = unpaired_test(first, second).p
    assert not (np.abs(unpaired - theirs) <= 5 * error + 1e-3).all()


def test_an_unpaired_test_of_few_prompts_is_exact():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, (4, 2)), rng.normal(0, 2, (5, 2))
    found = unpaired_test(first, second)
    both = np.concatenate([first, second])
    for column in (0, 1):
        deals = [
            both[list(chosen), column].mean() - np.delete(both[:, column], list(chosen)).mean()
            for chosen in combinations(range(9), 4)
        ]
        assert found.p[column] == pytest.approx(by_hand(found.difference[column], deals))
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), vectorized=True
    )
    np.testing.assert_allclose(found.p, theirs.pvalue, rtol=1e-12)


def test_the_interval_of_a_difference_is_welch_s():
    rng = np.random.default_rng(2)
    first, second = rng.normal(1, 1, (9, 3)), rng.normal(0, 3, (14, 3))
    found = unpaired_test(first, second)
    theirs = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [theirs.low, theirs.high], rtol=1e-12)
    assert found.n.tolist() == [[9] * 3, [14] * 3]


@pytest.mark.parametrize("paired", [True, False])
def test_drawn_permutations_keep_their_level_and_find_what_is_there(paired):
    """Of columns without a difference 5 in 100 have a p of 0.05 or less; a test that forgets its own statistic would have p 0."""
    rng = np.random.default_rng(3)
    test = paired_test if paired else unpaired_test
    first, second = rng.normal(size=(25, 400)), rng.normal(size=(25, 400))
    p = test(first, second, n_permutations=999).p
    assert 0.02 <= (p <= 0.05).mean() <= 0.08
    assert p.min() >= 2 / 1000
    assert (test(first + 3, second, n_permutations=999).p == 2 / 1000).all()
    assert np.array_equal(test(first, second, n_permutations=999).p, p)  # seeded


def test_prompts_without_a_value_take_no_part():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    alone = paired_test(first[:7, 1:], second[:7, 1:])
    first[7:, 1], second[8:, 1] = np.nan, np.nan
    found = paired_test(first, second)
    assert (found.n[:, 1].tolist(), found.p[1]) == ([7, 7], alone.p[0])
    first[:, 0] = np.nan
    assert np.isnan(paired_test(first, second).p[0])
    assert np.isnan(unpaired_test(first, second).p[0])


def test_holm_s_correction_is_that_of_the_textbook():
    """Four tests by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, and no later one is below an earlier one."""
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.04, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, np.nan, 0.9])), [1.0, np.nan, 1.0])
    assert holm(np.array([])).tolist() == []


def closed_testing(p):
    """What Holm's correction stands for (Marcus, Peritz and Gabriel 1976): a test is significant at a level where Bonferroni's
    is for each set of tests that it is in."""
    sets = [chosen for size in range(1, len(p) + 1) for chosen in combinations(range(len(p)), size)]
    of_set = {chosen: min(1.0, len(chosen) * min(p[at] for at in chosen)) for chosen in sets}
    return [max(value for chosen, value in of_set.items() if at in chosen) for at in range(len(p))]


def bonferroni(p):
    return np.minimum(1.0, len(p) * p)


def without_a_running_maximum(p):
    factors = len(p) - stats.rankdata(p, method="ordinal") + 1
    return np.minimum(1.0, p * factors)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [(holm, True), (bonferroni, False), (without_a_running_maximum, False), (stats.false_discovery_control, False)],
)
def test_holm_s_correction_is_closed_testing_and_other_corrections_are_not(rule, holds):
    families = np.random.default_rng(6).random((30, 5)) ** 3
    assert all(rule(p) == pytest.approx(closed_testing(p)) for p in families) == holds


def test_holm_s_correction_lets_one_in_twenty_families_through():
    """400 families of 20 tests without any difference; uncorrected, two in three have one that seems to be there."""
    p = np.random.default_rng(5).random((400, 20))
    assert np.mean([holm(family).min() <= 0.05 for family in p]) <= 0.08
    assert (p.min(axis=1) <= 0.05).mean() > 0.5
