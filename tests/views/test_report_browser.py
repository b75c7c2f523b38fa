"""The page of a report in a browser: every control changes what is shown to values that are computed here from the files,
texts run nothing, and nothing is loaded.

Screenshots go to the folder that REPORT_SCREENSHOTS names.
"""

import base64
import io
import json
import re

import browser
import numpy as np
import pytest
from pages import HOSTILE, cleaned
from PIL import Image
from synthetic import make_result
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

from mask_impact.results.records import Result
from mask_impact.results.tables import COLUMNS, to_table
from mask_impact.views.page import TEMPLATES
from mask_impact.views.report import write_report
from mask_impact.views.text import escape

pytestmark = browser.MARKS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A result with two images, three steps, four layers, a sink at position 0."""
    result = make_result(WORDS, n_steps=3, n_layers=4, n_heads=3, grids=IMAGE_GRIDS)
    frame, page = make_files(tmp_path_factory.mktemp("report"), result)
    return result, frame, page


# --- a browser, a page, and what it must never do ---------------------------------------------------------------------


# --- values, computed from the table ----------------------------------------------------------------------------------


def cube(frame, step=0, metric="l2", variant="Full"):
    """float64 [layer, position]."""
    rows = frame[(frame.generation_step == step) & (frame.variant == variant)]
    return rows.pivot(index="layer", columns="token_position", values=METRICS[metric]).to_numpy(float)


def shares_of(values, left_out=(0,)):
    """Of each layer's sum, NaN for what is left out."""
    values = values.copy()
    values[:, list(left_out)] = np.nan
    return values / np.nansum(values, axis=1, keepdims=True)


def scores_of(result, values, layers=slice(None), left_out=(0,), step=0):
    """Of each position the part of what is read in the layers: L2 distances of Full over the norm of its update."""
    read = values / result.steps[step].baseline_norm[:, :1].astype(float)
    read[:, list(left_out)] = np.nan
    return read[layers].sum(axis=0) / np.nansum(read[layers])


def folded(result, values, unfolded=()):
    """Columns of the chart: tokens, and for each folded image the largest of its patches."""
    columns, seen = [], set()
    for position in range(values.shape[1]):
        image = int(result.tokens.image[position])
        if image < 0 or image in unfolded:
            columns.append(values[:, position])
        elif image not in seen:
            seen.add(image)
            columns.append(np.nanmax(values[:, result.tokens.image[: values.shape[1]] == image], axis=1))
    return np.stack(columns, axis=1)


def left_out(values, positions=(0,)):
    values = values.copy()
    values[:, list(positions)] = np.nan
    return values


def levels(values, scale, per_layer):
    rows = values if per_layer else values.reshape(1, -1)
    found = [np.where(np.isnan(row), np.nan, level(row, scale, row[row > 0].min(), np.nanmax(row))) for row in rows]
    return np.reshape(found, values.shape)


def stops(theme="light"):
    text = (TEMPLATES / "shared/colours.js").read_text(encoding="utf-8")
    listed = re.search(rf"^  {theme}: \[(.*?)\],$", text, re.MULTILINE)[1]
    return np.array([[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in json.loads(f"[{listed}]")], dtype=float)


def colour(value, theme="light"):
    table = stops(theme)
    place = np.clip(value, 0, 1) * (len(table) - 1)
    return [np.interp(place, range(len(table)), channel) for channel in table.T]


def rgb(text):
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


# --- the chart of layers and tokens -----------------------------------------------------------------------------------


def test_it_opens_with_the_first_step_full_l2_and_sinks_left_out(tab, files):
    result, frame, _ = files
    expected = folded(result, left_out(cube(frame)))
    close_to(tab.matrix(), expected)
    close_to(tab.matrix(what="z"), levels(expected, "sqrt", per_layer=True))
    assert tab["heat-hint"].text_content().startswith('L2 distance of Full, square-root scale, for " Paris".')


def test_each_produced_token_shows_its_own_step(tab, files):
    result, frame, _ = files
    assert tab.texts("#steps .token") == [escape(step.token_text) for step in result.steps]
    for step in (2, 1, 0):
        tab.page.locator("#steps .token").nth(step).click()
        tab.settle()
        close_to(tab.matrix(), folded(result, left_out(cube(frame, step))))
        shown = [
            [cell.strip() for cell in row.locator("td").all_text_contents()]
            for row in tab.page.locator("#candidates tbody tr").all()
        ]
        record = result.steps[step]
        assert shown == [
            [f'"{one.text}"' + " (produced)" * (one.id == record.token_id), str(one.id), f"{100 * one.probability:.3f} %"]
            for one in record.candidates
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "variant"), [("l2", "Full"), ("cosine", "Attn"), ("cosine", "Head_0"), ("l2", "Head_2")]
)
def test_metric_and_variant_choose_the_distances(tab, files, metric, variant):
    result, frame, _ = files
    tab.choose("metric", metric)
    tab.select("variant", variant)
    close_to(tab.matrix(), folded(result, left_out(cube(frame, 0, metric, variant))))


