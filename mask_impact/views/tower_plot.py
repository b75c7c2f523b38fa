"""What the vision tower's layers read and what matters to an answer, as a matplotlib Figure.

Knows what was measured; writes no files.
"""

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from mask_impact.findings.looked import (
    MATTERS,
    by_window,
    hidden_rows,
    largest_of,
    matters,
    read_by_region,
    read_in_all,
    window_size,
)
from mask_impact.results.tokens import image_title
from mask_impact.results.tower import TowerEffects, TowerTarget
from mask_impact.views.figure_blocks import BESIDE, Block, figure_of, lines_block, stacked
from mask_impact.views.patches_plot import layer_bands
from mask_impact.views.pixels import preview_pixels
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GREY,
    INK,
    MARGIN,
    MAX_IMAGES,
    SMALL,
    TITLE,
    Sheet,
    caption_of,
    colour_map,
    fitted,
    glyphs,
    inches,
    layers_named,
    norm,
    png_of,
    wrapped,
    writer_of,
)
from mask_impact.views.text import percent
from mask_impact.views.tower_html import COLOURED, tower_said

WIDTH = 9.2  # inches, of the picture beside the files
NARROW_TITLE = 9.5
PANEL, LEAST, HIGHEST, GAP, TITLES = 1.75, 1.3, 2.2, 0.12, 0.2  # inches: of a panel, between two, and above one
ROW, NAMES, AXIS = 0.34, 1.5, 0.3  # of a row of bars, before it, and below the last one
MOST_ROWS = 4  # rows of bars of one kind
VEIL = 0.7  # opacity of the strongest change's colour
READ = "#812581"  # of bars of what is read, as maps are


def picture_of(found: TowerEffects) -> Callable[[BinaryIO], None]:
    """What `save_tower` writes beside the table."""
    return writer_of(tower_png(found))


def tower_png(found: TowerEffects) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: tower_figure(found))


def tower_figure(found: TowerEffects, number: int = 0, width: float = WIDTH):
    """Whether what is read matters to a target, in words; each image (the first MAX_IMAGES that were asked about) as it is, under
    what the layers read, over all of them and in thirds of their depth, and under what hiding its regions does; how much each
    layer reads, and what hiding in windows does. number: of the target, from 0; width: inches."""
    target, room = found.targets[number], width - 2 * MARGIN
    size = TITLE if width >= BESIDE else NARROW_TITLE
    title = fitted("The vision tower and “", target.text.strip(), f"” ({percent(target.probability)})", size, room)
    said = wrapped(glyphs(tower_said(found, target)), SMALL, room, 4)
    images = [*found.readings][:MAX_IMAGES]
    bands = layer_bands(found.n_layers, range(found.n_layers))
    maps = {one: [found.readings[one].attention[band].mean(axis=0) for band in bands.values()] for one in images}
    colours = _colours([grid for row in maps.values() for grid in row])
    pictures = [
        _pictures(found, target, one, dict(zip(bands, maps[one], strict=True)), colours, room) for one in images
    ]
    left = f"the first {len(images)} of {len(found.readings)} images" if len(images) < len(found.readings) else ""
    blocks = [
        stacked([lines_block([title], size), lines_block(said, SMALL, GREY)], 0.03),
        *pictures,
        _legend(found, target, colours, room, left),
        _read_bars(found, images[0], room),
        *_window_bars(found, target, room),
    ]
    return figure_of(blocks, caption_of(found.meta), width)


def _colours(grids: Sequence[np.ndarray]):
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm(np.concatenate([grid.ravel() for grid in grids])), colour_map((0, 0.9)))


# --- the pictures -----------------------------------------------------------------------------------------------------------


