"""The effect on the answer in a report's page: every number that is shown is one that is computed here from the result's two
tables, controls and links change it, texts run nothing, and nothing is loaded.

Screenshots go to the folder that REPORT_SCREENSHOTS names.
"""

import dataclasses
import io
import re

import browser
import numpy as np
import pandas as pd
import pytest
from agreement_oracle import apart_of, correlations_of, distances_of, norms_of
from pages import HOSTILE, cleaned
from PIL import Image
from samples import GROUPS, grouped, with_values
from synthetic import make_result, with_effects
from tab import (
    ABOUT_FOCUS,
    IMAGE_GRIDS,
    METRICS,
    TIMES,
    WORDS,
    cell_place,
    close_to,
    level,
    make_files,
    percent,
    table_of,
)

from mask_impact.results.store import save
from mask_impact.views.report import write_report
from mask_impact.views.text import escape

pytestmark = browser.MARKS

COLUMNS = {"logprob": "logprob_change", "kl": "kl_divergence"}
FLOORS = {"logprob": np.float32(1e-4), "kl": np.float32(1e-5)}
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
OTHERS = (" other", "<b>y</b>", "\n")
PARTS = ("effect", "scatter", "agreement", "apart")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A result with effects, two images, three steps, four layers, a sink at position 0; both its tables, and its page."""
    result = with_effects(make_result(WORDS, n_steps=3, n_layers=4, n_heads=3, grids=IMAGE_GRIDS), texts=OTHERS)
    folder = tmp_path_factory.mktemp("effect")
    frame, page = make_files(folder, result)
    effects = pd.read_csv(folder / "run.effect.csv", keep_default_na=False)
    return result, frame, effects.astype(dict.fromkeys(COLUMNS.values(), np.float32)), page


# --- values, computed from the tables -----------------------------------------------------------------------------------


def cells(effects, column, step=0):
    """[layer, position] of a column of the effect's table."""
    rows = effects[effects.generation_step == step]
    return rows.pivot(index="layer", columns="token_position", values=column).to_numpy()


def sizes(effects, measure, step=0):
    values = np.abs(cells(effects, COLUMNS[measure], step).astype(float))
    return np.where(values <= FLOORS[measure], 0, values)


def groups_of(result, n, unfolded=()):
    """The positions of each column of the chart."""
    columns, seen = [], {}
    for position in range(n):
        image = int(result.tokens.image[position])
        if image < 0 or image in unfolded:
            columns.append([position])
        elif image in seen:
            seen[image].append(position)
        else:
            seen[image] = [position]
            columns.append(seen[image])
    return columns


def strongest(result, values, unfolded=()):
    """Of each layer and column the value that is the furthest from 0."""
    groups = groups_of(result, values.shape[1], unfolded)
    return np.array([[max(row[group], key=abs) for group in groups] for row in values], dtype=float)


def levels_of(values, floor, scale):
    """From -1 to 1, NaN for what is no more than the floor; one scale for all layers."""
    size = np.abs(values)
    shown = np.where(size > floor, size, 0)
    return np.where(
        shown > 0, np.sign(values) * level(shown, scale, shown[shown > 0].min(), shown.max()), np.nan
    ).reshape(values.shape)


def struck(tab, name="effect"):
    """(column, layer) of the cells that a line goes through."""
    shapes = tab.page.evaluate(f"document.getElementById('{name}').layout.shapes.filter((s) => s.name === 'changed')")
    edges = tab.chart(name)["x"]
    found = [
        {
            (int(np.searchsorted(edges, float(x), side="right")) - 1, round(float(y) + 0.3))
            for x, y in re.findall(r"M([\d.]+),([-\d.]+)L", shape["path"])
        }
        for shape in shapes
    ]
    assert all(one == found[0] for one in found)  # light and dark lines lie on each other
    return found[0] if found else set()


def points(tab):
    """{(layer, position): (x, y, name of its group)} of the scatter."""
    traces = tab.page.evaluate(
        "document.getElementById('scatter').data.map(({ x, y, customdata, name }) => ({ x, y, customdata, name }))"
    )
    found = [
        (tuple(place), (x, y, trace["name"]))
        for trace in traces
        for place, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    ]
    assert len(dict(found)) == len(found)  # none is drawn twice
    return dict(found)


def rows_of(tab, name):
    return [row.locator("td").all_text_contents() for row in tab.page.locator(f"#{name} tbody tr").all()]


# --- layers by tokens ---------------------------------------------------------------------------------------------------


