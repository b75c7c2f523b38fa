"""What each of a few parts adds to a value that is known for every set of them: Shapley values and interactions, exact.

Sets are numbered: part k is in set s where bit k of s is set. Knows numbers only.
"""

from math import comb

import numpy as np


def members(n: int) -> np.ndarray:
    """bool [2^n, n], which parts are in each set."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


def shapley(values: np.ndarray) -> np.ndarray:
    """float64 [n], of values [2^n]: what each part adds, as the mean over all orders in which the parts may come. They add up to
    the value of all parts less that of none."""
    n, sets = _number(values), np.arange(len(values))
    sizes = members(n).sum(axis=1)
    found = []
    for part in range(n):
        without = sets[(sets >> part) & 1 == 0]
        weights = np.array([1 / (n * comb(n - 1, size)) for size in sizes[without]])
        found.append(weights @ (values[without | 1 << part] - values[without]))
    return np.array(found)


def interactions(values: np.ndarray) -> np.ndarray:
    """float64 [n, n], symmetric, 0 on the diagonal: how much more two parts add together than each by itself (Grabisch and
    Roubens 1999). Negative: one can stand in for the other."""
    n, sets = _number(values), np.arange(len(values))
    sizes, found = members(n).sum(axis=1), np.zeros((n, n))
    for one in range(n):
        for other in range(one + 1, n):
            first, second = 1 << one, 1 << other
            without = sets[sets & (first | second) == 0]
            weights = np.array([1 / ((n - 1) * comb(n - 2, size)) for size in sizes[without]])
            together = values[without | first | second] - values[without | first] - values[without | second]
            found[one, other] = found[other, one] = weights @ (together + values[without])
    return found


def _number(values: np.ndarray) -> int:
    """How many parts there are; ValueError where there is not a value for each set."""
    n = len(values).bit_length() - 1
    if len(values) != 2**n:
        raise ValueError(f"{len(values)} values are not those of all sets of some parts")
    return n
