"""On pictures whose true cell is known, the measures find it where the model reads it; and that truth itself is true.

Everything goes through the pieces of benchmarks/bench_truth.py and bench_deletion.py, which print the tables.
"""

import itertools
import os
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch

import mask_impact
from benchmarks import bench_deletion as deletion
from benchmarks import bench_truth as truth
from benchmarks import truth_of_films as films
from benchmarks.truth_pieces import wilson
from mask_impact.demo import moving, pictures
from mask_impact.findings.ranking import token_importance

SEED = 2024
N_COUNTED, N_OTHERS, N_BLINDED = 28, 12, 2  # the last for each task
N_AT_THE_END = int(os.environ.get("PICTURES", "24"))  # PICTURES=200 python -m pytest -m slow tests/demo/test_truth.py
N_HIDDEN, N_CURVES = 6, 2  # pictures with cells hidden, half of each task; and with curves
POOLED = "both tasks"
LOCAL = [name for name, rival in truth.RIVALS.items() if rival == truth.ATTENTION]  # measures with no head to choose


@pytest.fixture(scope="module")
def loaded():
    return mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def exact():
    """The same model in float32, whose rounding hides nothing."""
    return mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def samples():
    counted = truth.draw_samples(N_COUNTED, SEED)
    return counted, truth.draw_samples(N_OTHERS, SEED + 1, exclude=counted)


@pytest.fixture(scope="module")
def cases(loaded, samples):
    """Those to count and those to choose layers on, encoded."""
    return tuple([truth.prepare(loaded, sample) for sample in side] for side in samples)


@dataclass(frozen=True)
class Measured:
    """Tables of the counted and of the other pictures, where the model reads them; by task, and pooled."""

    tables: dict[str, tuple[truth.Table, truth.Table]]

    def hits(self, name, aggregation, among_figures=False, task=POOLED):
        return truth.evaluate(*self.tables[task], name, aggregation, among_figures)[0]

    @property
    def counted(self):
        return self.tables[POOLED][0]


@pytest.fixture(scope="module")
def measured(loaded, cases):
    sides = [truth.answered(loaded, side) for side in cases]
    tables = {}
    for task in truth.TASKS:
        of_task = [[case for case in side if case.sample.task == task] for side in sides]
        _, reads = truth.reading(loaded, of_task[1][:N_BLINDED])
        tables[task] = tuple(truth.measure_all(loaded, side, [reads])[0] for side in of_task)
    tables[POOLED] = tuple(joined(side) for side in zip(*tables.values(), strict=True))
    return Measured(tables)


def joined(tables):
    """One table of several."""
    scores = {name: np.concatenate([table.scores[name] for table in tables]) for name in tables[0].scores}
    return truth.Table(scores, np.concatenate([t.truth for t in tables]), np.concatenate([t.figures for t in tables]))


# -- what the measures find -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nearly_all_questions_are_answered_right_so_that_little_is_left_out(measured):
    assert len(measured.counted.truth) >= 0.95 * N_COUNTED


@pytest.mark.slow
@pytest.mark.parametrize("task", truth.TASKS)
@pytest.mark.parametrize("name", [truth.FULL, truth.ATTENTION])
def test_the_true_cell_is_far_above_chance_where_the_model_reads_it(measured, name, task):
    """In the layer that is best on other pictures; also against who knows where figures are, but not which counts."""
    for among_figures in (False, True):
        hits = measured.hits(name, "best layer", among_figures, task)
        lowest, _ = wilson(hits.sum(), len(hits))
        assert lowest > 1.4 * np.mean(1 / measured.tables[task][0].figures.sum(1))
        assert lowest > 8 / measured.counted.figures.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["best layer", "plain mean", "mean of shares", "early max"])
def test_full_distances_find_the_true_cell_no_less_often_than_attention_weights(measured, aggregation):
    """Where the model reads the picture; not in the middle and late layers, where neither finds it."""
    assert_no_worse(*(measured.hits(name, aggregation) for name in (truth.FULL, truth.ATTENTION)))


@pytest.mark.slow
def test_the_best_measure_finds_the_true_cell_no_less_often_than_the_best_of_attention_weights(measured):
    """Best of measures, layers and ways of joining them, chosen on other pictures: where the model reads the picture."""
    assert_no_worse(best_of(measured, LOCAL), best_of(measured, [truth.ATTENTION]))


