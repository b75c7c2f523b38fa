"""The pictures say what was measured: every value is computed again here, from the distances, and found in the figure or
in the pixels of the file."""

import dataclasses
import io
import logging
import subprocess
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from PIL import Image
from synthetic import filmed, make_result

from mask_impact.errors import OutputError, UsageError
from mask_impact.views import plots
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.patches_plot import layer_bands, patches_figure
from mask_impact.views.pictures import save_plots
from mask_impact.views.token_map import spread

NAMES = ["picture", "all", "early", "middle", "late"]


# --- a second way to the values ---------------------------------------------------------------------------------------


def shares(result, step=None, variants=slice(0, 1)):
    """Percent, {(layer, position): mean over steps of its share of the layer's impact}, without sinks, in plain loops."""
    steps = result.steps if step is None else [result.steps[step]]
    found = {}
    for record in steps:
        for layer in range(len(record.l2)):
            distances = {
                int(position): float(record.l2[layer, place, variants].astype(np.float64).mean())
                for place, position in enumerate(record.positions)
                if position not in result.sinks
            }
            for position, distance in distances.items():
                share = 100 * distance / sum(distances.values()) / len(steps)
                found[layer, position] = found.get((layer, position), 0.0) + share
    return found


def positions_of(result, image):
    return [position for position, number in enumerate(result.tokens.image) if number == image]


def column_values(result, groups, step=None):
    """float64 [L, columns], NaN where all of a column's positions are sinks; groups: the positions of each column."""
    found = shares(result, step)
    values = np.full((result.n_layers, len(groups)), np.nan)
    for layer in range(result.n_layers):
        for index, positions in enumerate(groups):
            parts = [found[layer, position] for position in positions if (layer, position) in found]
            if parts:
                values[layer, index] = sum(parts)
    return values


def cell_values(result, image, layers, step=None):
    """float64 [rows, columns], NaN at sinks: the mean over the layers."""
    found, values = shares(result, step), np.full(result.images[image].grid, np.nan)
    for position in positions_of(result, image):
        if position not in result.sinks:
            cell = result.tokens.row[position], result.tokens.column[position]
            values[cell] = np.mean([found[layer, position] for layer in layers])
    return values


# --- reading a figure -------------------------------------------------------------------------------------------------


def heat_map(figure):
    return figure.axes[0].collections[0]


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def names_of(figure):
    """Labels under the heat map from left to right: (position, name)."""
    rotated = [text for text in figure.texts if text.get_rotation() == 90]
    labels = list(zip(rotated[::2], rotated[1::2], strict=True))
    return [(position.get_text(), name.get_text()) for position, name in labels]


def panels(figure, n_images):
    """For each image its panels' axes."""
    axes = [axes for axes in figure.axes if axes.images]
    return np.array(axes, dtype=object).reshape(n_images, -1)


def filled(array):
    return np.ma.asarray(array).astype(float).filled(np.nan)


def boxes(figure):
    """What is written, and float [n, 4], where: left, bottom, right, top in pixels."""
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [text.get_text() for text in texts], np.array([text.get_window_extent().extents for text in texts])


def assert_readable(figure):
    """No two texts overlap, and all are within the picture."""
    texts, extents = boxes(figure)
    width, height = figure.canvas.get_width_height()
    assert extents.min() >= 0
    assert (extents[:, 2:] <= [width, height]).all()
    for index, box in enumerate(extents):
        apart = (extents[:, :2] >= box[2:] - 0.5).any(1) | (extents[:, 2:] <= box[:2] + 0.5).any(1)
        touching = [texts[other] for other in np.flatnonzero(~apart) if other != index]
        assert not touching, f"{texts[index]!r} overlaps {touching}"


def pixels_of(figure):
    """uint8 [height, width, 3], first row on top."""
    file = io.BytesIO()
    figure.canvas.print_png(file)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def words(n, seed=0):
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyzWM")
    return [" " + "".join(rng.choice(letters, rng.integers(1, 9))) for _ in range(n)]


def scaled(result, place, factor):
    """The result with the distances of one position multiplied."""
    steps = []
    for step in result.steps:
        l2 = step.l2.copy()
        l2[:, step.positions == place] *= factor
        steps.append(dataclasses.replace(step, l2=l2))
    return dataclasses.replace(result, steps=tuple(steps))


# --- layers x tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 0, 2])
def test_the_heat_map_holds_the_share_of_each_layer_s_impact(step):
    result = make_result(n_steps=3, n_layers=4)
    n_columns = 7 if step is None else 5 + step
    expected = column_values(result, [[position] for position in range(n_columns)], step)
    array = filled(heat_map(layers_figure(result, step)).get_array())
    np.testing.assert_allclose(array, expected, rtol=1e-12)
    assert np.isnan(array[:, 0]).all()  # the sink
    assert np.isfinite(array[:, 1:]).all()


