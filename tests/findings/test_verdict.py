"""What two answers used and how deep it is read: what plain loops over hand-made results find; and what is not said."""

import dataclasses

import numpy as np
import pytest
from explained import explained, read_at
from samples import ALIGNED, FEW, OTHER, WORDS
from synthetic import make_result, with_effects

from mask_impact.findings.comparison import compare_results
from mask_impact.findings.verdict import CLOSE, LITTLE, bare, reasons, verdicts

LAYERS = (7, 12)
FRANCE, CAPITAL, IS = (4, 5), (2, 2), (5, 6)  # positions of the same words in WORDS and in OTHER
MARK, CITY = WORDS.index("?"), OTHER.index(" city")


def verdict(one, other, **settings):
    (found,) = verdicts(compare_results({"one": one, "other": other}, dataclasses.replace(FEW, **settings)))
    return found


def pair(effects=(-5.0, -4.0), words=FRANCE, n_layers=LAYERS):
    """Two results that need the same word."""
    one = make_result(WORDS, n_layers=n_layers[0])
    other = make_result(OTHER, n_layers=n_layers[1], seed=1)
    return [
        explained(result, {at: effect, 1: -0.01}, becomes={at: " else"})
        for result, at, effect in zip((one, other), words, effects, strict=True)
    ]


# --- the same units ---------------------------------------------------------------------------------------------------------


def test_units_are_those_of_the_aligned_tokens_with_both_effects():
    one = explained(make_result(WORDS), {4: -5.0, 5: -0.5, MARK: -2.0}, {2: -0.2}, {4: " else", MARK: " mark"})
    other = explained(make_result(OTHER, seed=1), {5: -0.25, CITY: -3.0, 6: 0.75}, {2: -0.4}, {CITY: " town"})
    found = {unit.positions: unit for unit in verdict(one, other).units}
    partner = dict(ALIGNED)
    expected = {(4,): -5.0, (5,): -0.5, (2,): -0.2, (MARK,): -2.0}
    theirs = {5: -0.25, CITY: -3.0, 2: -0.4, 6: 0.75}
    assert {ours for ours, _ in found if ours} == set(expected)
    for (ours, other_side), unit in found.items():
        if not ours:
            continue
        at = partner.get(ours[0])
        assert other_side == (() if at is None else (at,))
        assert unit.changes[0] == pytest.approx(expected[ours])
        assert unit.changes[1] == (pytest.approx(theirs[at]) if at is not None else pytest.approx(np.nan, nan_ok=True))
        assert unit.measured == (ours != (2,), at in (5, 6))
    city = found[(), (CITY,)]
    assert (np.isnan(city.changes[0]), city.changes[1]) == (True, -3.0)
    assert (city.places, city.reason, city.differs) == ((None, CITY), (False, True), (False, True))
    strongest = [np.nanmin(unit.changes) for unit in found.values()]
    assert strongest == sorted(strongest)


def test_cells_are_the_same_by_row_and_column_and_only_in_the_same_grid():
    for grid, there in (((2, 3), (3,)), ((3, 2), ())):
        one = explained(make_result(WORDS, grids=((2, 3),)), {3: -5.0}, becomes={3: " x"})
        other = explained(make_result(OTHER, grids=(grid,), seed=1), {3: -4.0, 8: -1.0}, becomes={3: " y"})
        (unit,) = (unit for unit in verdict(one, other).units if unit.positions[0] == (3,))
        assert unit.positions[1] == there
        assert unit.shared == bool(there)


def test_a_word_that_another_tokenizer_cuts_elsewhere_is_the_same_word():
    one = make_result(["<s>", "The", " Eif", "fel", " is"])
    other = make_result(["<s>", "The", " Ei", "ffel", " is"], seed=1)
    one = explained(one, {}, extra=[(" Eiffel", (2, 3), -4.0, -1.0)])
    other = explained(other, {}, extra=[(" Eiffel", (2, 3), -3.0, -1.0)])
    (unit,) = verdict(one, other).units
    assert (unit.changes, unit.measured, unit.shared) == ((-4.0, -3.0), (True, True), True)


def test_what_the_other_never_hid_together_is_estimated_as_a_sum():
    one = explained(make_result(WORDS), {}, extra=[(" of France", (3, 4), -4.0, -1.0)])
    other = explained(make_result(OTHER, seed=1), {4: -9.0}, {4: -0.5, 5: -0.25})
    (unit,) = (unit for unit in verdict(one, other).units if unit.positions[0] == (3, 4))
    assert (unit.changes, unit.measured, unit.places[1]) == ((-4.0, -0.75), (True, False), None)
    assert unit.positions[1] == (4, 5)