@pytest.mark.parametrize("colours", ["layer", "global"])
@pytest.mark.parametrize("scale", ["linear", "sqrt", "log"])
def test_scale_and_span_choose_the_colours(tab, files, scale, colours):
    result, frame, _ = files
    tab.choose("scale", scale)
    tab.choose("colours", colours)
    expected = folded(result, left_out(cube(frame)))
    close_to(tab.matrix(what="z"), levels(expected, scale, colours == "layer"))
    close_to(tab.matrix(), expected)


def test_sinks_are_listed_and_can_be_let_in_again(tab, files):
    result, frame, _ = files
    attention = result.steps[0].attention
    assert tab.texts("#sinks label") == [f' leave out 0 "The", {percent(attention[0] / attention.sum())} of attention']
    assert np.isnan(tab.matrix()[:, 0]).all()
    tab.page.locator("#sinks input").uncheck()
    tab.settle()
    close_to(tab.matrix(), folded(result, cube(frame)))
    tab.page.locator("#sinks input").check()
    tab.settle()
    assert np.isnan(tab.matrix()[:, 0]).all()


def test_an_image_unfolds_into_its_patches_and_folds_again(tab, files):
    result, frame, _ = files
    values = left_out(cube(frame))
    for unfolded, button in (((1,), 1), ((0, 1), 0), ((0,), 1), ((), 0)):
        tab.page.locator("#heat-card .folds button").nth(button).click()
        tab.settle()
        close_to(tab.matrix(), folded(result, values, unfolded))
        ticks = tab.page.evaluate("document.getElementById('heat').layout.xaxis.ticktext")
        assert sum("[" in tick for tick in ticks) == sum(
            len(np.flatnonzero(result.tokens.image == image)) for image in unfolded
        )
    tab.click("#text .token.image >> nth=0")
    close_to(tab.matrix(), folded(result, values, (0,)))


def test_the_pointer_shows_exact_values(tab, files):
    """Numbers that give back the same float32, and the token's text."""
    _, frame, _ = files
    tab.page.mouse.move(*cell_place(tab, 2, 3))  # columns: The, image 0, image 1, capital
    tab["tip"].wait_for(state="visible")
    position = 1 + 8
    first, l2, cosine, share = tab["tip"].text_content().split("\n")
    assert first == f'layer 2 · position {position} · " capital"'
    assert np.float32(l2.removeprefix("L2 ")) == np.float32(cube(frame)[2, position])
    assert np.float32(cosine.removeprefix("Cosine ")) == np.float32(cube(frame, metric="cosine")[2, position])
    assert share == f"{percent(shares_of(cube(frame))[2, position])} of the layer"
    tab.page.mouse.move(*cell_place(tab, 2, 1))
    tab.page.wait_for_timeout(150)
    values = cube(frame)[2, 1:7]
    row, column = divmod(int(values.argmax()), 3)
    lines = tab["tip"].text_content().split("\n")
    assert lines[0] == f"layer 2 · image 0, 2 {TIMES} 3 patches"
    assert lines[1].startswith(f"strongest patch image 0 [{row}, {column}]: L2 ")
    assert np.float32(lines[1].rpartition(" ")[2]) == np.float32(values.max())
    assert lines[3] == f"together {percent(shares_of(cube(frame))[2, 1:7].sum())} of the layer"


def test_a_click_on_a_cell_chooses_layer_and_token(tab):
    tab.page.mouse.click(*cell_place(tab, 3, 3))
    tab.page.wait_for_selector("#layer-value:text-is('3 / 3')")
    tab.settle()
    assert tab.texts("#chips button:first-child") == ['9 " capital"']


def test_the_ten_strongest_are_in_a_table(tab, files):
    _, frame, _ = files
    tab.choose("colours", "global")
    tab.page.locator("details summary").click()
    values = left_out(cube(frame))
    order = np.argsort(-np.nan_to_num(values, nan=-1).reshape(-1), kind="stable")[:10]
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#strongest tbody tr").all()]
    assert [(int(row[0]), int(row[1])) for row in rows] == [divmod(int(place), values.shape[1]) for place in order]
    assert [np.float32(row[3]) for row in rows] == [np.float32(values.reshape(-1)[place]) for place in order]
    tab.page.locator("details summary").click()


# --- the prompt as text -----------------------------------------------------------------------------------------------


def test_the_prompt_is_shaded_by_one_layer_a_band_or_all(tab, files):
    """The share of what the layers read, as text and as colour."""
    result, frame, _ = files
    for name, layers in (("all", [0, 1, 2, 3]), ("band", [1, 2]), ("layer", [3])):
        tab.choose("range", name)
        if name == "band":
            tab.drag("from", 1)
            tab.drag("to", 2)
        if name == "layer":
            tab.drag("layer", 3)
        scores = scores_of(result, cube(frame), layers)
        expected = levels(scores[None], "sqrt", per_layer=True)[0]
        labels = tab.labels()
        assert sorted(labels) == [0, *range(9, 15)]
        for position, label in labels.items():
            shown = "attention sink, left out" if position == 0 else f"{percent(scores[position])} of the"
            assert shown in label, (name, position)
            style = tab.page.locator(f"#text [data-position='{position}']").evaluate(
                "(token) => token.style.background"
            )
            if position:
                np.testing.assert_allclose(rgb(style), colour(expected[position]), atol=1)
        for image, places in ((0, slice(1, 7)), (1, slice(7, 9))):
            chip = tab.page.locator(f"#text [data-image='{image}']")
            rows, columns = IMAGE_GRIDS[image]
            assert (
                chip.text_content()
                == f"image {image} · {rows} {TIMES} {columns} patches · {percent(scores[places].sum())}"
            )
            np.testing.assert_allclose(
                rgb(chip.evaluate("(t) => t.style.background")), colour(expected[places].max()), atol=1
            )


