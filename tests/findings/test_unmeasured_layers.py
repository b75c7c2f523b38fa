"""Results with layers that were not measured: no number is made of them, and those of the others have their own layer's number.

The oracle is the result with the measured layers alone, as if the model had no others.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from samples import assert_same
from synthetic import make_result, without_layers

from mask_impact.commands.narration import Progress
from mask_impact.errors import OutputError
from mask_impact.findings.alignment import band_layers
from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.findings.impact import step_impact
from mask_impact.findings.ranking import token_importance, vision_impact
from mask_impact.findings.verdict import verdicts
from mask_impact.results.foreign import read_results
from mask_impact.results.store import load_result, save
from mask_impact.results.tables import distances_table, to_table
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_text import render
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.summary import render_summary
from mask_impact.views.tables import top_table

N_LAYERS, MEASURED = 6, (1, 4)
OTHERS = tuple(layer for layer in range(N_LAYERS) if layer not in MEASURED)
FEW = Settings(n_permutations=99, n_bands=6)


@pytest.fixture
def whole():
    return make_result(n_steps=2, n_layers=N_LAYERS, grids=((2, 2),))


@pytest.fixture
def hybrid(whole):
    return without_layers(whole, OTHERS)


def alone(result):
    """The measured layers as a model of its own."""
    names = ("l2", "cosine", "baseline_norm", "self_check", "noise_floor")
    steps = (replace(step, **{name: getattr(step, name)[list(MEASURED)] for name in names}) for step in result.steps)
    return replace(result, steps=tuple(steps))


def as_zeros(result):
    """The broken version: what was not measured is 0, of quantities whose norm is 1."""
    filled = {"l2": 0, "cosine": 0, "baseline_norm": 1}
    steps = (
        replace(step, **{name: np.nan_to_num(getattr(step, name), nan=value) for name, value in filled.items()})
        for step in result.steps
    )
    return replace(result, steps=tuple(steps))


def test_measured_layers_are_known_from_their_numbers(whole, hybrid):
    assert (hybrid.layers, hybrid.n_layers) == (MEASURED, N_LAYERS)
    assert whole.layers == tuple(range(N_LAYERS))
    assert (as_zeros(hybrid).layers, len(to_table(as_zeros(hybrid)))) == (whole.layers, len(to_table(whole)))


def test_what_is_said_of_tokens_is_said_from_the_measured_layers(hybrid):
    for step in (None, 0, 1):
        found, expected = token_importance(hybrid, step), token_importance(alone(hybrid), step)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.shares[list(MEASURED)], expected.shares)
        assert np.isnan(found.shares[list(OTHERS)]).all()
        position = found.ranked(1)[0]
        assert found.top_layers(position) == [MEASURED[layer] for layer in expected.top_layers(position)]
    (values, _), (expected, _) = vision_impact(hybrid, 0), vision_impact(alone(hybrid), 0)
    np.testing.assert_array_equal(values[list(MEASURED)], expected)
    assert np.isnan(values[list(OTHERS)]).all()


def test_norms_are_known_though_some_layers_have_none(hybrid):
    impact = step_impact(hybrid, 0, "Full", "l2")
    assert impact.comparable
    assert np.isnan(impact.totals()[list(OTHERS)]).all()
    assert np.isfinite(impact.totals()[list(MEASURED)]).all()
    assert (impact.weights()[list(OTHERS)] == 0).all()


def test_tables_have_rows_of_measured_layers(whole, hybrid):
    kept = np.isin(to_table(whole).column("layer"), MEASURED)
    assert to_table(hybrid).equals(to_table(whole).filter(kept))
    assert {*distances_table(hybrid, "summary").column("layer").to_pylist()} == {*MEASURED}
    assert [row[1] for row in top_table(hybrid, "layer").rows] == [
        MEASURED[row[1]] for row in top_table(alone(hybrid), "layer").rows
    ]
    assert {row[1] for row in top_table(hybrid, "head").rows} == {*MEASURED}


@pytest.mark.filterwarnings("error")
def test_the_summary_has_a_dash_for_a_layer_without_a_number(hybrid):
    text = " ".join(render_summary(hybrid).split())
    values = [f"{100 * value:.1f}" for value in vision_impact(alone(hybrid), 0)[0]]
    assert f"layers 0-5 - {values[0]} - - {values[1]} -" in text
    assert f"mean {100 * vision_impact(alone(hybrid), 0)[0].mean():.1f} %" in text
    assert "2 of 6 layers" in text


@pytest.mark.filterwarnings("error")
def test_a_picture_leaves_a_layer_without_a_number_empty(hybrid):
    (mesh,) = layers_figure(hybrid, 0).axes[0].collections
    drawn = mesh.get_array().reshape(N_LAYERS, -1)
    assert drawn.mask[list(OTHERS)].all()
    assert not drawn.mask[list(MEASURED)].all(axis=1).any()


# --- files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_what_is_stored_is_read_back(form, hybrid, tmp_path):
    save(hybrid, tmp_path / "one", formats=form)
    assert_same(load_result(tmp_path / "one"), hybrid)


def test_of_a_table_alone_it_is_said_that_layers_may_be_missing(whole, hybrid, tmp_path):
    for name, one in (("whole", whole), ("hybrid", hybrid)):
        save(one, tmp_path / name, formats="csv")
        (tmp_path / f"{name}.meta.json").unlink()
    (found,) = read_results(tmp_path / "hybrid.csv").values()
    assert (found.layers, found.n_layers) == (MEASURED, 5)
    said = "2 of layers 0 to 4 have rows; if the model has others behind these, depths are off"
    assert said in found.meta["notices"]
    (found,) = read_results(tmp_path / "whole.csv").values()
    assert not any("have rows" in notice for notice in found.meta["notices"])


def changed(path, **changes):
    meta = json.loads(path.read_text(encoding="utf-8"))
    for name, value in changes.items():
        if value is None:
            del meta[name]
        else:
            meta[name] = value
    path.write_text(json.dumps(meta), encoding="utf-8")


def test_files_from_before_are_read_as_they_were(whole, tmp_path):
    """They have no list of layers."""
    save(whole, tmp_path / "one")
    changed(tmp_path / "one.meta.json", layers=None)
    assert_same(load_result(tmp_path / "one"), whole)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([4, 1], "layers does not ascend: 1 stands behind 4"),
        ([1, 6], r"layers\.1 is 6, expected 0 to 5"),
        ([], "layers"),
        ([1], r"steps\.0\.baseline_norm\.4 has numbers, and the layer is not among layers"),
        ([1, 4, 5], "n_rows is"),
        ([0, 4], r"steps\.0\.baseline_norm\.1 has numbers"),
        (None, "n_rows is"),
    ],
)
def test_a_list_of_layers_that_does_not_fit_is_refused(layers, said, hybrid, tmp_path):
    save(hybrid, tmp_path / "one")
    changed(tmp_path / "one.meta.json", layers=layers)
    with pytest.raises(OutputError, match=said):
        load_result(tmp_path / "one")


def test_a_distance_that_is_not_finite_in_a_measured_layer_is_still_refused(hybrid, tmp_path):
    hybrid.steps[1].l2[4, 2, 0] = np.nan
    with pytest.raises(OutputError, match=r"^step 1, layer 4 has distances that are not finite"):
        save(hybrid, tmp_path / "one")


# --- side by side -------------------------------------------------------------------------------------------------------------


def test_bands_of_the_depth_have_the_layers_of_their_own_numbers(whole, hybrid):
    """A band is a layer here. Where one of the two was not measured nothing is compared, and no share is 0."""
    compared = compare_results({"whole": whole, "hybrid": hybrid}, FEW)
    _, side = compared.sides
    assert [[layer for layer, _ in band] for band in side.layers] == [[], [1], [], [], [4], []]
    assert [[layer for layer, _ in band] for band in band_layers(N_LAYERS, 6)] == [[layer] for layer in range(6)]
    np.testing.assert_array_equal(side.bands[list(MEASURED)], compared.sides[0].bands[list(MEASURED)])
    assert np.isnan(side.bands[list(OTHERS)]).all()
    assert np.isnan(side.depth_shares[list(OTHERS)]).all()
    assert np.nansum(side.depth_shares) == pytest.approx(1)
    (pair,) = compared.pairs
    assert pair.compared.sum() == sum(side.impact.counted)
    assert [one.n for one in pair.bands] == [0 if band in OTHERS else pair.compared.sum() for band in range(6)]
    assert [one.rho for one in pair.bands] == [None if band in OTHERS else pytest.approx(1) for band in range(6)]
    broken = compare_results({"whole": whole, "hybrid": as_zeros(hybrid)}, FEW).sides[1]
    assert (broken.depth_shares[list(OTHERS)] == 0).all()


def test_a_comparison_says_none_and_null_where_there_is_none(whole, hybrid):
    compared = compare_results({"whole": whole, "hybrid": hybrid}, FEW)
    shares = [band["share"] for band in as_json(compared)["results"][1]["bands"]]
    assert [share is None for share in shares] == [band in OTHERS for band in range(6)]
    lines = [line for line in render(compared).splitlines() if line.startswith("  0 to 16.7 %")]
    assert all("none" in line for line in lines)
    assert lines


def test_a_depth_is_the_centre_of_the_layers_own_numbers(hybrid):
    """And a difference smaller than what a measured layer stands for is none."""
    deep = without_layers(make_result(n_steps=2, n_layers=N_LAYERS, grids=((2, 2),)), OTHERS)
    compared = compare_results({"one": hybrid, "other": deep}, FEW)
    verdict = verdicts(compared)[0]
    impact = step_impact(hybrid, 0, "Full", "l2")
    totals = np.nan_to_num(impact.totals())
    expected = float((totals * (np.arange(N_LAYERS) + 0.5) / N_LAYERS).sum() / totals.sum())
    assert verdict.impact_depth.first == pytest.approx(expected)
    assert verdict.impact_depth.least == 1 / len(MEASURED)


# --- while it goes on ---------------------------------------------------------------------------------------------------------


class Bar:
    def __init__(self, total):
        self.n, self.total, self.labels = 0, total, []

    def set_description_str(self, label, refresh):
        self.labels.append(label)

    def update(self, n):
        self.n += n

    def close(self):
        pass


def test_a_bar_jumps_over_layers_that_are_not_measured(monkeypatch):
    progress = Progress(quiet=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "_make_bar", lambda self, total, **settings: Bar(total))
    progress.begin(n_tokens=3, n_layers=N_LAYERS, n_steps=2)
    bar, seen = progress._bar, []
    for step in (0, 1):
        for layer in MEASURED:
            progress.layer_done(step, layer)
            seen.append(bar.n)
    assert seen == [2, 5, 8, 11]
    assert bar.labels[1] == "Processing layer 5/5... (token 1 of at most 2)"


def test_lines_name_each_token_once_though_layer_0_is_not_measured(capsys):
    progress = Progress(quiet=False)
    progress.begin(n_tokens=3, n_layers=N_LAYERS, n_steps=2)
    for step in (0, 1):
        for layer in MEASURED:
            progress.layer_done(step, layer)
    said = capsys.readouterr()
    assert (said.out + said.err).count("(token 2 of at most 2)") == 1