def test_the_scale_runs_from_zero_to_the_largest_value_that_is_not_a_sink_s():
    result = scaled(make_result(), 0, 1e6)
    norm = heat_map(layers_figure(result)).norm
    largest = np.nanmax(column_values(result, [[position] for position in range(5)]))
    assert isinstance(norm, PowerNorm)
    assert (norm.gamma, norm.vmin) == (0.5, 0)
    assert norm.vmax == pytest.approx(largest, rel=1e-12)
    assert norm.vmax <= 100


def test_the_colour_bar_says_what_is_measured_and_ends_at_the_largest_value():
    figure = layers_figure(make_result())
    assert "share of a layer's Full impact, %\n(square-root scale)" in texts_of(figure)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    largest = heat_map(figure).norm.vmax
    assert labels == [f"{largest * part**2:.3g}" for part in (0, 0.25, 0.5, 0.75, 1)]


@pytest.mark.parametrize(("groups", "name"), [(("attn", "heads"), "Attn"), (("heads",), "mean head")])
def test_without_full_the_colour_bar_names_what_was_measured_in_its_place(groups, name):
    result = make_result(groups=groups, sinks=())
    figure = layers_figure(result)
    assert f"share of a layer's {name} impact, %\n(square-root scale)" in texts_of(figure)
    expected = shares(result, variants=slice(0, 1) if name == "Attn" else slice(0, 2))
    assert heat_map(figure).get_array()[2, 3] == pytest.approx(expected[2, 3], rel=1e-12)


def test_each_image_is_one_wide_column_with_the_sum_of_its_patches():
    result = make_result(grids=[(2, 3), (1, 4)], n_layers=3, sinks=(0, 5))
    figure = layers_figure(result)
    groups = [[0], positions_of(result, 0), positions_of(result, 1), [11], [12], [13], [14]]
    np.testing.assert_allclose(filled(heat_map(figure).get_array()), column_values(result, groups), rtol=1e-12)
    assert names_of(figure)[:4] == [
        ("0", '"The"'),
        ("1-6", "image 0: 2 x 3 patches without 1 sink"),
        ("7-10", "image 1: 1 x 4 patches"),
        ("11", '" capital"'),
    ]


def test_an_image_among_many_tokens_stays_wide_enough_to_be_seen():
    mesh = heat_map(layers_figure(make_result(words(300), grids=[(2, 3)])))
    widths = np.diff(mesh.get_coordinates()[0, :, 0])
    assert widths[1] == pytest.approx(plots.BLOCK)
    assert widths[2] < 0.1


def test_the_tokens_of_an_image_need_not_stand_in_one_piece():
    """Models put a row's end between the rows of an image."""
    result = make_result(grids=[(2, 2)], n_layers=2)
    order = [0, 1, 2, 5, 3, 4, 6, 7, 8, 9]
    tokens = result.tokens
    tokens = dataclasses.replace(
        tokens,
        texts=tuple(tokens.texts[place] for place in order),
        kinds=tuple(tokens.kinds[place] for place in order),
        image=tokens.image[order],
        row=tokens.row[order],
        column=tokens.column[order],
    )
    result = dataclasses.replace(result, tokens=tokens)
    figure = layers_figure(result)
    groups = [[0], [1, 2, 4, 5], [3], [6], [7], [8]]
    np.testing.assert_allclose(filled(heat_map(figure).get_array()), column_values(result, groups), rtol=1e-12)
    np.testing.assert_allclose(
        filled(panels(patches_figure(result), 1)[0, 1].images[-1].get_array()),
        cell_values(result, 0, range(2)),
        rtol=1e-12,
    )


def test_an_image_whose_every_patch_is_a_sink_is_grey():
    figure = layers_figure(make_result(grids=[(1, 1)], sinks=(1,)))
    assert filled(heat_map(figure).get_array())[:, 1].tolist() == pytest.approx([np.nan] * 3, nan_ok=True)
    assert names_of(figure)[1] == ("1-1", "image 0: 1 x 1 patches")


