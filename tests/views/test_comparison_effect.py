"""`python -m mask_impact compare` of results with effects on the answer: what is said of them is what plain loops and scipy find
from the results, all else is as it is without them, and the page shows the same."""

import dataclasses
import json

import browser
import numpy as np
import pytest
import scipy.stats
from pages import HOSTILE
from running import compare as run
from samples import ALIGNED, FEW, GROUPS, OTHER, WORDS, grouped
from synthetic import make_result, with_effects
from tab import table_of

from mask_impact.findings.alignment import band_layers
from mask_impact.findings.chance import correlations
from mask_impact.findings.comparison import compare_results
from mask_impact.results.store import save
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_page import build_page
from mask_impact.views.comparison_text import render

FLOOR = float(np.float32(1e-4))
LAYERS = (7, 12)


def without(result):
    return dataclasses.replace(result, steps=tuple(dataclasses.replace(step, effect=None) for step in result.steps))


@pytest.fixture(scope="module")
def results():
    """Other words, other layers, other windows; a sink at 0 in both and one at 5 in the second; the third has no effects."""
    one = with_effects(make_result(WORDS, n_layers=LAYERS[0], n_steps=2))
    other = with_effects(make_result(OTHER, n_layers=LAYERS[1], n_steps=2, seed=1, sinks=(0, 5)), seed=1)
    other = dataclasses.replace(other, meta={**other.meta, "ablation": "zero-value", "effect": {"window": 1}})
    return {"one": one, "other": other, "plain": make_result(WORDS, n_steps=2, seed=2)}


# --- by loops ---------------------------------------------------------------------------------------------------------


def sizes_of(result, step=0):
    """{(layer, position): size of its effect}, 0 up to the floor"""
    values = np.abs(result.steps[step].effect.logprob_change.astype(float))
    return {place: 0.0 if values[place] <= FLOOR else values[place] for place in np.ndindex(values.shape)}


def mean(values, weights, position):
    total = sum(weights.values())
    return sum(part * values[layer, position] for layer, part in weights.items()) / total


def told_of(result, left_out, n_bands, step=0):
    """(rho, n) of all layers, then of each band."""
    sizes, record = sizes_of(result, step), result.steps[step]
    local = record.l2[:, :, 0].astype(float) / record.baseline_norm[:, :1].astype(float)
    weights = [dict.fromkeys(range(result.n_layers), 1.0), *map(dict, band_layers(result.n_layers, n_bands))]
    found = []
    for one in weights:
        counted = [j for j in range(local.shape[1]) if j not in left_out and mean(sizes, one, j) > 0]
        x, y = ([mean(values, one, j) for j in counted] for values in (local, sizes))
        found.append((scipy.stats.spearmanr(x, y).statistic, len(counted)))
    return found


@pytest.mark.parametrize("step", [0, 1])
def test_agreement_about_effects_is_scipys(results, step):
    """Over the tokens that both have, without sinks of either."""
    comparison = compare_results(results, dataclasses.replace(FEW, step=step))
    tokens = [*ALIGNED, (10, 10)] if step else ALIGNED  # the produced token is one of the next step's
    counted = [(a, b) for a, b in tokens if a not in (0, 4) and b not in (0, 5)]
    assert [pair.effect is None for pair in comparison.pairs] == [False, True]
    found = comparison.pairs[0].effect
    x, y = (
        [mean(sizes_of(results[name], step), dict.fromkeys(range(n), 1.0), pair[which]) for pair in counted]
        for which, (name, n) in enumerate(zip(("one", "other"), LAYERS, strict=True))
    )
    expected = scipy.stats.spearmanr(x, y)
    assert found.n == len(counted)
    assert found.rho == pytest.approx(expected.statistic)
    assert found == compare_results(results, dataclasses.replace(FEW, step=step)).pairs[0].effect
    kinds = np.full(len(x), -1)
    drawn = correlations(np.array([x]), np.array([y]), kinds, FEW.n_permutations, np.random.default_rng(FEW.seed))
    assert found.p == drawn[0].p
    many = compare_results(results, dataclasses.replace(FEW, step=step, n_permutations=4000)).pairs[0].effect
    larger = scipy.stats.spearmanr(x, y, alternative="greater").pvalue
    assert many.p == pytest.approx(larger, abs=0.08)


@pytest.mark.parametrize("n_bands", [3, 10])
def test_each_result_s_importance_is_held_against_its_effects(results, n_bands):
    comparison = compare_results(results, dataclasses.replace(FEW, n_bands=n_bands))
    for side, left_out in zip(comparison.sides[:2], ((0, 4), (0, 5)), strict=True):
        assert side.left_out == left_out
        rho, n = side.told
        expected = told_of(side.result, left_out, n_bands)
        np.testing.assert_allclose(np.stack([rho, n], axis=1), expected, atol=1e-9)
    assert comparison.sides[2].told is None


def test_all_else_is_as_it_is_without_them(results):
    plain = {name: without(result) for name, result in results.items()}
    with_them, without_them = (compare_results(one, FEW) for one in (results, plain))
    assert render(with_them).startswith(render(without_them))
    more, less = as_json(with_them), as_json(without_them)
    assert "effect" not in json.dumps(less)
    assert [one.pop("effect", None) is not None for one in more["results"]] == [True, True, False]
    assert [one.pop("effect", None) is not None for one in more["pairs"]] == [True, False]
    assert more == less


