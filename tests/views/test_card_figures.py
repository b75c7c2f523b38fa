"""Figures to publish say what was measured: bars, colours and outlines are computed again here and found in the figure; texts
are found as they were, within the page; files are the same each time, with fonts and without dates."""

import dataclasses
import io
import re

import matplotlib
import numpy as np
import pytest
from explained import explained
from marks import slow_but
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from PIL import Image
from synthetic import make_explanation, make_image, make_result, make_tokens

from mask_impact.errors import OutputError, UsageError
from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.results.explanations import (
    Agreement,
    Evidence,
    ExplainedTarget,
    Explanation,
    HeadCut,
    LayerEstimates,
    Route,
    TokenSet,
)
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts
from mask_impact.views.card import Card
from mask_impact.views.card_figure import card_figure
from mask_impact.views.comparison_plot import comparison_figure
from mask_impact.views.estimates_plot import estimates_figure
from mask_impact.views.figure_blocks import nats
from mask_impact.views.figure_files import WIDTHS, figure_path, figure_width, save_figure
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.patches_plot import patches_figure
from mask_impact.views.pictures import save_card, save_plots
from mask_impact.views.plots import AGAINST, FOR, INK, caption_of, glyphs, inches, quiet, wrapped
from mask_impact.views.routes_plot import flows_strips, routes_figure

# --- reading a figure -------------------------------------------------------------------------------------------------


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def named(figure, gid):
    (found,) = figure.findobj(lambda artist: artist.get_gid() == gid)
    return found


def has(figure, gid):
    return bool(figure.findobj(lambda artist: artist.get_gid() == gid))


def images_axes(figure):
    """Those of the card's images: a picture under its cells' colours."""
    return [axes for axes in figure.axes if len(axes.images) == 2]


def outline(axes):
    """The lines around evidence, as corner points."""
    white, ink = (one for one in axes.collections if isinstance(one, LineCollection))
    assert (to_hex(white.get_color()[0]), to_rgb(ink.get_color()[0])) == ("#ffffff", to_rgb(INK))
    return sorted(tuple(map(tuple, segment.tolist())) for segment in ink.get_segments())


def assert_within(figure):
    """Every text lies within the page, and no two overlap."""
    with quiet():
        figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    extents = np.array([text.get_window_extent().extents for text in texts])
    width, height = figure.canvas.get_width_height()
    outside = (extents[:, :2] < -1).any(1) | (extents[:, 2:] > [width + 1, height + 1]).any(1)
    assert not outside.any(), [texts[place].get_text() for place in np.flatnonzero(outside)]
    for index, box in enumerate(extents):
        apart = (extents[:, :2] >= box[2:] - 2).any(1) | (extents[:, 2:] <= box[:2] + 2).any(1)
        touching = [texts[other].get_text() for other in np.flatnonzero(~apart) if other != index]
        assert not touching, f"{texts[index].get_text()!r} overlaps {touching}"


# --- making one -------------------------------------------------------------------------------------------------------


def made(texts, grids=(), n_measured=9, said="said", seed=0, deciding=None, **changes):
    """An explanation of images of these grids and then these texts; the n_measured strongest are measured, and the units
    `deciding` (the two strongest) are evidence. changes: of the target."""
    rng = np.random.default_rng(seed)
    cells = [(number, row, column) for number, grid in enumerate(grids) for row, column in np.ndindex(grid)]
    names = [*["<|image_pad|>"] * len(cells), *texts]
    tokens, n = make_tokens([*names, said], dict(enumerate(cells))), len(names)
    contribution = (-np.exp(rng.normal(size=n) * 1.5 - 2) * np.where(rng.random(n) < 0.2, -1, 1)).astype(np.float32)
    order = np.argsort(contribution)
    measured = np.isin(np.arange(n), order[:n_measured])
    places = tuple(map(int, order[:2] if deciding is None else deciding))
    needed = TokenSet(places, True, "another $x$ answer", True)
    evidence = Evidence(
        "image" if grids else "text", True, needed, dataclasses.replace(needed, confirmed=False), False, 2.0
    )
    target = ExplainedTarget(
        steps=(0,), token_ids=(7,), text=said, probability=0.5, instead=None, measure="log-prob", names=tuple(names),
        positions=tuple((place,) for place in range(n)), kinds=tokens.kinds[:n], contribution=contribution,
        estimate_local=contribution, logprob_change=np.where(measured, 1.5 * contribution, np.nan).astype(np.float32),
        kl_divergence=np.where(measured, 1.0, np.nan), top1=np.where(measured, 9, -1), top1_texts={9: "o$th_{er}$ " * 9},
        differs=measured.copy(), control=np.zeros(n, dtype=bool), content=np.ones(n, dtype=bool),
        agreement=Agreement(2, 1.0, 1.0, 1.2, 0.4), reliable=False, forwards=1.0, evidence=(evidence,) if places else (),
    )  # fmt: skip
    images = tuple(make_image(grid, number) for number, grid in enumerate(grids))
    meta = {"model": "m$_x$", "command": "mask-impact run x"}
    return Explanation((dataclasses.replace(target, **changes),), tokens, images, n, said, meta=meta)


