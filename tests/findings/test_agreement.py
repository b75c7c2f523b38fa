"""Effects beside distances: sizes, rank correlations and the tokens where they come apart are those that pandas and scipy find
from the files' rows; what a page has of them; what the results say of how they were measured."""

import dataclasses
import shutil
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from agreement_oracle import apart_of, correlations_of, distances_of, norms_of
from pages import Page, decode
from samples import GROUPS, grouped, with_values
from synthetic import make_result, with_effects

from mask_impact.engine.choices import ABLATIONS as SETTINGS
from mask_impact.errors import OutputError
from mask_impact.findings.agreement import (
    ABLATIONS,
    MEASURES,
    apart,
    how_measured,
    layer_agreement,
    rank_correlation,
    step_effect,
    where_hidden,
    window_of,
)
from mask_impact.findings.impact import step_impact
from mask_impact.results.foreign import read_results
from mask_impact.results.records import Result
from mask_impact.results.store import save
from mask_impact.views.blocks import EXACT
from mask_impact.views.report import build_report, write_report

WORDS = [f" word{n}" for n in range(11)]
FLOOR = {"logprob": 1e-4, "kl": 1e-5}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A result with an image, two steps, five layers and a sink at 0; its two tables as frames; where it is."""
    result = with_effects(make_result(WORDS, n_steps=2, n_layers=5, n_heads=2, grids=((2, 3),)), texts=("x", " y"))
    path = tmp_path_factory.mktemp("agreement") / "run"
    save(result, path, ["csv"])
    frames = [pd.read_csv(f"{path}{end}", keep_default_na=False) for end in (".csv", ".effect.csv")]
    return result, *frames, path


def sizes_of(frame, step, measure):
    """float64 [L, P] of the effect's table, 0 where it is no more than the floor."""
    column = frame[frame.generation_step == step].pivot(
        index="layer", columns="token_position", values=MEASURES[measure]
    )
    sizes = column.astype(np.float32).abs().to_numpy(float)
    return np.where(sizes <= np.float32(FLOOR[measure]), 0, sizes)


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_rank_correlation_is_scipys_with_ties_holes_and_none_at_all():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=(2, 3, 40, 9)).astype(float)
    x[rng.random(x.shape) < 0.2], y[rng.random(y.shape) < 0.2] = np.nan, np.inf
    x[0, 0, :7] = np.nan  # two pairs
    x[0, 1], y[0, 2] = 3.0, 2.0  # all alike
    rho, n = rank_correlation(x, y)
    assert np.isnan(rho[0, :3]).all()
    assert n[0, 0] <= 2
    for place in np.ndindex(rho.shape):
        paired = np.isfinite(x[place]) & np.isfinite(y[place])
        one, other = x[place][paired], y[place][paired]
        assert n[place] == len(one)
        if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
            assert np.isnan(rho[place])
        else:
            assert rho[place] == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-12)
    again, _ = rank_correlation(x[0], y[0, 5])  # shapes that fit together
    assert again[7] == rank_correlation(x[0, 7], y[0, 5])[0] or np.isnan(again[7])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("step", "metric", "variant"), [(0, "l2", "Full"), (1, "cosine", "Attn"), (1, "l2", "Head_1")])
def test_layers_and_lists_are_those_of_the_tables(stored, step, metric, variant, measure):
    result, distances, effects, _ = stored
    impact, effect = step_impact(result, step, variant, metric), step_effect(result, step)
    sizes, local = sizes_of(effects, step, measure), distances_of(distances, step, metric, variant)
    np.testing.assert_array_equal(effect.sizes(measure), sizes)
    assert 0 < (sizes == 0).mean() < 0.5
    rho, n = layer_agreement(impact, effect, measure)
    np.testing.assert_allclose([rho, n], correlations_of(local, sizes), atol=1e-9)
    found = [[tuple(dataclasses.asdict(one).values()) for one in tokens] for tokens in apart(impact, sizes)]
    expected = apart_of(local, norms_of(result, step, metric, variant), sizes)
    assert [[one[0] for one in tokens] for tokens in found] == [[one[0] for one in tokens] for tokens in expected]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_the_oracle_rejects_what_counts_the_sink_or_the_floor(stored):
    result, distances, effects, _ = stored
    local, sizes = distances_of(distances, 0, "l2", "Full"), sizes_of(effects, 0, "logprob")
    rho, n = layer_agreement(step_impact(result, 0, "Full", "l2"), step_effect(result, 0), "logprob")
    raw = np.abs(result.steps[0].effect.logprob_change.astype(float))
    for wrong in (correlations_of(local, sizes, ()), correlations_of(local, raw)):
        assert not np.allclose([rho, n], wrong, equal_nan=True)