# --- reasons ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effects", "becomes", "needed", "expected"),
    [
        ({4: -5.0, 2: -9.0}, {4: "x"}, (), [4]),  # what changes the answer, not what takes most
        ({4: -5.0, 2: -9.0}, {4: "x"}, (8,), [8, 4]),  # the necessary set first
        ({4: -5.0, MARK: -9.0}, {4: "x", MARK: "y"}, (), [4]),  # a mark is no reason beside a word
        ({MARK: -9.0}, {MARK: "y"}, (), [MARK]),
        ({4: -5.0, 2: -9.0, 3: -1.0}, {}, (), [2, 4]),  # nothing changes it: the two strongest
        ({4: -LITTLE / 2}, {}, (), []),
    ],
)
def test_reasons_are_what_the_answer_needs(effects, becomes, needed, expected):
    result = explained(make_result(WORDS), effects, becomes=becomes, needed=needed)
    assert reasons(result.answer.targets[0]) == expected


def test_a_set_that_generate_does_not_confirm_is_no_reason():
    result = explained(make_result(WORDS), {4: -5.0}, becomes={4: "x"}, needed=(8,), confirmed=False)
    assert reasons(result.answer.targets[0]) == [4]


def test_only_a_target_with_the_compared_token_is_one():
    one = explained(make_result(WORDS, n_steps=3), {4: -5.0}, steps=(1, 2))
    other = explained(make_result(OTHER, n_steps=3, seed=1), {5: -5.0}, steps=(0, 1))
    found = verdict(one, other)
    assert [use.number for use in found.uses] == [None, 0]
    assert (found.uses[0].elsewhere, found.depth) == (1, None)
    assert found.units[0].positions == (FRANCE[:1], FRANCE[1:])
    assert found.units[0].changes == (pytest.approx(np.nan, nan_ok=True), -5.0)
    assert found.units[0].reason == (False, True)
    assert [use.number for use in verdict(one, other, step=1).uses] == [0, 0]


# --- depth ------------------------------------------------------------------------------------------------------------------


def centre(values):
    """Of a list by layer, in plain numbers."""
    total = 0.0
    for layer, value in enumerate(values):
        total += float(value) * (layer + 0.5) / len(values)
    return total / sum(float(value) for value in values)


def importance(result, positions, variant=0):
    record = result.steps[0]
    return [
        sum(float(record.l2[layer, at, variant]) / float(record.baseline_norm[layer, variant]) for at in positions)
        for layer in range(result.n_layers)
    ]


@pytest.mark.parametrize("variant", ["Full", "Attn", "Head_1"])
def test_the_depth_is_the_centre_of_the_local_impact_of_what_both_need(variant):
    one, other = pair()
    depth = verdict(one, other, variant=variant).depth
    number = one.variants.index(variant)
    expected = [centre(importance(result, [at], number)) for result, at in zip((one, other), FRANCE, strict=True)]
    assert [depth.first, depth.second] == pytest.approx(expected, rel=1e-6)
    assert (depth.measure, depth.own) == ("impact", False)
    unrelated = [centre(importance(result, [7], number)) for result in (one, other)]
    assert [depth.first, depth.second] != pytest.approx(unrelated, rel=1e-2)


def test_without_shared_reasons_it_is_of_each_result_s_own():
    one, other = pair(words=(FRANCE[0], IS[1]))
    depth = verdict(one, other).depth
    assert depth.own
    assert depth.first == pytest.approx(centre(importance(one, [FRANCE[0]])), rel=1e-6)
    assert depth.second == pytest.approx(centre(importance(other, [IS[1]])), rel=1e-6)


def test_reasons_that_only_one_has_do_not_count_beside_shared_ones():
    one, other = make_result(WORDS, n_layers=7), make_result(OTHER, n_layers=12, seed=1)
    one = explained(one, {FRANCE[0]: -5.0, 7: -4.0}, becomes={FRANCE[0]: " x", 7: " y"})
    other = explained(other, {FRANCE[1]: -5.0, IS[1]: -4.0}, becomes={FRANCE[1]: " x", IS[1]: " y"})
    depth = verdict(one, other).depth
    assert depth.first == pytest.approx(centre(importance(one, [FRANCE[0]])), rel=1e-6)
    assert depth.second == pytest.approx(centre(importance(other, [FRANCE[1]])), rel=1e-6)


def later(first_layer, second_layer, n_layers=(40, 40)):
    one, other = pair(n_layers=n_layers)
    one, other = read_at(one, {FRANCE[0]: {first_layer: 2.0}}), read_at(other, {FRANCE[1]: {second_layer: 5.0}})
    return verdict(one, other).depth


def test_a_difference_counts_from_a_part_of_the_depth_on():
    assert CLOSE["impact"] == 0.05
    found = {by: later(10, 10 + by).order for by in (-5, -3, -1, 0, 1, 3, 5)}
    assert found == {-5: -1, -3: -1, -1: 0, 0: 0, 1: 0, 3: 1, 5: 1}
    assert later(10, 13).second == pytest.approx(13.5 / 40)


def test_a_difference_of_less_than_a_layer_does_not_count():
    depth = later(1, 2, n_layers=(4, 6))  # 0.375 and 0.417
    assert (depth.least, depth.close) == (0.25, True)
    assert later(0, 5, n_layers=(4, 6)).order == 1