def words(n, seed=1):
    rng = np.random.default_rng(seed)
    return [" " + "".join(rng.choice(list("abcdefghijkm"), rng.integers(1, 9))) for _ in range(n)]


HOSTILE = [
    " $x$",
    " \\frac{a}{b}",
    " two\nlines",
    "\u202eabc",
    "\x1b[31m",
    " <b>",
    "&amp;",
    "\ud83d",
    "👩",
    "\n\n\n",
    "",
]
CASES = {
    "long": lambda: made(words(3000), said="W" * 300),
    "images": lambda: made(words(9), [(8, 6)] * 40),
    "odd shapes": lambda: made([" a"], [(1, 100), (100, 1)]),
    "one token": lambda: made(["x"], n_measured=1, deciding=[0]),
    "no evidence": lambda: made(words(4), deciding=[]),
    "cjk": lambda: made([*"图中的星星是什么颜色請用一句話回答我" * 3, "漢" * 400]),
    "rtl": lambda: made([" מה", " הצבע", " של", " הכוכב", "?"]),
    "hostile": lambda: made(HOSTILE, [(3, 3)], said="<i>$\\alpha"),
    "a long word": lambda: made(["W" * 900, " b"]),
}


# --- the card ---------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_effects_and_hollow_where_these_are_estimated():
    figure = card_figure(make_explanation())  # changes: -0.4 and -2.5 measured, +0.25 estimated
    assert named(figure, "bar-2").get_width() == pytest.approx(1)
    assert named(figure, "bar-0").get_width() == pytest.approx(0.4 / 2.5)
    assert named(figure, "bar-1").get_width() == pytest.approx(0.25 / 2.5)
    bars = [named(figure, f"bar-{place}") for place in range(3)]
    colours = [(to_hex(bar.get_facecolor()), to_hex(bar.get_edgecolor())) for bar in bars]
    assert colours == [(FOR, FOR), ("#ffffff", AGAINST), (FOR, FOR)]
    heights = [named(figure, f"bar-{place}").get_window_extent().y0 for place in (2, 0, 1)]
    assert heights == sorted(heights, reverse=True)  # the strongest on top


def test_the_card_says_what_was_asked_said_used_and_found():
    found = dataclasses.replace(make_explanation(), meta={"model": "tiny", "command": "mask-impact explain x"})
    texts = texts_of(card_figure(found))
    card = Card(found)
    assert " ".join(wrapped(card.sentence, 11, 6.6, 4)) in " ".join(texts)
    assert {"the", "cat", "mat", "75.0 %", "without it: <b>", "answer stays", "estimated"} <= {*texts}
    assert {row.name for row in card.rows} | {nats(row.change) for row in card.rows} <= {*texts}
    assert f"Without {card.verdicts[0].name} the model says “<b>”." in texts
    assert f"With {card.verdicts[1].name} alone, all other cells hidden, it says “mat”." in texts
    assert "tiny · mask-impact explain x" in texts
    assert card.note in " ".join(texts)
    assert {"measured", "evidence", nats(-card.largest)} <= {*texts}