@pytest.mark.parametrize("n_tokens", [5, 300])
def test_each_pixel_in_the_middle_of_a_cell_has_the_colour_of_its_value(n_tokens):
    """From distances to pixels of the file, so that neither an array, its orientation nor a drawing loses a token."""
    result = make_result(words(n_tokens), n_layers=7)
    figure = layers_figure(result)
    pixels, mesh, axes = pixels_of(figure), heat_map(figure), figure.axes[0]
    expected = column_values(result, [[position] for position in range(n_tokens)])
    edges = mesh.get_coordinates()[0, :, 0]
    colours = mesh.cmap(PowerNorm(0.5, vmin=0, vmax=np.nanmax(expected))(expected))[..., :3] * 255
    colours[:, 0] = float(plots.SINK_GREY) * 255
    for layer in range(7):
        places = axes.transData.transform(np.stack([(edges[1:] + edges[:-1]) / 2, np.full(n_tokens, layer)], axis=1))
        x, y = np.floor(places).astype(int).T
        np.testing.assert_allclose(pixels[len(pixels) - 1 - y, x], colours[layer], atol=1.01)


def test_sinks_are_crossed_and_explained_and_only_where_there_are_any():
    note = "attention sink, left out of the scale"
    with_sink, without = layers_figure(make_result(sinks=(2,))), layers_figure(make_result(sinks=()))
    assert note in texts_of(with_sink)
    assert note not in texts_of(without)
    (cross,) = with_sink.axes[0].lines
    edges = heat_map(with_sink).get_coordinates()[0, :, 0]
    assert cross.get_marker() == "x"
    assert cross.get_xdata().tolist() == [pytest.approx((edges[2] + edges[3]) / 2)]
    assert [len(line.get_xdata()) for line in without.axes[0].lines] == [0]


def test_produced_tokens_stand_behind_a_line():
    figure = layers_figure(make_result(n_steps=3))
    edges, line = heat_map(figure).get_coordinates()[0, :, 0], figure.axes[0].lines[-1]
    assert line.get_xdata() == [pytest.approx(edges[5])] * 2
    assert {"prompt", "answer"} <= set(texts_of(figure))
    assert names_of(figure)[5:] == [("5", '" Paris"'), ("6", '"."')]
    assert "answer" not in texts_of(layers_figure(make_result(n_steps=1)))


def test_few_tokens_have_each_a_label_under_their_column():
    result = make_result(words(60))
    figure = layers_figure(result)
    assert names_of(figure) == [(str(place), f'"{text}"') for place, text in enumerate(result.tokens.texts[:60])]
    edges = heat_map(figure).get_coordinates()[0, :, 0]
    middles = figure.axes[0].transData.transform(np.stack([(edges[1:] + edges[:-1]) / 2, np.zeros(60)], axis=1))[:, 0]
    labels = [text for text in figure.texts if text.get_rotation() == 90][1::2]
    figure.canvas.draw()
    drawn = [text.get_window_extent() for text in labels]
    np.testing.assert_allclose([(box.x0 + box.x1) / 2 for box in drawn], middles, atol=1)
    assert_readable(figure)


@pytest.mark.parametrize("n_tokens", [61, 1000])
def test_of_many_tokens_the_most_important_have_labels_with_lines_from_their_columns(n_tokens):
    result = make_result(words(n_tokens), n_layers=5, grids=[(3, 4)])
    figure = layers_figure(result)
    groups = [[0], positions_of(result, 0), *([place] for place in range(13, n_tokens + 12))]
    order = np.argsort(-np.nan_to_num(column_values(result, groups)[:, 2:]).mean(axis=0), kind="stable")
    expected = sorted([0, 1, *(order[: plots.MAX_LABELS - 2] + 2).tolist()])
    assert [int(place.split("-")[0]) for place, _ in names_of(figure)] == [groups[index][0] for index in expected]
    edges = heat_map(figure).get_coordinates()[0, :, 0]
    lines = figure.axes[1].lines
    middles = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose([line.get_xdata()[0] for line in lines], middles[expected])
    figure.canvas.draw()
    ends = [figure.axes[1].transData.transform((line.get_xdata()[-1], 0))[0] for line in lines]
    labels = [text.get_window_extent() for text in figure.texts if text.get_rotation() == 90][1::2]
    np.testing.assert_allclose([(box.x0 + box.x1) / 2 for box in labels], ends, atol=1)
    assert_readable(figure)


def test_labels_that_crowd_together_are_spread_and_stay_in_order():
    """The 40 most important tokens side by side at the end of the prompt."""
    result = make_result(words(500), n_layers=2)
    for place in range(455, 500):
        result = scaled(result, place, 1e9)
    figure = layers_figure(result)
    places = [int(place) for place, _ in names_of(figure)]
    assert len(places) == plots.MAX_LABELS
    assert places == sorted(places)
    assert places[1] >= 455
    assert figure.axes[1].get_window_extent().height / plots.DPI == pytest.approx(plots.FAN)  # room for slanted lines
    assert_readable(figure)