def test_nothing_above_the_floor_has_no_correlation_and_is_little_effect():
    """All effects are the same then: none. The tokens are those of most impact."""
    result = with_effects(make_result(WORDS), floor=1e9)
    impact, effect = step_impact(result, 0, "Full", "l2"), step_effect(result, 0)
    rho, n = layer_agreement(impact, effect, "logprob")
    assert np.isnan(rho).all()
    assert (n == 0).all()
    little, large = apart(impact, effect.sizes("logprob"))
    shares = np.nan_to_num(impact.scores())
    assert [one.place for one in little] == np.argsort(-shares)[:5].tolist()
    assert {one.size for one in little} == {0.0}
    assert {one.size_rank for one in little} == {(1 + 10) / 2}  # ties have their mean rank
    assert len(large) == 5  # of the half that all are in, those of least impact
    assert {one.place for one in large} == set(np.argsort(shares[1:])[:5] + 1)


def test_a_result_of_one_token_has_none_of_it():
    result = with_effects(make_result(["a"], sinks=()))
    impact, effect = step_impact(result, 0, "Full", "l2"), step_effect(result, 0)
    assert np.isnan(layer_agreement(impact, effect, "kl")[0]).all()
    assert apart(impact, effect.sizes("kl")) == ([], [])
    sink = dataclasses.replace(result, sinks=(0,))
    assert apart(step_impact(sink, 0, "Full", "l2"), effect.sizes("kl")) == ([], [])


def test_what_is_not_a_number_is_left_out():
    result = with_effects(make_result(WORDS, sinks=()))
    change = result.steps[0].effect.logprob_change.copy()
    change[:, 3], change[1, 4], change[0, 5] = np.nan, -np.inf, 1e-4
    result = with_values(result, logprob_change=change)
    sizes = step_effect(result, 0).sizes("logprob")
    assert np.isnan(sizes[:, 3]).all()
    assert np.isnan(sizes[1, 4])
    assert sizes[0, 5] == 0  # as large as the floor, and no larger
    lists = apart(step_impact(result, 0, "Full", "l2"), sizes, k=99)
    assert 3 not in [one.place for one in chain(*lists)]
    rho, n = layer_agreement(step_impact(result, 0, "Full", "l2"), step_effect(result, 0), "logprob")
    assert n.tolist() == [(np.isfinite(row) & (row > 0)).sum() for row in sizes]
    assert np.isfinite(rho).all()


# --- in words -----------------------------------------------------------------------------------------------------------


def said(**meta):
    result = dataclasses.replace(make_result(), meta=meta)
    return window_of(result), where_hidden(result), how_measured(result)


def test_how_it_was_measured_is_said():
    window, short, long = said(effect={"window": 9, "queries": "last"}, ablation="mask")
    assert (window, short) == (9, "9 layers around each layer, mask")
    assert "in the 9 layers around it (for layer l from l \N{MINUS SIGN} 4 to l + 4, cut at both ends)" in long
    assert (
        "from the position that produces the answer's token: its attention logit is set to minus infinity (mask)"
        in long
    )
    window, short, long = said(effect={"window": 1, "ablation": "zero-value"}, ablation="mask")  # its own comes first
    assert (window, short) == (1, "one layer, zero-value")
    assert "in that layer alone from" in long
    assert "its value is replaced by 0 (zero-value)" in long
    window, short, long = said(effect={"window": 2, "queries": "all"}, ablation="mean-value")
    assert short == "2 layers around each layer, mean-value, all queries"
    assert "for layer l from l to l + 1, cut" in long
    assert "from every position: its attention weight stays" in long
    assert set(ABLATIONS) == set(SETTINGS)