def test_a_result_without_effects_has_no_such_part(tmp_path, open_page):
    tab = open_page(make_files(tmp_path, make_result(WORDS, n_steps=2))[1], "#measure=kl")
    assert not tab["effect-part"].is_visible()
    tab.press("e")
    assert tab["live"].text_content() == "Layer 0, produced token 0, Local impact, L2, Full, square-root scale"
    assert tab.page.locator("button[aria-label^=Save]:visible").count() == 20


@pytest.mark.parametrize(
    ("measure", "scale"), [("logprob", "linear"), ("logprob", "log"), ("kl", "sqrt"), ("kl", "log")]
)
def test_cells_are_the_table_s_with_their_sign_and_grey_below_the_floor(tab, files, measure, scale):
    result, _, effects, _ = files
    tab.choose("measure", measure)
    tab.choose("scale", scale)
    for step in (0, 2):
        tab.page.locator("#steps .token").nth(step).click()
        tab.settle()
        expected = strongest(result, cells(effects, COLUMNS[measure], step))
        close_to(tab.matrix("effect"), expected)
        shades = levels_of(expected, FLOORS[measure], scale)
        assert np.isnan(shades).any()
        close_to(tab.matrix("effect", "z"), shades)
        ends = tab.page.evaluate("(({ zmin, zmax }) => [zmin, zmax])(document.getElementById('effect').data[0])")
        assert ends == ([-1, 1] if measure == "logprob" else [0, 1])
    assert tab.page.locator("#effect-part").is_visible()