def test_colours_over_all_layers_compare_layers_of_the_prompt(tab, files):
    _, frame, _ = files
    shares = shares_of(cube(frame))
    tab.choose("colours", "global")
    tab.choose("scale", "linear")
    tab.drag("layer", 1)
    for position in range(9, 15):
        style = tab.page.locator(f"#text [data-position='{position}']").evaluate("(token) => token.style.background")
        np.testing.assert_allclose(rgb(style), colour(shares[1, position] / np.nanmax(shares)), atol=1)
    assert percent(np.nanmax(shares)) in tab["text-legend"].text_content()


def test_ink_can_be_read_on_every_shade():
    """The contrast that WCAG 2 asks of text, for the rule that the page has."""

    def luminance(channels):
        parts = [one / 255 for one in channels]
        return sum(
            weight * (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4)
            for weight, one in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    for theme in ("light", "dark"):
        shades = [luminance(colour(value, theme)) for value in np.linspace(0, 1, 200)]
        contrasts = [(shade + 0.05) / 0.05 if shade > 0.179 else 1.05 / (shade + 0.05) for shade in shades]
        assert min(contrasts) >= 4.5
        steps = np.diff(shades) * (1 if theme == "dark" else -1)
        assert (steps > 0).all()  # lightness alone tells the order, whatever colours one sees


def test_the_answer_so_far_is_part_of_the_text(tab, files):
    result, _, _ = files
    tab.page.locator("#steps .token").nth(2).click()
    tab.settle()
    assert tab.texts("#text .token[data-position]")[-2:] == [escape(step.token_text) for step in result.steps[:2]]


# --- images -----------------------------------------------------------------------------------------------------------


def overlay(tab, image):
    """uint8 [height, width, 4]: colours and alpha of an image's overlay."""
    url = tab.page.locator("#images canvas").nth(image).evaluate("(canvas) => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))


@pytest.mark.parametrize("opacity", [100, 40])
def test_patches_lie_over_their_images_as_opaque_as_the_slider_says(tab, files, opacity):
    tokens, frame = files[0].tokens, files[1]
    tab.drag("opacity", opacity)
    tab.drag("layer", 2)
    scores = shares_of(cube(frame))[2]
    expected = levels(scores[None, 1:], "sqrt", per_layer=True)[0]  # one scale with the text
    for position in range(1, 9):
        image, row, column = (int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))
        rows, columns = IMAGE_GRIDS[image]
        pixels = overlay(tab, image)
        pixel = pixels[int((row + 0.3) / rows * len(pixels)), int((column + 0.3) / columns * len(pixels[0]))]
        value = expected[position - 1]
        assert pixel[3] == pytest.approx(255 * opacity / 100 * value, abs=2)
        if pixel[3] > 64:
            np.testing.assert_allclose(pixel[:3], colour(value), atol=6)  # a canvas keeps colours times alpha
    captions = tab.texts("#images figcaption")
    assert captions[0].endswith(f"2 {TIMES} 3 patches, together {percent(scores[1:7].sum())} of layer 2")
    assert captions[1].endswith(f"1 {TIMES} 2 patches, together {percent(scores[7:9].sum())} of layer 2")


def test_a_click_on_a_patch_shows_its_profile(tab, files):
    _, frame, _ = files
    tab.choose("profile-unit", "distance")
    canvas = tab.page.locator("#images canvas").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.75})  # row 1, column 1
    tab.settle()
    assert tab.texts("#chips button:first-child") == ["5 image 0 [1, 1]"]
    close_to(tab.chart("profile")["customdata"], cube(frame)[:, 5])
    canvas.hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.25})
    assert tab["tip"].text_content().startswith("position 3 · image 0 [0, 2]\n")