def _pictures(
    found: TowerEffects, target: TowerTarget, number: int, maps: dict[str, np.ndarray], colours, room: float
) -> Block:
    """The panels of one image, as many beside each other as there is room for."""
    image = found.images[number]
    titles = ["picture", *(f"read: {title}" for title in maps), *(["what matters"] if found.regions else [])]
    most = int(np.clip((room + GAP) / (LEAST + GAP), 1, len(titles)))
    per_line = -(-len(titles) // -(-len(titles) // most))
    panel = min(PANEL, (room + GAP) / per_line - GAP)
    aspect = image.size[0] / image.size[1]
    tall = float(np.clip(panel / aspect, 0.3, HIGHEST))
    wide = float(np.clip(tall * aspect, 0.3, panel))
    lines = 2 if max(inches(title, SMALL) for title in titles) > panel else 1
    head = TITLES if lines == 1 else 0.32
    step = head + tall + 0.08

    def draw(sheet: Sheet, x: float, y: float) -> None:
        pixels = preview_pixels(image)
        for place, title in enumerate(titles):
            left, top = x + place % per_line * (panel + GAP), y + place // per_line * step
            text = title if lines == 1 else title.replace(" (", "\n").rstrip(")")
            sheet.text(left, top + head - 0.05, text, SMALL, va="bottom")
            axes = sheet.axes(left, top + head, wide, tall)
            extent = {"extent": (0, image.size[0], image.size[1], 0), "aspect": "auto"}
            axes.imshow(pixels if place == 0 else 1 - 0.4 * (1 - pixels), **extent)
            if title.removeprefix("read: ") in maps:
                grid = maps[title.removeprefix("read: ")]
                axes.imshow(grid, cmap=colours.cmap, norm=colours.norm, interpolation="nearest", **extent)
            elif place:
                _regions(axes, found, target, number)
            axes.set(xticks=[], yticks=[], xlim=(0, image.size[0]), ylim=(image.size[1], 0))

    name = fitted(f"{image_title(found.images, number)}: ", image.source, "", SMALL, room)
    return stacked([lines_block([name], SMALL, GREY), Block(step * -(-len(titles) // per_line), draw)], 0.02)


def _regions(axes, found: TowerEffects, target: TowerTarget, number: int) -> None:
    """The regions of an image by what hiding them does, the smaller ones on top. Full colour is at COLOURED nats at least: where
    nothing matters, nothing is coloured."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    rows = hidden_rows(found, target)
    largest = max([COLOURED, *(abs(float(target.logprob_change[row])) for row in rows)])
    mine = [row for row in rows if found.regions[target.place[row]].image == number]
    for row in sorted(mine, key=lambda row: -found.regions[target.place[row]].area):
        left, top, right, bottom = found.regions[target.place[row]].box
        change = float(target.logprob_change[row])
        own = target.place[row] == target.found and matters(target, row)
        style = {"linewidth": 1.6, "zorder": 4} if own else {"linewidth": 0.3, "zorder": 3}
        colour = to_rgba(FOR if change < 0 else AGAINST, VEIL * abs(change) / largest)
        edge = {"facecolor": colour, "edgecolor": INK if own else "0.5", "gid": f"region-{target.place[row]}"}
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **edge, **style))


def _legend(found: TowerEffects, target: TowerTarget, colours, room: float, left_out: str) -> Block:
    """The scale of what is read, and what the colours of regions say."""
    unit = "an image token" if found.unit == "token" else "a patch"
    notes = [f"Read: {unit} hidden from all others in one layer, measured; it says nothing of the answer."]
    if found.regions:
        largest = max(abs(float(target.logprob_change[row])) for row in hidden_rows(found, target))
        notes.append(
            f"What matters, measured: orange where the answer is less likely with it hidden, blue: more likely; by {largest:.2g} "
            f"nats at most, and below {MATTERS:g} it does not matter."
        )
    lines = wrapped(" ".join([*notes, left_out]), SMALL, room, 5)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        axes = sheet.axes(x, y + 0.02, min(2.3, room), 0.09)
        ticks = colours.norm.inverse(np.linspace(0, 1, 5))
        bar = sheet.figure.colorbar(
            colours, cax=axes, ticks=ticks, format=lambda value, _: f"{value:.2g}", orientation="horizontal"
        )
        bar.outline.set(linewidth=0.5, edgecolor=GREY)
        axes.tick_params(labelsize=SMALL)
        if room > 5:
            sheet.text(x + 2.5, y, "share of the layer's attention output (square-root scale)", SMALL)

    own = [] if room > 5 else ["share of the layer's attention output (square-root scale)"]
    return stacked([Block(0.3, draw), lines_block([*own, *lines], SMALL, GREY)], 0.03)


# --- over the layers --------------------------------------------------------------------------------------------------------


def _read_bars(found: TowerEffects, image: int, room: float) -> Block:
    """How much each layer reads of the first image, and where regions were given, of their units against the rest."""
    which = f" of {image_title(found.images, image)}" if len(found.images) > 1 else ""
    rows = [("all, added", read_in_all(found.readings[image]))]
    head = (
        f"how much each layer reads{which}: the shares of all {'patches' if found.unit == 'patch' else 'tokens'}, added"
    )
    by_region = read_by_region(found, image)[: MOST_ROWS + 1]
    if by_region:
        head += f"; the mean {found.unit} of a region, and of the rest"
    scales = [float(rows[0][1].max()), *[max((float(one.max()) for _, one in by_region), default=0.0)] * len(by_region)]
    return _bars([*rows, *by_region], scales, head, room, lambda _: READ)


def _window_bars(found: TowerEffects, target: TowerTarget, room: float) -> list[Block]:
    """The changes by window, of the first regions."""
    rows = [(region.called, change) for region, change in by_window(found, target)][:MOST_ROWS]
    if not rows:
        return []
    size, largest = window_size(found, target), max(largest_of(change) for _, change in rows)
    where = "one layer alone" if size == 1 else f"the {size} layers around each layer"
    if largest < MATTERS:
        said = f"hidden in {where}, nothing matters: {largest:.2g} nats at most"
        return [lines_block(wrapped(said, SMALL, room, 2), SMALL, GREY)]
    head = f"where it matters: hidden in {where}, by {largest:.2g} nats at most"
    return [_bars(rows, [max(largest, COLOURED)] * len(rows), head, room, lambda value: FOR if value < 0 else AGAINST)]


def _bars(
    rows: Sequence[tuple[str, np.ndarray]],
    scales: Sequence[float],
    head: str,
    room: float,
    colour: Callable[[float], Any],
) -> Block:
    """A row of bars over the layers for each of some numbers: as high as they are, whatever their sign."""
    names = [fitted("", name, "", SMALL, min(NAMES, 0.3 * room) - 0.1) for name, _ in rows]
    left = max(inches(name, SMALL) for name in names) + 0.12
    n_layers = len(rows[0][1])

    def draw(sheet: Sheet, x: float, y: float) -> None:
        for number, ((_, numbers), scale) in enumerate(zip(rows, scales, strict=True)):
            top = y + number * (ROW + 0.05)
            axes = sheet.axes(x + left, top, room - left, ROW)
            values = np.nan_to_num(numbers)
            axes.bar(np.arange(n_layers), np.abs(values) / (scale or 1), 0.8, color=[colour(one) for one in values])
            axes.set(xlim=(-0.5, n_layers - 0.5), ylim=(0, 1.02), yticks=[], xticks=[])
            axes.spines[["top", "right", "left"]].set_visible(False)
            sheet.text(x, top + ROW - 0.04, names[number], SMALL, va="baseline")
        last = y + len(rows) * (ROW + 0.05)
        for layer in layers_named(n_layers, 16):
            middle = x + left + (room - left) * (layer + 0.5) / n_layers
            sheet.text(middle, last, str(layer), SMALL, ha="center")
        sheet.text(x, last, "layer", SMALL)

    said = lines_block(wrapped(glyphs(head), SMALL, room, 2), SMALL, GREY)
    return stacked([said, Block(len(rows) * (ROW + 0.05) + 0.15, draw)], 0.04)
