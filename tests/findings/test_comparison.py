"""`python -m mask_impact compare`: alignment, depth, importance, correlation and chance are those that plain loops, exact
fractions and scipy find; broken versions of each are rejected; texts, JSON and errors."""

import base64
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from pages import HOSTILE, Page, cleaned, decode
from running import compare as run
from samples import ALIGNED, FEW, OTHER, WORDS
from synthetic import make_result

from mask_impact.commands.compare import default_path
from mask_impact.errors import UsageError
from mask_impact.findings import comparison
from mask_impact.findings.alignment import align, band_layers
from mask_impact.findings.chance import correlations
from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.results.store import save
from mask_impact.results.tables import to_dataset_table, to_table
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_page import build_page
from mask_impact.views.comparison_text import render
from mask_impact.views.text import columns, escape

REPOSITORY = Path(__file__).parents[2]


# --- the same token ---------------------------------------------------------------------------------------------------


def aligned(first, second, **images):
    results = [make_result(first, grids=images.get("one", ())), make_result(second, grids=images.get("other", ()))]
    positions = [np.arange(result.n_prompt) for result in results]
    return [tuple(pair) for pair in align(results[0], positions[0], results[1], positions[1]).tolist()]


def same(*places):
    return [(place, place) for place in places]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (WORDS, WORDS, same(*range(10))),
        (WORDS, OTHER, ALIGNED),
        (OTHER, WORDS, [(b, a) for a, b in ALIGNED]),
        (["a", "b", "c"], ["x", "y"], []),
        (["a", "b"], ["b", "a"], [(0, 1)]),  # one of two: the order stays
        (["x", "a", "a", "a", "y"], ["x", "a", "a", "y"], [(0, 0), (1, 1), (2, 2), (4, 3)]),  # a token that is repeated
        (["<|im_start|>", "user", "hi"], ["<|im_start|>", "system", "user", "hi"], [(0, 0), (1, 2), (2, 3)]),
        (["The", " cat", " sat"], ["The", "cat", "sat"], same(0, 1, 2)),  # spaces at the ends of words
        ([" x", "cat", "q"], ["cat", " cat", "q"], [(1, 0), (2, 2)]),
        (["a", "\n", "b"], ["a", " ", "b"], same(0, 2)),  # texts of spaces are not each other's
        (["x", "", "y"], ["z", "", "y"], same(1, 2)),
    ],
)
def test_tokens_are_aligned_by_their_texts_in_their_order(first, second, expected):
    assert aligned(first, second) == expected


def test_patches_are_aligned_by_cell_wherever_the_image_stands():
    """`<s>`, six patches, then the words; in the other result they stand behind the same first token."""
    assert aligned(["a", "b"], ["a", "c", "b"], one=[(2, 3)], other=[(2, 3)]) == [*same(*range(7)), (7, 8)]
    # The same number of cells in another grid: no cell is the other's. A second image has none to be aligned with.
    assert aligned(["a", "b"], ["a", "b"], one=[(2, 3)], other=[(3, 2)]) == same(0, 7)
    assert aligned(["a", "b"], ["a", "b"], one=[(2, 3)], other=[(2, 3), (1, 2)]) == [*same(*range(7)), (7, 9)]
    assert aligned(["a", "b"], ["a", "b"], one=[(2, 3)]) == [(0, 0), (7, 1)]


def test_patches_that_were_not_measured_have_no_part_in_it():
    """One result of the text alone, one of text and image."""
    sides = {"text": make_result(WORDS, grids=((1, 2),), mask_mode="text"), "both": make_result(WORDS, grids=((1, 2),))}
    pair = compare_results(sides, FEW).pairs[0]
    assert len(pair.matched) == 10
    assert pair.unmatched == ((), (1, 2))
    assert pair.image is None


# --- the same depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_layers", "n_bands"), [(28, 10), (36, 10), (3, 10), (10, 10), (1, 4), (7, 3), (28, 1)])
def test_a_layer_counts_in_the_bands_that_it_overlaps(n_layers, n_bands):
    """As fractions of the whole depth."""
    found = band_layers(n_layers, n_bands)
    assert len(found) == n_bands
    for band, layers in enumerate(found):
        expected = {}
        for layer in range(n_layers):
            low = max(Fraction(layer, n_layers), Fraction(band, n_bands))
            high = min(Fraction(layer + 1, n_layers), Fraction(band + 1, n_bands))
            if high > low:
                expected[layer] = float((high - low) * n_layers)
        assert dict(layers) == pytest.approx(expected)
    for layer in range(n_layers):
        assert sum(part for layers in found for one, part in layers if one == layer) == pytest.approx(1)