@pytest.mark.parametrize(
    ("change", "shown"),
    [(-9.183, "\u22129.18"), (0.25, "+0.25"), (-0.0412, "\u22120.041"), (0.0004, "0"), (-1234.5, "\u22121234.50")],
)
def test_changes_are_written_with_a_sign_and_at_least_two_figures(change, shown):
    assert nats(change) == shown


def test_words_have_the_colour_of_their_effect_and_none_without_one():
    found = make_explanation(contribution=np.array([-0.5, 0.0, -3.0], dtype=np.float32))
    figure = card_figure(found)
    shade = np.array(named(figure, "word-0").get_facecolor()[:3])
    np.testing.assert_allclose(shade, 1 - (0.4 / 2.5) * (1 - np.array(to_rgb(FOR))), atol=1e-6)
    assert not has(figure, "word-1")
    against = card_figure(make_explanation(contribution=np.array([-0.5, 2.0, -3.0], dtype=np.float32)))
    shade = np.array(named(against, "word-1").get_facecolor()[:3])
    np.testing.assert_allclose(shade, 1 - (2.0 / 2.5) * (1 - np.array(to_rgb(AGAINST))), atol=1e-6)
    assert "speaks against the answer" in texts_of(against)


def test_a_word_s_colour_lies_under_the_word():
    figure = card_figure(made([" alpha", " beta", " gamma"]))
    figure.canvas.draw()
    for place, word in enumerate(["alpha", "beta", "gamma"]):
        box = named(figure, f"word-{place}").get_window_extent()
        (text,) = (text for text in figure.texts if text.get_text() == word)
        inner = text.get_window_extent()
        assert box.x0 <= inner.x0 + 1 and inner.x1 <= box.x1 + 1  # noqa: PT018
        assert box.y0 <= inner.y0 + 1 and inner.y1 <= box.y1 + 1  # noqa: PT018


def test_cells_are_tinted_by_their_effect():
    found = made(words(3), [(2, 3)])
    card = Card(found)
    (axes,) = images_axes(card_figure(found))
    overlay = np.asarray(axes.images[1].get_array())
    for cell in card.cells:
        colour = np.array(to_rgb(FOR if cell.change < 0 else AGAINST))
        strength = 0 if cell.evidence else abs(cell.change) / card.largest
        np.testing.assert_allclose(overlay[cell.row, cell.column], (*colour, 0.7 * strength), atol=1e-6)
    assert len({*overlay[..., 3].ravel().tolist()}) > 2
    assert tuple(axes.images[1].get_extent()) == (0, 150, 80, 0)  # pixels of the original image


def test_evidence_is_outlined_as_one_piece():
    found = made(words(3), [(2, 3)], deciding=[0, 1])  # the first two cells of the upper row, of 50 x 40 pixels
    (axes,) = images_axes(card_figure(found))
    assert outline(axes) == [
        ((0, 0), (0, 40)), ((0, 0), (100, 0)), ((0, 40), (100, 40)), ((100, 0), (100, 40)),
    ]  # fmt: skip
    apart = made(words(3), [(2, 3)], deciding=[0, 5])
    assert len(outline(images_axes(card_figure(apart))[0])) == 8
    nothing = card_figure(made(words(3), [(2, 3)], deciding=[]))
    assert outline(images_axes(nothing)[0]) == []
    assert "evidence" not in texts_of(nothing)


def test_the_picture_is_shown_under_the_cells_and_grey_where_there_is_none():
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (250, 10, 10)).save(file, "JPEG", quality=100)
    found = made(words(2), [(2, 3)])
    for preview, colour in ((file.getvalue(), [250, 10, 10]), (b"no picture", [204, 204, 204])):
        image = dataclasses.replace(found.images[0], preview=preview)
        (axes,) = images_axes(card_figure(dataclasses.replace(found, images=(image,))))
        shown = np.asarray(axes.images[0].get_array()).mean(axis=(0, 1)) * 255
        np.testing.assert_allclose(shown, colour, atol=4)


