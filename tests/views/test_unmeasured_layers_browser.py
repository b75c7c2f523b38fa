"""Pages of a result in which not all layers were measured: those without numbers stay empty, and can't be chosen."""

import browser
import numpy as np
import pytest
from synthetic import make_result, without_layers
from tab import IMAGE_GRIDS, METRICS, WORDS, Tab, close_to, make_files, percent, table_of

from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.findings.ranking import token_importance, vision_impact
from mask_impact.views.comparison_page import build_page

pytestmark = browser.MARKS
N_LAYERS, MEASURED = 6, [1, 4]
OTHERS = [layer for layer in range(N_LAYERS) if layer not in MEASURED]


@pytest.fixture(scope="module")
def result():
    return without_layers(make_result(WORDS, n_layers=N_LAYERS, n_heads=3, grids=IMAGE_GRIDS), OTHERS)


@pytest.fixture(scope="module")
def files(result, tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("unmeasured"), result)


def test_maps_are_empty_where_nothing_was_measured(tab, files, result):
    frame, _ = files
    for name in ("heat", "heads"):
        found = tab.matrix(name)
        assert len(found) == N_LAYERS
        assert np.isnan(found[OTHERS]).all(), name
        assert np.isfinite(found[MEASURED][:, 1:]).all(), name
    full = frame[frame.variant == "Full"].pivot(index="layer", columns="token_position", values=METRICS["l2"])
    assert full.index.tolist() == MEASURED
    close_to(tab.matrix("heat")[MEASURED][:, -3:], full.to_numpy(float)[:, -3:])
    totals = tab.chart("totals")
    assert [value is None for value in totals["y"]] == [layer in OTHERS for layer in totals["x"]]
    assert tab.chart("profile")["x"] == MEASURED


def test_the_whole_is_of_the_measured_layers(tab, result):
    scores = token_importance(result, 0).scores
    for position, label in tab.labels().items():
        assert position == 0 or f"{percent(scores[position])} of the" in label
    split = tab.chart("split")["y"]
    expected = 100 * vision_impact(result, 0)[0]
    assert [value is None for value in split] == np.isnan(expected).tolist()
    close_to([split[layer] for layer in MEASURED], expected[MEASURED])


def test_layers_are_chosen_among_the_measured_ones_by_their_own_numbers(tab):
    said = []
    tab.drag("layer", 0)
    said.append(tab["layer-value"].text_content())
    for _ in range(2):  # the second one stays at the last
        tab.press("ArrowRight")
        said.append(tab["layer-value"].text_content())
    tab.press("ArrowLeft")
    said.append(tab["layer-value"].text_content())
    assert said == ["1 / 5", "4 / 5", "4 / 5", "1 / 5"]
    assert "layer=1" in tab.page.url or "range=layer" in tab.page.url


def test_files_of_the_page_have_rows_of_measured_layers(tab):
    for card in ("heat", "profile", "heads", "totals", "split"):
        header, rows = table_of(tab.download(f"[data-card={card}] button:text-is('CSV')")[0])
        rows = [dict(zip(header, row, strict=True)) for row in rows]
        assert {int(row["layer"]) for row in rows} == {*MEASURED}, card
        assert all(row[name] for row in rows for name in row if name.endswith(("distance", "share", "norm"))), card


def test_side_by_side_lines_and_depths_have_measured_layers_alone(chromium, result, tmp_path):
    whole = make_result(WORDS, n_layers=4, n_heads=3, grids=IMAGE_GRIDS)
    compared = compare_results({"whole": whole, "hybrid": result}, Settings(n_permutations=99, n_bands=6))
    path = tmp_path / "side.html"
    path.write_bytes(build_page(compared))
    tab = Tab(chromium, path)
    middles = [100 * (layer + 0.5) / N_LAYERS for layer in MEASURED]
    close_to(tab.chart("profile", 1)["x"], middles)
    assert np.isnan(tab.matrix("heat-1")[OTHERS]).all()
    assert np.isfinite(tab.matrix("heat-1")[MEASURED][:, 1:]).all()
    assert [share is None for share in tab.chart("depths", 1)["y"]] == [band in OTHERS for band in range(N_LAYERS)]
    assert "2 of 6" in tab["results"].text_content()
    tab.press("ArrowRight", "ArrowRight")
    assert "layer" in tab.page.content()
    assert tab.faults == []
    tab.close()