def test_the_example_of_the_module_is_so():
    assert band_layers(28, 10)[0] == ((0, 1.0), (1, 1.0), (2, 0.8))


# --- everything, against loops over the files -------------------------------------------------------------------------


def read_files(path):
    """{(layer, position): L2 over the norm} of step 0, Full; texts; number of layers; sinks: from CSV and meta file."""
    meta = json.loads(Path(f"{path}.meta.json").read_bytes())
    norms = [layer[meta["variants"].index("Full")] for layer in meta["steps"][0]["baseline_norm"]]
    with open(f"{path}.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["generation_step"], row["variant"]) == ("0", "Full")]
    values = {
        (int(r["layer"]), int(r["token_position"])): float(r["l2_distance"]) / norms[int(r["layer"])] for r in rows
    }
    return values, meta["n_layers"], meta["sinks"]


def importance(values, n_layers, position, band=None, n_bands=10):
    """The mean over layers, in a band weighted by overlap."""
    total = weight = 0
    for layer in range(n_layers):
        part = 1.0
        if band is not None:
            low, high = max(layer / n_layers, band / n_bands), min((layer + 1) / n_layers, (band + 1) / n_bands)
            part = max(0.0, high - low)
        total += part * values[layer, position]
        weight += part
    return total / weight


def check(found, paths, expected_pairs):
    """The JSON of a comparison of two results against the files."""
    files = [read_files(path) for path in paths]
    left_out = [set(files[0][2]), set(files[1][2])]
    for one, other in expected_pairs:
        if one in files[0][2] or other in files[1][2]:
            left_out[0].add(one)
            left_out[1].add(other)
    by_band = []
    for (values, n_layers, sinks), side, out in zip(files, found["results"], left_out, strict=True):
        assert (side["n_layers"], side["sinks"], set(side["left_out"])) == (n_layers, sinks, out)
        positions = sorted({position for _, position in values})
        counted = [position for position in positions if position not in out]
        bands = [{j: importance(values, n_layers, j, band) for j in positions} for band in [None, *range(10)]]
        for token in side["tokens"]:
            j = token["position"]
            assert token["importance"] == pytest.approx(bands[0][j], rel=1e-6)
            assert token["bands"] == pytest.approx([band[j] for band in bands[1:]], rel=1e-6)
            share = bands[0][j] / sum(bands[0][k] for k in counted)
            assert token["share"] == (None if j in out else pytest.approx(share, rel=1e-6))
        totals = [sum(band[j] for j in counted) for band in bands[1:]]
        shares = [band["share"] for band in side["bands"]]
        assert shares == pytest.approx([total / sum(totals) for total in totals], rel=1e-6)
        by_band.append((bands, [{j: band[j] / sum(band[k] for k in counted) for j in counted} for band in bands]))
    (pair,) = found["pairs"]
    assert [tuple(one) for one in pair["aligned"]] == expected_pairs
    assert pair["unmatched"] == [
        sorted({j for _, j in values} - {one[side] for one in expected_pairs})
        for side, (values, _, _) in enumerate(files)
    ]
    compared = [(a, b) for a, b in expected_pairs if a not in left_out[0] and b not in left_out[1]]
    for place, correlation in enumerate([pair["overall"], *pair["bands"]]):
        x, y = [by_band[0][0][place][a] for a, _ in compared], [by_band[1][0][place][b] for _, b in compared]
        assert correlation["n"] == len(compared)
        assert correlation["rho"] == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    shares = [by_band[0][1], by_band[1][1]]
    differences = {(a, b): shares[1][0][b] - shares[0][0][a] for a, b in compared}
    order = sorted(compared, key=lambda one: -abs(differences[one]))
    assert [tuple(one["positions"]) for one in pair["differing"]] == order
    for one in pair["differing"]:
        a, b = one["positions"]
        assert one["difference"] == pytest.approx(differences[a, b], rel=1e-6)
        assert one["shares"] == pytest.approx([shares[0][0][a], shares[1][0][b]], rel=1e-6)
        bands = [abs(shares[1][1 + band][b] - shares[0][1 + band][a]) for band in range(10)]
        assert one["band"] == bands.index(max(bands))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two results of other layers, tokens and sinks, as files."""
    folder = tmp_path_factory.mktemp("compare")
    save(make_result(WORDS, n_layers=7, n_steps=2), folder / "one", ["csv"])
    save(make_result(OTHER, n_layers=12, n_steps=2, seed=1, sinks=(0, 5)), folder / "other", ["csv"])
    return folder / "one", folder / "other"


def test_the_numbers_are_those_of_plain_loops_over_the_files(capsys, stored):
    code, out, _ = run(capsys, *stored, "--json", "--permutations", 99)
    assert code == 0
    check(json.loads(out), stored, ALIGNED)


def by_place(first, first_positions, second, second_positions):
    """A wrong alignment: the n-th with the n-th."""
    n = min(len(first_positions), len(second_positions))
    return np.stack([np.arange(n)] * 2, axis=1)


def by_middle(n_layers, n_bands):
    """A wrong band: each layer counts in the one in which its middle lies."""
    bands = [[] for _ in range(n_bands)]
    for layer in range(n_layers):
        bands[int((layer + 0.5) / n_layers * n_bands)].append((layer, 1.0))
    return tuple(tuple(band) for band in bands)


def by_absolute_layer(n_layers, n_bands):
    """Another: bands of the same layers whatever the depth."""
    return tuple(((min(band, n_layers - 1), 1.0),) for band in range(n_bands))


def own_sinks_only(results, impacts, alignments):
    return {name: sorted(result.sinks) for name, result in results.items()}


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("align", by_place),
        ("band_layers", by_middle),
        ("band_layers", by_absolute_layer),
        ("_left_out", own_sinks_only),
    ],
)
def test_a_broken_version_is_rejected(capsys, monkeypatch, stored, name, broken):
    monkeypatch.setattr(comparison, name, broken)
    code, out, _ = run(capsys, *stored, "--json", "--permutations", 99)
    assert code == 0
    with pytest.raises((AssertionError, TypeError)):
        check(json.loads(out), stored, ALIGNED)


def test_unscaled_distances_are_rejected(capsys, monkeypatch, stored):
    monkeypatch.setattr(comparison.Impact, "relative", lambda impact: impact.distances)
    _, out, _ = run(capsys, *stored, "--json", "--permutations", 99)
    with pytest.raises(AssertionError):
        check(json.loads(out), stored, ALIGNED)


def scaled(result, factor):
    steps = tuple(
        dataclasses.replace(
            step, l2=step.l2 * np.float32(factor), baseline_norm=step.baseline_norm * np.float32(factor)
        )
        for step in result.steps
    )
    return dataclasses.replace(result, steps=steps)


def test_a_model_whose_updates_are_longer_is_the_same():
    """L2 grows with the hidden size and with the norm of the updates; what is compared does not."""
    result, other = make_result(WORDS, n_layers=7), make_result(OTHER, n_layers=5, seed=1)
    found = [as_json(compare_results({"a": result, "b": one}, FEW)) for one in (other, scaled(other, 4096))]
    assert found[0] == found[1]


def test_step_metric_and_variant_choose_the_distances():
    results = {"a": make_result(WORDS, n_steps=3), "b": make_result(OTHER, n_steps=3, seed=1)}
    found = compare_results(results, Settings(step=2, metric="cosine", variant="Head_1", n_permutations=9))
    for side, result in zip(found.sides, results.values(), strict=True):
        expected = result.steps[2].cosine[:, :, result.variants.index("Head_1")].astype(float)
        np.testing.assert_array_equal(side.values, expected)
        assert len(side.impact.positions) == 12  # the prompt and two produced tokens
    assert found.scale == "cosine"
    assert [11, 11] in found.pairs[0].matched.tolist()


def test_the_variant_is_one_that_all_have():
    results = {"a": make_result(WORDS), "b": make_result(WORDS, groups=("attn", "heads"))}
    assert compare_results(results, FEW).variant == "Attn"
    with pytest.raises(UsageError, match="no variant in common"):
        compare_results({"a": make_result(groups=("full",)), "b": make_result(groups=("heads",))})


# --- sinks ------------------------------------------------------------------------------------------------------------


def test_a_sink_of_one_is_left_out_of_all():
    """Of three results: a sink of the second is left out of the first and, through it, of the third."""
    made = {
        name: make_result(WORDS, seed=seed, sinks=sinks)
        for name, seed, sinks in zip("xyz", range(3), ((0,), (3,), ()), strict=True)
    }
    found = compare_results(made, FEW)
    assert [side.left_out for side in found.sides] == [(0, 3)] * 3
    assert [side.sinks for side in found.sides] == [(0,), (3,), ()]
    assert [pair.overall.n for pair in found.pairs] == [8, 8]
    text = render(found)
    assert 'left out of A: "<s>" at position 0, a sink of A' in text
    assert 'left out of B: "<s>" at position 0, the same token as a sink of another' in text


def test_sinks_can_be_kept(capsys, stored):
    _, out, _ = run(capsys, *stored, "--keep-sinks", "--json", "--permutations", 9)
    found = json.loads(out)
    assert [side["left_out"] for side in found["results"]] == [[], []]
    assert [side["sinks"] for side in found["results"]] == [[0], [0, 5]]
    assert found["pairs"][0]["overall"]["n"] == len(ALIGNED)


# --- chance -----------------------------------------------------------------------------------------------------------

ONE_KIND = np.zeros(100, dtype=int)


def rng(seed=0):
    return np.random.default_rng(seed)


def one_correlation(x, y, kinds=None, n=999, seed=0):
    kinds = ONE_KIND[: len(x)] if kinds is None else np.array(kinds)
    return correlations(np.array([x], float), np.array([y], float), kinds, n, rng(seed))[0]


@pytest.mark.parametrize("ties", [pytest.param(False, marks=pytest.mark.slow), True])
def test_with_few_tokens_all_arrangements_are_gone_through(ties):
    """p is scipy's, which goes through them as well."""
    for seed in range(5):
        x, y = rng(seed).normal(size=(2, 6))
        if ties:
            x, y = np.round(x), np.round(2 * y) / 2
        found = one_correlation(x, y)
        expected = scipy.stats.permutation_test(
            (x,),
            lambda x, y=y: scipy.stats.spearmanr(x, y).statistic,
            permutation_type="pairings",
            alternative="greater",
        )
        assert found.exact
        assert found.rho == pytest.approx(expected.statistic)
        assert found.p == pytest.approx(expected.pvalue)


def test_the_smallest_p_is_what_the_best_arrangement_has():
    assert one_correlation([1, 2, 3], [5, 6, 7]) == comparison.Correlation(3, pytest.approx(1), 1 / 6, 1 / 6, True)
    assert one_correlation([1, 2, 3], [7, 6, 5]).p == 1
    assert one_correlation([1, 2, 2], [5, 6, 6]).smallest_p == pytest.approx(2 / 6)  # two arrangements are one
    assert one_correlation(range(5), range(5), kinds=[0, 0, 1, 1, 1]).smallest_p == pytest.approx(1 / 12)
    assert one_correlation(range(9), range(9), n=99).smallest_p == 0.01


def test_of_many_tokens_a_sample_of_arrangements_is_drawn():
    """p = (1 + those at least as large) / (1 + sample), which comes near scipy's of a larger sample; and the seed counts."""
    for seed in range(4):
        x, y = rng(seed).normal(size=(2, 20))
        y += 0.4 * x
        found = one_correlation(x, y, n=1999)
        expected = scipy.stats.spearmanr(x, y, alternative="greater").pvalue
        assert not found.exact
        assert found.p == pytest.approx(expected, abs=0.03)
        assert (found.p * 2000) == pytest.approx(round(found.p * 2000))
        assert found == one_correlation(x, y, n=1999)
        assert found.p != one_correlation(x, y, n=1999, seed=9).p


def test_p_of_few_tokens_of_two_kinds_is_that_of_all_arrangements_within_kinds():
    kinds = [0, 1, 0, 1, 1, 0, 1]
    x, y = rng(3).normal(size=(2, 7))
    rho = scipy.stats.spearmanr(x, y).statistic
    larger = total = 0
    for order in itertools.permutations(range(7)):
        if all(kinds[place] == kinds[one] for place, one in enumerate(order)):
            total += 1
            larger += scipy.stats.spearmanr(x, y[list(order)]).statistic >= rho - 1e-12
    found = one_correlation(x, y, kinds)
    assert total == math.factorial(3) * math.factorial(4)
    assert (found.exact, found.p) == (True, pytest.approx(larger / total))


def test_that_one_kind_matters_more_in_both_is_no_agreement_about_tokens():
    """30 patches that hardly matter and 10 words that do, unrelated otherwise: among all tokens the correlation is high, and
    shuffled within kinds it is nothing special."""
    kinds = np.repeat([0, -1], [30, 10])
    found = [one_correlation(*rng(seed).uniform(size=(2, 40)) + 10 * (kinds == -1), kinds, n=199) for seed in range(20)]
    assert all(one.rho > 0.3 for one in found)
    assert 0.3 < np.mean([one.p for one in found]) < 0.7
    assert one_correlation(*rng(0).uniform(size=(2, 40)) + 10 * (kinds == -1)).p < 0.01


def test_where_nothing_is_related_p_is_small_as_seldom_as_it_says():
    draws = [one_correlation(*rng(seed).normal(size=(2, 12)), n=199, seed=seed).p for seed in range(300)]
    assert 0.02 < np.mean(np.array(draws) <= 0.05) < 0.09
    assert 0.4 < np.mean(draws) < 0.6


def test_what_has_no_ranks_has_no_correlation():
    assert one_correlation([1, 2], [1, 2]) == comparison.Correlation(2)
    assert one_correlation([1, 2, 3, 4], [5, 5, 5, 5]) == comparison.Correlation(4)


def test_tokens_are_shuffled_within_special_tokens_texts_and_images(monkeypatch):
    """What the test of chance is given as kinds."""
    seen = []
    real = comparison.correlations
    monkeypatch.setattr(
        comparison, "correlations", lambda x, y, kinds, *rest: seen.append(kinds) or real(x, y, kinds, *rest)
    )
    result = make_result(WORDS, grids=((1, 2), (2, 1)), sinks=())
    tokens = dataclasses.replace(result.tokens, kinds=("special", *result.tokens.kinds[1:]))
    result = dataclasses.replace(result, tokens=tokens)
    pair = compare_results({"a": result, "b": result}, FEW).pairs[0]
    assert seen[0].tolist() == [-2, 0, 0, 1, 1, *[-1] * 9]
    assert [one.tolist() for one in seen[1:]] == [[-2, *[-1] * 9], [0, 0, 1, 1]]
    assert (pair.overall.rho, pair.text.n, pair.image.n) == (pytest.approx(1), 10, 4)


# --- tables of others, values that are not there ----------------------------------------------------------------------


def test_without_norms_shares_of_the_layers_are_compared(capsys, tmp_path, stored):
    frame = to_table(make_result(WORDS, n_layers=7)).to_pandas()
    frame.to_csv(tmp_path / "bare.csv", index=False)
    code, out, err = run(capsys, stored[1], tmp_path / "bare.csv", "--permutations", 99)
    assert code == 0
    assert "L2 distance of Full, share of its layer" in out
    assert "Where the impact lies" not in out
    assert "bare has no norms of the unmasked quantity to divide by" in err
    _, out, _ = run(capsys, stored[1], tmp_path / "bare.csv", "--permutations", 99, "--json")
    bare = json.loads(out)["results"][1]
    rows = frame[(frame.variant == "Full") & ~frame.token_position.isin(bare["left_out"])]
    shares = rows.groupby("layer").l2_distance.transform(lambda layer: layer / layer.sum())
    expected = shares.groupby(rows.token_position).mean()
    assert len(expected) < 10
    for token in bare["tokens"]:
        if token["position"] in expected.index:
            assert token["importance"] == pytest.approx(expected[token["position"]], rel=1e-5)
        else:
            assert token["importance"] is None
    assert all(band["share"] is None for band in bare["bands"])


def test_cosine_distances_need_no_norms(capsys, tmp_path, stored):
    to_table(make_result(WORDS, n_layers=7)).to_pandas().to_csv(tmp_path / "bare.csv", index=False)
    _, out, err = run(capsys, stored[0], tmp_path / "bare.csv", "--metric", "cosine", "--permutations", 9)
    assert "cosine distance of Full, as it is" in out
    assert "Where the impact lies" in out
    assert "norms" not in err


def test_a_token_without_a_value_is_not_compared():
    result, other = make_result(WORDS), make_result(WORDS, seed=1)
    result.steps[0].l2[:, 4] = np.nan
    other.steps[0].l2[1, 5] = np.nan  # one of three layers: what the others say still counts
    other.steps[0].baseline_norm[2] = 0
    found = compare_results({"a": result, "b": other}, Settings(n_bands=1, n_permutations=9))
    pair, side = found.pairs[0], found.sides[1]
    assert pair.overall.n == 8
    assert 4 not in pair.matched[pair.compared][:, 0]
    l2, norms = other.steps[0].l2[:, :, 0].astype(float), other.steps[0].baseline_norm[:, 0]
    assert side.overall[5] == pytest.approx(l2[0, 5] / norms[0])
    assert side.overall[6] == pytest.approx((l2[0, 6] / norms[0] + l2[1, 6] / norms[1]) / 2)
    assert side.bands[0] == pytest.approx(side.overall)
    assert json.dumps(as_json(found), allow_nan=False)


def test_a_result_without_any_impact_has_no_correlation_and_breaks_nothing():
    still = make_result(WORDS)
    still.steps[0].l2[:] = 0
    found = compare_results({"a": still, "b": make_result(WORDS, seed=1)}, FEW)
    text = render(found)
    assert "There is no rank correlation: all tokens matter equally in one of the two." in text
    assert all(correlation.rho is None for correlation in (found.pairs[0].overall, *found.pairs[0].bands))
    assert json.dumps(as_json(found), allow_nan=False)


def test_results_with_no_token_in_common_say_so(capsys, tmp_path):
    save(make_result(["a", "b", "c"]), tmp_path / "one", ["csv"])
    save(make_result(["x", "y", "z"]), tmp_path / "other", ["csv"])
    code, out, _ = run(capsys, tmp_path / "one", tmp_path / "other")
    assert code == 0
    assert "A and B: 0 tokens are the same, 0 of them are compared" in out
    assert 'A has and B has not: "a", "b", "c"' in out
    assert "There is no rank correlation of fewer than 3 tokens." in out
    assert "none, since no token is compared" in out


# --- which results ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    names = ["first", "second", "=third"]
    tables = [to_dataset_table(make_result(WORDS, seed=seed), name, "{}", "none") for seed, name in enumerate(names)]
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


def names_of(capsys, *words):
    code, out, err = run(capsys, *words, "--json", "--permutations", 9)
    assert code == 0, err
    found = json.loads(out)
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [
        (found["results"][0]["name"], one["name"]) for one in found["results"][1:]
    ]
    return [one["name"] for one in found["results"]]


def test_prompts_of_a_dataset_are_compared_with_its_first(capsys, dataset):
    assert names_of(capsys, dataset) == ["first", "second", "=third"]
    assert names_of(capsys, dataset, "--prompt-name", "=third", "--prompt-name", "first") == ["first", "=third"]


def test_names_tell_results_apart(capsys, tmp_path, dataset, stored):
    other = tmp_path / "elsewhere"
    other.mkdir()
    for file in (f"{stored[0]}.csv", f"{stored[0]}.meta.json"):
        (other / Path(file).name).write_bytes(Path(file).read_bytes())
    assert names_of(capsys, *stored) == ["one", "other"]
    assert names_of(capsys, stored[0], other / "one") == [str(stored[0]), str(other / "one")]
    assert names_of(capsys, stored[0], dataset, "--prompt-name", "second") == ["one", "second"]
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "part-0.parquet").write_bytes((dataset / "part-00001.parquet").read_bytes())
    assert names_of(capsys, dataset, copy, "--prompt-name", "second") == ["set: second", "copy: second"]