# --- in words -----------------------------------------------------------------------------------------------------------


def test_text_and_json_say_the_same(results, tmp_path, capsys):
    paths = []
    for name, result in results.items():
        save(result, tmp_path / name, ["csv"])
        paths.append(tmp_path / name)
    words = (*paths, "--permutations", 99, "--bands", 4)
    code, out, _ = run(capsys, *words)
    assert code == 0
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Effect on the answer"))
    head = " ".join(line.strip() for line in lines[first : first + 2])
    assert head == (
        "Effect on the answer (change of the log-probability by hiding a token, in A from 3 layers around each layer, mask; "
        "in B from one layer, zero-value):"
    )
    found = json.loads(run(capsys, *words, "--json")[1])
    effect = found["pairs"][0]["effect"]
    assert lines[first + 2] == f"  A and B, all layers: rho {effect['rho']:.3f}, p {effect['p']:.4f}, of 7 tokens"
    rows = [line.split() for line in lines[first + 5 :]]
    assert [row[-4:] for row in rows] == [
        [text for one in sides for text in (f"{one['rho']:.3f}", str(one["n"]))]
        for sides in zip(
            *([side["effect"]["overall"], *side["effect"]["bands"]] for side in found["results"][:2]), strict=True
        )
    ]
    assert [" ".join(row[:-4]) for row in rows] == ["all layers", *(f"{n} to {n + 25} %" for n in (0, 25, 50, 75))]
    assert all(len(line) <= 100 for line in lines)
    one = found["results"][0]["effect"]
    assert one["measured"] == "3 layers around each layer, mask"
    assert one["floor"] == FLOOR
    sizes = sizes_of(results["one"])
    expected = [mean(sizes, dict.fromkeys(range(7), 1.0), j) for j in range(10)]
    np.testing.assert_allclose(one["sizes"], expected)
    assert "effect" not in found["results"][2]


def test_what_was_hidden_is_said_once_where_it_is_the_same(results):
    same = {name: dataclasses.replace(one, meta=results["one"].meta) for name, one in results.items()}
    text = " ".join(render(compare_results(same, FEW)).split())
    assert "by hiding a token from 3 layers around each layer, mask):" in text
    assert "in A from" not in text


def test_effects_of_one_result_alone_are_not_compared(results):
    some = {"plain": results["plain"], "one": results["one"]}
    assert "Effect on the answer" not in render(compare_results(some, FEW))


def test_effects_of_groups_are_not_compared_and_that_is_said(results):
    some = {"one": results["one"], "groups": grouped(with_effects(make_result(WORDS)), GROUPS)}
    comparison = compare_results(some, FEW)
    assert comparison.pairs[0].effect is None
    assert "groups: its effects on the answer are of groups of tokens, and are not compared" in comparison.notes


def test_nothing_above_the_floor_has_no_correlation():
    some = {name: with_effects(make_result(WORDS, seed=seed), floor=1e9) for seed, name in enumerate("xy")}
    comparison = compare_results(some, FEW)
    assert comparison.pairs[0].effect.rho is None
    assert "A and B, all layers: rho none, of 9 tokens" in render(comparison)
    told = as_json(comparison)["results"][0]["effect"]
    assert told["overall"] == {"n": 0, "rho": None}


def test_a_hostile_setting_is_safe_in_a_terminal(results):
    some = {}
    for name, result in list(results.items())[:2]:
        some[name] = dataclasses.replace(result, meta={"effect": {"window": 2, "ablation": HOSTILE[10] + "\x1b[2J"}})
    text = render(compare_results(some, FEW))
    assert "\\x1b[2J" in text
    assert not set(text) & {"\x1b", "\u202e"}


# --- on the page --------------------------------------------------------------------------------------------------------


@browser.needed
def test_the_page_has_the_same_as_a_table(results, tmp_path, open_page):
    comparison = compare_results(results, FEW)
    (tmp_path / "page.html").write_bytes(build_page(comparison))
    tab = open_page(tmp_path / "page.html")
    effect = comparison.pairs[0].effect
    said = f"A and B rank the effects of 7 tokens with rho {effect.rho:.3f}, p {effect.p:.2g}."
    assert tab["effect-pairs"].text_content() == said
    assert "in B from one layer, zero-value; its size" in tab["effect-hint"].text_content()
    assert tab.texts("#effect th") == ["depth", "rho in A", "tokens", "rho in B", "tokens"]
    numbers = [one for side in comparison.sides[:2] for one in side.told]
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#effect tbody tr").all()]
    assert len(rows) == 11
    for place, row in enumerate(rows):
        expected = [f"{one[place]:.3f}" if nth % 2 == 0 else str(one[place]) for nth, one in enumerate(numbers)]
        assert row[1:] == expected
    header, saved = table_of(tab.download("[data-card=effect] button:text-is('CSV')")[0])
    assert header == ["depth", "rho_A", "tokens_A", "rho_B", "tokens_B"]
    np.testing.assert_allclose(np.array([row[1:] for row in saved], dtype=float), np.stack(numbers, axis=1), rtol=1e-12)


@browser.needed
def test_the_page_of_results_without_has_no_such_part(results, tmp_path, open_page):
    comparison = compare_results({name: without(result) for name, result in results.items()}, FEW)
    (tmp_path / "page.html").write_bytes(build_page(comparison))
    tab = open_page(tmp_path / "page.html")
    assert not tab["effect-card"].is_visible()
