"""Which units are measured within a budget, and when their estimates are said to hold: by hand-made rankings."""

import dataclasses

import numpy as np
import pytest

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


def test_a_kind_that_was_measured_whole_says_nothing_about_estimates():
    nan = np.nan
    measured = np.array([-1.0, nan, -2.0, -3.0, nan])
    content = np.array([True, True, True, True, False])
    of_image = np.array([True, True, False, False, False])
    assert unsettled(measured, content, of_image).tolist() == [True, True, False, False, False]
    assert not unsettled(np.zeros(5), content, of_image).any()
