"""What each part of an image's features does to an answer, as a matplotlib Figure. Knows what was measured; writes no files."""

import numpy as np

from mask_impact.findings.looked import strongest_part
from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget
from mask_impact.views.deepstack import BASELINES
from mask_impact.views.figure_blocks import (
    BESIDE,
    WIDTH,
    Block,
    figure_of,
    keys_block,
    lines_block,
    nats,
    stacked,
    tint,
)
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GREY,
    MARGIN,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    caption_of,
    fitted,
    glyphs,
    inches,
    wrapped,
)
from mask_impact.views.text import percent

ROW, BAR, CELL = 0.38, 0.11, (0.62, 0.22)  # inches
NARROW_TITLE = 9.5
KEYS = (
    ("for the answer; two parts need each other", {"facecolor": FOR, "edgecolor": FOR, "linewidth": 0.8}),
    ("against it; two stand in for each other", {"facecolor": AGAINST, "edgecolor": AGAINST, "linewidth": 0.8}),
)


def deepstack_figure(found: DeepstackEffects, number: int = 0, width: float = WIDTH):
    """Of each part its Shapley value as a bar, with what becomes of a target with it alone and without it; below, how much more
    two parts add together. number: of the target, from 0; width: inches."""
    target, room = found.targets[number], width - 2 * MARGIN
    size, chance = TITLE if width >= BESIDE else NARROW_TITLE, percent(target.probability)
    title = fitted("Parts of the features and “", target.text.strip(), f"” ({chance})", size, room)
    about = (
        f"{found.parts[strongest_part(target)].name} adds most; what is taken away is replaced by {BASELINES[found.baseline]}"
        f"; region: {found.region}"
    )
    blocks = [
        stacked([lines_block([title], size), lines_block(wrapped(glyphs(about), SMALL, room, 3), SMALL, GREY)], 0.03),
        _parts(found, target, room),
        *([_together(found, target, room)] if len(found.parts) > 1 else []),
        keys_block(KEYS, room),
    ]
    return figure_of(blocks, caption_of(found.meta), width)


def _parts(found: DeepstackEffects, target: DeepstackTarget, room: float) -> Block:
    """A row for each part: its name and share of the norms, the bar and its number, and two lines of what was measured."""
    names = [fitted("", part.name, "", TEXT, 0.25 * room) for part in found.parts]
    left = max(inches(name, TEXT) for name in names) + 0.15
    largest = float(np.abs(target.shapley).max()) or 1.0
    length = (0.4 if room + 2 * MARGIN >= BESIDE else 0.34) * (room - left)
    told = left + length + 0.15
    whole = length / (length - max(inches(nats(float(value)), TEXT) for value in target.shapley) - 0.04)

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.patches import Rectangle

        bars = sheet.axes(x + left, y, length, ROW * len(names))
        bars.set(xlim=(0, whole), ylim=(ROW * len(names), 0))
        bars.axis("off")
        for place, name in enumerate(names):
            value, top = float(target.shapley[place]), place * ROW
            middle = y + top + 0.11
            part, colour = abs(value) / largest, FOR if value >= 0 else AGAINST
            style = {"facecolor": colour, "edgecolor": colour, "linewidth": 0.8, "gid": f"part-{place}"}
            bars.add_patch(Rectangle((0, top + 0.11 - BAR / 2), part, BAR, **style))
            sheet.text(x, middle, name, va="center_baseline")
            norms = f"{percent(float(found.norm_share[place]))} of norms"
            sheet.text(x, middle + 0.14, norms, SMALL, color=GREY, va="center_baseline")
            sheet.text(x + left + part * length / whole + 0.04, middle, nats(value), va="center_baseline")
            for line, (what, kept) in enumerate(_sets(place, len(names))):
                before = f"{what} {nats(float(target.logprob_change[kept]))}: "
                said = fitted(*_said(found, target, kept, before), SMALL, room - told)
                sheet.text(x + told, middle - 0.03 + 0.14 * line, said, SMALL, va="center_baseline")

    about = "adds (Shapley value), and the change with it alone and without it, nats"
    head = lines_block(wrapped(about, SMALL, room, 2), SMALL, GREY)
    return stacked([head, Block(ROW * len(names), draw)], 0.04)


def _sets(place: int, n: int) -> list[tuple[str, int]]:
    """(what is kept, in words, the number of the set)."""
    return [("alone", 1 << place), ("without", 2**n - 1 - (1 << place))]


def _said(found: DeepstackEffects, target: DeepstackTarget, kept: int, before: str) -> tuple[str, str, str]:
    """What stands before a text, the text, and what stands behind it: the answer, or its first token, where a set is kept."""
    if kept in found.answers:
        return f"{before}“", found.answers[kept].strip(), "”"
    if target.differs[kept]:
        return f"{before}first “", target.top1_texts[int(target.top1[kept])].strip(), "”"
    return before, "the answer stays", ""


def _together(found: DeepstackEffects, target: DeepstackTarget, room: float) -> Block:
    """The interactions, a cell for each two parts."""
    n = len(found.parts)
    name_room = min(max(inches(part.name, SMALL) for part in found.parts) + 0.1, 0.25 * room)
    wide, high = min(CELL[0], (room - name_room) / n), CELL[1]
    largest = float(np.abs(target.interaction).max()) or 1.0
    names = [fitted("", part.name, "", SMALL, min(name_room, wide)) for part in found.parts]

    def draw(sheet: Sheet, x: float, y: float) -> None:
        from matplotlib.patches import Rectangle

        axes = sheet.axes(x + name_room, y + high, wide * n, high * n)
        axes.set(xlim=(0, n), ylim=(n, 0))
        axes.axis("off")
        for one in range(n):
            sheet.text(x, y + (one + 1.5) * high, names[one], SMALL, va="center_baseline")
            sheet.text(
                x + name_room + (one + 0.5) * wide, y + high / 2, names[one], SMALL, ha="center", va="center_baseline"
            )
            for other in range(n):
                if one == other:
                    continue
                value = float(target.interaction[one, other])
                colour = tint(-value, largest)
                axes.add_patch(
                    Rectangle((other, one), 1, 1, facecolor=colour, edgecolor="white", gid=f"pair-{one}-{other}")
                )
                axes.text(other + 0.5, one + 0.5, nats(value), fontsize=SMALL, ha="center", va="center")

    head = lines_block(["how much more two parts add together, nats"], SMALL, GREY)
    return stacked([head, Block(high * (n + 1), draw)], 0.02)