def test_the_keyboard_reaches_every_patch(tab):
    tab.page.locator("#images canvas").first.focus()
    tab.press("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "Enter")
    assert tab.texts("#chips button:first-child") == ["5 image 0 [1, 1]"]
    assert "All" in tab.texts("#range label:has(:checked)")  # arrows did not move the layer


def test_play_runs_through_the_layers(tab):
    """Watched within the page: a busy machine would miss a layer between two questions from outside."""
    tab.page.evaluate(
        """() => { const node = document.getElementById("layer-value"); window.seen = new Set();
        window.watching = new MutationObserver(() => window.seen.add(node.textContent));
        window.watching.observe(node, { childList: true, characterData: true, subtree: true }); }"""
    )
    tab["play"].click()
    for _ in range(300):
        if tab.page.evaluate("window.seen.size") >= 4:
            break
        tab.page.wait_for_timeout(50)
    assert set(tab.page.evaluate("window.watching.disconnect() ?? [...window.seen]")) == {f"{n} / 3" for n in range(4)}
    tab["play"].click()
    assert tab["play"].text_content() == "Play"


# --- chosen tokens ----------------------------------------------------------------------------------------------------


def test_profiles_begin_with_the_three_that_matter_most(tab, files):
    result, frame, _ = files
    scores = np.nan_to_num(scores_of(result, cube(frame)), nan=-1)
    expected = np.argsort(-scores, kind="stable")[:3]
    assert [int(text.split()[0]) for text in tab.texts("#chips button:first-child")] == expected.tolist()
    for nth, position in enumerate(expected):
        close_to(tab.chart("profile", nth)["customdata"], shares_of(cube(frame))[:, position])


@pytest.mark.parametrize(
    ("unit", "scale"), [("distance", "linear"), ("distance", "sqrt"), ("share", "sqrt"), ("share", "log")]
)
def test_chosen_tokens_have_their_profiles(tab, files, unit, scale):
    _, frame, _ = files
    tab.choose("profile-unit", unit)
    tab.choose("scale", scale)
    for position in (9, 12, 10):
        tab.click(f"#text [data-position='{position}']")
    tab.select("add-token", 4)
    values = shares_of(cube(frame)) if unit == "share" else cube(frame)
    for nth, position in enumerate((9, 12, 10, 4)):
        trace = tab.chart("profile", nth)
        close_to(trace["customdata"], values[:, position])
        close_to(trace["y"], np.sqrt(values[:, position]) if scale == "sqrt" else values[:, position])
    tab.click("#text [data-position='12']")
    assert [text.split()[0] for text in tab.texts("#chips button:first-child")] == ["9", "10", "4"]
    tab.click("#chips .chip:nth-child(1) button:last-child")
    assert [text.split()[0] for text in tab.texts("#chips button:first-child")] == ["10", "4"]


@pytest.mark.parametrize("metric", METRICS)
def test_layers_and_heads_of_a_chosen_token(tab, files, metric):
    _, frame, _ = files
    tab.choose("metric", metric)
    tab.click("#text [data-position='11']")
    tab.click("#text [data-position='9']")
    for position, chip in ((9, None), (11, 1)):
        if chip:
            tab.click(f"#chips .chip:nth-child({chip}) button:first-child")
        heads = np.stack([cube(frame, 0, metric, f"Head_{head}")[:, position] for head in range(3)], axis=1)
        close_to(tab.matrix("heads"), heads)
        close_to(tab.matrix("heads", "z"), levels(heads, "sqrt", per_layer=True))
        assert f"when {position} " in tab["heads-hint"].text_content()


def test_image_and_text_share_each_layer(tab, files):
    _, frame, _ = files
    for sinks in ((0,), ()):
        if not sinks:
            tab.page.locator("#sinks input").uncheck()
            tab.settle()
        shares = shares_of(cube(frame), sinks)
        close_to(tab.chart("split")["y"], 100 * shares[:, 1:9].sum(axis=1))
        close_to(tab.chart("split", 1)["y"], 100 * np.nansum(shares[:, [0, *range(9, 15)]], axis=1))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_how_much_each_layer_reads_is_the_sum_over_the_norm(tab, files, metric):
    """Of l2 over the norm of the unmasked quantity, of cosine as it is; sinks are left out until they are let in."""
    result, frame, _ = files
    tab.choose("metric", metric)
    for sinks in ((0,), ()):
        if not sinks:
            tab.page.locator("#sinks input").uncheck()
            tab.settle()
        values = np.delete(cube(frame, metric=metric), sinks, axis=1).sum(axis=1)
        norms = result.steps[0].baseline_norm[:, result.variants.index("Full")].astype(float)
        expected = values / norms if metric == "l2" else values
        np.testing.assert_allclose(tab.chart("totals")["y"], expected, rtol=1e-5)
    _, rows = table_of(tab.download("[data-card=totals] button:text-is('CSV')")[0])
    np.testing.assert_allclose([float(row[-1]) for row in rows], expected, rtol=1e-5)


# --- keys, links, themes ----------------------------------------------------------------------------------------------


def test_keys_are_layer_step_metric_scale(tab, files):
    result, frame, _ = files
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert tab["layer-value"].text_content() == "1 / 3"
    assert tab.texts("#range label:has(:checked)") == ["One"]
    tab.press("ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown")
    close_to(tab.matrix(), folded(result, left_out(cube(frame, 1))))
    tab.press("m")
    close_to(tab.matrix(), folded(result, left_out(cube(frame, 1, "cosine"))))
    tab.press("s")
    close_to(tab.matrix(what="z"), levels(folded(result, left_out(cube(frame, 1, "cosine"))), "log", per_layer=True))
    tab.press("Shift+M", "s")
    close_to(tab.matrix(what="z"), levels(folded(result, left_out(cube(frame, 1))), "linear", per_layer=True))
    assert tab["live"].text_content() == "Layer 1, produced token 1, Local impact, L2, Full, linear scale"


WATCH = """() => {
  window.seen = {};
  const root = document.documentElement;
  new MutationObserver(() => { window.seen[root.dataset.drawn] = document.getElementById("heat").data[0].customdata[0][1]; })
    .observe(root, { attributeFilter: ["data-drawn"] });
}"""


@pytest.mark.parametrize("is_in_sight", [True, False])
def test_what_is_in_sight_is_drawn_first_and_the_rest_as_well(files, open_page, is_in_sight):
    result, _, page = files
    tab = open_page(page)
    tab.page.set_viewport_size({"width": 1280, "height": 300})
    tab["heat" if is_in_sight else "main"].evaluate("(part) => part.scrollIntoView()")
    before = tab.matrix()[0, 1]
    tab.page.evaluate(WATCH)
    tab.press("m")
    seen, after = tab.page.evaluate("window.seen"), tab.matrix()[0, 1]
    assert after == pytest.approx(result.steps[0].cosine[0, 1, 0])
    assert before != after
    assert (seen["seen"], seen["true"]) == (after if is_in_sight else before, after)


def test_keys_leave_fields_and_shortcuts_of_the_browser_alone(tab):
    tab["variant"].focus()
    tab.press("m", "s")
    assert tab.texts("#metric label:has(:checked)") == ["L2"]
    assert tab.texts("#scale label:has(:checked)") == ["Root"]
    tab.page.evaluate("document.activeElement.blur()")
    tab.press("Control+m", "Alt+ArrowRight")
    assert tab.texts("#metric label:has(:checked)") == ["L2"]
    assert tab["layer-value"].text_content() == "0 / 3"


def test_everything_is_reached_with_the_keyboard_alone(files, open_page):
    """In an order that follows the page; what has the focus has a name and shows that it has it."""
    tab = open_page(files[2])
    reached = []
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        found = tab.page.evaluate(ABOUT_FOCUS)
        if found[0] == "BODY":
            break
        reached.append(found)
    names = [name for name, *_ in reached]
    wanted = [
        *("copy-link", "theme", "token", "play", "layer", "range", "variant", "metric", "scale", "colours"),
        *("token", "opacity", "add-token", "unit"),
    ]
    assert [name for name in names if name in wanted] == wanted
    assert all(label for _, label, *_ in reached)
    assert all(outlined for _, _, outlined, _ in reached)
    tops = [top for name, _, _, top in reached if name in ("copy-link", "play", "opacity", "add-token")]
    assert tops == sorted(tops)
    assert sum(label.startswith("Save ") for _, label, *_ in reached) == 28


def test_a_button_that_is_drawn_anew_keeps_the_focus(tab):
    tab.page.locator("#heat-card .folds button").nth(1).focus()
    tab.press("Enter")
    assert tab.matrix().shape == (4, 10)
    tab.press("Enter")
    assert tab.matrix().shape == (4, 9)
    tab.page.locator("#chips button").nth(1).focus()
    tab.press("Enter", "Enter")
    assert len(tab.texts("#chips .chip")) == 1


def test_tokens_are_chosen_with_the_keyboard(tab):
    tab.page.locator("#text .token[tabindex='0']").focus()
    tab.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "Enter")
    assert tab.texts("#chips button:first-child") == ['10 " of"']
    tab.press("End", "Home", "ArrowRight", "Enter")
    assert tab.page.locator("#text .token.image").first.get_attribute("aria-expanded") == "true"
    assert tab["layer-value"].text_content() == "0 / 3"
    tab.page.locator("#steps .token[tabindex='0']").focus()
    tab.press("ArrowRight", "Enter")
    assert tab.page.locator("#steps .token").nth(1).get_attribute("aria-pressed") == "true"


