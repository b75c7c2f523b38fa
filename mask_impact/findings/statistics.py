"""Statistics over prompts: means with intervals, tests of two groups, and what many tests at once ask for.

Knows numpy and scipy; no results and no files. Dimensions: n prompts, C columns (layers, heads), which all get the same
resamples. NaN is no value: each column is of the prompts that have one.

A mean is linear, so that one product of matrices gives it in all resamples and columns. scipy's `bootstrap` and
`permutation_test` hold a number for each resample, prompt and column instead; the tests show that they give the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
FEWEST = 5  # prompts that an interval is given for
MANY = 5_000  # prompts from which on the interval is Student's, which the bootstrap's is there, too
N_RESAMPLES, N_PERMUTATIONS = 4_999, 9_999
AT_ONCE = 2**22  # numbers of a matrix of resamples
WIDE = 512  # columns at once
_TIE = 100 * np.finfo(np.float64).eps  # relative: as large as what was seen, but for rounding


@dataclass(frozen=True)
class Means:
    """n: int64 [C], prompts that have a value; mean, low, high: float64 [C], the mean and the ends of its interval, which are NaN
    for fewer than FEWEST prompts."""

    n: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Tested:
    """A first group held against a second. n: int64 [2, C], prompts of each (of both, where paired); difference: float64 [C],
    mean of the first minus that of the second; low, high: float64 [C], its interval; p: float64 [C], two-sided."""

    n: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    paired: bool


# --- means ------------------------------------------------------------------------------------------------------------------


def mean_intervals(values: np.ndarray, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Means:
    """Means over the prompts with intervals of the bootstrap. values: [n, C].

    BCa (Efron 1987), at a level that makes up for the few prompts: a resample varies less than a sample by (n - 1) / n, and has
    no tails of Student's distribution (Hesterberg 2015). From MANY prompts on the interval is Student's.
    """
    return _intervals(values, level, n_resamples, seed, expanded=True)


def _intervals(values: np.ndarray, level: float, n_resamples: int, seed: int, expanded: bool) -> Means:
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] > WIDE:  # the same resamples for all, with less memory
        parts = [values[:, first : first + WIDE] for first in range(0, values.shape[1], WIDE)]
        found = [_intervals(part, level, n_resamples, seed, expanded) for part in parts]
        return Means(*(np.concatenate([getattr(one, name) for one in found]) for name in ("n", "mean", "low", "high")))
    n = np.isfinite(values).sum(axis=0)
    mean, low, high = (np.full(values.shape[1], np.nan) for _ in range(3))
    for columns, rows in _patterns(np.isfinite(values)):
        some = values[np.ix_(rows, columns)]
        mean[columns] = some.mean(axis=0)
        if len(rows) >= FEWEST:
            ends = _student(some, level) if len(rows) > MANY else _bca(some, level, n_resamples, seed, expanded)
            low[columns], high[columns] = ends
    return Means(n, mean, low, high)


def _patterns(there: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns whose values are of the same prompts, and these. there: bool [n, C]."""
    if not there.size:
        return
    patterns, of_column = np.unique(there.T, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        if pattern.any():
            yield np.flatnonzero(of_column.reshape(-1) == number), np.flatnonzero(pattern)


def _student(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.stats import t

    n = len(values)
    half = t.ppf((1 + level) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def _bca(
    values: np.ndarray, level: float, n_resamples: int, seed: int, expanded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval, float64 [C] each. values: [n, C], none missing."""
    from scipy.special import ndtr, ndtri
    from scipy.stats import t

    n = len(values)
    mean = values.mean(axis=0)
    centred = values - mean  # which keeps small differences of large values
    found = _resampled(centred, n_resamples, seed)
    below = ((found < 0).mean(axis=0) + (found <= 0).mean(axis=0)) / 2
    bias = ndtri(np.clip(below, 0.5 / n_resamples, 1 - 0.5 / n_resamples))
    # Without a prompt the mean lies off by -centred / (n - 1): the skew of these is that of the jackknife.
    third, second = (centred**3).sum(axis=0), (centred**2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = np.nan_to_num(third / (6 * second**1.5), posinf=0, neginf=0)
    quantile = np.sqrt(n / (n - 1)) * t.ppf((1 + level) / 2, n - 1) if expanded else ndtri((1 + level) / 2)
    ends = []
    for z in (-quantile, quantile):
        place = ndtr(bias + (bias + z) / np.maximum(1 - skew * (bias + z), 1e-3))
        ends.append(mean + [np.quantile(found[:, column], place[column]) for column in range(values.shape[1])])
    same = np.ptp(values, axis=0) == 0
    return np.where(same, mean, ends[0]), np.where(same, mean, ends[1])


def _resampled(values: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """float64 [R, C]: means of resamples, those that scipy.stats.bootstrap draws with this seed at once."""
    n, rng = len(values), np.random.default_rng(seed)
    found, at_once = [], max(1, AT_ONCE // n)
    for first in range(0, n_resamples, at_once):
        rows = min(at_once, n_resamples - first)
        places = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(places.reshape(-1), minlength=rows * n).reshape(rows, n)
        found.append(counts.astype(np.float64) @ values / n)
    return np.concatenate(found)


def share_interval(hits: np.ndarray, n: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share of prompts, `hits` of `n`, after Clopper and Pearson: scipy's `binomtest` for arrays."""
    from scipy.stats import beta

    hits, n, tail = np.asarray(hits, dtype=float), np.asarray(n, dtype=float), (1 - level) / 2
    low = np.where(hits > 0, beta.ppf(tail, hits, n - hits + 1), 0.0)
    high = np.where(hits < n, beta.ppf(1 - tail, hits + 1, n - hits), 1.0)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


# --- two groups ---------------------------------------------------------------------------------------------------------------


def paired_test(first: np.ndarray, second: np.ndarray, n_permutations: int = N_PERMUTATIONS, seed: int = 0) -> Tested:
    """The same prompts twice, [n, C] each: a permutation exchanges the two values of some prompts. Exact where there are no more
    than n_permutations of these."""
    change = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    means = mean_intervals(change, seed=seed)
    p = np.full(change.shape[1], np.nan)
    for columns, rows in _patterns(np.isfinite(change)):
        p[columns] = _p_of_signs(change[np.ix_(rows, columns)], n_permutations, seed)
    return Tested(np.stack([means.n, means.n]), means.mean, means.low, means.high, p, True)


def _p_of_signs(change: np.ndarray, n_permutations: int, seed: int) -> np.ndarray:
    n = len(change)
    exact = n < 60 and 2**n <= n_permutations
    rng = np.random.default_rng(seed)

    def signs(first: int, last: int) -> np.ndarray:
        if exact:
            return 1.0 - 2.0 * ((np.arange(first, last)[:, None] >> np.arange(n)) & 1)
        return 1.0 - 2.0 * rng.integers(0, 2, (last - first, n))

    n_drawn = 2**n if exact else n_permutations
    return _p_value(change.mean(axis=0), lambda *span: signs(*span) @ change / n, n_drawn, n, exact)


def unpaired_test(first: np.ndarray, second: np.ndarray, n_permutations: int = N_PERMUTATIONS, seed: int = 0) -> Tested:
    """Two groups of prompts, [n, C] and [m, C]: a permutation deals all of them out again. Exact where there are no more than
    n_permutations. The interval is Welch's."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    n_columns, n_first = first.shape[1], len(first)
    n = np.stack([np.isfinite(values).sum(axis=0) for values in (first, second)])
    difference, low, high, p = (np.full(n_columns, np.nan) for _ in range(4))
    both = np.concatenate([first, second])
    for columns, rows in _patterns(np.isfinite(both)):
        some = both[np.ix_(rows, columns)]
        size = int((rows < n_first).sum())
        if 0 < size < len(rows):
            difference[columns] = some[:size].mean(axis=0) - some[size:].mean(axis=0)
            p[columns] = _p_of_groups(some, size, n_permutations, seed)
            if min(size, len(rows) - size) >= FEWEST:
                low[columns], high[columns] = _welch(some[:size], some[size:])
    return Tested(n, difference, low, high, p, False)


def _welch(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the interval. scipy's ttest_ind warns of groups without any spread, such as shares that are all 0."""
    from scipy.stats import t

    parts = [values.var(axis=0, ddof=1) / len(values) for values in (first, second)]
    variance = parts[0] + parts[1]
    within = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
    freedom = np.divide(variance**2, within, out=np.ones_like(variance), where=within > 0)
    half = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance)
    difference = first.mean(axis=0) - second.mean(axis=0)
    return difference - half, difference + half


def _p_of_groups(values: np.ndarray, size: int, n_permutations: int, seed: int) -> np.ndarray:
    from itertools import combinations, islice
    from math import comb

    n = len(values)
    exact = comb(n, size) <= n_permutations
    rng, dealt = np.random.default_rng(seed), combinations(range(n), size)
    centred = values - values.mean(axis=0)

    def differences(first: int, last: int) -> np.ndarray:
        if exact:
            places = np.array([*islice(dealt, last - first)], dtype=np.int64).reshape(last - first, size)
        else:
            places = np.argpartition(rng.random((last - first, n)), size - 1, axis=1)[:, :size]
        chosen = np.zeros((last - first, n))
        np.put_along_axis(chosen, places, 1.0, axis=1)
        return chosen @ centred * (1 / size + 1 / (n - size))  # the rest has the negative of their sum

    seen = centred[:size].sum(axis=0) * (1 / size + 1 / (n - size))
    return _p_value(seen, differences, comb(n, size) if exact else n_permutations, n, exact)


def _p_value(seen: np.ndarray, drawn, n_drawn: int, n: int, exact: bool) -> np.ndarray:
    """Two-sided: twice the smaller tail, as scipy's. drawn: statistics [some, C] of permutations, from a number to another."""
    tie = _TIE * np.abs(seen)
    less, more, at_once = np.zeros(seen.shape), np.zeros(seen.shape), max(1, AT_ONCE // n)
    for first in range(0, n_drawn, at_once):
        found = drawn(first, min(n_drawn, first + at_once))
        less += (found <= seen + tie).sum(axis=0)
        more += (found >= seen - tie).sum(axis=0)
    own = 0 if exact else 1  # what was seen is a permutation, too
    return np.minimum(1.0, 2 * (np.minimum(less, more) + own) / (n_drawn + own))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's correction: float64, the smallest level at which each of the tests would be significant among all. NaN stays and
    does not count."""
    p = np.asarray(p, dtype=np.float64)
    adjusted, there = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = there[np.argsort(p[there], kind="stable")]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
