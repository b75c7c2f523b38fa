"""Shapley values and interactions, against their definition by orders and by hand."""

from itertools import permutations

import numpy as np
import pytest

from mask_impact.findings.shapley import interactions, members, shapley


def by_orders(values, n):
    """The mean, over all orders, of what a part adds when it comes."""
    found = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        present = 0
        for part in order:
            found[part] += values[present | 1 << part] - values[present]
            present |= 1 << part
    return found / len(orders)


def pairs_by_orders(values, n):
    """The same of pairs that come together, as one: what they add more than both by themselves."""
    found = np.zeros((n, n))
    for one in range(n):
        for other in range(n):
            if one == other:
                continue
            others = [part for part in range(n) if part not in (one, other)]
            orders = list(permutations([*others, None]))  # None stands for both
            for order in orders:
                present = sum(1 << part for part in order[: order.index(None)])
                a, b = 1 << one, 1 << other
                more = values[present | a | b] - values[present | a] - values[present | b] + values[present]
                found[one, other] += more / len(orders)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_both_are_what_the_definition_by_orders_gives(n):
    values = np.random.default_rng(n).normal(size=2**n)
    np.testing.assert_allclose(shapley(values), by_orders(values, n), atol=1e-12)
    np.testing.assert_allclose(interactions(values), pairs_by_orders(values, n), atol=1e-12)
    assert shapley(values).sum() == pytest.approx(values[-1] - values[0])


def test_parts_that_add_up_do_not_interact_and_two_that_say_the_same_do():
    weights = np.array([1.0, -2.0, 0.5])
    sums = members(3) @ weights
    np.testing.assert_allclose(shapley(sums), weights)
    np.testing.assert_allclose(interactions(sums), np.zeros((3, 3)), atol=1e-12)
    either = members(2).any(axis=1).astype(float)
    assert shapley(either).tolist() == [0.5, 0.5]
    assert interactions(either)[0, 1] == -1
    both = members(2).all(axis=1).astype(float)
    assert interactions(both)[0, 1] == 1


def test_the_sets_are_numbered_by_their_bits():
    assert members(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
    with pytest.raises(ValueError, match="3 values are not those of all sets"):
        shapley(np.zeros(3))