def test_a_link_restores_the_view(tab, files, open_page):
    result, frame, page = files
    tab.press("ArrowUp", "m", "s")
    tab.drag("layer", 2)
    tab.select("variant", "Head_1")
    tab.choose("colours", "global")
    tab.choose("profile-unit", "distance")
    tab.click("#heat-card .folds button >> nth=1")
    tab.click("#text [data-position='10']")
    tab.drag("opacity", 15)
    tab.page.locator("#sinks input").uncheck()
    tab.settle()
    fragment = tab.page.evaluate("location.hash")
    other = open_page(page, fragment)
    expected = folded(result, cube(frame, 1, "cosine", "Head_1"), (1,))
    close_to(other.matrix(), expected)
    close_to(other.matrix(what="z"), levels(expected, "log", per_layer=False))
    for name in ("layer-value", "opacity-value", "chips", "text", "sinks", "live", "text-hint"):
        assert other[name].text_content() == tab[name].text_content()
    assert other.texts("label:has(:checked)") == tab.texts("label:has(:checked)")
    assert other.page.evaluate("location.hash") == fragment


def test_a_link_can_only_name_what_the_file_has(tab, files, open_page):
    result, frame, page = files
    wild = "#step=99&layer=-5&metric=%3Cscript%3E&variant=__proto__&tokens=1e9,9,x,9&focus=77"
    wild += "&unfolded=7&opacity=NaN&from=9&to=0&range=band&constructor=1"
    other = open_page(page, wild)
    close_to(other.matrix(), folded(result, left_out(cube(frame, 2))))
    assert other["layer-value"].text_content() == "0 / 3"
    assert other.texts("#chips button:first-child") == ['9 " capital"']
    assert other["opacity-value"].text_content() == "0 %"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_system_s_until_it_is_changed(files, open_page, scheme):
    other = {"light": "dark", "dark": "light"}
    page = open_page(files[2], color_scheme=scheme)

    def brightness():
        return sum(rgb(page.page.evaluate("getComputedStyle(document.body).backgroundColor")))

    def paper():
        return sum(rgb(page.page.evaluate("document.getElementById('heat').layout.paper_bgcolor")))

    assert (brightness() > 400) == (paper() > 400) == (scheme == "light")
    page.click("#theme")
    assert page["theme-name"].text_content() == other[scheme]
    assert (brightness() > 400) == (paper() > 400) == (scheme == "dark")
    page.click("#theme")
    assert (brightness() > 400) == (scheme == "light")


