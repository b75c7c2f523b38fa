"""The page of a comparison in a browser: what the pointer is on is marked in every result, by hover, click and keyboard; numbers
are those computed here from the results; texts run nothing, and nothing is loaded.

Screenshots go to the folder that REPORT_SCREENSHOTS names.
"""

import csv
import io
import re

import browser
import numpy as np
import pytest
from pages import HOSTILE, cleaned
from samples import ALIGNED, FEW, OTHER, WORDS
from synthetic import make_result

from mask_impact.findings.comparison import compare_results
from mask_impact.views.comparison_page import build_page
from mask_impact.views.text import escape

pytestmark = browser.MARKS

LAYERS = (7, 12)
GRID = (2, 3)
N_PATCHES = 6
# Places of the same token in both: the first word, the patches behind it, then the other words.
PLACES = [(0, 0), *((1 + cell, 1 + cell) for cell in range(N_PATCHES)), *((6 + a, 6 + b) for a, b in ALIGNED[1:])]


def write(results, path, settings=FEW):
    comparison = compare_results(results, settings)
    path.write_bytes(build_page(comparison))
    return comparison


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two results with an image, other layers, other words, a sink at 0 in both."""
    path = tmp_path_factory.mktemp("compare") / "page.html"
    results = {
        "one": make_result(WORDS, n_layers=LAYERS[0], grids=(GRID,)),
        "other": make_result(OTHER, n_layers=LAYERS[1], grids=(GRID,), seed=1),
    }
    return write(results, path), results, path


# --- numbers, computed from the results ----------------------------------------------------------------------------------


def values_of(result):
    """float64 [L, P]: L2 over the norm, NaN for the sink at 0."""
    step = result.steps[0]
    values = step.l2[:, :, 0].astype(float) / step.baseline_norm[:, :1]
    values[:, 0] = np.nan
    return values


def shares_of(result):
    values = values_of(result)
    return values / np.nansum(values, axis=1, keepdims=True)


def close_to(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


def percent(share):
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def marks(tab, number):
    """What is marked in a heat map: {"layer": its layer, "token": places}."""
    shapes = tab.page.evaluate(f"document.getElementById('heat-{number}').layout.shapes")
    layers = [round((shape["y0"] + shape["y1"]) / 2) for shape in shapes if shape["name"] == "layer"]
    tokens = [round((shape["x0"] + shape["x1"]) / 2) for shape in shapes if shape["name"] == "token"]
    return {"layer": layers, "token": tokens}


def linked(tab, number):
    """Places of the tokens that are marked in a running text."""
    found = tab.page.locator(f"#text-{number} .token.linked").evaluate_all("all => all.map((one) => one.dataset.place)")
    return [int(place) for place in found if place is not None]


def hover(tab, number, layer, place):
    """Puts the pointer on a cell of a heat map."""
    tab[f"heat-{number}"].scroll_into_view_if_needed()
    tab.page.wait_for_timeout(100)  # scrolling hides the tip, a little later
    box = tab.page.locator(f"#heat-{number} .nsewdrag").first.bounding_box()
    n_layers, n_tokens = np.shape(tab.chart(f"heat-{number}")["z"])
    x = box["x"] + box["width"] * (place + 0.5) / n_tokens
    y = box["y"] + box["height"] * (1 - (layer + 0.5) / n_layers)
    tab.page.mouse.move(x, y)
    tab["tip"].wait_for(state="visible")
    tab.page.wait_for_timeout(120)  # plotly answers the pointer at most every 50 ms
    return x, y


# --- side by side ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "scale"), [("share", "linear"), ("value", "sqrt"), ("share", "log"), ("value", "log")]
)
def test_both_heat_maps_show_the_numbers_and_scale_that_are_chosen(tab, files, number, scale):
    tab.choose("number", number)
    tab.choose("scale", scale)
    for side, result in enumerate(files[1].values()):
        expected = (shares_of if number == "share" else values_of)(result)
        close_to(tab.matrix(f"heat-{side}"), expected)
        high, low = np.nanmax(expected), np.nanmin(expected[expected > 0])
        bottom = min(max(low, high / 1e6), high / 10)
        levels = {
            "linear": expected / high,
            "sqrt": np.sqrt(expected / high),
            "log": np.maximum(np.log(expected / bottom) / np.log(high / bottom), 0),
        }[scale]
        np.testing.assert_allclose(tab.matrix(f"heat-{side}", "z"), levels, rtol=1e-5, atol=1e-6)


def test_results_are_told_apart_by_letters_names_and_sizes(tab, files):
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#results tbody tr").all()]
    assert rows == [
        ["A", "one", "tiny", "7", "16", '" Paris"', '0 "<s>" (attention sink)'],
        ["B", "other", "tiny", "12", "16", '" Paris"', '0 "<s>" (attention sink)'],
    ]
    assert tab.texts("h1") == ["one · other"]
    assert tab["unit"].text_content().endswith("L2 distance of Full, over the norm of the unmasked quantity.")


# --- linked ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
def test_the_pointer_on_a_cell_marks_token_and_depth_in_both(tab, files, side):
    for layer, pair in ((0, PLACES[1]), (LAYERS[side] - 1, PLACES[-1]), (3, PLACES[8])):
        hover(tab, side, layer, pair[side])
        middle = (layer + 0.5) / LAYERS[side]
        for number in (0, 1):
            there = layer if number == side else int(middle * LAYERS[number])
            assert marks(tab, number) == {"layer": [there], "token": [pair[number]]}
            assert linked(tab, number) == ([] if 1 <= pair[number] <= N_PATCHES else [pair[number]])
    tab.page.mouse.move(1, 1)
    tab.page.wait_for_timeout(150)
    assert marks(tab, 0) == marks(tab, 1) == {"layer": [], "token": []}
    assert linked(tab, 0) == linked(tab, 1) == []


def test_the_tip_has_the_numbers_of_both(tab, files):
    (one, other), layer, pair = files[1].values(), 3, PLACES[8]
    hover(tab, 0, layer, pair[0])
    lines = tab["tip"].text_content().split("\n")
    there = int((layer + 0.5) / LAYERS[0] * LAYERS[1])
    for start, result, at, place in ((0, one, layer, pair[0]), (2, other, there, pair[1])):
        text = escape(result.tokens.texts[place]).replace('"', '\\"')
        assert lines[start] == f'{"AB"[start // 2]} · position {place} · "{text}"'
        distance = np.float32(re.search(r"L2 ([^,]+),", lines[start + 1])[1])
        assert distance == result.steps[0].l2[at, place, 0]
        assert lines[start + 1].startswith(f"layer {at}: ")
        assert lines[start + 1].endswith(f"{percent(shares_of(result)[at, place])} of the layer")
        relative = float(re.search(r", ([^ ]+) of the norm", lines[start + 1])[1])
        assert relative == pytest.approx(values_of(result)[at, place], rel=5e-3)


def test_a_token_without_partner_is_marked_where_it_is(tab):
    """ " city", of the other result alone; and "?", of the first alone."""
    city, asked = 6 + OTHER.index(" city"), 6 + WORDS.index("?")
    hover(tab, 1, 2, city)
    assert (marks(tab, 0)["token"], marks(tab, 1)["token"]) == ([], [city])
    assert tab["tip"].text_content().startswith("A: not there\nB · position")
    alone = [
        tab.page.locator(f"#text-{number} .alone").evaluate_all("all => all.map((one) => Number(one.dataset.place))")
        for number in (0, 1)
    ]
    assert alone == [[asked], [city]]
    assert tab["alone"].text_content() == f'A has and B has not: {asked} "?". B has and A has not: {city} " city".'


def test_a_click_on_a_cell_keeps_its_token_marked(tab):
    pair = PLACES[9]
    tab.page.mouse.click(*hover(tab, 1, 5, pair[1]))
    tab.settle()
    tab.page.mouse.move(1, 1)
    tab.page.wait_for_timeout(150)
    assert [marks(tab, number)["token"] for number in (0, 1)] == [[place] for place in pair]
    assert tab["token"].input_value() == str(pair[0])
    tab.press("Escape")
    assert [marks(tab, number)["token"] for number in (0, 1)] == [[], []]


def test_the_running_texts_are_linked_with_each_other_and_the_charts(tab):
    pair = PLACES[10]
    tab.page.locator(f"#text-1 [data-place='{pair[1]}']").hover()
    assert (linked(tab, 0), linked(tab, 1)) == ([pair[0]], [pair[1]])
    assert [marks(tab, number)["token"] for number in (0, 1)] == [[place] for place in pair]
    tab.page.locator(f"#text-1 [data-place='{pair[1]}']").click()
    tab.settle()
    tab.page.mouse.move(1, 1)
    assert (linked(tab, 0), linked(tab, 1)) == ([pair[0]], [pair[1]])


def test_a_patch_is_marked_in_the_pictures_of_both(tab):
    canvas = tab.page.locator("#pictures-0 canvas")
    canvas.scroll_into_view_if_needed()
    tab.page.wait_for_timeout(100)
    box = canvas.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] * 2.5 / 3, box["y"] + box["height"] * 1.5 / 2)
    assert [tab.page.locator(f"#pictures-{number} canvas").get_attribute("data-marked") for number in (0, 1)] == [
        "1",
        "1",
    ]
    assert [marks(tab, number)["token"] for number in (0, 1)] == [
        [N_PATCHES],
        [N_PATCHES],
    ]  # the last patch: row 1, column 2
    assert "image 0 [1, 2]" in tab["tip"].text_content()
    assert tab.page.locator("#text-1 .token.image.linked").count() == 1


# --- depth ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 13, 50, 99, 100])
def test_the_depth_cursor_is_a_layer_of_each(tab, files, depth):
    tab.drag("depth", depth)
    layers = [min(int(depth / 100 * n), n - 1) for n in LAYERS]
    assert [marks(tab, number)["layer"] for number in (0, 1)] == [[layer] for layer in layers]
    assert tab["depth-value"].text_content() == f"{depth} % · A {layers[0]} · B {layers[1]}"
    current = tab.page.locator("#agreement tr.current td").first.text_content()
    assert current == f"{min(depth // 10, 9) * 10} to {min(depth // 10, 9) * 10 + 10} %"
    for number, result in enumerate(files[1].values()):
        shares = shares_of(result)[layers[number]]
        labels = tab.page.locator(f"#text-{number} [data-place]").evaluate_all(
            "all => all.map((one) => [one.dataset.place, one.ariaLabel])"
        )
        for place, label in labels[1:]:
            assert percent(shares[int(place)]) in label


def test_all_layers_shade_by_their_mean(tab, files):
    tab.choose("number", "value")
    means = np.mean(values_of(files[1]["one"]), axis=0)
    for place in (7, 9):
        label = tab.page.locator(f"#text-0 [data-place='{place}']").get_attribute("aria-label")
        assert float(label.split(", ")[1]) == pytest.approx(means[place], rel=5e-3)
    assert (
        tab.page.locator("#text-0 [data-place='0']")
        .get_attribute("aria-label")
        .endswith("left out as an attention sink")
    )


def test_a_band_of_the_table_moves_the_depth(tab):
    tab.click("#agreement button >> nth=7")
    assert tab["depth-value"].text_content() == "75 % · A 5 · B 9"


# --- tables and charts ---------------------------------------------------------------------------------------------------------


def test_the_tables_are_the_comparison(tab, files):
    pair = files[0].pairs[0]
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#agreement tbody tr").all()]
    assert [row[0] for row in rows[:3]] == ["all", "all, text only", "all, images only"]
    for row, one in zip(rows, [pair.overall, pair.text, pair.image, *pair.bands], strict=True):
        assert (int(row[3]), row[4]) == (one.n, f"{one.rho:.3f}")
        assert float(row[5]) == pytest.approx(one.p, rel=0.05)
    assert "shuffled among special tokens, among other texts, and among the patches" in tab["chance"].text_content()
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#differing tbody tr").all()]
    assert len(rows) == min(15, pair.overall.n)
    overall = [np.mean(values_of(result), axis=0) for result in files[1].values()]
    overall = [means / np.nansum(means) for means in overall]
    for row, (one, other, difference, band) in zip(rows, pair.differing(), strict=False):
        assert row[0].startswith(f"{one} ")
        assert row[1:3] == [percent(overall[0][one]), percent(overall[1][other])]
        assert row[3].replace("−", "-") == f"{100 * difference:+.1f}"
        assert row[4] == f"{10 * band} to {10 * band + 10} %"


def test_a_token_of_the_table_is_marked_and_profiled(tab, files):
    one, other, *_ = files[0].pairs[0].differing()[2]
    tab.click("#differing button >> nth=2")
    assert [marks(tab, number)["token"] for number in (0, 1)] == [[one], [other]]
    for number, (result, place) in enumerate(zip(files[1].values(), (one, other), strict=True)):
        line = tab.chart("profile", number)
        close_to(line["customdata"], shares_of(result)[:, place])
        close_to(line["x"], (np.arange(LAYERS[number]) + 0.5) / LAYERS[number] * 100)
    tab.click("#differing button >> nth=2")
    assert tab["token"].input_value() == ""


def test_the_profile_begins_with_the_token_that_differs_most(tab, files):
    one, *_ = files[0].pairs[0].differing()[0]
    close_to(tab.chart("profile")["customdata"], shares_of(files[1]["one"])[:, one])
    assert "this one differs most" in tab["profile-hint"].text_content()


def test_bars_say_where_the_impact_lies(tab, files):
    for number, side in enumerate(files[0].sides):
        close_to(tab.chart("depths", number)["y"], 100 * side.depth_shares)


# --- keyboard, links, files ----------------------------------------------------------------------------------------------------


def test_keys_are_depth_numbers_scale_and_all(tab):
    tab.press("ArrowRight")  # the depth in the middle, of twelve layers the seventh
    assert tab["depth-value"].text_content() == "54 % · A 3 · B 6"
    tab.press("ArrowRight", "ArrowRight")
    assert tab["depth-value"].text_content() == "70 % · A 4 · B 8"
    tab.press(*["ArrowLeft"] * 20)
    assert tab["depth-value"].text_content().endswith("A 0 · B 0")
    tab.press("a", "v", "s")
    chosen = {
        name: tab.page.locator(f"#{name} input:checked").get_attribute("value") for name in ("range", "number", "scale")
    }
    assert chosen == {"range": "all", "number": "value", "scale": "log"}


def test_tokens_are_chosen_with_the_keyboard(tab):
    tab.page.locator("#text-0 .token").first.focus()
    tab.page.keyboard.press("ArrowRight")  # the image
    tab.page.keyboard.press("ArrowRight")
    tab.press("Enter")
    assert [marks(tab, number)["token"] for number in (0, 1)] == [[7], [7]]


def test_a_link_restores_the_view_and_names_only_what_there_is(tab, files, open_page):
    tab.choose("number", "value")
    tab.drag("depth", 30)
    tab.select("token", 9)
    again = open_page(files[2], "#" + tab.page.url.partition("#")[2])
    for number in (0, 1):
        assert marks(again, number) == marks(tab, number)
        close_to(again.matrix(f"heat-{number}"), tab.matrix(f"heat-{number}"))
    wrong = open_page(files[2], "#token=<b>&depth=9e9&pair=7&number=x&scale=constructor&range=__proto__")
    assert wrong["depth-value"].text_content() == "100 % · A 6 · B 11"
    assert wrong["token"].input_value() == ""


def read_csv(content):
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_numbers_are_saved_as_csv(tab, files):
    content, name = tab.download("[data-side='1'] .exports button >> nth=1")
    rows = read_csv(content)
    result = files[1]["other"]
    assert name == "compare-one-other-heat-B.csv"
    assert len(rows) == LAYERS[1] * 16
    partners = {other: one for one, other in PLACES}
    for row in rows:
        layer, place = int(row["layer"]), int(row["token_position"])
        assert float(row["distance"]) == pytest.approx(result.steps[0].l2[layer, place, 0], rel=1e-6)
        assert row["token_masked"] == result.tokens.texts[place]
        assert row["aligned_with"] == (f"A {partners[place]}" if place in partners else "")
    rows = read_csv(tab.download("[data-card=agreement] button:text-is('CSV')")[0])
    pair = files[0].pairs[0]
    assert [float(row["rho"]) for row in rows[3:]] == pytest.approx([one.rho for one in pair.bands])
    rows = read_csv(tab.download("[data-card=differing] button:text-is('CSV')")[0])
    assert [float(row["difference"]) for row in rows] == pytest.approx([one[2] for one in pair.differing()])
    assert tab.download("[data-card=profile] button >> nth=0")[0].startswith(b"\x89PNG")
    assert len(read_csv(tab.download("[data-card=profile] button >> nth=1")[0])) == sum(LAYERS)
    assert len(read_csv(tab.download("[data-card=depths] button >> nth=1")[0])) == 10


# --- other comparisons ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    texts = [*HOSTILE, "=1+1", "a|b"]
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    meta = {"model": HOSTILE[0], "notices": [HOSTILE[4]]}
    results = {
        HOSTILE[0]: make_result(texts, sinks=(), meta=meta, produced=[HOSTILE[1]]),
        HOSTILE[4]: make_result(texts[::-1], sinks=(2,), meta=meta, seed=1, produced=[HOSTILE[3]]),
        "\u202eevil\ud800": make_result(texts, sinks=(), meta=meta, seed=2, produced=["\n"]),
    }
    write(results, path)
    return results, path


def test_texts_show_as_text_and_run_nothing(hostile, open_page):
    results, path = hostile
    tab = open_page(path)
    for number, result in enumerate(results.values()):
        texts = [cleaned(text) for text in result.tokens.texts[: result.n_prompt]]
        assert tab.texts(f"#text-{number} .token") == [escape(text) or "\u2205" for text in texts]
    names = [cleaned(name) for name in results]
    title = " · ".join(escape(name) for name in results)
    assert tab.page.title() == f"{title} · masking impact compared"
    assert tab.texts("h1") == [title]
    assert tab.texts("#results tbody td:nth-child(2)") == [escape(name) for name in names]
    assert tab.texts("#results tbody td:nth-child(3)") == [HOSTILE[0]] * 3
    assert f"{names[0]}: {HOSTILE[4]}" in tab.texts("#notices li")
    drawn = tab.texts("#heat-0 .xaxislayer-above text")
    assert '0 "<script>ale…"' in drawn
    assert '6 "&amp;"' in drawn
    assert HOSTILE[4] in "".join(tab.texts("#profile .legendtext"))
    for place in range(len(results[HOSTILE[0]].tokens) - 1):
        tab.click(f"#text-0 [data-place='{place}']")
    hover(tab, 0, 1, 0)
    assert f'A · position 0 · "{HOSTILE[0]}"' in tab["tip"].text_content()
    for tag in ("img", "b:not(.side b)", "a:not(.skip)", "script", ".legendtext a"):
        assert tab.page.locator(f"main {tag}").count() == 0, tag


def test_a_pair_is_chosen_where_there_are_more_than_two(hostile, open_page):
    tab = open_page(hostile[1])
    assert tab.texts("#pair option") == ["A and B", "A and C"]
    tab.select("pair", 1)
    assert tab["layers-second"].text_content() == "layers C"
    assert "Every token of one is in the other." in tab["alone"].text_content()
    assert tab.page.locator("#sides .side").count() == 3
    tab.select("token", 3)
    assert [marks(tab, number)["token"] for number in (0, 2)] == [[3], [3]]


def test_without_norms_there_are_shares_alone(tmp_path, open_page):
    results = {"one": make_result(WORDS), "other": make_result(OTHER, seed=1)}
    for result in results.values():
        result.steps[0].baseline_norm[:] = np.nan
    write(results, tmp_path / "page.html")
    tab = open_page(tmp_path / "page.html")
    assert not tab["number"].is_visible()
    assert not tab["depths-card"].is_visible()
    close_to(tab.matrix("heat-0"), shares_from_l2(results["one"]))
    hover(tab, 0, 1, 3)
    assert "of the norm" not in tab["tip"].text_content()


def shares_from_l2(result):
    l2 = result.steps[0].l2[:, :, 0].astype(float)
    l2[:, 0] = np.nan
    return l2 / np.nansum(l2, axis=1, keepdims=True)


def test_results_with_nothing_in_common_and_nothing_at_all_are_shown(tmp_path, open_page):
    still = make_result(["x", "y"], sinks=())
    still.steps[0].l2[:] = 0
    write({"one": make_result(["a", "b", "c", "d"]), "other": still}, tmp_path / "page.html")
    tab = open_page(tmp_path / "page.html")
    assert tab.texts("#agreement tbody td:nth-child(5)") == ["none"] * 11
    assert tab["chance"].text_content().endswith("There is no rank correlation of fewer than 3 tokens.")
    assert tab.page.locator("#differing tbody tr").count() == 0


# --- how it looks --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two results of 1,053 tokens, most of them patches."""
    path = tmp_path_factory.mktemp("large") / "page.html"
    words = [f" w{place}" for place in range(29)]
    results = {
        name: make_result(words, n_layers=n_layers, n_heads=1, grids=((32, 32),), seed=n_layers)
        for name, n_layers in (("one", 36), ("other", 28))
    }
    return write(results, path), results, path


def test_a_thousand_tokens_are_linked(large, open_page):
    _, results, path = large
    assert path.stat().st_size < 8e6
    tab = open_page(path)
    close_to(tab.matrix("heat-1"), shares_of(results["other"]))
    hover(tab, 0, 20, 700)
    marked = [marks(tab, number) for number in (0, 1)]
    assert [one["layer"] for one in marked] == [[20], [int(20.5 / 36 * 28)]]
    assert marked[0]["token"] == marked[1]["token"]
    assert abs(marked[0]["token"][0] - 700) <= 3  # a token is narrower than a pixel


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["files", "large", "hostile"])
def test_nothing_is_wider_than_the_window(request, open_page, kind):
    """In both schemes; a screenshot is kept where it is asked for."""
    tab = open_page(request.getfixturevalue(kind)[-1], "#depth=40&range=depth&token=3", color_scheme="light")
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab.resize(width, 900, scheme)
        tab.keep_screenshot(f"compare-{kind}-{scheme}-{width}", full_page=True)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
