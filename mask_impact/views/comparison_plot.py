"""Results side by side as a matplotlib Figure: the verdict, what each answer used, at which depth each has its impact, and which
tokens differ most."""

from collections.abc import Sequence

import numpy as np

from mask_impact.findings.comparison import Comparison, Side
from mask_impact.views.comparison_verdict import Told, told, verdict_text
from mask_impact.views.figure_blocks import BESIDE, SIDES, WIDTH, Block, figure_of, lines_block, stacked
from mask_impact.views.plots import (
    GREY,
    INK,
    MARGIN,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    caption_of,
    fitted,
    inches,
    ticks_between,
    wrapped,
)
from mask_impact.views.text import token_label

TOKENS = 12  # most of them that are shown
ROW, USED_ROW, HIGH = 0.2, 0.26, 1.9  # heights: of a token's row, of one with bars, and least of the panel of the depth
LABEL = 1.3  # inches of a token's name, at most
MARKERS = "osD^vPX*"
TITLE_ROOM, AXIS_ROOM, STEP = 0.2, 0.24, 0.16  # above and below a panel; from line to line of the legend


def comparison_figure(comparison: Comparison, width: float = WIDTH):
    """Two or more results, a matplotlib Figure: the verdict in words; of each pair that is explained what its answers lose
    without what they use; what part of each one's impact lies at which depth, and the shares of the tokens that differ most from
    the first result. width: in inches.

    Where the scale makes all layers alike, the first panel has the rank correlation of the tokens' importances at each depth.
    """
    room = width - 2 * MARGIN
    names = [side.name for side in comparison.sides]
    title = wrapped(" and ".join(names) if len(names) == 2 else ", ".join(names), TITLE, room, 2)
    about = f"{comparison.variant} impact on the produced token {comparison.settings.step}, without attention sinks"
    if comparison.settings.keep_sinks:
        about = f"{comparison.variant} impact on the produced token {comparison.settings.step}"
    pairs = told(comparison)
    verdict = wrapped(verdict_text(comparison, pairs), TEXT, room, 6)
    blocks = [
        stacked([lines_block(title, TITLE), lines_block(verdict, TEXT)], 0.05),
        _legend(comparison, room),
        *(_used(comparison, pair, room) for pair in pairs if pair.rows()),
        lines_block(wrapped(about, SMALL, room, 2), SMALL, GREY),
        *_panels(comparison, room),
    ]
    return figure_of(blocks, _origin(comparison.sides), width)


def _origin(sides: Sequence[Side]) -> str:
    """What the caption says: the models, then the commands, each once."""
    about = [side.result.meta for side in sides]
    models = dict.fromkeys(str(meta.get("model") or "") for meta in about)
    commands = dict.fromkeys(caption_of({"command": meta.get("command")}) for meta in about)
    return " · ".join(part for part in (*models, *commands) if part)


def _used(comparison: Comparison, pair: Told, room: float) -> Block:
    """A row for each word, cell or group that one of a pair's answers uses, with a bar for each of the two: filled where it was
    measured, hollow where it is estimated, none where there is no number."""
    rows = pair.rows()[:TOKENS]
    title = "lost where it is hidden, nats (hollow: estimated)"
    labels = [fitted("", row.name, "", SMALL, LABEL) for row in rows]
    left = max(inches(label, SMALL) for label in labels) + 0.1
    colours = [SIDES[comparison.sides.index(side) % len(SIDES)] for side in pair.sides]

    def draw(sheet: Sheet, x: float, y: float) -> None:
        sheet.text(x, y + 0.1, fitted("", title, "", TEXT, room), va="baseline")
        axes = sheet.axes(x + left, y + TITLE_ROOM, room - left, USED_ROW * len(rows))
        axes.set(ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=GREY, linewidth=0.5)
        for number, row in enumerate(rows):
            for which, (change, colour) in enumerate(zip(row.unit.changes, colours, strict=True)):
                if np.isfinite(change):
                    look = {
                        "color": colour if row.unit.measured[which] else "none",
                        "edgecolor": colour,
                        "linewidth": 0.8,
                    }
                    axes.barh(number + (which - 0.5) * 0.36, -change, 0.3, **look)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.02 * (high - low))
        axes.set_xticks(*ticks_between(axes.get_xticks(), low, high))

    return Block(TITLE_ROOM + USED_ROW * len(rows) + AXIS_ROOM, draw)


def _panels(comparison: Comparison, room: float) -> list[Block]:
    """The depth and the tokens, beside each other where there is room."""
    if room + 2 * MARGIN < BESIDE:
        return [_depth(comparison, room, HIGH), _tokens(comparison, room)]
    left = 0.42 * room
    tokens = _tokens(comparison, room - left - 0.25)
    depth = _depth(comparison, left, max(HIGH, tokens.height - TITLE_ROOM - AXIS_ROOM))

    def draw(sheet: Sheet, x: float, y: float) -> None:
        depth.draw(sheet, x, y)
        tokens.draw(sheet, x + left + 0.25, y)

    return [Block(max(depth.height, tokens.height), draw)]