@pytest.mark.parametrize("effect", [None, {}, [], "x", {"window": "9"}, {"window": 0}, {"window": None, "ablation": 3}])
def test_a_result_that_does_not_say_is_said_so(effect):
    window, short, long = said(effect=effect)
    assert (window, short) == (None, "some layers around each layer")
    assert "(the result does not say how many)" in long


# --- on the page, and from files ------------------------------------------------------------------------------------------


def test_a_page_holds_every_effect_and_correlation(stored):
    result, distances, effects, path = stored
    (read,) = read_results(path).values()
    page = Page(build_report(read).html)
    blocks = {
        attributes["id"]: text
        for _, attributes, text in page.all("script")
        if attributes.get("id", "").startswith("e-")
    }
    assert len(blocks) == 5 * len(result.steps)
    for step, record in enumerate(result.steps):
        shape = record.l2.shape[:2]
        for measure, column in MEASURES.items():
            values = decode(blocks[f"e-0-{step}-{measure}"])
            assert values.tobytes() == np.ascontiguousarray(getattr(record.effect, column)).tobytes()
        assert (decode(blocks[f"e-0-{step}-top1"]).reshape(shape) == record.effect.top1).all()
        entry = page.data["prompts"][0]["steps"][step]["effect"]
        assert entry["floors"] == {name: float(np.float32(floor)) for name, floor in FLOOR.items()}
        assert entry["top1_texts"] == {str(token): text for token, text in record.effect.top1_texts.items()}
        n_rows = len(MEASURES) * 2 * len(result.variants)
        rho, n = (decode(blocks[f"e-0-{step}-{name}"]).reshape(n_rows, shape[0]) for name in ("rho", "n"))
        row = 0
        for measure in MEASURES:
            for metric in ("l2", "cosine"):
                for variant in result.variants:
                    local, sizes = distances_of(distances, step, metric, variant), sizes_of(effects, step, measure)
                    np.testing.assert_allclose([rho[row], n[row]], correlations_of(local, sizes), atol=1e-6)
                    row += 1
                    lists = apart_of(local, norms_of(result, step, metric, variant), sizes)
                    for found, expected in zip(entry["apart"][measure][metric][variant], lists, strict=True):
                        np.testing.assert_allclose(found, np.array(expected).reshape(np.shape(found)), rtol=1e-6)


def test_without_effects_a_page_has_none_of_it(tmp_path):
    result = make_result()
    page = Page(build_report(result).html)
    assert not [a for _, a, _ in page.all("script") if a.get("id", "").startswith("e-")]
    assert page.data["prompts"][0]["effect"] is None
    assert all("effect" not in step for step in page.data["prompts"][0]["steps"])
    half = with_effects(make_result(n_steps=2))
    half = dataclasses.replace(half, steps=(half.steps[0], dataclasses.replace(half.steps[1], effect=None)))
    assert Page(build_report(half).html).data["prompts"][0]["effect"] is None  # of some steps only: none


def test_positions_that_were_not_masked_have_no_effect():
    """Columns of a record are the masked positions, which are not all."""
    result = with_effects(make_result(WORDS, grids=((1, 2),), mask_mode="text"))
    effect = step_effect(result, 0)
    assert effect.hidden == tuple((j,) for j in (0, *range(3, 13)))
    assert effect.by_position
    page = Page(build_report(result).html)
    assert page.data["prompts"][0]["steps"][0]["positions"] == [j for (j,) in effect.hidden]
    lists = page.data["prompts"][0]["steps"][0]["effect"]["apart"]["kl"]["l2"]["Full"]
    assert {one[0] for one in chain(*lists)} <= set(range(3, 13))


def test_effects_are_never_rounded_and_count_for_the_size():
    result = with_effects(make_result([f" {word}" for word in range(150)], n_layers=12, n_heads=6))
    exact = build_report(result)
    most = (len(exact.html) - 60_000) / 1e6
    built = build_report(result, most)
    assert built.digits < EXACT
    assert len(built.html) <= most * 1e6
    blocks = {attributes.get("id"): text for _, attributes, text in Page(built.html).all("script")}
    assert decode(blocks["e-0-0-kl"]).tobytes() == result.steps[0].effect.kl_divergence.tobytes()