def test_of_many_images_those_with_evidence_and_the_largest_effects_are_shown():
    found = made(words(3), [(2, 2)] * 12, deciding=[4 * 11, 4 * 11 + 1])
    card, figure = Card(found), card_figure(found)
    weights = {n: max(abs(cell.change) for cell in card.cells if cell.image == n) for n in range(12)}
    expected = sorted({11, *sorted(set(weights) - {11}, key=lambda n: -weights[n])[:7]})
    assert [text for text in texts_of(figure) if re.fullmatch(r"image \d+", text)] == [f"image {n}" for n in expected]
    assert len(images_axes(figure)) == 8
    assert "the 8 of 12 images with the largest effects" in texts_of(figure)


def test_of_a_long_question_the_strongest_words_and_those_around_them_are_shown():
    texts = words(3000)
    found = made(texts)
    figure = card_figure(found)
    card = Card(found)
    strongest = max(card.words, key=lambda word: abs(word.change))
    assert has(figure, f"word-{strongest.place}")
    shown = texts_of(figure)
    place = shown.index(strongest.text.strip())
    around = [text.strip() for text in texts[strongest.place - 2 : strongest.place + 3]]
    assert shown[place - 2 : place + 3] == around
    assert shown.count("…") >= 2
    short = texts_of(card_figure(made(texts[:20])))
    assert "…" not in short
    assert [text for text in short if text in {one.strip() for one in texts[:20]}][:20] == [
        one.strip() for one in texts[:20]
    ]


# There is less room in a narrow card; two are drawn wide as well.
@pytest.mark.parametrize(("case", "width"), [*((case, 3.0) for case in CASES), ("images", 6.9), ("hostile", 6.9)])
def test_any_text_and_any_images_fit(case, width):
    with quiet():
        figure = card_figure(CASES[case](), 0, width)
    assert figure.get_figwidth() == width
    assert figure.get_figheight() < 25
    assert_within(figure)


def test_no_text_is_taken_for_a_formula_and_what_can_t_be_seen_is_written_out():
    with quiet():
        figure = card_figure(CASES["hostile"]())
        routes = routes_figure(routed("$x$ -> \u202elast"))
    for one in (figure, routes):
        assert not any(text.get_parse_math() or text.get_usetex() for text in one.findobj(Text) if text.get_text())
        assert not any("\u202e" in text or "\n" in text for text in texts_of(one))
    assert {"$x$", "\\\\frac{a}{b}", "two lines", "\\u202eabc", "\\x1b[31m", "<b>"} <= {*texts_of(figure)}
    assert "$x$ → \\u202elast" in texts_of(routes)


def test_a_part_of_an_answer_says_of_which_and_against_what_it_is_held():
    found = dataclasses.replace(made(words(3), said="Paris"), generated_text="It is Paris, of course.")
    target = dataclasses.replace(found.targets[0], instead=(5, " Rome"))
    texts = texts_of(card_figure(dataclasses.replace(found, targets=(found.targets[0], target)), 1))
    assert "of the answer “It is Paris, of course.”" in texts
    assert "50.0 % · rather than Rome" in texts
    meaning = "change of the answer's log-probability over that of “Rome” where a word or cell is hidden, nats"
    assert meaning in " ".join(texts)


def test_where_a_kind_does_not_matter_the_card_says_so():
    found = made(words(3), deciding=[], evidence=(Evidence("text", False, None, None, False, 1.0),))
    assert "With all words hidden it still says “said”." in texts_of(card_figure(found))


def test_wrapped_texts_lose_nothing_and_end_with_an_ellipsis_where_lines_do():
    text = " ".join(word.strip() for word in words(40)) + " " + "W" * 80
    lines = wrapped(text, 8, 2.0, 99)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(inches(line, 8) for line in lines) <= 2.0
    assert inches(f"{lines[0]} {lines[1].split()[0]}", 8) > 2.0
    cut = wrapped(text, 8, 2.0, 3)
    assert (len(cut), cut[:2], cut[2][-1]) == (3, lines[:2], "…")
    assert wrapped("", 8, 2.0, 3) == []
    assert wrapped("漢\n$", 8, 2.0, 3) == [glyphs("漢\n$")]


# --- routes -----------------------------------------------------------------------------------------------------------