def test_spreading_leaves_alone_what_has_room_and_moves_the_others_as_little_as_can_be():
    np.testing.assert_allclose(spread(np.array([1.0, 3.0, 4.5]), 1, 10), [1, 3, 4.5])
    np.testing.assert_allclose(spread(np.array([4.0, 4.0, 4.0, 9.0]), 1, 10), [3, 4, 5, 9])
    np.testing.assert_allclose(spread(np.array([0.0, 0.0, 9.9]), 1, 10), [0.5, 1.5, 9.5])


@pytest.mark.slow
def test_every_one_of_thousands_of_columns_has_a_pixel_and_the_picture_its_limit():
    widths = np.diff(heat_map(layers_figure(make_result(words(5000), groups=("full",)))).get_coordinates()[0, :, 0])
    assert widths.min() * plots.DPI > 0.999
    figure = layers_figure(make_result(words(20_000), n_layers=36, groups=("full",)))
    assert np.prod(figure.get_size_inches()) * plots.DPI**2 < 20e6


@pytest.mark.parametrize("n_layers", [1, 2, 36, 150])
def test_any_depth_has_readable_layer_numbers(n_layers):
    figure = layers_figure(make_result(n_layers=n_layers))
    figure.canvas.draw()
    ticks = [int(label.get_text()) for label in figure.axes[0].get_yticklabels()]
    assert ticks[0] == 0
    assert n_layers - ticks[-1] <= max(1, ticks[-1] - ticks[-2] if len(ticks) > 1 else 1)
    assert len(ticks) <= 13
    bottom, top = figure.axes[0].get_ylim()
    assert (bottom, top) == (-0.5, n_layers - 0.5)
    assert_readable(figure)


def test_what_was_not_masked_is_left_out_and_said():
    text, vision = (make_result(grids=[(2, 2)], n_layers=2, mask_mode=mode) for mode in ("text", "vision"))
    figure = layers_figure(text)
    assert [place for place, _ in names_of(figure)] == ["0", "5", "6", "7", "8"]
    assert "model tiny · 2 layers · only text tokens masked" in texts_of(figure)
    figure = layers_figure(vision)
    assert names_of(figure) == [("1-4", "image 0: 2 x 2 patches")]
    np.testing.assert_allclose(heat_map(figure).get_array(), [[100], [100]])
    assert "model tiny · 2 layers · only image tokens masked" in texts_of(figure)
    assert not any("masked" in text for text in texts_of(layers_figure(make_result(grids=[(2, 2)]))))


def test_a_result_in_which_nothing_was_masked_is_a_picture_that_says_so(tmp_path):
    result = make_result(mask_mode="vision")
    assert "No token was masked." in texts_of(layers_figure(result))
    assert [path.name for path in save_plots(result, tmp_path / "run")] == ["run.layers.png"]


def test_impacts_that_are_all_zero_are_drawn_as_zero():
    result = make_result(grids=[(2, 2)])
    steps = tuple(dataclasses.replace(step, l2=np.zeros_like(step.l2)) for step in result.steps)
    result = dataclasses.replace(result, steps=steps)
    assert heat_map(layers_figure(result)).norm.vmax == 1
    figure = patches_figure(result)
    figure.canvas.draw()
    assert panels(figure, 1)[0, 1].images[-1].get_array().max() == 0


# --- patches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 1])
def test_the_overlay_is_the_mean_share_over_a_band_of_layers(step):
    result = make_result(grids=[(2, 3), (4, 1)], n_layers=7, n_steps=2, sinks=(0, 3))
    figure = patches_figure(result, step)
    bands = [range(7), range(0, 2), range(2, 5), range(5, 7)]
    assert [text for text in texts_of(figure) if text.split()[0] in NAMES] == [
        "picture", "all (layers 0-6)", "early (layers 0-1)", "middle (layers 2-4)", "late (layers 5-6)",
    ]  # fmt: skip
    expected = [[cell_values(result, image, band, step) for band in bands] for image in range(2)]
    for axes, values in zip(panels(figure, 2), expected, strict=True):
        assert len(axes[0].images) == 1  # the picture as it is
        for panel, value in zip(axes[1:], values, strict=True):
            array = filled(panel.images[-1].get_array())
            np.testing.assert_allclose(array, value, rtol=1e-12)
    assert np.isnan(expected[0][0][0, 2])  # position 3 is a sink
    assert np.isfinite(expected[0][0]).sum() == 5
    largest = max(np.nanmax(value) for row in expected for value in row)
    norms = {id(panel.images[-1].norm): panel.images[-1].norm for row in panels(figure, 2) for panel in row[1:]}
    (norm,) = norms.values()
    assert (norm.gamma, norm.vmin, norm.vmax) == (0.5, 0, pytest.approx(largest, rel=1e-12))