def test_any_file_of_a_result_names_it(stored):
    result, _, _, path = stored
    for end in ("", ".csv", ".meta.json", ".effect.csv"):
        (read,) = read_results(f"{path}{end}").values()
        assert read.has_effects
        np.testing.assert_array_equal(read.steps[1].effect.top1, result.steps[1].effect.top1)


def test_tables_of_others_have_no_effects(stored, tmp_path):
    _, _, _, path = stored
    shutil.copy(f"{path}.csv", tmp_path / "bare.csv")
    shutil.copy(f"{path}.effect.csv", tmp_path / "bare.effect.csv")
    (bare,) = read_results(tmp_path / "bare.csv").values()
    assert not bare.has_effects
    assert step_effect(bare, 0) is None
    assert b'"effect": null' in write_report(tmp_path / "bare.csv").read_bytes()
    with pytest.raises(OutputError, match=r"bare\.effect\.csv has no columns l2_distance, cosine_distance"):
        read_results(tmp_path / "bare.effect.csv")


def test_a_result_is_a_result_with_or_without(stored):
    """What the tests make up is what the package takes."""
    result, *_ = stored
    assert isinstance(result, Result)
    assert result.has_effects
    assert step_effect(result, 1).changed.any()
    assert not step_effect(result, 1).changed.all()


# --- groups of tokens -----------------------------------------------------------------------------------------------------


def test_groups_of_tokens_keep_their_names_and_have_no_impact_beside_them():
    result = with_effects(make_result(WORDS, n_steps=2, sinks=()))
    effect = step_effect(grouped(result, GROUPS), 1)
    assert not effect.by_position
    assert effect.names == tuple(name for name, _ in GROUPS)
    assert effect.hidden == tuple(positions for _, positions in GROUPS)
    np.testing.assert_array_equal(effect.values["kl"], result.steps[1].effect.kl_divergence[:, [0, 2, 9, 0]])
    assert "each group of tokens is hidden" in how_measured(grouped(result, GROUPS))
    page = Page(build_report(grouped(result, GROUPS)).html)
    entry = page.data["prompts"][0]["steps"][1]["effect"]
    assert entry["groups"] == [[name, list(positions)] for name, positions in GROUPS]
    assert entry["apart"] is None
    names = {attributes.get("id") for _, attributes, _ in page.all("script")}
    assert {name for name in names if name and name.startswith("e-0-1")} == {"e-0-1-logprob", "e-0-1-kl", "e-0-1-top1"}


def test_groups_that_are_tokens_are_put_at_their_positions():
    """Words of one token, in any order; what was not hidden has no value."""
    result = with_effects(make_result(WORDS, grids=((1, 2),), n_steps=2))
    order = [5, 0, 2, 1, 9]
    names = [result.tokens.texts[j] if result.tokens.image[j] < 0 else f"image 0 [0, {j - 1}]" for j in order]
    groups = [(name, (j,)) for name, j in zip(names, order, strict=True)]
    effect = step_effect(grouped(result, groups), 1)
    assert effect.by_position
    assert effect.hidden == tuple((j,) for j in range(14))
    expected = result.steps[1].effect.logprob_change.copy()
    expected[:, [j for j in range(14) if j not in order]] = np.nan
    np.testing.assert_array_equal(effect.values["logprob"], expected)
    assert not effect.changed[:, 3].any()
    np.testing.assert_array_equal(effect.changed[:, order], step_effect(result, 1).changed[:, order])
    rho, n = layer_agreement(step_impact(result, 1, "Full", "l2"), effect, "logprob")
    sizes = np.where(np.isnan(expected), 0, effect.sizes("logprob"))
    local = step_impact(result, 1, "Full", "l2").relative()
    np.testing.assert_allclose([rho, n], correlations_of(local, sizes), atol=1e-9)
    for wrong in ([(*groups[0],), ("other", (0,))], [groups[0], groups[0]], [groups[0], ("word", (1, 2))]):
        assert not step_effect(grouped(result, wrong), 0).by_position


def test_all_layers_at_once_are_said():
    window, short, long = said(effect={"window": "all", "queries": "all"}, ablation="mask")
    assert (window, short) == ("all", "all layers, mask, all queries")
    assert long.startswith("Each token is hidden in all layers at once (so every layer has the same effect) from every")