@pytest.mark.slow
def test_at_the_last_position_the_best_measure_is_no_worse_than_the_best_of_attention_weights(loaded):
    """Where results are about; the best way of joining layers for each, chosen on the same pictures."""
    samples = truth.draw_samples(N_AT_THE_END, SEED)
    cases = truth.answered(loaded, [truth.prepare(loaded, sample) for sample in samples])
    (table,) = truth.measure_all(loaded, cases)

    def best_hits(names):
        ways = itertools.product(names, truth.AGGREGATIONS)
        return max((truth.evaluate(table, table, *way)[0] for way in ways), key=lambda hits: hits.mean())

    assert_no_worse(best_hits(LOCAL), best_hits([truth.ATTENTION]))


def assert_no_worse(hits, rival):
    """On the same pictures, but for chance: of two that are as good, either is ahead in a few pictures.

    Allowed is twice the standard deviation of (lost - won) where each picture that tells them apart is a coin's toss.
    """
    won, lost = (hits & ~rival).sum(), (rival & ~hits).sum()
    assert lost - won <= 2 * np.sqrt(lost + won)


def best_of(measured, names):
    """The hits of the measure and aggregation that are best on the other pictures, the first of several."""
    _, others = measured.tables[POOLED]
    pairs = itertools.product(names, truth.AGGREGATIONS)
    return measured.hits(*max(pairs, key=lambda pair: truth.evaluate(others, others, *pair)[0].mean()))