def test_sinks_among_the_patches_are_no_part_of_the_scale_and_crossed_out_in_their_cell():
    result = scaled(make_result(grids=[(2, 3), (1, 2)], sinks=(5,)), 5, 1e6)
    figure = patches_figure(result)
    first, second = panels(figure, 2)
    assert first[1].images[-1].norm.vmax < 100
    assert "attention sink, left out of the scale" in texts_of(figure)
    left, top, right, bottom = result.images[0].box(1, 1)
    for panel in first[1:]:
        (cross,), (cell,) = panel.lines, panel.patches
        assert (cross.get_xdata()[0], cross.get_ydata()[0]) == ((left + right) / 2, (top + bottom) / 2)
        corners = cell.get_xy()
        assert [*corners.min(axis=0), *corners.max(axis=0)] == pytest.approx([left, top, right, bottom])
    assert not any([*panel.lines, *panel.patches] for panel in [first[0], *second])
    figure = patches_figure(make_result(grids=[(2, 3)], sinks=(0,)))  # the text's
    assert "attention sink, left out of the scale" not in texts_of(figure)


def test_every_panel_has_the_pixels_of_its_image_as_coordinates():
    result = make_result(grids=[(2, 3), (5, 4)])
    for image, row in zip(result.images, panels(patches_figure(result), 2), strict=True):
        width, height = image.size
        for panel in row:
            assert (panel.get_xlim(), panel.get_ylim()) == ((0, width), (height, 0))
            assert all(tuple(artist.get_extent()) == (0, width, height, 0) for artist in panel.images)
            box = panel.get_window_extent()
            assert box.width / box.height == pytest.approx(width / height, rel=1e-6)


@pytest.mark.parametrize("cell", [(0, 0), (2, 1), (3, 4)])
def test_in_the_file_a_hot_patch_covers_exactly_the_box_of_its_cell(cell):
    image = dataclasses.replace(make_result(grids=[(4, 5)]).images[0], size=(633, 411), preview=b"")
    result = make_result(grids=[(4, 5)], n_layers=3, sinks=(), images=(image,))
    result = scaled(result, 1 + cell[0] * 5 + cell[1], 1e9)
    figure = patches_figure(result)
    pixels, panel = pixels_of(figure).astype(int), panels(figure, 1)[0, 1]
    frame = panel.get_window_extent()
    left, top, right, bottom = image.box(*cell)
    expected = [
        frame.x0 + left / 633 * frame.width, len(pixels) - frame.y1 + top / 411 * frame.height,
        frame.x0 + right / 633 * frame.width, len(pixels) - frame.y1 + bottom / 411 * frame.height,
    ]  # fmt: skip
    y0, x0 = round(len(pixels) - frame.y1) + 3, round(frame.x0) + 3  # within the frame
    inside = pixels[y0 : round(len(pixels) - frame.y0) - 3, x0 : round(frame.x1) - 3]
    rows, columns = np.nonzero(np.ptp(inside, axis=2) > 20)  # what has a colour
    found = [columns.min() + x0, rows.min() + y0, columns.max() + 1 + x0, rows.max() + 1 + y0]
    np.testing.assert_allclose(found, expected, atol=4)


def test_no_patch_is_lost_where_there_are_more_than_pixels():
    result = make_result(grids=[(1, 500)], n_layers=1, groups=("full",), sinks=())
    result = dataclasses.replace(result, images=(dataclasses.replace(result.images[0], preview=b""),))
    factors = np.ones((1, 501 + 4, 1), dtype=np.float32)
    factors[:, 7:501:12] = 1e9  # not the first, of which the frame has the pixel
    (step,) = result.steps
    result = dataclasses.replace(result, steps=(dataclasses.replace(step, l2=factors),))
    figure = patches_figure(result)
    pixels, frame = pixels_of(figure).astype(int), panels(figure, 1)[0, 1].get_window_extent()
    row = pixels[len(pixels) - round((frame.y0 + frame.y1) / 2), round(frame.x0) - 5 : round(frame.x1)]
    coloured = np.ptp(row, axis=1) > 12
    assert np.count_nonzero(np.diff(coloured.astype(int)) == 1) == 42


def test_the_picture_is_shown_in_colour_and_faded_under_the_patches():
    file = io.BytesIO()
    Image.new("RGB", (60, 40), (250, 10, 10)).save(file, "JPEG", quality=100)
    result = make_result(grids=[(2, 3)])
    result = dataclasses.replace(result, images=(dataclasses.replace(result.images[0], preview=file.getvalue()),))
    first, second, *_ = panels(patches_figure(result), 1)[0]
    np.testing.assert_allclose(first.images[0].get_array().mean(axis=(0, 1)) * 255, [250, 10, 10], atol=4)
    faded = second.images[0].get_array()
    assert faded.ndim == 2
    assert 0.6 < faded.min() <= faded.max() <= 1
    np.testing.assert_allclose(faded, 0.65 + 0.35 * (0.299 * 250 + 0.701 * 10) / 255, atol=0.01)