def _depth(comparison: Comparison, room: float, high: float) -> Block:
    """A line for each result over the depth."""
    shares = [side.depth_shares for side in comparison.sides]
    by_share = all(values is not None for values in shares)
    title = "impact by depth, %" if by_share else "rank correlation with the first, by depth"

    def draw(sheet: Sheet, x: float, y: float) -> None:
        sheet.text(x, y + 0.1, fitted("", title, "", TEXT, room), va="baseline")
        axes = sheet.axes(x + 0.34, y + TITLE_ROOM, room - 0.34, high)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.set_xticks([0, 0.5, 1], ["first layer", "middle", "last"])
        for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)
        if by_share:
            lines = [(number, 100 * values) for number, values in enumerate(shares)]
            axes.set_ylim(0, max(1e-9, *(np.nanmax([*line, 0.0]) for _, line in lines)) * 1.08)
        else:
            lines = [
                (number, np.array([one.rho for one in pair.bands])) for number, pair in enumerate(comparison.pairs, 1)
            ]
            axes.set_ylim(-1.05, 1.05)
            axes.axhline(0, color=GREY, linewidth=0.5)
        for number, line in lines:
            middles = (np.arange(len(line)) + 0.5) / len(line)
            style = {"color": SIDES[number % len(SIDES)], "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(middles, line, linewidth=1.3, markersize=3.5, markeredgewidth=0, **style)
        axes.set_yticks(*ticks_between(axes.get_yticks(), *axes.get_ylim()))

    return Block(TITLE_ROOM + high + AXIS_ROOM, draw)


def _tokens(comparison: Comparison, room: float) -> Block:
    """The tokens that differ most from the first result, with a mark for each result's share."""
    first, rows = comparison.sides[0], _differing(comparison)
    title = "tokens that differ most, % of all impact"
    if not rows:
        return lines_block([title, "no token is in all of them and counts"], TEXT)
    labels = [_label(first, place) for place, _ in rows]
    left = max(inches(label, SMALL) for label in labels) + 0.1
    high = ROW * len(rows)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.ticker import MaxNLocator

        sheet.text(x, y + 0.1, fitted("", title, "", TEXT, room), va="baseline")
        axes = sheet.axes(x + left, y + TITLE_ROOM, room - left, high)
        largest = max(float(np.nanmax(values)) for _, values in rows) or 1.0
        axes.set(xlim=(-0.04 * largest, 1.06 * largest), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0)
        for number, (_, values) in enumerate(rows):
            axes.axhline(number, color="0.9", linewidth=0.5, zorder=0)
            there = values[np.isfinite(values)]
            axes.plot([there.min(), there.max()], [number, number], color="0.7", linewidth=1.6, zorder=1)
            for side, value in enumerate(values):
                style = {"color": SIDES[side % len(SIDES)], "marker": MARKERS[side % len(MARKERS)]}
                axes.plot([value], [number], markersize=5, markeredgewidth=0, linestyle="none", zorder=2, **style)
        axes.set_xticks(*ticks_between(MaxNLocator(5).tick_values(0, largest), 0, 1.06 * largest))

    return Block(TITLE_ROOM + high + AXIS_ROOM, draw)


def _differing(comparison: Comparison) -> list[tuple[int, np.ndarray]]:
    """(place in the first result, float64 [results], percent of each one's impact, NaN where the token is not in it)."""
    found: dict[int, float] = {}
    partners: list[dict[int, int]] = []
    for pair in comparison.pairs:
        partners.append({int(one): int(other) for one, other in pair.matched[pair.compared]})
        for one, _, difference, _ in pair.differing()[:TOKENS]:
            found[one] = max(found.get(one, 0.0), abs(difference))
    shares = [100 * side.shares(side.overall) for side in comparison.sides]
    rows = []
    for place in sorted(found, key=lambda place: -found[place])[:TOKENS]:
        others = [shares[number][to[place]] if place in to else np.nan for number, to in enumerate(partners, start=1)]
        rows.append((place, np.array([shares[0][place], *others])))
    return rows


def _label(side: Side, place: int) -> str:
    """A token's name, with its position where another has the same name."""
    position, texts = int(side.impact.positions[place]), side.result.tokens.texts
    if side.result.tokens.image[position] >= 0:
        return token_label(side.result, position)
    which = f"{position} " if texts.count(texts[position]) > 1 else ""
    return fitted(f"{which}“", texts[position], "”", SMALL, LABEL)


def _legend(comparison: Comparison, room: float) -> Block:
    """A line for each result: its mark, its name, what it said, and how far it agrees with the first."""
    lines = []
    for number, side in enumerate(comparison.sides):
        produced = f" → “{side.produced.strip()}”" if side.produced.strip() else ""
        agrees = ""
        if number:
            rho = comparison.pairs[number - 1].overall.rho
            agrees = f"   rank correlation with the first {rho:.2f}" if np.isfinite(rho) else ""
        lines.append(fitted("", f"{side.name}{produced}", agrees, SMALL, room - 0.3))

    def draw(sheet: Sheet, x: float, y: float) -> None:
        axes = sheet.axes(x, y, 0.24, STEP * len(lines))
        axes.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -0.5))
        axes.axis("off")
        for number, line in enumerate(lines):
            style = {"color": SIDES[number % len(SIDES)], "marker": MARKERS[number % len(MARKERS)]}
            axes.plot([0, 0.5, 1], [number] * 3, linewidth=1.3, markersize=4, markevery=[1], markeredgewidth=0, **style)
            sheet.text(x + 0.32, y + (number + 0.5) * STEP, line, SMALL, color=INK, va="center_baseline")

    return Block(STEP * len(lines), draw)