# -- the effect on the answer -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hidden(loaded, samples):
    """Pictures with the effects of hiding each cell, and whether painting the figure over changes the answer."""
    few = [s for task in truth.TASKS for s in [s for s in samples[0] if s.task == task][: N_HIDDEN // 2]]
    cases = truth.answered(loaded, [truth.prepare(loaded, sample) for sample in few])
    painted = [not truth.is_right(loaded, truth.painted_over(loaded, case)) for case in cases]
    return truth.cell_effects(loaded, cases), np.array(painted)


@pytest.mark.slow
def test_hiding_the_true_cell_costs_the_right_answer_most(hidden):
    """In 98 %, so one of these few pictures may miss. None, where the answer needs the cell."""
    effects, painted = hidden
    assert (~effects.hits).sum() <= 1
    assert painted.mean() > 0.5
    assert effects.hits[painted].all()


@pytest.mark.slow
def test_hiding_the_true_cell_changes_the_answer_where_painting_its_figure_over_does_and_no_empty_cell_does(hidden):
    effects, painted = hidden
    assert (effects.changed("true") == painted).mean() >= 0.95
    assert effects.changed("empty").mean() <= 0.02
    assert effects.changed("other figure").mean() <= 0.05
    assert sum(len(effects.changed(kind)) for kind in effects.KINDS) == effects.cost.size


@pytest.mark.slow
def test_a_cell_beside_the_true_one_is_not_found(hidden):
    """So that what finds the true cell could fail."""
    effects, _ = hidden
    beside = replace(effects, true=np.roll(effects.true, 1, axis=1))
    assert beside.hits.mean() < 0.2
    assert beside.changed("true").mean() < 0.2


def test_a_cost_that_two_cells_share_is_no_hit():
    true = np.eye(3, dtype=bool)[[0, 0, 1]]
    cost = np.array([[3.0, 2, 1], [3, 3, 1], [-1, -0.5, -2]])
    effects = truth.CellEffects(cost, changes=true, true=true, figures=true)
    assert effects.hits.tolist() == [True, False, True]
    assert effects[np.array([False, True, True])].hits.tolist() == [False, True]


def test_hiding_the_picture_from_the_last_query_costs_what_blinding_it_does(exact, samples):
    """Held against a forward of the model with a mask of its own."""
    case = truth.prepare(exact, samples[0][0])
    own, blind = (torch.log_softmax(truth.blinded_logits(exact, case, where).double(), -1) for where in ((), (-1,)))
    picture = list(range(case.vision.start, case.vision.stop))
    effects = truth.effects_of(exact, truth.inputs_of(exact, case), [picture], "last")
    expected = blind - own
    assert effects.produced == int(own.argmax())
    assert effects.logprob_change[0] == pytest.approx(float(expected[effects.produced]), rel=1e-2, abs=1e-4)


# -- deletion and insertion -------------------------------------------------------------------------------------------


def test_area_under_hand_made_curves():
    assert deletion.area(np.ones(4)) == 1
    assert deletion.area(np.linspace(1, 0, 6)) == pytest.approx(0.5)
    assert deletion.area(np.array([1.0, 0, 0])) == 0.25
    np.testing.assert_allclose(deletion.area(np.array([[1.0, 0, 1], [0, 1, 1], [0, 0.5, 0]])), [0.5, 0.75, 0.25])


def test_curves_hide_one_more_and_give_back_one_more_in_the_order_s_order(monkeypatch):
    """With a model whose probability is 0.8 times a factor for each hidden position."""
    factors = {5: 0.5, 7: 0.25, 9: 0.1}

    def effects_of(loaded, inputs, groups, queries="all"):
        assert len(set(groups)) == len(groups)
        change = [np.log([factors[position] for position in group]).sum() for group in groups]
        return SimpleNamespace(probability=0.8, logprob_change=np.array(change))

    monkeypatch.setattr(truth, "effects_of", effects_of)
    monkeypatch.setattr(deletion, "inputs_of", lambda *args: {})
    deleted, inserted = deletion.curves(None, deletion.Prompt(None, (5, 7, 9)), np.array([[1, 2, 0], [0, 1, 2]]))
    np.testing.assert_allclose(deleted, 0.8 * np.array([[1, 0.25, 0.025, 0.0125], [1, 0.5, 0.125, 0.0125]]))
    np.testing.assert_allclose(inserted, 0.8 * np.array([[0.0125, 0.05, 0.5, 1], [0.0125, 0.025, 0.1, 1]]))


def test_the_order_of_a_method_begins_with_what_matters_most():
    orders = deletion.orders_of({"some": np.array([1.0, 3, 2, 3])}, np.random.default_rng(SEED))
    assert orders["some"].tolist() == [[1, 3, 2, 0]]
    assert orders[deletion.RANDOM].shape == (deletion.N_RANDOM, 4)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders[deletion.RANDOM].tolist())


@pytest.mark.slow
def test_the_effect_s_ranking_deletes_and_inserts_better_than_random_and_its_reverse_worse(loaded, samples):
    rng = np.random.default_rng(SEED)
    chosen = samples[0][: N_CURVES // 2] + samples[0][-N_CURVES // 2 :]
    cases = truth.answered(loaded, [truth.prepare(loaded, sample) for sample in chosen])
    effects, deleted, inserted = truth.cell_effects(loaded, cases), [], []
    for case, cost in zip(cases, effects.cost, strict=True):
        order = np.argsort(-cost, kind="stable")
        orders = np.stack([order, order[::-1], *(rng.permutation(len(cost)) for _ in range(2))])
        prompt = deletion.Prompt(case.encoded, tuple(range(case.vision.start, case.vision.stop)))
        for side, curve in zip((deleted, inserted), deletion.curves(loaded, prompt, orders), strict=True):
            assert np.ptp(curve[:, 0]) < 1e-6  # nothing hidden, or everything: the same whatever the order
            assert np.ptp(curve[:, -1]) < 1e-6
            own, reverse, *random_ones = deletion.area(curve)
            side.append((own, np.mean(random_ones), reverse))
    own, random_one, reverse = np.mean(deleted, axis=0)
    assert own < random_one - 0.1 < reverse - 0.2
    own, random_one, reverse = np.mean(inserted, axis=0)
    assert own > random_one + 0.1 > reverse + 0.2


def test_full_is_ranked_by_the_mean_of_its_shares(loaded, samples):
    sample = samples[0][0]
    result = mask_impact.analyze(loaded, sample.question, images=[sample.image])
    distances = result.steps[0].l2[..., result.variants.index("Full")]
    expected = token_importance(result, 0).shares.mean(axis=0)
    np.testing.assert_allclose(deletion.mean_share(distances, result.sinks), expected, rtol=1e-6, atol=1e-12)
    assert not deletion.mean_share(distances, [3])[3]


def test_bootstrap_interval_of_a_mean():
    rng = np.random.default_rng(SEED)
    values = rng.normal(2, 1, 400)
    assert deletion.bootstrap(values) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.02)
    assert deletion.bootstrap(np.full(5, 0.3)) == pytest.approx((0.3, 0.3))


# -- whether the truth is true ----------------------------------------------------------------------------------------


def test_each_cell_of_32_pixels_is_one_vision_token(cases):
    for case in itertools.chain(*cases):
        (image,) = case.encoded.images
        assert image.size == image.resized == (128, 128)
        assert image.grid == case.sample.scene.grid == (4, 4)
        assert [kind == "image" for kind in case.encoded.tokens.kinds].index(True) == case.first
        assert (case.encoded.tokens.image[case.vision] == 0).all()
        row, column = divmod(case.truth, 4)
        assert [(row, column)] == list(case.sample.cells)


def test_painting_a_figure_over_changes_the_patches_of_its_token_alone(loaded, cases):
    """Of the true cell, and of all other figures; every token but those is background."""
    for case in cases[1]:
        seen = set()
        for figure in case.sample.scene.figures:
            without = replace(case.sample, image=case.sample.scene.without(figure.cell).image())
            before, after = (case_.encoded.inputs["pixel_values"] for case_ in (case, truth.prepare(loaded, without)))
            patches = (before != after).any(dim=1).nonzero().flatten()
            (token,) = set((patches // 4).tolist())  # four patches, which follow each other, merge into one token
            assert (token == case.truth) == (figure.cell == case.sample.cells[0])
            seen.add(token)
        assert seen == set(np.flatnonzero(case.figures))


def test_samples_are_held_out_and_those_to_choose_on_are_others(samples):
    counted, others = samples
    assert all(sample.held_out for sample in counted + others)
    assert not {s.scene for s in counted} & {s.scene for s in others}
    assert [[s.task for s in side].count(task) for side in samples for task in truth.TASKS] == [14, 14, 6, 6]
    assert not {s.scene for s in counted} & {s.scene for s in truth.draw_samples(20, SEED, exclude=counted)}
    assert all(len(s.cells) == 1 and len(s.scene.figures) > 1 for s in counted + others)


@pytest.fixture(scope="module")
def made_up(cases):
    """Random scores of the counted and the other pictures, four heads and six layers, and an oracle in one of them."""
    rng = np.random.default_rng(SEED)
    tables = []
    for side in cases:
        noise = rng.random((len(side), 4, 6, 16))
        known = noise.copy()
        known[:, 2, 3] = np.eye(16)[[case.truth for case in side]]
        everywhere = np.broadcast_to(known[:, 2:3, 3:4], (len(side), 1, 6, 16))
        empty = np.eye(16)[[case.figures.argmin() for case in side]][:, None, None]  # the first cell without a figure
        scores = {
            "noise": noise,
            "one layer": known,
            "oracle": everywhere,
            "constant": np.ones_like(everywhere),
            "empty cell before oracle": everywhere + 2 * empty,
        }
        tables.append(truth.make_table(side, [{name: s[i] for name, s in scores.items()} for i in range(len(side))]))
    return tuple(tables)


@pytest.mark.parametrize("aggregation", truth.AGGREGATIONS)
def test_an_oracle_s_score_is_always_right_and_a_constant_never(made_up, aggregation):
    for among_figures in (False, True):
        assert truth.evaluate(*made_up, "oracle", aggregation, among_figures)[0].all()
        assert not truth.evaluate(*made_up, "constant", aggregation, among_figures)[0].any()


def test_among_figures_a_cell_without_one_does_not_count(made_up):
    assert truth.evaluate(*made_up, "empty cell before oracle", "plain mean", among_figures=True)[0].all()
    assert not truth.evaluate(*made_up, "empty cell before oracle", "plain mean")[0].any()


def test_the_layer_and_head_that_know_are_chosen(made_up):
    hits, chosen = truth.evaluate(*made_up, "one layer", "best layer")
    assert hits.all()
    assert chosen == "H2L3"


def test_a_layer_that_is_best_by_chance_is_not_on_other_pictures(made_up):
    """24 candidates of noise: the best is well above chance where it was chosen, and not where it is counted."""
    counted, others = made_up
    assert truth.evaluate(others, others, "noise", "best layer")[0].mean() > 2 / 16
    hits, _ = truth.evaluate(counted, others, "noise", "best layer")
    assert wilson(hits.sum(), len(hits))[0] < 1 / 16


@pytest.mark.slow
def test_a_shuffled_truth_gives_chance(measured):
    """With the real scores: among all tokens, and among the figures, whose number differs."""
    rng = np.random.default_rng(SEED)
    table = measured.counted
    scores = truth.shares(table.scores[truth.FULL]).mean((1, 2))
    anywhere, among = [], []
    for _ in range(200):
        shuffled = replace(table, truth=rng.integers(16, size=len(table.truth)))
        anywhere.append(shuffled.hits(scores).mean())
        shuffled = replace(table, truth=np.array([rng.choice(np.flatnonzero(own)) for own in table.figures]))
        among.append(shuffled.hits(scores, among_figures=True).mean())
    assert np.mean(anywhere) == pytest.approx(1 / 16, abs=0.01)
    assert np.mean(among) == pytest.approx(np.mean(1 / table.figures.sum(1)), abs=0.02)


def test_wilson_interval():
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


# -- other positions than the last ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_prompt_gives_the_numbers_of_that_position_of_the_whole_prompt(exact, samples):
    """Held against the oracle, which sees the whole prompt's layer inputs and hides one token at a time."""
    case = truth.prepare(exact, samples[0][0])
    _, traces = oracle.generate_and_trace(exact.model, truth.inputs_of(exact, case), 1)
    layer = oracle.layer_copy(oracle.decoder_layers(exact.model)[-1])
    for position in range(case.vision.stop - case.encoded.n_tokens, 0):
        l2, cosine = oracle.measure_layer(layer, traces[-1], case.length(position))
        step = truth.measure(exact, case, position)
        oracle.assert_l2_close([step.l2[-1:]], [l2[None]])
        oracle.assert_cosine_close([step.cosine[-1:]], [cosine[None]])


@pytest.mark.slow
def test_the_baseline_is_the_model_s_own_attention_at_that_position(exact, samples):
    """By the engine on the cut prompt, and as the model gives it out for the whole: mean over heads."""
    case = truth.prepare(exact, samples[0][-1])
    positions = range(case.vision.stop - case.encoded.n_tokens, 0)
    for table in truth.measure_all(exact, [case], positions):
        own = table.scores[truth.ATTENTION_BEST_HEAD].mean(1, keepdims=True)
        np.testing.assert_allclose(table.scores[truth.ATTENTION], own, rtol=1e-3, atol=1e-6)
    assert exact.model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_hiding_the_picture_hides_all_of_it_and_nothing_else(exact, samples):
    case = truth.prepare(exact, samples[0][0])
    own = exact.model(**truth.inputs_of(exact, case)).logits[0, -1]
    torch.testing.assert_close(truth.blinded_logits(exact, case), own, rtol=1e-3, atol=1e-3)
    behind = range(case.vision.stop - case.encoded.n_tokens, 0)
    scene = pictures.random_scene(random.Random(SEED), held_out=True)
    other = truth.prepare(exact, replace(case.sample, image=scene.image()))
    blind, other_blind = (truth.blinded_logits(exact, one, behind) for one in (case, other))
    assert torch.equal(blind, other_blind)
    for position in behind:
        sees = [one for one in behind if one != position]
        assert not torch.equal(truth.blinded_logits(exact, case, sees), truth.blinded_logits(exact, other, sees))


# -- videos -----------------------------------------------------------------------------------------------------------


def film_case(loaded, task):
    """The first held-out film of a task that needs a single pair of frames, of two."""
    samples = moving.moving_samples(task, 40, SEED)
    sample = next(one for one in samples if len(one.film.needed_pairs(one.question)) == 1 and len(one.film.scenes) == 2)
    return films.prepare(loaded, sample)


def test_the_pairs_of_a_film_are_its_vision_tokens_in_order(loaded):
    case = film_case(loaded, "first")
    positions = [position for pair in case.pairs for position in pair]
    assert positions == [place for place, kind in enumerate(case.encoded.tokens.kinds) if kind == "video"]
    assert case.pairs[1][0] > case.pairs[0][-1] + 1  # the second pair's time stands between
    assert [case.pair_of(pair) for pair in case.pairs] == [0, 1]
    assert case.pair_of([case.pairs[0][0], case.pairs[1][0]]) is None


@pytest.mark.slow
def test_the_pair_that_a_question_needs_comes_first_by_hiding_by_a_run_and_by_a_search(loaded):
    found = films.look(loaded, film_case(loaded, "first"))
    assert (found.hidden, found.said, found.searched, found.chance) == (True, True, True, 0.5)