def test_reasons_that_do_not_agree_give_no_order():
    one, other = (make_result(texts, n_layers=20, seed=seed) for seed, texts in enumerate((WORDS, OTHER)))
    one, other = (
        explained(result, {words[0]: -5.0, words[1]: -4.0}, becomes=dict.fromkeys(words, " x"))
        for result, words in ((one, (4, 2)), (other, (5, 2)))
    )
    one = read_at(one, {4: {2: 1.0}, 2: {10: 1.0}})
    same_way = verdict(one, read_at(other, {5: {9: 1.0}, 2: {15: 1.0}})).depth
    apart = verdict(one, read_at(other, {5: {15: 1.0}, 2: {5: 1.0}})).depth
    assert (same_way.agreed, same_way.order) == (True, 1)
    assert abs(apart.second - apart.first) > apart.least
    assert (apart.agreed, apart.order, apart.close) == (False, 0, False)


def test_effects_by_layer_come_first_where_both_have_them():
    one, other = (with_effects(result, seed) for seed, result in enumerate(pair()))
    depth = verdict(one, other).depth
    expected = []
    for result, at in ((one, FRANCE[0]), (other, FRANCE[1])):
        sizes = np.abs(result.steps[0].effect.logprob_change[:, at].astype(float))
        expected.append(centre([size if size > np.float32(1e-4) else 0.0 for size in sizes]))
    assert depth.measure == "effect"
    assert [depth.first, depth.second] == pytest.approx(expected)
    assert depth.least == pytest.approx(max(0.1, 1 / 7))
    assert verdict(one, dataclasses.replace(other, steps=pair()[1].steps)).depth.measure == "impact"


def test_effects_of_all_layers_at_once_and_unmeasured_ones_have_no_depth():
    one, other = (with_effects(result, seed) for seed, result in enumerate(pair()))
    everywhere = dataclasses.replace(one, meta={**one.meta, "effect": {"window": "all"}})
    assert verdict(everywhere, other).depth.measure == "impact"
    other.steps[0].effect.logprob_change[3, FRANCE[1]] = np.nan
    assert verdict(one, other).depth.measure == "impact"


def test_what_was_never_masked_has_no_depth():
    one, other = (make_result(texts, grids=((2, 3),), mask_mode="text") for texts in (WORDS, OTHER))
    one, other = (explained(result, {3: -5.0}, becomes={3: " x"}) for result in (one, other))
    found = verdict(one, other)
    assert len(found.shared) == 1
    assert found.depth is None


def test_nothing_that_is_read_has_no_depth():
    one, other = (read_at(result, {}) for result in pair())
    found = verdict(one, other)
    assert (found.depth, found.impact_depth) == (None, None)


def test_the_depth_of_all_impact_is_that_of_the_tokens_that_count():
    one, other = make_result(WORDS, n_layers=LAYERS[0]), make_result(OTHER, n_layers=LAYERS[1], seed=1)
    found = verdict(one, other)
    assert found.depth is None
    n = [result.n_prompt for result in (one, other)]
    expected = [
        centre(importance(result, range(1, m))) for result, m in zip((one, other), n, strict=True)
    ]  # a sink at 0
    assert [found.impact_depth.first, found.impact_depth.second] == pytest.approx(expected, rel=1e-6)
    for result in (one, other):
        result.steps[0].baseline_norm[:] = np.nan
    assert verdict(one, other).impact_depth is None


# --- answers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [(" Paris", "paris.", True), ("4", "4", True), ("4", "5", False), ("...", "!", False), ("", "4", None)],
)
def test_answers_are_the_same_but_for_case_spaces_and_the_mark_at_the_end(first, second, same):
    one, other = pair()
    assert bare("...") == "..."
    one, other = (
        dataclasses.replace(
            result, answer=None, generated_text=text, steps=(dataclasses.replace(result.steps[0], token_text=""),)
        )
        for result, text in ((one, first), (other, second))
    )
    assert verdict(one, other).same_answer is same


def test_targets_are_compared_where_both_are_explained():
    one, other = make_result(WORDS), make_result(OTHER, seed=1)
    found = verdict(explained(one, {4: -1.0}, answer=" red"), explained(other, {5: -1.0}, answer=" blue"))
    assert (found.answers, found.same_answer) == (("red", "blue"), False)


def test_an_answer_of_which_a_part_is_asked_about_is_compared_whole():
    """Two answers that begin alike are not the same answer."""
    one, other = (
        make_result(["a", " b"], generated_text=text, produced=(" The",)) for text in (" The star.", " The cross.")
    )
    results = {"one": explained(one, {1: -2.0}, answer=" The"), "other": explained(other, {1: -2.0}, answer=" The")}
    (found,) = verdicts(compare_results(results, FEW))
    assert found.answers == ("The star.", "The cross.")
    assert not found.same_answer