def test_small_values_are_more_transparent():
    overlay = panels(patches_figure(make_result(grids=[(2, 3)])), 1)[0, 1].images[-1]
    opacity = overlay.cmap(np.linspace(0, 1, 9))[:, 3]
    assert opacity[0] == 0
    assert (np.diff(opacity) > 0).all()
    assert opacity[-1] < 1


@pytest.mark.parametrize("preview", [b"", b"\xff\xd8 not a picture"])
def test_without_a_preview_the_picture_is_plain_grey(preview, tmp_path):
    result = make_result(grids=[(2, 3)])
    result = dataclasses.replace(result, images=(dataclasses.replace(result.images[0], preview=preview),))
    picture = panels(patches_figure(result), 1)[0, 0].images[0].get_array()
    assert np.ptp(picture) == 0
    assert 0.5 < picture.flat[0] < 0.9
    assert len(save_plots(result, tmp_path / "run")) == 2


@pytest.mark.parametrize("n_layers", [1, 2, 3, 36])
def test_bands_are_thirds_of_the_depth(n_layers):
    bands = layer_bands(n_layers, range(n_layers))
    expected = {
        1: ["all (layer 0)"],
        2: ["all (layers 0-1)", "early (layer 0)", "late (layer 1)"],
        3: ["all (layers 0-2)", "early (layer 0)", "middle (layer 1)", "late (layer 2)"],
        36: ["all (layers 0-35)", "early (layers 0-11)", "middle (layers 12-23)", "late (layers 24-35)"],
    }
    assert list(bands) == expected[n_layers]
    layers = [layer for band in list(bands.values())[1:] for layer in range(n_layers)[band]]
    assert layers in ([], list(range(n_layers)))


def test_an_image_is_named_with_its_sizes_and_its_share():
    result = make_result(grids=[(2, 3)], n_layers=2, sinks=(0, 2))
    together = np.nansum(cell_values(result, 0, range(2)))
    title = f"image 0: picture0.png · 150 x 80 pixels · 2 x 3 patches (rows x columns), together {together:.1f} % of the impact"
    assert title in texts_of(patches_figure(result))


@pytest.mark.parametrize("grid", [(1, 100), (100, 1), (1, 1), (64, 64), (2, 500)])
def test_any_shape_of_image_fits(grid):
    result = make_result(grids=[grid, (3, 4)], n_layers=3, groups=("full",))
    figure = patches_figure(result)
    assert_readable(figure)
    width, height = figure.canvas.get_width_height()
    row = [panel.get_window_extent() for panel in panels(figure, 2)[0]]
    assert all(
        min(box.width, box.height) > 50 and 0 < box.x0 < box.x1 < width and 0 < box.y0 < box.y1 < height for box in row
    )
    assert all(a.x1 < b.x0 for a, b in pairwise(row))
    assert ("not to scale" in " ".join(texts_of(figure))) == (max(grid) / min(grid) > 10)


@pytest.mark.slow
def test_beyond_eight_images_the_first_eight_are_shown_and_a_line_says_so():
    result = make_result(grids=[(6, 2)] * 9, n_layers=3)
    figure = patches_figure(result)
    assert panels(figure, 8).shape == (8, 5)
    assert "The first 8 of 9 images." in texts_of(figure)
    assert np.prod(figure.canvas.get_width_height()) < 20e6
    assert_readable(figure)
    assert not any("The first" in text for text in texts_of(patches_figure(make_result(grids=[(2, 2)] * 8))))


# --- words ------------------------------------------------------------------------------------------------------------

HOSTILE = {
    "$x$": '"$x$"',
    "\\frac{a}{b}": '"\\\\frac{a}{b}"',
    "$\\alpha$ _^{}% &#~": '"$\\\\alpha$ _^{}% &#~"',
    "two\nlines": '"two\\nlines"',
    "\u202eabc": '"\\u202eabc"',
    "\x1b[31m\x00": '"\\x1b[31m\\x00"',
    "\ud83d": '"\\ud83d"',
    '"': '"\\""',
    "": '""',
    " ": '" "',
    "z" + "\u0301" * 4: '"z' + "\u0301" * 4 + '"',
    "שלום": '"שלום"',
    "مرحبا": '"مرحبا"',
}
FAR = {"漢字": '"\\u6f22\\u5b57"', "👩": '"\\U0001f469"'}  # not in DejaVu Sans


@pytest.fixture
def only_dejavu(monkeypatch):
    """The fonts of a machine that has those of matplotlib alone."""
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Sans", "No Such Font"))
    plots.fonts.cache_clear()
    yield
    plots.fonts.cache_clear()