def test_less_and_more_likely_have_colours_of_their_own_and_the_legend_says_which(tab, files):
    scale = tab.page.evaluate("document.getElementById('effect').data[0].colorscale")
    below, middle, above = (scale[place][1] for place in (0, len(scale) // 2, -1))
    assert middle == "#ffffff"
    red, blue = (int(one[1:3], 16) - int(one[5:7], 16) for one in (below, above))
    assert red > 100
    assert blue < -100
    legend = tab.texts("#effect-legend span")
    assert legend == [
        '" Paris" becomes less likely', '" Paris" becomes more likely', f"no more than the noise floor, 1e{MINUS}4 nats",
        "another token becomes the most probable",
    ]  # fmt: skip
    tab.choose("measure", "kl")
    assert tab.texts("#effect-legend span")[1] == f"no more than the noise floor, 1e{MINUS}5 nats"


def test_the_scale_of_colours_has_signs(tab, files):
    result, _, effects, _ = files
    most = np.abs(strongest(result, cells(effects, "logprob_change"))).max()
    texts = tab.page.evaluate("document.getElementById('effect').data[0].colorbar.ticktext")
    assert texts[0] == f"{MINUS}{texts[-1]}"
    assert float(texts[-1]) == pytest.approx(most, rel=0.01)
    assert texts[2] == "0"


@pytest.mark.parametrize("unfolded", [(), (0,), (0, 1)])
def test_cells_in_which_another_token_becomes_the_most_probable_are_struck(tab, files, unfolded):
    result, _, effects, _ = files
    for image in unfolded:
        tab.page.locator("#effect-card .folds button").nth(image).click()
        tab.settle()
    close_to(tab.matrix("effect"), strongest(result, cells(effects, "logprob_change"), unfolded))
    changed = cells(effects, "top1_changed").astype(bool)
    groups = groups_of(result, changed.shape[1], unfolded)
    expected = {(c, layer) for c, group in enumerate(groups) for layer in range(4) if changed[layer, group].any()}
    assert expected
    assert struck(tab) == expected
    said = f"In {changed.sum()} of {changed.size} (layer, token) another token than"
    assert said in tab["effect-hint"].text_content()


def tip_at(tab, layer, column):
    tab.page.mouse.move(*cell_place(tab, layer, column, "effect"))
    tab["tip"].wait_for(state="visible")
    tab.page.wait_for_timeout(150)
    return tab["tip"].text_content().split("\n")


def number(text):
    return np.float32(text.replace(MINUS, "-"))


def test_the_pointer_shows_exact_values_and_the_new_token(tab, files):
    result, _, effects, _ = files
    changed, tokens = cells(effects, "top1_changed").astype(bool), cells(effects, "top1_token")
    change, kl = cells(effects, "logprob_change"), cells(effects, "kl_divergence")
    # The window is of 3 layers, cut at the ends.
    hidden = {layer: DASH.join(ends) for layer, ends in enumerate(("01", "02", "13", "23"))}
    seen = set()
    for position in range(9, 15):
        for layer in range(4):
            place = layer, position
            kind = bool(changed[place]), bool(abs(change[place]) <= FLOORS["logprob"])
            if kind in seen:
                continue
            seen.add(kind)
            lines = tip_at(tab, layer, position - 6)
            name = f'"{escape(result.tokens.texts[position])}"'
            assert lines[0] == f"layer {layer} (hidden in {hidden[layer]}) · position {position} · {name}"
            match = re.fullmatch(r"log-probability (.+) nats, KL (.+) nats", lines[1])
            assert [number(match[1]), number(match[2])] == [change[place], kl[place]]
            text = f'"{escape(tokens[place])}"'
            said = f"the most probable token becomes {text}" if kind[0] else f"{text} stays the most probable token"
            assert lines[2:] == [said] + [f"no more than the noise floor, 1e{MINUS}4 nats"] * kind[1]
    assert len(seen) >= 3
    assert tip_at(tab, 2, 0)[-1] == "attention sink"


def test_the_pointer_on_a_folded_image_names_its_strongest_patch(tab, files):
    _, _, effects, _ = files
    change, changed = cells(effects, "logprob_change")[3, 1:7], cells(effects, "top1_changed")[3, 1:7]
    lines = tip_at(tab, 3, 1)
    best = int(np.abs(change).argmax())
    row, column = divmod(best, 3)
    assert lines[:3] == [
        "image 0, 2 \N{MULTIPLICATION SIGN} 3 patches",
        f"of {changed.astype(bool).sum()} the most probable token changes", "the patch with the largest effect:",
    ]  # fmt: skip
    assert lines[3] == f"layer 3 (hidden in 2{DASH}3) · position {1 + best} · image 0 [{row}, {column}]"
    assert number(re.match(r"log-probability (.+) nats,", lines[4])[1]) == change[best]


def test_it_follows_the_page_s_choice_of_token_and_layer_and_gives_it(tab, files):
    tab.click("#text [data-position='12']")
    tab.drag("layer", 2)
    for name, shown in (("heat", "impact"), ("effect", "effect")):
        tab.choose("shown", shown)
        edges, marks = tab.chart(name)["x"], tab.chart(name, 1)
        assert marks["x"] == [(edges[6] + edges[7]) / 2]
        bands = tab.page.evaluate(f"document.getElementById('{name}').layout.shapes.filter((s) => s.type === 'rect')")
        assert [(one["y0"], one["y1"]) for one in bands] == [(1.5, 2.5)]
    assert struck(tab)  # and its own lines are still there
    tab.page.mouse.click(*cell_place(tab, 3, 4, "effect"))
    tab.page.wait_for_selector("#layer-value:text-is('3 / 3')")
    tab.settle()
    assert tab.texts("#chips button:first-child") == ['12 " is"', '10 " of"']


def test_sinks_are_shown_and_marked_whatever_the_box_says(tab, files):
    result, _, effects, _ = files
    expected = strongest(result, cells(effects, "logprob_change"))
    for checked in (True, False):
        tab.page.locator("#sinks input").set_checked(checked)
        tab.settle()
        close_to(tab.matrix("effect"), expected)
        assert tab.page.evaluate("document.getElementById('effect').layout.xaxis.ticktext[0]") == f'0 "The" {TIMES}'
        assert len(rows_of(tab, "apart-local")) == len(apart_lists(files)[0])
    assert "attention sinks: they are shown here, and not counted" in tab["effect-hint"].text_content()


def test_what_was_hidden_where_stands_at_the_head(tab):
    said = tab["effect-about"].text_content()
    assert f"the 3 layers around it (for layer l from l {MINUS} 1 to l + 1, cut at both ends)" in said
    assert "its attention logit is set to minus infinity (mask)" in said


# --- beside the local impact ----------------------------------------------------------------------------------------------


def local_of(files, step, metric, variant):
    """float64 [L, P]: L2 over the norm, cosine as it is."""
    result, frame, _, _ = files
    values = distances_of(frame, step, metric, variant)
    norms = result.steps[step].baseline_norm[:, [result.variants.index(variant)]].astype(float)
    return values / norms if metric == "l2" else values


CHOICES = [(0, "l2", "Full", "logprob"), (1, "cosine", "Attn", "kl"), (2, "l2", "Head_1", "logprob")]


def choose_all(tab, step, metric, variant, measure):
    tab.page.locator("#steps .token").nth(step).click()
    tab.settle()
    tab.choose("metric", metric)
    tab.select("variant", variant)
    tab.choose("measure", measure)


@pytest.mark.parametrize(("choice", "layers"), [*zip(CHOICES, [(0, 1, 2, 3), (1, 2), (3,)], strict=True)])
def test_the_scatter_has_every_token_of_the_layers_shown(tab, files, choice, layers):
    _, _, effects, _ = files
    step, metric, variant, measure = choice
    choose_all(tab, *choice)
    tab.choose("range", {4: "all", 2: "band", 1: "layer"}[len(layers)])
    if len(layers) == 2:
        tab.drag("from", 1)
        tab.drag("to", 2)
    if len(layers) == 1:
        tab.drag("layer", 3)
    local, raw = local_of(files, step, metric, variant), np.abs(cells(effects, COLUMNS[measure], step).astype(float))
    found = points(tab)
    expected = {(layer, j) for layer in layers for j in range(raw.shape[1]) if raw[layer, j] > 0}
    assert set(found) == expected
    chosen = {int(text.split()[0]) for text in tab.texts("#chips button:first-child")}
    for (layer, j), (x, y, name) in found.items():
        assert (x, y) == pytest.approx((local[layer, j], raw[layer, j]), rel=1e-6)
        if j in chosen:
            assert name.startswith(f"{j} ")
        else:
            below = "no more than the noise floor" if raw[layer, j] <= FLOORS[measure] else "token"
            assert name == ("attention sink" if j == 0 else below)
    axes = tab.page.evaluate("['xaxis', 'yaxis'].map((axis) => document.getElementById('scatter').layout[axis].type)")
    assert axes == ["log", "log"]
    n_left = len(layers) * raw.shape[1] - len(expected)
    assert (f"{n_left} without an effect" in tab["scatter-hint"].text_content()) == (n_left > 0)
    title = tab.page.evaluate("document.getElementById('scatter').layout.xaxis.title.text")
    assert title == f"{'L2' if metric == 'l2' else 'Cosine'} of {variant}{', over the norm' if metric == 'l2' else ''}"
    (line,) = tab.page.evaluate("document.getElementById('scatter').layout.shapes")
    assert np.float32(line["y0"]) == FLOORS[measure]


def test_the_pointer_on_the_scatter_names_the_token_and_a_click_chooses_it(tab):
    tab.drag("layer", 1)
    found = points(tab)
    (layer, position), (x, y, _) = max(
        ((place, one) for place, one in found.items() if one[2] == "token"), key=lambda one: one[1][1]
    )
    tab["scatter"].scroll_into_view_if_needed()
    tab.page.wait_for_timeout(150)
    at = tab.page.evaluate(
        """([x, y]) => { const chart = document.getElementById("scatter"), { xaxis, yaxis } = chart._fullLayout;
        const box = chart.querySelector(".nsewdrag").getBoundingClientRect();
        return [box.left + xaxis.l2p(Math.log10(x)), box.top + yaxis.l2p(Math.log10(y))]; }""",
        [x, y],
    )
    tab.page.mouse.move(*at)
    tab["tip"].wait_for(state="visible")
    lines = tab["tip"].text_content().split("\n")
    assert re.search(rf"layer {layer} \(hidden in 0{DASH}2\) · position {position} · ", lines[0])
    assert float(lines[-1].removeprefix("L2 of Full, over the norm ")) == pytest.approx(x, rel=0.01)
    tab.page.mouse.click(*at)
    tab.wait_until("document.querySelectorAll('#chips .chip').length === 1")
    tab.settle()
    assert tab.texts("#chips button:first-child")[0].startswith(f"{position} ")
    assert points(tab)[layer, position][2].startswith(f"{position} ")


@pytest.mark.parametrize("choice", CHOICES)
def test_the_rank_correlation_of_each_layer_is_scipys(tab, files, choice):
    _, frame, effects, _ = files
    step, metric, variant, measure = choice
    choose_all(tab, *choice)
    rho, n = correlations_of(distances_of(frame, step, metric, variant), sizes(effects, measure, step))
    line = tab.chart("agreement")
    close_to(np.array([np.nan if one is None else one for one in line["y"]], dtype=float), rho.astype(np.float32))
    assert line["customdata"] == n.tolist()
    said = f"{int(n.min())} to {int(n.max())}" if n.min() < n.max() else f"{int(n.max())}"
    assert f"above the noise floor: {said} tokens." in tab["agreement-hint"].text_content()
    header, rows = table_of(tab.download("[data-card=agreement] button >> nth=1")[0])
    assert header[-2:] == ["rank_correlation", "tokens"]
    close_to([float(row[-2]) for row in rows], rho.astype(np.float32))
    assert [int(row[-1]) for row in rows] == n.tolist()


def test_a_layer_with_too_few_tokens_has_no_correlation(tmp_path, open_page):
    result = with_effects(make_result(WORDS, sinks=()))
    change = result.steps[0].effect.logprob_change.copy()
    change[1] = 0
    change[1, :2] = 0.5, -0.25
    tab = open_page(write_report(with_values(result, logprob_change=change), tmp_path / "x.html"))
    line = tab.chart("agreement")
    assert line["y"][1] is None
    assert None not in [line["y"][0], line["y"][2]]
    assert line["customdata"][1] == 2
    assert "1 of 3 layers have none: fewer than 3 such tokens" in tab["agreement-hint"].text_content()
    _, rows = table_of(tab.download("[data-card=agreement] button >> nth=1")[0])
    assert rows[1][-2:] == ["", "2"]


def apart_lists(files, step=0, metric="l2", variant="Full", measure="logprob"):
    norms = norms_of(files[0], step, metric, variant)
    return apart_of(distances_of(files[1], step, metric, variant), norms, sizes(files[2], measure, step))


def nats(size):
    if size == 0:
        return 0.0
    return pytest.approx(size, rel=0.006)


@pytest.mark.parametrize("choice", CHOICES)
def test_the_tables_have_the_tokens_where_impact_and_effect_come_apart(tab, files, choice):
    choose_all(tab, *choice)
    names = tab.page.locator("#add-token option").evaluate_all("all => all.map((one) => [one.value, one.textContent])")
    titles = {int(value): text for value, text in names if value}
    for name, expected in zip(("apart-local", "apart-effect"), apart_lists(files, *choice), strict=True):
        shown = rows_of(tab, name)
        assert len(shown) == len(expected) > 0
        for row, (position, share, share_rank, size, size_rank) in zip(shown, expected, strict=True):
            assert row[0] == titles[position]
            assert [row[1], float(row[2]), float(row[4])] == [percent(share), share_rank, size_rank]
            assert (0.0 if row[3] == "none" else float(row[3].replace(MINUS, "-"))) == nats(size)
    header, rows = table_of(tab.download("[data-card=apart] button:text-is('CSV')")[0])
    expected = [one for tokens in apart_lists(files, *choice) for one in tokens]
    assert [int(row[header.index("token_position")]) for row in rows] == [one[0] for one in expected]
    close_to([float(row[header.index("mean_size")]) for row in rows], [one[3] for one in expected])
    assert {row[header.index("list")] for row in rows} == {"large local", "large effect"}


def test_a_token_of_the_tables_can_be_chosen(tab, files):
    position = apart_lists(files)[1][0][0]
    tab.page.locator("#apart-effect button").first.focus()
    tab.press("Enter")
    assert tab.texts("#chips button:first-child")[0].startswith(f"{position} ")
    assert tab.page.locator("#apart-effect tbody tr").first.get_attribute("class") == "current"
    assert tab.page.evaluate("document.activeElement.closest('table')?.id") == "apart-effect"


# --- saving, links, keys --------------------------------------------------------------------------------------------------


def test_the_numbers_saved_are_the_tables(tab, files):
    _, _, effects, _ = files
    tab.press("ArrowUp")
    content, name = tab.download("[data-card=effect] button >> nth=1")
    header, rows = table_of(content)
    expected = effects[effects.generation_step == 1]
    assert name == "run-step1-effect.csv"
    kept = ["generation_step", "layer", "token_masked", "token_position", "n_tokens"]
    assert header == [*kept, *COLUMNS.values(), "top1_changed", "top1_id", "top1_token", "above_floor"]
    assert [row[:5] for row in rows] == expected[kept].astype(str).to_numpy().tolist()
    numbers = np.array([row[5:7] for row in rows], dtype=np.float32)
    assert numbers.tobytes() == expected[list(COLUMNS.values())].to_numpy(np.float32).tobytes()
    assert [row[7] == "true" for row in rows] == expected.top1_changed.tolist()
    assert [row[8:10] for row in rows] == expected[["top1_id", "top1_token"]].astype(str).to_numpy().tolist()
    above = np.abs(expected.logprob_change.to_numpy()) > FLOORS["logprob"]
    assert [row[10] == "true" for row in rows] == above.tolist()
    tab.drag("layer", 2)
    header, rows = table_of(tab.download("[data-card=scatter] button >> nth=1")[0])
    local = local_of(files, 1, "l2", "Full")[2]
    assert [int(row[header.index("layer")]) for row in rows] == [2] * len(local)
    close_to([float(row[header.index("local_impact")]) for row in rows], local)
    assert [row[header.index("attention_sink")] for row in rows] == ["true"] + ["false"] * (len(local) - 1)


@pytest.mark.parametrize("card", ["effect", "scatter", "agreement"])
def test_each_chart_saves_a_picture_of_itself(tab, card):
    content, name = tab.download(f"[data-card={card}] button >> nth=0")
    assert name == f"run-step0-{card}.png"
    with Image.open(io.BytesIO(content)) as picture:
        assert min(picture.size) > 60
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # not empty


def test_a_link_and_a_key_hold_the_measure(tab, files, open_page):
    result, _, effects, page = files
    tab.press("e")
    assert tab["live"].text_content().endswith(", effect as KL divergence")
    fragment = tab.page.evaluate("location.hash")
    assert fragment == "#measure=kl"
    other = open_page(page, fragment)
    close_to(other.matrix("effect"), strongest(result, cells(effects, "kl_divergence")))
    assert other.texts("#measure label:has(:checked)") == ["KL divergence"]
    tab.press("e")
    assert tab.page.evaluate("location.hash") == ""
    wild = open_page(page, "#measure=__proto__")
    close_to(wild.matrix("effect"), strongest(result, cells(effects, "logprob_change")))


def test_everything_is_reached_with_the_keyboard_alone(files, open_page):
    """In an order that follows the page; what has the focus has a name and shows that it has it."""
    tab = open_page(files[3])
    reached = []
    for _ in range(120):
        tab.page.keyboard.press("Tab")
        found = tab.page.evaluate(ABOUT_FOCUS)
        if found[0] == "BODY":
            break
        reached.append(found)
    wanted = ["play", "shown", "measure", "opacity", "add-token", "link"]
    names = list(dict.fromkeys(name for name, *_ in reached if name in wanted))
    assert names == wanted
    assert all(label for _, label, *_ in reached)
    assert all(outlined for _, _, outlined, _ in reached)
    n_listed = sum(len(one) for one in apart_lists(files))
    assert sum(name == "link" for name, *_ in reached) == n_listed
    assert sum(label.startswith("Save ") for _, label, *_ in reached) == 24 + 16
    for name in ("effect", "scatter", "agreement"):
        assert tab[name].get_attribute("role") == "img"
        assert "can be saved as CSV" in tab[name].get_attribute("aria-label")


# --- other results --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    texts = [*HOSTILE, "=1+1"]
    result = make_result(texts, n_steps=2, produced=(HOSTILE[0], HOSTILE[4]), sinks=(3,))
    result = with_effects(result, texts=HOSTILE)
    result = dataclasses.replace(result, meta={"effect": {"window": 2, "ablation": HOSTILE[0]}})
    return result, write_report(result, tmp_path_factory.mktemp("hostile") / "page.html")


def test_texts_show_as_text_and_run_nothing(hostile, open_page):
    result, path = hostile
    tab = open_page(path)
    assert f"({HOSTILE[0]})" in tab["effect-about"].text_content()
    assert tab.texts("#effect-legend span")[0] == f'"{HOSTILE[0]}" becomes less likely'
    assert tip_at(tab, 1, 2)[0].startswith(f"layer 1 (hidden in 1{DASH}2) · ")  # a window of two begins at its layer
    effect, shown = result.steps[0].effect, set()
    for layer, position in zip(*np.nonzero(effect.top1 != result.steps[0].token_id), strict=True):
        text = escape(cleaned(effect.top1_texts[int(effect.top1[layer, position])])).replace('"', '\\"')
        if text in shown:
            continue
        shown.add(text)
        assert f'the most probable token becomes "{text}"' in tip_at(tab, int(layer), int(position))
    assert len(shown) > 3
    for position in range(result.n_prompt):
        tab.click(f"#text [data-position='{position}']")
    drawn = tab.page.evaluate("[...document.querySelectorAll('#scatter .legendtext')].map((one) => one.textContent)")
    assert sum("attention sink" in text for text in drawn) >= 1
    for name in ("scatter", "effect", "agreement"):
        assert tab.page.locator(f"#{name} svg a, #{name} svg image[href^=x]").count() == 0
    for tag in ("img", "b", "a:not(.skip)", "body script:not([type]) ~ script"):
        assert tab.page.locator(f"main {tag}").count() == 0, tag


def test_numbers_that_are_missing_have_no_place(tmp_path, open_page):
    """Effects that are not numbers, and a result without norms."""
    result = with_effects(make_result(WORDS, n_steps=1, sinks=()))
    change = result.steps[0].effect.logprob_change.copy()
    change[0, 2], change[1, 3] = np.nan, -np.inf
    result = with_values(result, logprob_change=change)
    norms = np.full_like(result.steps[0].baseline_norm, np.nan)
    result = dataclasses.replace(result, steps=(dataclasses.replace(result.steps[0], baseline_norm=norms),))
    tab = open_page(write_report(result, tmp_path / "x.html"))
    shown = tab.matrix("effect")
    assert np.isnan([shown[0, 2], shown[1, 3]]).all()
    assert np.isfinite(shown).sum() == shown.size - 2
    kl = result.steps[0].effect.kl_divergence[0, 2]
    line = tip_at(tab, 0, 2)[1]
    assert line.startswith("log-probability no value nats, KL ")
    assert number(line.split()[-2]) == kl
    found = points(tab)
    assert not {(0, 2), (1, 3)} & set(found)
    for (layer, j), (x, _, _) in found.items():
        assert x == pytest.approx(result.steps[0].l2[layer, j, 0], rel=1e-6)
    assert "The result has no norms" in tab["scatter-hint"].text_content()
    assert tab.page.evaluate("document.getElementById('scatter').layout.xaxis.title.text") == "L2 of Full"
    tab.choose("metric", "cosine")
    assert "norms" not in tab["scatter-hint"].text_content()


@pytest.mark.parametrize(("window", "said"), [(1, " ·"), (None, " ·"), (99, " (hidden in 0{DASH}2) ·")])
def test_a_layer_says_where_it_was_hidden(tmp_path, open_page, window, said):
    result = dataclasses.replace(with_effects(make_result(WORDS)), meta={"effect": {"window": window}})
    tab = open_page(write_report(result, tmp_path / "x.html"))
    assert tip_at(tab, 1, 2)[0].startswith(f"layer 1{said.replace('{DASH}', DASH)} position 2")


def test_what_was_hidden_in_all_layers_is_one_row(tmp_path, open_page):
    """Its effects are the same in each layer; the choice of layers is left alone by a click there."""
    result = with_effects(make_result(WORDS))
    alike = []
    for step in result.steps:
        first = {name: np.repeat(getattr(step.effect, name)[:1], result.n_layers, axis=0)
                 for name in ("logit_change", "logprob_change", "kl_divergence", "top1")}  # fmt: skip
        alike.append(dataclasses.replace(step, effect=dataclasses.replace(step.effect, **first)))
    result = dataclasses.replace(result, steps=tuple(alike), meta={"effect": {"window": "all"}})
    tab = open_page(write_report(result, tmp_path / "x.html"))
    np.testing.assert_array_equal(tab.matrix("effect")[0], result.steps[0].effect.logprob_change[0])
    assert tab.matrix("effect").shape == (1, len(WORDS))
    assert tip_at(tab, 0, 2)[0].startswith("in all layers · position 2")
    tab.page.mouse.click(*cell_place(tab, 0, 2, "effect"))
    tab.settle()
    assert "tokens=2" in tab.page.url
    assert "range" not in tab.page.url


def test_tokens_that_were_not_masked_have_no_column(tmp_path, open_page):
    result = with_effects(make_result(WORDS, grids=((2, 2),), mask_mode="text"))
    tab = open_page(make_files(tmp_path, result)[1])
    close_to(tab.matrix("effect"), result.steps[0].effect.logprob_change)
    assert {position for _, position in points(tab)} <= {0, *range(5, 11)}


def test_a_chooser_shows_each_prompt_s_own_or_none(tmp_path, open_page):
    """Prompts with and without effects, of different sizes, in one page."""
    results = {
        "with": with_effects(make_result(WORDS, n_layers=5, sinks=())),
        "without": make_result(["a", "b"], sinks=()),
        "more": with_effects(make_result(WORDS[:4], n_layers=2, seed=3, sinks=()), seed=3),
    }
    tab = open_page(write_report(results, tmp_path / "x.html"))
    tab.press("e")
    for number, name in ((1, "without"), (2, "more"), (0, "with"), (2, "more")):
        tab.select("prompt", number)
        assert tab["effect-part"].is_visible() == (name != "without")
        if name != "without":
            close_to(tab.matrix("effect"), results[name].steps[0].effect.kl_divergence)
            assert len(tab.chart("agreement")["x"]) == results[name].n_layers


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """As many tokens as an image of a megapixel and a question have."""
    result = make_result([f" word{n}" for n in range(29)], n_steps=1, n_layers=36, n_heads=2, grids=((32, 32),))
    result = with_effects(result)
    return result, write_report(result, tmp_path_factory.mktemp("large") / "page.html")


@pytest.mark.slow
def test_of_very_many_points_some_are_drawn_and_all_are_saved(large, open_page):
    result, page = large
    tab = open_page(page)
    found = points(tab)
    assert 3000 < len(found) < 6000
    size = np.abs(result.steps[0].effect.logprob_change)
    chosen = {int(text.split()[0]) for text in tab.texts("#chips button:first-child")}
    for position in (0, *chosen):  # the sink, and what is chosen, whole
        assert {layer for layer, j in found if j == position} == set(np.flatnonzero(size[:, position] > 0))
    assert f"{len(found):,} of {(size > 0).sum():,} are drawn" in tab["scatter-hint"].text_content()
    _, rows = table_of(tab.download("[data-card=scatter] button >> nth=1")[0])
    assert len(rows) == size.size
    tab.page.locator("#effect-card .folds button").click()
    tab.settle()
    close_to(tab.matrix("effect"), result.steps[0].effect.logprob_change)
    assert len(struck(tab)) == (result.steps[0].effect.top1 != result.steps[0].token_id).sum()
    tab.drag("layer", 7)
    assert "are drawn" not in tab["scatter-hint"].text_content()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "large", "hostile"])