def routed(name="image -> last", n_layers=6, heads=None, **changes):
    """An explanation with two routes, the first of them cut in layers 2 to 3."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(n_layers, 4)).astype(np.float32) * size for size in (1, 0.1))
    cut = {"whole_change": -1.5, "layers": (2, 3), "logprob_change": -0.75} | changes
    routes = (
        Route(name, "image", "last", first, first, **cut),
        Route("question -> last", "question", "last", second, second),
    )
    return made(words(4), routes=routes, heads=heads)


def bars_of(axes):
    return [
        (bar.get_height(), to_hex(bar.get_facecolor()), to_hex(bar.get_edgecolor()))
        for bar in axes.patches
        if bar.get_width() < 1
    ]


def test_a_strip_has_what_a_route_carries_in_each_layer_filled_where_it_was_really_cut():
    found = routed()
    figure = routes_figure(found)
    first, second = figure.axes
    for axes, route in zip((first, second), found.targets[0].routes, strict=True):
        carried = -route.contribution.astype(float).sum(axis=1)
        heights, faces, edges = zip(*bars_of(axes), strict=True)
        np.testing.assert_allclose(heights, carried, rtol=1e-6)
        assert list(edges) == [FOR if value >= 0 else AGAINST for value in carried]
        solid = [face == edge for face, edge in zip(faces, edges, strict=True)]
        assert solid == ([False, False, True, True, False, False] if axes is first else [False] * 6)
        assert {face for face, one in zip(faces, solid, strict=True) if not one} == {"#ffffff"}
    assert first.get_ylim() == second.get_ylim()  # one scale
    assert first.get_ylim()[1] > max(height for height, *_ in bars_of(first))
    texts = texts_of(figure)
    assert {"cut in all layers: \u22121.50 · in layers 2–3: \u22120.75", "estimated only", "image → last"} <= {*texts}
    assert {"really cut in these layers", "Routes to “said”", "m$_x$ · mask-impact run x"} <= {*texts}


def test_the_routes_say_of_what_they_are_changes():
    found = routed()
    target = dataclasses.replace(found.targets[0], instead=(5, " Rome"))
    texts = " ".join(texts_of(routes_figure(dataclasses.replace(found, targets=(target,)))))
    assert "the answer's log-probability over that of “Rome” without it" in texts
    target = dataclasses.replace(found.targets[0], measure="log-odds")
    texts = " ".join(texts_of(routes_figure(dataclasses.replace(found, targets=(target,)))))
    assert "the answer's log-odds without it" in texts


def test_routes_that_were_not_cut_are_hollow_and_nothing_says_that_they_were():
    figure = routes_figure(routed(whole_change=None, layers=None, logprob_change=None))
    assert {face for axes in figure.axes for _, face, _ in bars_of(axes)} == {"#ffffff"}
    texts = texts_of(figure)
    assert texts.count("estimated only") == 3  # of both strips, and in the legend
    assert not any("really cut" in text for text in texts)


def test_the_heads_that_carry_most_stand_at_their_layer_and_number():
    figure = routes_figure(routed(heads=HeadCut(((5, 3), (0, 1)), -0.5, " no", -0.125)))
    (line,) = figure.axes[-1].lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(5, 3), (0, 1)]
    said = "the 2 heads that carry most: without them \u22120.50, then “no”; without as many at random \u22120.12"
    assert said in " ".join(texts_of(figure))
    assert len(routes_figure(routed()).axes) == 2


@pytest.mark.parametrize("width", [3.0, pytest.param(6.9, marks=pytest.mark.slow)])
def test_routes_of_any_name_and_depth_fit(width):
    for found in (
        routed("long $name$ " * 30, 120, HeadCut(((0, 0),), -1.0, "W" * 300, 0.0)),
        routed(n_layers=1, layers=(0, 0)),
    ):
        assert_within(routes_figure(found, 0, width))


def knockouts():
    rng = np.random.default_rng(2)
    flows = [FlowPositions(Flow(f"{name} -> last", name, "last"), (0, 1), None) for name in ("image", "question")]
    steps = [
        FlowStep(step, 7, " mat", 0.5, rng.normal(size=(2, 5)).astype(np.float32), np.ones((2, 5), dtype=np.float32),
                 np.where(rng.random((2, 5)) < 0.5, 7, 8), {7: " mat", 8: " b"}, (0.1, 0.2, 0.3), 7)
        for step in range(2)
    ]  # fmt: skip
    meta = {"model": "tiny", "window": 3, "ablation": "mask"}
    tokens = make_tokens(["a", "b", " mat"])
    return Knockouts(tuple(flows), tuple(steps), np.arange(5), np.arange(5) + 1, " mat mat", tokens, meta)


def test_flows_are_drawn_as_strips_that_are_measured():
    found = knockouts()
    figure = flows_strips(found, 1)
    for axes, change in zip(figure.axes, found.steps[1].logprob_change, strict=True):
        heights, faces, edges = zip(*bars_of(axes), strict=True)
        np.testing.assert_allclose(heights, -change.astype(float), rtol=1e-6)
        assert faces == edges
    assert any("cut in 3 layers around each layer" in text for text in texts_of(figure))
    assert "estimated only" not in texts_of(figure)


# --- results side by side ---------------------------------------------------------------------------------------------


def compared(**settings):
    results = {
        name: make_result(words(8), n_layers=6, seed=seed, grids=[(2, 2)])
        for seed, name in enumerate(("one", "two", "$3$"))
    }
    return compare_results(results, Settings(n_permutations=9, **settings))


def test_the_profile_and_the_tokens_hold_what_the_comparison_found():
    comparison = compared()
    figure = comparison_figure(comparison)
    depth, tokens = figure.axes[1:3]  # behind the legend
    for line, side in zip(depth.lines, comparison.sides, strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * side.depth_shares)
    dots = [line for line in tokens.lines if line.get_marker() not in ("None", None, "")]
    shares = [100 * side.shares(side.overall) for side in comparison.sides]
    labels = [label.get_text() for label in tokens.get_yticklabels()]
    assert len(dots) == 3 * len(labels) > 9
    best = max((abs(pair.differing()[0][2]), pair.differing()[0][0]) for pair in comparison.pairs)[1]
    assert [dot.get_xdata()[0] for dot in dots[:1]] == [pytest.approx(shares[0][best])]
    partners = [{int(a): int(b) for a, b in pair.matched} for pair in comparison.pairs]
    expected = [shares[n][to[best]] for n, to in enumerate(partners, 1)]
    assert [dot.get_xdata()[0] for dot in dots[1:3]] == pytest.approx(expected)
    texts = " ".join(texts_of(figure))
    rho = comparison.pairs[1].overall.rho
    assert f"$3$ → “Paris”   rank correlation with the first {rho:.2f}" in texts
    assert len({line.get_color() for line in depth.lines}) == 3


def test_what_both_answers_use_has_a_bar_each_hollow_where_it_is_estimated():
    results = {}
    for name, change in (("one", -2.0), ("two", -1.0)):
        result = explained(make_result(words(4), n_layers=6), {1: change, 2: -3.0}, becomes={2: " other"})
        target = result.answer.targets[0]
        if name == "two":  # the first of them was not hidden here
            measured, estimated = target.logprob_change.copy(), target.contribution.copy()
            measured[target.positions.index((1,))], estimated[target.positions.index((1,))] = np.nan, -0.5
            target = dataclasses.replace(target, logprob_change=measured, contribution=estimated)
        results[name] = dataclasses.replace(result, answer=dataclasses.replace(result.answer, targets=(target,)))
    figure = comparison_figure(compare_results(results, Settings(n_permutations=9)))
    bars = next(axes for axes in figure.axes if axes.patches)
    rows = [label.get_text() for label in bars.get_yticklabels()]
    assert len(rows) == 2
    lengths = np.array([bar.get_width() for bar in bars.patches]).reshape(2, 2)
    np.testing.assert_allclose(lengths, [[3.0, 3.0], [2.0, 0.5]])
    assert [bar.get_facecolor()[3] for bar in bars.patches] == [1, 1, 1, 0]
    assert {to_hex(bar.get_edgecolor()) for bar in bars.patches} == {FOR, AGAINST}
    assert any("Both use" in text for text in texts_of(figure))


def test_where_depths_can_t_be_compared_their_agreement_is_shown():
    results = {name: make_result(words(8), n_layers=6, seed=seed) for seed, name in enumerate(("one", "two"))}
    norms = [
        dataclasses.replace(step, baseline_norm=np.full_like(step.baseline_norm, np.nan))
        for step in results["two"].steps
    ]
    results["two"] = dataclasses.replace(results["two"], steps=tuple(norms))
    comparison = compare_results(results, Settings(n_permutations=9))
    assert comparison.scale == "share"
    figure = comparison_figure(comparison)
    assert "rank correlation with the first, by depth" in texts_of(figure)
    np.testing.assert_allclose(figure.axes[1].lines[-1].get_ydata(), [one.rho for one in comparison.pairs[0].bands])


@pytest.mark.parametrize("width", [3.0, pytest.param(6.9, marks=pytest.mark.slow)])
def test_a_comparison_fits(width):
    results = {"W" * 80 + str(n): make_result(["W" * 50, *words(300)], n_layers=3, seed=n) for n in range(8)}
    assert_within(comparison_figure(compare_results(results, Settings(n_permutations=9)), width))


# --- maps and patches to publish --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", slow_but((3.0,), [3.0, 6.9]))
@pytest.mark.parametrize("draw", [layers_figure, patches_figure])
def test_maps_and_patches_are_as_wide_as_asked_and_have_a_caption(draw, width):
    for result in (
        make_result(grids=[(2, 3)], n_layers=12, n_steps=2, sinks=(0, 3)),
        make_result(words(3000), n_layers=3, groups=("full",), grids=[(3, 4)] * 9),
        make_result(words(2), grids=[(1, 40)], n_layers=120, groups=("full",)),
    ):
        figure = draw(result, width=width, caption="tiny · mask-impact run x")
        assert figure.get_figwidth() == pytest.approx(width)
        assert "tiny · mask-impact run x" in texts_of(figure)
        assert_within(figure)


@pytest.mark.parametrize(("variant", "metric"), [("Head_1", "l2"), ("Attn", "cosine"), (None, "cosine")])
def test_a_map_of_other_distances_has_their_shares(variant, metric):
    result = make_result(n_layers=4)
    array = np.ma.filled(
        layers_figure(result, variant=variant, metric=metric).axes[0].collections[0].get_array(), np.nan
    )
    (step,) = result.steps
    distances = getattr(step, metric)[:, 1:, result.variants.index(variant or "Full")].astype(float)  # 0 is a sink
    np.testing.assert_allclose(array[:, 1:], 100 * distances / distances.sum(axis=1, keepdims=True), rtol=1e-6)
    figure = layers_figure(result, variant=variant, metric=metric)
    assert any(f"{variant or 'Full'}{' cosine' * (metric == 'cosine')} impact" in text for text in texts_of(figure))
    with pytest.raises(UsageError, match="the result has Full, Attn, Head_0, Head_1"):
        layers_figure(result, variant="Head_9")


# --- estimates by layer -----------------------------------------------------------------------------------------------


def with_estimates(result, n_layers=5):
    """An explained result, and what each position gives in each layer, both ways."""
    found = explained(result, {result.n_prompt - 1: -2.0}).answer
    random = np.random.default_rng(3)
    both = [random.normal(size=(n_layers, result.n_prompt)).astype(np.float32) for _ in range(2)]
    target = dataclasses.replace(found.targets[0], by_layer=LayerEstimates(*both))
    return dataclasses.replace(found, targets=(target,)), dict(zip(("contribution", "estimate"), both, strict=True))


@pytest.mark.parametrize("shown", ["contribution", "estimate"])
def test_a_map_of_estimates_has_what_each_token_gives_and_the_sum_of_an_image(shown):
    found, values = with_estimates(make_result(grids=[(2, 3)]))
    figure = estimates_figure(found, shown=shown)
    mesh = figure.axes[0].collections[0]
    drawn = np.asarray(mesh.get_array())
    image = found.tokens.image[: found.n_prompt]
    first = int(np.flatnonzero(image == 0)[0])
    for layer in range(5):
        expected = [float(values[shown][layer, at]) for at in range(found.n_prompt) if image[at] < 0]
        expected.insert(first, sum(float(values[shown][layer, at]) for at in range(found.n_prompt) if image[at] == 0))
        np.testing.assert_allclose(drawn[layer], expected, rtol=1e-5)
    colours = mesh.cmap(mesh.norm(np.array([drawn.min(), 0.0, -drawn.min()])))
    assert colours[0][0] > 0.8 > 0.3 > colours[0][2]  # for the answer: orange
    np.testing.assert_allclose(colours[1][:3], 1, atol=0.02)
    assert colours[2][2] > 0.6 > 0.1 > colours[2][0]  # against it: blue
    assert mesh.norm.vmax == -mesh.norm.vmin == pytest.approx(np.abs(drawn).max())


@pytest.mark.parametrize("width", [3.35, 6.9])
def test_a_map_of_estimates_fits(width):
    found, _ = with_estimates(make_result(words(400), grids=[(3, 4)] * 3, n_layers=3), n_layers=40)
    figure = estimates_figure(found, width=width, caption="tiny · mask-impact run x")
    assert figure.get_figwidth() == pytest.approx(width)
    assert_within(figure)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_is_the_same_each_time_whatever_the_matplotlibrc_says(tmp_path):
    found = made(words(5), [(2, 3)])
    settings = {
        "pdf.fonttype": 3, "svg.fonttype": "none", "savefig.bbox": "tight", "text.usetex": True, "axes.grid": True,
        "figure.facecolor": "red", "savefig.facecolor": "red", "font.size": 30, "image.origin": "lower", "figure.dpi": 33,
    }  # fmt: skip
    for form in ("pdf", "svg", "png"):
        first, second = (tmp_path / f"{name}.{form}" for name in "ab")
        assert save_figure(lambda: card_figure(found), first) == first.stat().st_size
        with matplotlib.rc_context(settings):
            before = dict(matplotlib.rcParams)
            save_figure(lambda: card_figure(found), second)
            assert dict(matplotlib.rcParams) == before
        assert first.read_bytes() == second.read_bytes(), form


def test_a_pdf_has_its_fonts_and_an_svg_its_texts_as_shapes_and_neither_a_date(tmp_path):
    found = make_explanation()
    for form in ("pdf", "svg", "png"):
        save_figure(lambda: card_figure(found), tmp_path / f"a.{form}")
    pdf, svg = (tmp_path / "a.pdf").read_bytes(), (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf  # noqa: PT018
    assert b"Date" not in pdf and b"Producer" not in pdf  # noqa: PT018
    assert "<text" not in svg and "dc:date" not in svg  # noqa: PT018
    assert "<!-- without it: &lt;b&gt; -->" in svg or "<!-- without it: <b> -->" in svg
    assert re.search(r'width="496\.8', svg)  # 6.9 inches, in points
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == round(6.9 * 300)
        assert "Software" not in image.info


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "pages", "2.9", "21", ""])
def test_widths_that_can_t_be_are_refused(text):
    with pytest.raises(ValueError, match=r"column, text, page or inches from 3 to 20"):
        figure_width(text)
    assert [figure_width(name) for name in (*WIDTHS, "4.25")] == [3.35, 5.5, 6.9, 4.25]


def test_names_that_can_t_be_are_refused(tmp_path):
    for name in ("a.jpg", "a", "a.pdf.gz", ".pdf"):
        with pytest.raises(UsageError, match=r"must end in \.pdf, \.svg or \.png"):
            figure_path(name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_figure(lambda: card_figure(make_explanation()), tmp_path / "file" / "a.pdf")


def test_a_card_is_written_with_the_plots_where_there_is_an_answer(tmp_path):
    result = dataclasses.replace(
        make_result(meta={"model": "tiny", "command": "mask-impact run x"}), answer=make_explanation()
    )
    assert [path.name for path in save_plots(result, tmp_path / "a")] == ["a.layers.png", "a.card.png"]
    assert [path.name for path in save_card(make_explanation(), tmp_path / "b")] == ["b.card.png"]
    with Image.open(tmp_path / "a.card.png") as first, Image.open(tmp_path / "b.card.png") as second:
        assert first.height > second.height - 20  # room for the caption's command
    assert [path.name for path in save_plots(make_result(), tmp_path / "c")] == ["c.layers.png"]
    assert caption_of({"model": "m", "command": ["--prompt", "x"]}) == "m · --prompt x"
    assert caption_of({}) == ""