def test_token_texts_are_shown_literally_and_what_no_font_has_as_its_code(only_dejavu, caplog, capfd):
    result = make_result(["<s>", *HOSTILE, *FAR], n_layers=2)
    figure = layers_figure(result)
    assert [name for _, name in names_of(figure)][1:] == [*HOSTILE.values(), *FAR.values()]
    assert_readable(figure)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_headings_show_texts_literally_too(only_dejavu, caplog, capfd):
    result = make_result(grids=[(2, 2)], generated_text="$\\frac12$ 漢\n", meta={"model": "a/$b$_{\u202e}"})
    image = dataclasses.replace(result.images[0], source="$c$\n.png")
    figure = patches_figure(dataclasses.replace(result, images=(image,)))
    texts = texts_of(figure)
    assert 'Impact on the answer "$\\\\frac12$ \\u6f22\\n"' in texts
    assert "model a/$b$_{\\u202e} · 3 layers" in texts
    assert any(text.startswith("image 0: $c$\\n.png · 100 x 80 pixels") for text in texts)
    assert_readable(figure)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_character_that_only_another_installed_font_has_is_drawn_with_it(monkeypatch):
    """Font fallback: STIX is there wherever matplotlib is."""
    has = {
        name: set(get_font(findfont(FontProperties(family=[name]))).get_charmap())
        for name in ("DejaVu Sans", "STIXGeneral")
    }
    char = next(chr(code) for code in sorted(has["STIXGeneral"] - has["DejaVu Sans"]) if chr(code).isprintable())
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Sans", "STIXGeneral"))
    plots.fonts.cache_clear()
    try:
        figure = layers_figure(make_result(["<s>", char]))
        assert names_of(figure)[1] == ("1", f'"{char}"')
        figure.canvas.draw()  # a missing glyph would warn
    finally:
        plots.fonts.cache_clear()


@pytest.mark.parametrize("draw", [layers_figure, patches_figure])
def test_no_text_is_ever_taken_for_a_formula(draw):
    figure = draw(make_result(grids=[(2, 2)], n_steps=2))
    for _ in range(2):  # drawing makes new ticks
        assert not any(text.get_parse_math() or text.get_usetex() for text in figure.findobj(Text) if text.get_text())
        figure.canvas.draw()


def test_long_texts_are_cut_to_the_room_there_is():
    result = make_result(
        ["<s>", "W" * 500, "漢" * 500], grids=[(1, 1)], generated_text="Wm" * 20_000, meta={"model": "/x" * 300}
    )
    for figure in (layers_figure(result), patches_figure(result)):
        assert_readable(figure)
        heading, about = texts_of(figure)[:2] if "Impact" in texts_of(figure)[0] else sorted(
            text for text in texts_of(figure) if text.startswith(("Impact", "model"))
        )  # fmt: skip
        assert heading.endswith('…"')
        assert about.endswith("… · 3 layers")
    names = [name for _, name in names_of(layers_figure(result))]
    assert names[2].startswith('"WWW')
    assert names[2].endswith('…"')


@pytest.mark.parametrize("char", ["W", "i", "\u202e", "漢"])
def test_a_cut_text_is_the_longest_that_fits(only_dejavu, char):
    piece = {"\u202e": "\\u202e", "漢": "\\u6f22"}.get(char, char)
    shown = plots.fitted("<", char * 300, ">", 8, 1.5)
    assert shown == f"<{piece * shown.count(piece)}…>"
    assert plots.inches(shown, 8) <= 1.5 < plots.inches(shown.replace("…", piece + "…"), 8)
    assert plots.fitted("<", char * 3, ">", 8, 1.5) == f"<{piece * 3}>"


def test_the_heading_says_which_tokens_the_impact_is_on():
    result = make_result(n_steps=3, grids=[(2, 2)], generated_text=" Paris. It")
    for draw in (layers_figure, patches_figure):
        texts = texts_of(draw(result))
        assert 'Impact on the answer " Paris. It"' in texts
        assert "model tiny · 3 layers · mean over 3 produced tokens" in texts
        texts = texts_of(draw(result, 1))
        assert 'Impact on the token "."' in texts
        assert "model tiny · 3 layers · produced token 2 of 3" in texts
        assert texts_of(draw(result, -2)) == texts
    assert 'Impact on the answer " Paris"' in texts_of(layers_figure(make_result(generated_text="")))
    assert "3 layers" in texts_of(layers_figure(make_result(meta={})))


# --- files ------------------------------------------------------------------------------------------------------------