def test_nothing_is_wider_than_the_window(request, files, open_page, kind):
    """In both schemes; a screenshot is kept where it is asked for."""
    tab = open_page(files[3] if kind == "image" else request.getfixturevalue(kind)[1], color_scheme="light")
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab.resize(width, 900, scheme)
        tab.keep_screenshot(f"effect-{kind}-{scheme}-{width}", full_page=True)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        for name in PARTS[:3]:
            box = tab[name].bounding_box()
            assert box["width"] <= width
            assert abs(tab.page.locator(f"#{name} .svg-container").bounding_box()["height"] - box["height"]) <= 1


def test_the_other_chart_is_as_it_was(tab, files):
    """The maps share their columns; that of local impact shows distances, and answers the pointer."""
    _, frame, _, _ = files
    tab.choose("shown", "impact")
    tab.page.mouse.move(*cell_place(tab, 2, 3))
    tab["tip"].wait_for(state="visible")
    text = tab["tip"].text_content().split("\n")[1]
    assert np.float32(text.removeprefix("L2 ")) == np.float32(distances_of(frame, 0, "l2", "Full")[2, 9])
    assert set(METRICS) == {"l2", "cosine"}


def test_a_stored_result_s_page_has_its_effects(tmp_path, open_page):
    """As `python -m mask_impact report` reads it, from Parquet too."""
    result = with_effects(make_result(WORDS, sinks=()))
    save(result, tmp_path / "run", ["parquet"])
    tab = open_page(write_report(tmp_path / "run.effect.parquet"))
    close_to(tab.matrix("effect"), result.steps[0].effect.logprob_change)


