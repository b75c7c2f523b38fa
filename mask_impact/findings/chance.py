"""Rank correlations and their test of chance: the importances are shuffled among tokens of one kind.

The null hypothesis is that it is unrelated which tokens matter in the two results, as far as tokens of one kind go. That special
tokens or patches as such matter more or less in both is no agreement about tokens then.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from mask_impact.findings.agreement import FEWEST_TOKENS


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of the importance of n tokens, None where it does not exist (fewer than FEWEST_TOKENS, or
    one result holds all tokens equally important, or has no importance of them: n is 0 then). p: the chance of one at least
    as large under the null hypothesis of this module. smallest_p: the smallest p that these tokens and permutations can give.
    exact: whether all arrangements were gone through (p = those at least as large / all) and not a random sample (p = (1 +
    those) / (1 + sample))."""

    n: int
    rho: float | None = None
    p: float | None = None
    smallest_p: float | None = None
    exact: bool = False


def correlations(
    x: np.ndarray, y: np.ndarray, kinds: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> list[Correlation]:
    """Spearman's correlation of each row of x with that of y (float64 [R, n]), with its permutation test.

    The columns of y are shuffled among those of the same kind (int [n]), all rows alike. Where there are no more
    arrangements than permutations, all are gone through.
    """
    from scipy.stats import rankdata

    n = x.shape[1]
    if n < FEWEST_TOKENS:
        return [Correlation(n)] * len(x)
    ranks_x, ranks_y = rankdata(x, axis=1), rankdata(y, axis=1)
    # Twice a rank is a whole number, also of ties; so their sums of products are, and as float64 they are exact. The larger
    # such a sum the larger the correlation: means and variances of the ranks stay.
    twice_x, twice_y = 2 * ranks_x, 2 * ranks_y
    observed = (twice_x * twice_y).sum(axis=1)
    n_arrangements = math.prod(math.factorial(int(size)) for size in np.unique(kinds, return_counts=True)[1])
    exact = n_arrangements <= n_permutations
    arrangements = _all_arrangements(kinds) if exact else _random_arrangements(kinds, n_permutations, rng)
    n_larger, n_largest = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.int64)
    largest = np.full(len(x), -np.inf)
    for block in arrangements:
        for row in range(len(x)):
            sums = twice_y[row][block] @ twice_x[row]
            n_larger[row] += (sums >= observed[row]).sum()
            top = sums.max()
            if top > largest[row]:
                largest[row], n_largest[row] = top, 0
            n_largest[row] += (sums == largest[row]).sum()
    found = []
    for row in range(len(x)):
        if np.isnan(ranks_x[row]).any() or np.isnan(ranks_y[row]).any():
            found.append(Correlation(0))
            continue
        if np.ptp(ranks_x[row]) == 0 or np.ptp(ranks_y[row]) == 0:
            found.append(Correlation(n))
            continue
        rho = float(np.clip(np.corrcoef(ranks_x[row], ranks_y[row])[0, 1], -1, 1))
        if exact:
            p, smallest = n_larger[row] / n_arrangements, n_largest[row] / n_arrangements
        else:
            p, smallest = (1 + n_larger[row]) / (1 + n_permutations), 1 / (1 + n_permutations)
        found.append(Correlation(n, rho, float(p), float(smallest), exact))
    return found


def _places_by_kind(kinds: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def _all_arrangements(kinds: np.ndarray) -> Iterator[np.ndarray]:
    """Every arrangement of the columns, int64 [all, n]."""
    groups = _places_by_kind(kinds)
    found = []
    for orders in product(*(permutations(group) for group in groups)):
        arrangement = np.arange(len(kinds))
        for group, order in zip(groups, orders, strict=True):
            arrangement[group] = order
        found.append(arrangement)
    yield np.array(found)


def _random_arrangements(kinds: np.ndarray, n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """n of them, int64 [some, n columns] at a time, so that memory stays small."""
    groups = _places_by_kind(kinds)
    at_once = max(1, 2**20 // max(1, len(kinds)))
    for first in range(0, n, at_once):
        block = np.tile(np.arange(len(kinds)), (min(at_once, n - first), 1))
        for group in groups:
            block[:, group] = rng.permuted(block[:, group], axis=1)
        yield block