def test_both_pictures_are_written_beside_the_result(tmp_path):
    paths = save_plots(make_result(grids=[(2, 3)], n_layers=6), str(tmp_path / "new" / "my.run"))
    assert paths == (tmp_path / "new" / "my.run.layers.png", tmp_path / "new" / "my.run.patches.png")
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**20)) > 50
            assert "Software" not in image.info


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ["layers"]),
        ({"grids": [(2, 2)]}, ["layers", "patches"]),
        ({"grids": [(2, 2)], "mask_mode": "vision"}, ["layers", "patches"]),
        ({"grids": [(2, 2)], "mask_mode": "text"}, ["layers"]),
    ],
)
def test_patches_are_drawn_where_image_tokens_were_masked(tmp_path, changes, kinds):
    paths = save_plots(make_result(**changes), tmp_path / "run.csv")
    assert [path.name for path in paths] == [f"run.{kind}.png" for kind in kinds]


def test_names_and_places_that_cannot_be_are_refused_as_for_the_result_itself(tmp_path):
    with pytest.raises(UsageError):
        save_plots(make_result(), tmp_path / ".hidden")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_plots(make_result(), tmp_path / "file" / "run")


@pytest.mark.parametrize("existing", [False, True])
def test_a_picture_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, existing):
    if existing:
        (tmp_path / "run.layers.png").write_bytes(b"before")

    def print_png(canvas, file, **options):
        file.write(b"half")
        if len(done := [*tmp_path.glob(".*")]) > 1:
            raise OSError(5, f"disk error after {len(done)}")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", print_png)
    with pytest.raises(OutputError, match=r"run\.patches\.png"):
        save_plots(make_result(grids=[(2, 2)]), tmp_path / "run")
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept == ({"run.layers.png": b"before"} if existing else {})


@pytest.mark.slow
def test_the_same_result_gives_the_same_bytes_and_a_matplotlibrc_changes_no_layout(tmp_path, capfd, caplog):
    result = make_result(words(70), grids=[(2, 3)], n_layers=6, n_steps=2)
    settings = {
        "text.usetex": True, "axes.formatter.use_mathtext": True, "font.size": 30, "font.weight": "bold",
        "axes.grid": True, "image.origin": "lower", "image.cmap": "jet", "figure.facecolor": "red", "figure.dpi": 33,
        "savefig.dpi": 20, "savefig.bbox": "tight",
    }  # fmt: skip
    first = [path.read_bytes() for path in save_plots(result, tmp_path / "first")]
    with matplotlib.rc_context(settings):
        before = dict(matplotlib.rcParams)
        second = [path.read_bytes() for path in save_plots(result, tmp_path / "second")]
        assert dict(matplotlib.rcParams) == before
    assert first == second
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_nothing_global_is_left_behind_and_nothing_is_imported_too_early(tmp_path):
    """In a process of its own, with no display, no home to write into and so no list of fonts: matplotlib would complain."""
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; from mask_impact.views import pictures\n"
        "assert not {'matplotlib', 'PIL'} & set(sys.modules)\n"
        "from synthetic import make_result\n"
        f"paths = pictures.save_plots(make_result(grids=[(2, 2)]), {str(tmp_path / 'run')!r})\n"
        "assert len(paths) == 2 and 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
        "import logging; print(logging.getLogger('matplotlib').level)"
    )
    environment = {
        "HOME": "/nonexistent",
        "MPLCONFIGDIR": "/proc/none",
        "PATH": "/usr/bin:/bin",
        "MPLBACKEND": "TkAgg",
    }
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (process.returncode, process.stdout.strip(), process.stderr) == (0, str(logging.NOTSET), "")


def test_a_video_has_a_strip_over_time_and_panels_of_the_pairs_that_are_read_most():
    result = filmed(make_result(n_layers=3, grids=[(2, 2)] * 10, groups=("full",)))
    figure = patches_figure(result)
    bars = [one for axes in figure.axes for one in axes.patches if (one.get_gid() or "").startswith("frame-")]
    cells = [cell_values(result, pair, range(3)) for pair in range(10)]
    totals = np.array([np.nansum(one) for one in cells])
    assert [bar.get_width() for bar in bars] == pytest.approx((totals / totals.max()).tolist(), rel=1e-6)
    thumbnails = [axes.images[-1].get_array() for axes in figure.axes if len(axes.images) == 2][:10]
    for array, expected in zip(thumbnails, cells, strict=True):
        np.testing.assert_allclose(filled(array), expected, rtol=1e-12)
    texts = texts_of(figure)
    assert "0.1 s · frames 0-1" in texts
    named = [any(one.startswith(f"frames {2 * pair}-{2 * pair + 1}:") for one in texts) for pair in range(10)]
    most = sorted(range(10), key=lambda pair: -totals[pair])[:3]
    assert named == [pair in most for pair in range(10)]
