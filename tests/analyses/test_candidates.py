"""Which units are measured within a budget, and when their estimates are said to hold: by hand-made rankings."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from mask_impact.analyses import candidates
from mask_impact.analyses.candidates import agreement_of, choose, costs, is_reliable, unsettled


def chosen_of(estimates, cost, budget, seed=0, content=None, fine=None):
    n = len(cost)
    content = np.ones(n, dtype=bool) if content is None else content
    fine = np.zeros(n, dtype=bool) if fine is None else fine
    return choose(estimates, np.asarray(cost, dtype=float), content, fine, budget, seed)


def test_both_rankings_take_turns_within_the_budget_and_some_are_drawn_at_random():
    rng = np.random.default_rng(0)
    n = 200
    estimates = {"frozen": rng.normal(size=n), "gradient": rng.normal(size=n)}
    cost = np.ones(n)
    chosen, controls = chosen_of(estimates, cost, 30, seed=1)
    assert cost[chosen].sum() <= 30
    assert len(set(chosen.tolist())) == len(chosen)
    candidates = [place for place in chosen.tolist() if place not in controls]
    for values in estimates.values():
        assert set(np.argsort(values)[:8].tolist()) <= set(candidates)
    assert 3 <= len(controls) <= 16
    assert not {*controls.tolist()} & {*candidates}
    assert chosen_of(estimates, cost, 30, seed=1)[0].tolist() == chosen.tolist()
    assert chosen_of(estimates, cost, 30, seed=2)[1].tolist() != controls.tolist()


def shares_of(budget, n=300, seed=0):
    """(ranked, cheap, controls), how many units of cost 1 each share of the budget takes: the cheap ones are told by their
    estimates, which are the weakest."""
    cost = np.ones(n) + 1e-6 * np.arange(n)[::-1]  # the last are the cheapest, and the weakest
    estimates = {"frozen": np.arange(n, dtype=float), "gradient": np.arange(n, dtype=float)}
    chosen, controls = chosen_of(estimates, cost, budget, seed)
    others = chosen[~np.isin(chosen, controls)]
    ranked, cheap = others[others < n // 2], others[others >= n // 2]
    assert ranked.tolist() == list(range(len(ranked)))  # in their order, and the cheap ones behind them
    assert cheap.tolist() == list(range(n - 1, n - 1 - len(cheap), -1))
    return len(ranked), len(cheap), len(controls)


@pytest.mark.parametrize("budget", [10.1, 20.1, 40.1, 60.1])
def test_the_rankings_what_is_cheap_and_the_controls_have_their_shares(budget):
    ranked, cheap, controls = shares_of(budget)
    assert ranked == int(0.55 * budget)
    assert ranked + cheap == int(0.75 * budget)
    assert controls == min(16, int(budget) - ranked - cheap)


def test_other_shares_are_told_apart(monkeypatch):
    monkeypatch.setattr(candidates, "FOR_RANKED", 0.65)
    monkeypatch.setattr(candidates, "FOR_CHEAP", 0.1)
    assert shares_of(40.1)[:2] == (26, 4)  # not 22 and 8


def test_contributions_and_the_plain_gradient_name_one_in_turn():
    n = 40
    estimates = {"frozen": np.arange(n, dtype=float), "gradient": np.arange(n, dtype=float)[::-1].copy()}
    chosen, _ = chosen_of(estimates, np.ones(n), 20)
    assert chosen[:6].tolist() == [0, n - 1, 1, n - 2, 2, n - 3]


def test_a_small_budget_still_measures_five_and_three_and_a_large_one_everything():
    estimates = {"frozen": np.arange(50.0), "gradient": -np.arange(50.0)}
    cost = costs([(at,) for at in range(50)], 50)
    assert cost[0] == 1
    assert cost[49] == pytest.approx(0.02)
    chosen, controls = chosen_of(estimates, np.ones(50), 1)
    assert (len(chosen), len(controls)) == (8, 3)
    assert chosen[0] == 0  # contributions have the first turn
    chosen, controls = chosen_of(estimates, cost, 26)
    assert (sorted(chosen), len(controls)) == (list(range(50)), 0)
    chosen, controls = chosen_of(estimates, cost, cost.sum() - 0.01)
    assert len(chosen) < 50
    assert len(controls) > 0
    few = {name: values[:8] for name, values in estimates.items()}
    assert chosen_of(few, np.ones(8), 1)[0].tolist() == list(range(8))  # as many as are measured anyway
    assert len(chosen_of({name: values[:9] for name, values in estimates.items()}, np.ones(9), 1)[0]) == 8


def test_four_of_the_rankings_are_measured_before_anything_cheap():
    """Whatever the budget: with one that pays for nothing, four by rank, then the next of the rankings as the fifth."""
    n = 30
    cost = costs([(at,) for at in range(n)], n)
    estimates = {"frozen": np.arange(n, dtype=float), "gradient": np.arange(n, dtype=float)}
    chosen, controls = chosen_of(estimates, cost, 0.5)
    assert chosen[:-3].tolist() == [0, 1, 2, 3, 4]
    assert len(controls) == 3
    chosen, controls = chosen_of(estimates, cost, 5.3)  # 0.75 of it is just above what the four take
    assert chosen[:5].tolist() == [0, 1, 2, 3, n - 1]
    assert len(chosen) - len(controls) >= 5


def test_a_random_unit_comes_only_where_it_is_paid_for():
    """Behind the three; the more the budget leaves, the more of them."""
    n = 200
    estimates = {"frozen": np.arange(n, dtype=float), "gradient": np.arange(n, dtype=float)}
    numbers = [len(chosen_of(estimates, np.ones(n), budget)[1]) for budget in (4, 12, 20, 40, 80, 150)]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (3, 16)
    for budget in (20, 40, 80):
        assert len(chosen_of(estimates, np.ones(n), budget)[0]) <= budget


def test_what_stands_near_the_end_is_cheap_and_measured_whatever_its_estimate():
    cost = costs([(at,) for at in range(100)], 100)
    estimates = {"frozen": np.arange(100.0), "gradient": np.arange(100.0)}
    chosen, controls = chosen_of(estimates, cost, 6)
    candidates = {*chosen.tolist()} - {*controls.tolist()}
    assert {99, 98, 97, 96, 95} <= candidates
    assert {0, 1, 2, 3} <= candidates
    assert 50 not in candidates


def test_the_template_is_no_candidate_and_a_control_only_where_nothing_else_is_left():
    estimates = {"frozen": -np.arange(40.0), "gradient": -np.arange(40.0)}
    content = np.arange(40) < 20  # the strongest are not content
    chosen, controls = chosen_of(estimates, np.ones(40), 12, content=content)
    assert content[chosen].all()
    few = np.arange(40) < 6
    chosen, controls = chosen_of(estimates, np.ones(40), 12, content=few)
    assert few[[place for place in chosen if place not in controls]].all()
    assert len(controls) >= 3
    some = np.arange(40) < 11  # content for candidates, and some of it left for controls
    chosen, controls = chosen_of(estimates, np.ones(40), 13, content=some)
    of_content = some[controls]
    assert of_content.any()
    assert not of_content.all()
    assert (np.diff(of_content.astype(int)) <= 0).all()  # what is content comes first
    assert some[chosen].sum() == some.sum()


def test_what_is_too_fine_is_measured_only_where_it_is_cheap():
    n = 60
    estimates = {"frozen": np.arange(n, dtype=float), "gradient": np.arange(n, dtype=float)}
    cost = costs([(at,) for at in range(n)], n)
    fine = np.arange(n) >= 20
    chosen, _ = chosen_of(estimates, cost, 9, fine=fine)
    of_fine = sorted(chosen[fine[chosen]].tolist())
    assert of_fine == list(range(n - len(of_fine), n))  # those nearest to the end
    assert of_fine
    chosen, controls = chosen_of(estimates, np.ones(n), 9, fine=fine)
    assert not fine[controls].any()
    _, controls = chosen_of(estimates, np.ones(n), 30, fine=np.ones(n, dtype=bool))
    assert len(controls) == 0  # where all is too fine, none is drawn


# --- how far the estimates hold -------------------------------------------------------------------------------------------------


def test_agreement_is_counted_over_what_was_measured():
    contribution = np.array([-4.0, -2.0, -1.0, 0.5, -9.0, -3.0])
    measured = np.array([-2.0, -1.0, -0.5, -0.25, np.nan, 0.0])
    control = np.array([False, False, False, True, False, True])
    found = agreement_of(contribution, measured, control)
    assert (found.n, found.strongest_control) == (5, 0.25)
    assert found.same_sign == 0.75
    assert found.ratio == 2.0
    ranks = (
        np.argsort(np.argsort([-4.0, -2.0, -1.0, 0.5, -3.0])),
        np.argsort(np.argsort([-2.0, -1.0, -0.5, -0.25, 0.0])),
    )
    assert found.rho == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_agreement_is_that_of_plain_loops_ties_and_all():
    rng = np.random.default_rng(3)
    for _ in range(20):
        n = 30
        measured = np.where(rng.random(n) < 0.3, np.nan, np.round(rng.normal(size=n), 1) * (rng.random(n) < 0.7))
        contribution = np.nan_to_num(measured) * 1.5 + rng.normal(size=n) * 0.5
        control = rng.random(n) < 0.3
        found = agreement_of(contribution, measured, control)
        pairs = [(one, other) for one, other in zip(contribution, measured, strict=True) if other == other]
        pairs = [tuple(0.0 if abs(value) < 0.01 else value for value in pair) for pair in pairs]
        assert found.n == len(pairs)
        assert found.rho == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
        changed = [(one, other) for one, other in pairs if other != 0]
        signs = [one != 0 and (one > 0) == (other > 0) for one, other in changed]
        assert found.same_sign == pytest.approx(sum(signs) / len(changed))
        ratios = sorted(one / other for one, other in changed)
        middle = (ratios[(len(ratios) - 1) // 2] + ratios[len(ratios) // 2]) / 2
        assert found.ratio == pytest.approx(middle)
        strongest = max(abs(value) for value, drawn in zip(measured, control, strict=True) if drawn and value == value)
        assert found.strongest_control == strongest


def test_changes_too_small_to_matter_have_no_order():
    contribution = np.array([-5.0, 1e-4, -2e-4, 3e-4, 1e-3])
    measured = np.array([-4.0, -1e-4, 3e-4, 2e-4, -1e-3])
    found = agreement_of(contribution, measured, np.zeros(5, dtype=bool))
    assert found.rho == pytest.approx(1.0)
    nothing = agreement_of(contribution[1:], measured[1:], np.ones(4, dtype=bool))
    assert np.isnan(nothing.rho)
    assert is_reliable(nothing, measured[1:], np.ones(4, dtype=bool))  # there is nothing to be wrong about


def test_estimates_are_not_reliable_where_they_disagree_or_a_random_token_matters_more():
    measured = np.array([-5.0, -4.0, -3.0, -2.0, -1.0, -0.1, -0.2])
    control = np.array([False] * 5 + [True] * 2)
    good = agreement_of(measured * 1.2, measured, control)
    assert is_reliable(good, measured, control)
    assert not is_reliable(agreement_of(measured[::-1].copy(), measured, control), measured, control)
    surprising = measured.copy()
    surprising[5] = -1.5  # more than the weakest of the five
    found = agreement_of(surprising * 1.2, surprising, control)
    assert found.rho > 0.9
    assert not is_reliable(found, surprising, control)
    assert not is_reliable(dataclasses.replace(good, rho=0.5), measured, control)


def test_without_controls_or_without_anything_measured_nothing_is_made_up():
    nan = np.array([np.nan] * 4)
    nobody = np.zeros(4, dtype=bool)
    nothing = agreement_of(np.array([-4.0, -3.0, -2.0, -1.0]), nan, nobody)
    assert nothing.n == 0
    for value in (nothing.rho, nothing.same_sign, nothing.ratio, nothing.strongest_control):
        assert np.isnan(value)
    measured = np.array([-4.0, -3.0, -2.0, np.nan])
    found = agreement_of(measured, measured, nobody)
    assert np.isnan(found.strongest_control)
    assert is_reliable(found, measured, nobody)
    assert not is_reliable(dataclasses.replace(found, rho=0.69), measured, nobody)


def test_a_random_token_may_matter_as_little_as_anything():
    """A control is held against the weakest of the five strongest, but not where that is next to nothing itself."""
    control = np.array([False] * 6 + [True])
    for weakest, of_control, holds in (
        (-0.5, -0.4, True),
        (-0.5, -0.6, False),
        (-0.5, 0.6, False),  # against the answer as much as for it
        (-0.001, -0.009, True),
        (-0.001, -0.02, False),
    ):
        measured = np.array([-3.0, -2.5, -2.0, -1.5, weakest, 0.0, of_control])
        found = dataclasses.replace(agreement_of(measured, measured, control), rho=1.0)
        assert is_reliable(found, measured, control) == holds, (weakest, of_control)
    only = np.array([np.nan] * 6 + [-0.02])  # nothing but a control
    assert not is_reliable(dataclasses.replace(agreement_of(only, only, control), rho=1.0), only, control)


def test_a_kind_that_was_measured_whole_says_nothing_about_estimates():
    nan = np.nan
    measured = np.array([-1.0, nan, -2.0, -3.0, nan])
    content = np.array([True, True, True, True, False])
    of_image = np.array([True, True, False, False, False])
    assert unsettled(measured, content, of_image).tolist() == [True, True, False, False, False]
    assert not unsettled(np.zeros(5), content, of_image).any()