def test_groups_of_tokens_have_columns_of_their_own(tmp_path, open_page):
    """Named groups, of which one token may be in several, and one has markup for a name; nothing stands beside them."""
    result = grouped(with_effects(make_result(WORDS, n_steps=2, grids=((2, 2),)), texts=OTHERS), GROUPS)
    save(result, tmp_path / "run", ["csv"])
    effects = pd.read_csv(tmp_path / "run.effect.csv", keep_default_na=False)
    tab = open_page(write_report(tmp_path / "run"))

    def table(column, step=0):
        rows = effects[effects.generation_step == step]
        return rows[column].to_numpy().reshape(3, len(GROUPS))

    close_to(tab.matrix("effect"), table("logprob_change").astype(np.float32))
    changed = {(g, layer) for layer, g in zip(*np.nonzero(table("top1_changed").astype(bool)), strict=True)}
    assert struck(tab) == changed
    ticks = tab.page.evaluate("document.getElementById('effect').layout.xaxis.ticktext")
    assert ticks == [f'"the start" {TIMES}', '"image 0"', '"&lt;b&gt;end&lt;/b&gt;"', f'"whole" {TIMES}']
    lines = tip_at(tab, 1, 3)
    assert lines[0] == f'layer 1 (hidden in 0{DASH}2) · "whole" · 3 tokens within 0{DASH}8'
    assert number(re.match(r"log-probability (.+) nats,", lines[1])[1]) == np.float32(table("logprob_change")[1, 3])
    assert lines[-1] == "with an attention sink"
    assert tip_at(tab, 1, 2)[0].endswith(' · "<b>end</b>" · position 9')
    for name in ("effect-beside", "apart-card"):
        assert not tab[name].is_visible()
    assert "Local impact is of single tokens" in tab["effect-hint"].text_content()
    tab.page.mouse.click(*cell_place(tab, 2, 1, "effect"))
    tab.page.wait_for_selector("#layer-value:text-is('2 / 2')")
    tab.settle()
    assert tab.texts("#chips button:first-child") == [f"{j} image 0 [{(j - 1) // 2}, {(j - 1) % 2}]" for j in (2, 3, 4)]
    edges = tab.chart("effect")["x"]
    assert set(tab.chart("effect", 1)["x"]) == {(edges[1] + edges[2]) / 2, (edges[3] + edges[4]) / 2}  # 4 is in two
    tab.press("ArrowUp", "e")
    close_to(tab.matrix("effect"), table("kl_divergence", 1).astype(np.float32))
    header, rows = table_of(tab.download("[data-card=effect] button >> nth=1")[0])
    expected = effects[effects.generation_step == 1]
    assert [row[2:5] for row in rows] == expected[header[2:5]].astype(str).to_numpy().tolist()