# --- saving what is shown ---------------------------------------------------------------------------------------------


def test_the_chart_s_csv_has_the_rows_of_the_file(tab, files):
    """All that is shown: this step and variant without sinks, patches of folded images too; numbers as in the file."""
    _, frame, _ = files
    tab.press("ArrowUp")
    tab.select("variant", "Attn")
    content, name = tab.download("[data-card=heat] button >> nth=1")
    header, rows = table_of(content)
    assert header == list(COLUMNS)
    expected = frame[(frame.generation_step == 1) & (frame.variant == "Attn") & (frame.token_position != 0)]
    assert [row[:5] for row in rows] == expected[list(COLUMNS[:5])].astype(str).to_numpy().tolist()
    numbers = np.array([row[5:] for row in rows], dtype=np.float32)
    assert numbers.tobytes() == expected[list(COLUMNS[5:])].to_numpy(np.float32).tobytes()
    assert name == "run-step1-heat.csv"
    assert content.count(b"\r\n") >= len(rows)


def test_each_part_saves_its_numbers(tab, files):
    _, frame, _ = files
    tab.click("#text [data-position='12']")
    tab.drag("layer", 1)
    shares = shares_of(cube(frame))
    _, rows = table_of(tab.download("[data-card=profile] button >> nth=1")[0])
    close_to([float(row[5]) for row in rows], cube(frame)[:, 12])
    _, rows = table_of(tab.download("[data-card=heads] button >> nth=1")[0])
    assert [row[4] for row in rows] == [name for name in ("Head_0", "Head_1", "Head_2") for _ in range(4)]
    close_to([float(row[6]) for row in rows[:4]], cube(frame, 0, "cosine", "Head_0")[:, 12])
    header, rows = table_of(tab.download("[data-card=text] button >> nth=1")[0])
    scores = {int(row[header.index("token_position")]): row[header.index("score")] for row in rows}
    assert scores.pop(0) == ""  # a sink, left out
    close_to([float(score) for score in scores.values()], [shares[1, position] for position in scores])
    header, rows = table_of(tab.download("[data-card=images] button >> nth=1")[0])
    assert [[int(cell) for cell in row[5:8]] for row in rows][4:8] == [[0, 1, 1], [0, 1, 2], [1, 0, 0], [1, 0, 1]]
    close_to([float(row[-1]) for row in rows], shares[1, 1:9])
    _, rows = table_of(tab.download("[data-card=split] button >> nth=1")[0])
    close_to([float(row[4]) for row in rows], shares[:, 1:9].sum(axis=1))


@pytest.mark.parametrize("card", ["heat", "profile", "heads", "split", "text", "images"])
def test_each_part_saves_a_picture_of_itself(tab, card):
    content, name = tab.download(f"[data-card={card}] button >> nth=0")
    assert name == f"run-step0-{card}.png"
    with Image.open(io.BytesIO(content)) as picture:
        assert min(picture.size) > 60
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # not empty


@pytest.mark.parametrize("chart", ["heat", "heads"])
def test_the_bar_beside_a_map_says_what_its_numbers_say_and_a_saved_picture_has_one(tab, chart):
    tab.choose("colours", "global")
    for scale in ("linear", "log"):
        tab.choose("scale", scale)
        said = tab.page.evaluate(f"document.getElementById('{chart}').data[0].colorbar")
        assert tab.texts(f"#{chart} > .bar span") == said["ticktext"]
        tops = [float(top) for top in said["ticktext"]]
        assert tops[-1] == pytest.approx(np.nanmax(tab.matrix(chart)), rel=5e-3)
        places = tab.page.locator(f"#{chart} > .bar span").evaluate_all(
            "all => all.map((one) => parseFloat(one.style.bottom))"
        )
        assert places == [0, 25, 50, 75, 100]
        bar, plot = (tab.page.locator(f"#{chart} {one}").first.bounding_box() for one in ("> .bar i", ".nsewdrag"))
        assert (bar["y"], bar["height"]) == (pytest.approx(plot["y"], abs=1), pytest.approx(plot["height"], abs=1))
    svg = tab.download(f"[data-card={chart}] button:text-is('SVG')")[0].decode()
    assert svg.count("cbaxis") > 0
    assert tab.page.locator(f"#{chart} .cbaxis").count() == 0