def test_grids_are_for_tables_without_a_meta_file(capsys, tmp_path):
    """A result of its own with a 3 x 2 image, and the table of another alone, which would be taken for 2 x 3."""
    save(make_result(WORDS, grids=((3, 2),)), tmp_path / "own", ["csv"])
    to_table(make_result(WORDS, grids=((3, 2),))).to_pandas().to_csv(tmp_path / "bare.csv", index=False)
    for words, n_same in (((), 10), (("--grid", "3x2"), 16)):
        _, out, _ = run(capsys, tmp_path / "own", tmp_path / "bare.csv", "--permutations", 9, *words)
        assert f"A and B: {n_same} tokens are the same" in out
    code, _, err = run(capsys, tmp_path / "own", tmp_path / "bare.csv", "--grid", "4x2")
    assert (code, "--grid 4x2 has 8 cells" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{one}",), "1 result: two to 8 can be compared"),
        (("{one}", "{one}"), "is given twice"),
        (("{one}", "{other}", "--step", "2"), "one: step 2 is not there: the result has steps 0 to 1"),
        (("{one}", "{other}", "--variant", "Head_7"), "one: variant 'Head_7' is not there"),
        (("{one}", "{other}", "--prompt-name", "x"), "no source has a prompt 'x'"),
        (("{one}", "{other}", "--bands", "0"), "must be a whole number from 1, not '0'"),
        (("{one}", "{other}", "--permutations", "-5"), "must be a whole number from 1, not '-5'"),
        (("{one}", "{other}", "--metric", "l1"), "unknown 'l1'; accepted are l2, cosine"),
        ((), "the following arguments are required: RESULT"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(capsys, stored, words, message):
    code, out, err = run(capsys, *(word.format(one=stored[0], other=stored[1]) for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_result_that_is_not_there_is_named(capsys, stored):
    code, _, err = run(capsys, stored[0], "nowhere")
    assert (code, err.count("\n")) == (1, 1)
    assert "no result there: nowhere does not exist" in err


def test_more_results_than_letters_are_refused(capsys, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(9):
        pq.write_table(to_dataset_table(make_result(), f"p{number}", "{}", "none"), folder / f"part-{number}.parquet")
    code, _, err = run(capsys, folder)
    assert (code, "9 results are more than 8; --prompt-name chooses" in err) == (2, True)


# --- text and JSON ----------------------------------------------------------------------------------------------------


def test_the_table_says_what_the_json_says(capsys, stored):
    _, out, _ = run(capsys, *stored, "--permutations", 99, "-k", 3)
    _, raw, _ = run(capsys, *stored, "--permutations", 99, "--json")
    pair = json.loads(raw)["pairs"][0]
    lines = out.splitlines()
    title = next(index for index, line in enumerate(lines) if line.startswith("Do they rank"))
    overall = pair["overall"]
    assert lines[title + 2] == f"  all layers: rho {overall['rho']:.3f}, p {overall['p']:.4f}, of {overall['n']} tokens"
    for line, band, one in zip(lines[title + 4 : title + 14], range(10), pair["bands"], strict=True):
        cells = re.split("  +", line.strip())
        assert cells[0] == f"{10 * band}-{10 * band + 10} %"
        assert cells[3:5] == [f"{one['rho']:.3f}", f"{one['p']:.4f}"]
    start = next(index for index, line in enumerate(lines) if line.startswith("Tokens that differ most"))
    for line, one in zip(lines[start + 3 :], pair["differing"][:3], strict=False):
        assert f"{100 * one['difference']:+.1f}" in line
        assert line.split('"')[1] == escape(one["text"])
    assert lines[start + 6] == ""
    assert "99 permutations, seed 0; the smallest p is 0.01." in out
    assert 'B has and A has not: " city"' in out


def test_seeds_are_repeatable(capsys, stored):
    outs = [run(capsys, *stored, "--permutations", 50, "--json", "--seed", seed)[1] for seed in (3, 3, 4)]
    assert outs[0] == outs[1] != outs[2]


@pytest.fixture
def hostile(tmp_path):
    """Two results with HOSTILE texts in opposite order, and one of a dataset with a name of that kind."""
    texts = ("first", *HOSTILE)
    save(make_result(texts, produced=["</script>\n"]), tmp_path / "one", ["csv"])
    save(make_result(texts[::-1], produced=["\u202e"], seed=1, n_layers=5), tmp_path / "<b>&'x'", ["csv"])
    (tmp_path / "set").mkdir()
    table = to_dataset_table(make_result(texts, seed=2), "</script>\u202e\n=1", "{}", "none")
    pq.write_table(table, tmp_path / "set" / "part-0.parquet")
    return [tmp_path / "one", tmp_path / "<b>&'x'", tmp_path / "set"], [cleaned(text) for text in texts]


def test_texts_of_every_kind_are_safe_on_a_terminal_and_whole_in_json(capsys, hostile):
    paths, texts = hostile
    code, out, err = run(capsys, *paths, "-k", 100)
    assert code == 0
    assert all(char.isprintable() for char in (out + err).replace("\n", ""))
    assert max(columns(line) for line in out.splitlines()) <= 80
    _, out, _ = run(capsys, *paths, "--json")
    assert out.isascii()
    found = json.loads(out)
    assert [token["text"] for token in found["results"][0]["tokens"]] == texts
    assert [one["name"] for one in found["results"]] == ["one", "<b>&'x'", "</script>\u202e\n=1"]


def test_images_have_their_part_of_each_band(capsys, tmp_path):
    for seed, name in enumerate(("one", "other")):
        save(make_result(WORDS, grids=((2, 2),), seed=seed), tmp_path / name, ["csv"])
    _, out, _ = run(capsys, tmp_path / "one", tmp_path / "other", "--permutations", 99)
    assert re.search(r"^  texts only: rho -?[01].\d{3}, p [01].\d{4}, of 9 tokens$", out, re.MULTILINE)
    assert re.search(r"^  patches only: rho -?[01].\d{3}, p [01].\d{4}, of 4 tokens$", out, re.MULTILINE)
    assert "Where the impact lies (images: how much of the band's is on their patches):" in out
    _, out, _ = run(capsys, tmp_path / "one", tmp_path / "other", "--permutations", 99, "--json")
    for side in json.loads(out)["results"]:
        for band, entry in enumerate(side["bands"]):
            values = {t["position"]: t["bands"][band] for t in side["tokens"] if t["position"] not in side["left_out"]}
            patches = sum(values[j] for j in range(1, 5))
            assert entry["image_share"] == pytest.approx(patches / sum(values.values()))


def test_help_needs_no_scipy_and_a_comparison_no_model_library(stored):
    for words, unwanted in ((["--help"], {"scipy", "plotly", "pyarrow"}), ([*map(str, stored)], set())):
        code = (
            "import sys; from mask_impact.commands.main import main; main(['compare', '--no-page', *sys.argv[1:]]); "
            "print(sorted(name for name in ('torch', 'transformers', 'scipy', 'plotly', 'pyarrow') if name in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
        )
        loaded = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
        assert not loaded & {"torch", "transformers", *unwanted}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_written_beside_the_first_result_and_named_after_all(capsys, stored):
    code, out, err = run(capsys, *stored, "--permutations", 9, page=True)
    path = stored[0].with_name("compare_one_other.html")
    assert (code, err, out.splitlines()[-1]) == (0, "", f"Side by side: {path}")
    assert path.read_bytes().startswith(b"<!DOCTYPE html>")
    path.unlink()
    code, out, err = run(capsys, *stored, "--permutations", 9, "--json", page=True)
    assert json.loads(out)["results"][0]["name"] == "one"
    assert err == f"Side by side: {path}\n"
    path.unlink()
    run(capsys, *stored, "--permutations", 9)
    assert not path.exists()


def test_the_page_can_have_another_name(capsys, stored, tmp_path):
    path = tmp_path / "page.html"
    assert run(capsys, *stored, "--permutations", 9, "--output", path, page=True)[0] == 0
    assert path.is_file()
    code, _, err = run(capsys, *stored, "--output", tmp_path / "page.pdf", page=True)
    assert (code, "its name must end in .html" in err) == (2, True)
    code, _, err = run(capsys, *stored, "--output", path)
    assert (code, "--output names the page that --no-page leaves out" in err) == (2, True)


def test_the_default_name_is_a_plain_file_name():
    assert default_path("output/a", ["a", "b/c.csv"]) == Path("output/compare_a_b_c.csv.html")
    names = ["x: \u202e</y>", "ü" * 300, "c", "d", "e"]
    assert default_path("a", names) == Path("compare_x_y____c_and_2_more.html")
    assert len(default_path("a", ["n" * 300] * 8).name) < 150


@pytest.fixture(scope="module")
def compared():
    """Three results with hostile texts, images and other numbers of layers, and their comparison."""
    texts = ("first", *HOSTILE)
    made = {
        "</script><b>": make_result(texts, grids=((2, 2),)),
        "b": make_result(texts[::-1], n_layers=5, seed=1, produced=["<!--"]),
        "c": make_result(texts, n_layers=4, grids=((2, 2), (1, 2)), seed=2),
    }
    return compare_results(made, FEW)


def test_the_page_holds_every_distance(compared):
    blocks = Page(build_page(compared)).blocks
    assert len(blocks) == 6
    for number, side in enumerate(compared.sides):
        for what, values in (("distance", side.impact.distances), ("value", side.values)):
            assert decode(blocks[f"b-{number}-{what}"]).tobytes() == values.astype(np.float32).tobytes()


def test_the_page_s_data_say_what_the_comparison_says(compared):
    data, told = Page(build_page(compared)).data, as_json(compared)
    for side, shown, one in zip(compared.sides, data["sides"], told["results"], strict=True):
        assert shown["name"] == side.name
        assert shown["texts"] == [cleaned(token["text"]) for token in one["tokens"]]
        assert shown["depth_shares"] == [band["share"] for band in one["bands"]]
        assert [shown["positions"][place] for place in shown["left_out"]] == one["left_out"]
        cells = {(token["position"], *token["image"].values()) for token in one["tokens"] if token["image"]}
        assert {(shown["positions"][place], *cell) for place, *cell in shown["cells"]} == cells
    for shown, one in zip(data["pairs"], told["pairs"], strict=True):
        assert {name: shown[name] for name in ("overall", "text", "image", "bands")} == {
            name: one[name] for name in ("overall", "text", "image", "bands")
        }
        first, second = data["sides"][0]["positions"], data["sides"][shown["second"]]["positions"]
        assert [[first[a], second[b]] for a, b in shown["aligned"]] == one["aligned"]
        assert [[first[a], second[b]] for a, b, *_ in shown["differing"]] == [
            entry["positions"] for entry in one["differing"]
        ]


def test_the_page_runs_its_own_script_only_and_loads_nothing(compared):
    html = build_page(compared)
    page = Page(html)
    policy = next(a["content"] for _, a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    scripts = [text for _, attributes, text in page.all("script") if "type" not in attributes]
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in rules["script-src"]
    assert "unsafe" not in rules["script-src"]
    assert not any(
        name in attributes for _, attributes, _ in page.elements for name in ("src", "onerror", "onload", "onclick")
    )
    links = [attributes["href"] for _, attributes, _ in page.elements if "href" in attributes]
    assert links == ["data:,", "#heats-title"]
    assert page.all("b") == [one for one in page.all("b") if one[2].startswith(("Keys", "How to read it"))]
    assert "<title>&lt;/script&gt;&lt;b&gt; · b · c · masking impact compared</title>" in html.decode()
    assert len(page.comments) == 1


def test_a_page_is_the_same_bytes_each_time(compared):
    assert build_page(compared) == build_page(compared)