# --- texts that would like to be code ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    texts = [*HOSTILE, "=1+1", "+1", "-1", "@A1", 'a"b,c']
    result = make_result(texts, n_steps=4, produced=(HOSTILE[0], HOSTILE[4], "\n", "x"), sinks=())
    name = "<img src=x onerror=alert(2)>"
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    changed = Result(**{**result.__dict__, "meta": {"model": HOSTILE[0], "notices": [HOSTILE[4]]}})
    return changed, write_report({name: changed, HOSTILE[0]: changed}, path), name


def test_texts_show_as_text_and_run_nothing(hostile, open_page):
    result, path, name = hostile
    tab = open_page(path)
    texts = [cleaned(text) for text in result.tokens.texts]
    assert tab.texts("#text .token") == [escape(text) or "\u2205" for text in texts[: result.n_prompt]]
    assert tab.texts("#steps .token") == [escape(step.token_text) for step in result.steps]
    assert tab.page.title() == f"{name} · mask-impact"
    assert tab.texts("h1") == [name]
    assert tab.texts("#prompt option") == [name, HOSTILE[0]]
    assert HOSTILE[4] in tab.texts("#notices li")
    quoted = [f'{position} "{escape(text)}"'.replace('"', "") for position, text in enumerate(texts)]
    options = [text.replace('\\"', "").replace('"', "") for text in tab.texts("#add-token option")]
    assert options[1 : 1 + result.n_prompt] == [text.replace("\\", "\\") for text in quoted[: result.n_prompt]]
    for position in range(result.n_prompt):
        tab.click(f"#text [data-position='{position}']")
    tab.page.locator("#steps .token").nth(1).click()
    tab.settle()
    assert tab["candidates-title"].text_content() == f'Candidates for "{HOSTILE[4]}"'
    assert tab.page.locator("#candidates tbody td").first.text_content() == f'"{HOSTILE[4]}" (produced)'
    tab.page.mouse.move(*cell_place(tab, 1, 0))
    tab["tip"].wait_for(state="visible")
    assert tab["tip"].text_content().split("\n")[0] == f'layer 1 · position 0 · "{HOSTILE[0]}"'
    for tag in ("img", "b", "a:not(.skip)", "body script:not([type]) ~ script"):
        assert tab.page.locator(f"main {tag}").count() == 0, tag


def test_labels_of_charts_show_markup_as_text(hostile, open_page):
    _, path, _ = hostile
    tab = open_page(path)
    drawn = tab.texts("#heat .xaxislayer-above text")
    assert '0 "<script>alert…"' in drawn
    assert '3 "-->"' in drawn
    assert '6 "&amp;"' in drawn
    assert tab.page.locator("#heat svg a, #heat svg image[href^=x]").count() == 0


def test_names_of_variants_show_markup_as_text(tmp_path, open_page):
    """A table of others can have any."""
    names = {"Attn": "<img src=x onerror=alert(3)>", "Head_0": "Head_<b>0</b>", "Head_1": "Head_<a href=x>"}
    frame = (
        to_table(make_result()).to_pandas().astype({"token_masked": str, "variant": str}).replace({"variant": names})
    )
    frame.to_parquet(tmp_path / "x.parquet")
    tab = open_page(write_report(tmp_path / "x.parquet"))
    assert sorted(tab.texts("#variant option")) == sorted(["Full", *names.values()])
    assert {"<b>0</b>", "<a href=x>"} <= set(tab.texts("#heads .xaxislayer-above text"))
    for name in names.values():
        tab.select("variant", name)
        assert name in tab["heat-hint"].text_content()


def test_csv_holds_texts_as_they_are(hostile, open_page):
    """In quotation marks, theirs doubled; a text that begins with = + - @ is data and is not changed."""
    result, path, _ = hostile
    tab = open_page(path)
    header, rows = table_of(tab.download("[data-card=text] button >> nth=1")[0])
    column = header.index("token_masked")
    assert [row[column] for row in rows] == [cleaned(text) for text in result.tokens.texts[: result.n_prompt]]


# --- other results ----------------------------------------------------------------------------------------------------


def test_a_text_result_has_no_part_for_images(tmp_path, open_page):
    tab = open_page(make_files(tmp_path, make_result(n_steps=1))[1])
    for name in ("images-card", "split-card"):
        assert not tab[name].is_visible()
    assert tab["heads-card"].is_visible()


@pytest.mark.parametrize("groups", [("full",), ("heads",)])
def test_results_of_some_variants_show_those(tmp_path, open_page, groups):
    result = make_result(groups=groups)
    frame, page = make_files(tmp_path, result)
    tab = open_page(page)
    assert tab.texts("#variant option") == list(result.variants)
    close_to(tab.matrix(), left_out(cube(frame, variant=result.variants[0])))
    assert tab["heads-card"].is_visible() == (groups == ("heads",))


@pytest.mark.parametrize("mask_mode", ["text", "vision"])
def test_tokens_that_were_not_masked_have_no_value(tmp_path, open_page, mask_mode):
    result = make_result(WORDS, grids=((2, 2),), mask_mode=mask_mode)
    _, page = make_files(tmp_path, result)
    tab = open_page(page)
    n_columns = len(WORDS) if mask_mode == "text" else 1
    assert tab.matrix().shape == (3, n_columns)
    assert not tab["split-card"].is_visible()
    tab.page.locator("#text .token").nth(2).hover()
    assert ("not masked" in tab["tip"].text_content()) == (mask_mode == "vision")


def test_a_table_of_others_shows_what_it_has(tmp_path, open_page):
    """Without candidates, with a guessed grid that is said, with holes where a distance is missing, and with cosine distances
    that rounding has made slightly negative."""
    result = make_result(["a", *["<|image_pad|>"] * 6, " b"], n_steps=2, sinks=())
    frame = to_table(result).to_pandas().astype({"token_masked": str, "variant": str})
    frame.loc[(frame.layer == 1) & (frame.token_position == 7), "l2_distance"] = np.nan
    frame.loc[0, "cosine_distance"] = -1e-7
    frame.to_parquet(tmp_path / "x.parquet")
    tab = open_page(write_report(tmp_path / "x.parquet"))
    assert tab["no-candidates"].is_visible()
    assert any("2 rows x 3 columns, is a guess" in note for note in tab.texts("#notices li"))
    assert np.isnan(tab.matrix()[1, -1])
    assert not np.isnan(tab.matrix()[0, -1])
    tab.page.mouse.move(*cell_place(tab, 1, 2))
    tab["tip"].wait_for(state="visible")
    assert "L2 no value" in tab["tip"].text_content()
    assert tab.texts("#steps .token") == [" Paris", "token 1"]
    tab.choose("metric", "cosine")
    assert tab.matrix()[0, 0] == np.float32(-1e-7)
    assert tab.matrix(what="z")[0, 0] == 0


def test_a_chooser_changes_between_prompts(tmp_path, open_page):
    results = {
        f"prompt {n}": make_result([f"word{i}" for i in range(n + 3)], n_layers=n + 2, seed=n, sinks=())
        for n in range(3)
    }
    tab = open_page(write_report(results, tmp_path / "x.html"))
    tab.choose("metric", "cosine")
    for n in (2, 0, 1):
        tab.select("prompt", n)
        close_to(tab.matrix(), results[f"prompt {n}"].steps[0].cosine[:, :, 0])
        assert tab["layer"].get_attribute("max") == str(n + 1)
    assert "prompt=1" in tab.page.evaluate("location.hash")


def test_rounded_heads_say_so(tmp_path, open_page):
    result = make_result([f" {n}" for n in range(60)], n_layers=6, sinks=())
    tab = open_page(write_report(result, tmp_path / "x.html", max_megabytes=0.1))
    assert any("the distances of the heads are rounded" in note for note in tab.texts("#notices li"))
    tab.select("variant", "Head_0")
    tab.page.mouse.move(*cell_place(tab, 1, 2))
    tab["tip"].wait_for(state="visible")
    assert "L2 ≈ " in tab["tip"].text_content()
    np.testing.assert_allclose(tab.matrix(), result.steps[0].l2[:, :, 2], rtol=2**-8)
    assert tab.download("[data-card=heat] button >> nth=1")[1] == "result-step0-heat-rounded.csv"
    tab.select("variant", "Full")
    assert (tab.matrix() == result.steps[0].l2[:, :, 0]).all()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """As many tokens as an image of a megapixel and a question have."""
    result = make_result([f" word{n}" for n in range(29)], n_steps=2, n_layers=36, n_heads=4, grids=((32, 32),))
    return (result, *make_files(tmp_path_factory.mktemp("large"), result))


@pytest.mark.slow
def test_a_thousand_tokens_are_shown(large, open_page):
    result, frame, page = large
    tab = open_page(page)
    values = left_out(cube(frame))
    close_to(tab.matrix(), folded(result, values))
    tab.page.locator("#heat-card .folds button").click()
    tab.settle()
    assert tab.matrix().shape == (36, 1053)
    close_to(tab.matrix(), values)
    ticks = tab.page.evaluate("document.getElementById('heat').layout.xaxis.ticktext.length")
    assert 20 < ticks < 120
    tab.press("ArrowUp", "m", "ArrowRight")
    close_to(tab.matrix(), left_out(cube(frame, 1, "cosine")))


# --- how it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "large", "hostile"])
def test_nothing_is_wider_than_the_window(request, files, open_page, kind):
    """In both schemes; a screenshot is kept where it is asked for."""
    path = {"image": lambda: files[2], "large": lambda: request.getfixturevalue("large")[2],
            "hostile": lambda: request.getfixturevalue("hostile")[1]}[kind]()  # fmt: skip
    tab = open_page(path, color_scheme="light")
    for scheme, width in (("light", 1280), ("dark", 390)):
        tab.resize(width, 900, scheme)
        tab.keep_screenshot(f"report-{kind}-{scheme}-{width}", full_page=True)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        drawn = tab.page.evaluate(
            "[...document.querySelectorAll('.chart')].filter((chart) => chart.clientHeight).map((chart) => "
            "[chart.querySelector('.svg-container').clientHeight - chart.clientHeight])"
        )
        assert np.max(drawn) <= 1  # charts stay within their places when the window changes
