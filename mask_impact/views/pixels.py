"""What replacing pixels does to an answer, as text for a terminal and as a picture of the regions. Writes no files."""

import io
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import BinaryIO

import numpy as np

from mask_impact.findings.looked import weakest_change
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL, PatchEffects, PatchTarget
from mask_impact.results.tokens import ImageRecord
from mask_impact.views.plots import (
    AGAINST,
    FOR,
    GAP,
    GREY,
    HEAD,
    INK,
    MARGIN,
    MAX_IMAGES,
    SMALL,
    TEXT,
    TITLE,
    Page,
    fitted,
    png_of,
    with_model,
    writer_of,
)
from mask_impact.views.plots import wrapped as textlines
from mask_impact.views.text import (
    escape,
    model_lines,
    padded,
    percent,
    quoted,
    saved_lines,
    wrapped,
)
from mask_impact.views.text import (
    fitted as fitted_lines,
)

MOST_ROWS = 12  # regions that are named
NAME, LONGEST_NAME, BECOMES = 20, 34, 16  # columns
PANEL, HIGHEST, ROOM = 2.7, 2.8, 0.3  # inches: of an image, and above it
FINE = 16  # steps in which an image token's edge is coloured
VEIL = 0.7  # opacity of the strongest change's colour
SHARP = 200  # pixels of an image for an inch
WAYS = {
    OWN: "by its own image tokens alone",
    OTHERS: "by all other image tokens alone",
    HIDDEN: "its tokens hidden in the decoder",
}


def render_patches(found: PatchEffects, paths: Iterable[str | PathLike] = (), verbose: bool = False) -> str:
    """The page of text: of each target the regions by what replacing them does, and which way it goes. verbose: all regions;
    paths: the files that were written."""
    lines = [*model_lines(found.meta), *wrapped(f"Generated text: {escape(found.generated_text)}", "", "  "), ""]
    for target in found.targets:
        lines += [*fitted_lines(_of_target(found, target, verbose)), ""]
    lines.append(f"Measured in {found.forwards:.1f} forward passes of the prompt, beside the answer's own.")
    return "\n".join([*lines, "", *saved_lines(paths)]).rstrip()


def _of_target(found: PatchEffects, target: PatchTarget, verbose: bool) -> Iterator[str]:
    best, asked = found.regions[target.found], len({*target.place.tolist()})
    becomes = [
        target.top1_texts[int(target.top1[row])]
        for row in target.rows(target.found, route=TOTAL)
        if target.differs[row]
    ]
    then = f"the answer becomes {quoted(becomes[0], BECOMES)}" if becomes else "the answer stays"
    of_all = (
        f"of {asked} regions, {escape(best.called)} matters most. With"
        if asked > 1
        else f"with {escape(best.called)} replaced,"
    )
    said = f"{of_all} its pixels replaced, {then}." if asked > 1 else f"{of_all} {then}."
    yield f"{quoted(target.text, 24)} ({percent(target.probability)}): {said}"
    yield ""
    order = sorted({*target.place.tolist()}, key=lambda place: weakest_change(target, place))
    listed = order if verbose else order[:MOST_ROWS]
    name = min(max(NAME, *(len(escape(found.regions[place].called)) for place in listed)), LONGEST_NAME)
    yield f"  {padded('pixels replaced', name)}  " + "  ".join(f"{fill:>9}" for fill in found.fills) + "  becomes"
    for place in listed:
        yield _row(found, target, place, name)
    if len(order) > MOST_ROWS and not verbose:
        yield f"  ... and {len(order) - MOST_ROWS} more (--verbose)"
    yield "  (change of the log-probability in nats)"
    for place in dict.fromkeys(target.place[target.rows(route=OWN)].tolist()):
        yield from _split(found, target, place)


def _row(found: PatchEffects, target: PatchTarget, place: int, name: int) -> str:
    cells, becomes = [], []
    for fill in found.fills:
        rows = target.rows(place, fill, TOTAL)
        cells.append(f"{target.logprob_change[rows[0]] + 0.0:>9.3g}" if rows else f"{'':>9}")
        becomes += [target.top1_texts[int(target.top1[row])] for row in rows if target.differs[row]]
    said = quoted(becomes[0], BECOMES) if becomes else ""
    return f"  {padded(escape(found.regions[place].called)[:name], name)}  {'  '.join(cells)}  {said}".rstrip()


def _split(found: PatchEffects, target: PatchTarget, place: int) -> Iterator[str]:
    """The ways of one region's effect."""
    fill = found.fills[0]
    yield ""
    total = float(target.logprob_change[target.rows(place, fill, TOTAL)[0]])
    yield f"  {escape(found.regions[place].called)}, {fill}: {total + 0.0:.3g} in total; of it"
    for route, said in WAYS.items():
        for row in target.rows(place, route=route):
            becomes = f"  {quoted(target.top1_texts[int(target.top1[row])], BECOMES)}" if target.differs[row] else ""
            yield f"    {padded(said, 34)} {target.logprob_change[row] + 0.0:>9.3g}{becomes}"


# --- the picture ------------------------------------------------------------------------------------------------------------


def picture_of(found: PatchEffects) -> Callable[[BinaryIO], None]:
    """What `save_patches` writes beside the table."""
    return writer_of(pixels_png(found))


def pixels_png(found: PatchEffects) -> bytes:
    """The picture as a PNG file."""
    return png_of(lambda: pixels_figure(found))


def pixels_figure(found: PatchEffects, target: int = 0, width: float | None = None, caption: str = ""):
    """Each image (the first MAX_IMAGES), as it is and under the regions that were asked about, coloured by what replacing them
    does to a target. A frame is around what matters most. width: inches (None: what the images take); caption: below it."""
    asked = found.targets[target]
    images = found.images[:MAX_IMAGES]
    sizes = [panel_size(image, PANEL if width is None else min(PANEL, (width - GAP) / 2 - MARGIN)) for image in images]
    width = width or max(6.0, 2 * max(wide for wide, _ in sizes) + GAP + 2 * MARGIN)
    head = fitted('Pixels and the answer "', asked.text, f'" ({percent(asked.probability)})', TITLE, width - 2 * MARGIN)
    about = with_model(found.meta.get("model"), f"replaced by {' or '.join(found.fills)}", width - 2 * MARGIN)
    left = f" · the first {len(images)} of {len(found.images)} images" if len(images) < len(found.images) else ""
    largest = max((abs(weakest_change(asked, place)) for place in {*asked.place.tolist()}), default=0.0) or 1.0
    note = f"orange: the answer is less likely without it, by {largest:.3g} nats at most; blue: more likely{left}"
    notes = textlines(note, TEXT, width - 2 * MARGIN, 3)
    foot = 0.3 + 0.15 * len(notes)
    page = Page(width, HEAD + sum(ROOM + tall for _, tall in sizes) + foot, (head, about), caption)
    y = HEAD
    for number, (image, (wide, tall)) in enumerate(zip(images, sizes, strict=True)):
        page.text(
            MARGIN, y, fitted(f"image {number}: ", image.source, "", SMALL, width - 2 * MARGIN), SMALL, color=GREY
        )
        y += ROOM - 0.1
        (wide_px, high_px), picture = image.size, preview_pixels(image)
        for place in range(2):
            axes = page.axes(MARGIN + place * (wide + GAP), y, wide, tall)
            axes.imshow(
                picture if place == 0 else 1 - 0.4 * (1 - picture), extent=(0, wide_px, high_px, 0), aspect="auto"
            )
            axes.set(xticks=[], yticks=[])
        _colour(axes, found, asked, number, largest)
        axes.set(xlim=(0, wide_px), ylim=(high_px, 0))
        y += tall + 0.1
    for number, line in enumerate(notes):
        page.text(MARGIN, y + 0.05 + 0.15 * number, line, TEXT, color=GREY)
    return page.finished()


def panel_size(image: ImageRecord, panel: float = PANEL) -> tuple[float, float]:
    """Width and height in inches, no wider than the panel."""
    aspect = image.size[0] / image.size[1]
    wide = min(panel, HIGHEST * aspect)
    return max(wide, 0.3), min(max(wide / aspect, 0.3), HIGHEST)


def _colour(axes, found: PatchEffects, target: PatchTarget, number: int, largest: float) -> None:
    """The regions of an image; where one lies in another, the colour of the smaller. Patches have colours where they alone were
    asked about, else lines."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    rows, columns = (FINE * n for n in found.images[number].grid)
    wide, high = found.images[number].size
    overlay = np.zeros((rows, columns, 4))
    asked = [place for place in {*target.place.tolist()} if found.regions[place].image == number]
    patches_alone = all(found.regions[place].level == "patch" for place in asked)
    lines = []
    for place in sorted(asked, key=lambda place: (-found.regions[place].area, place)):
        left, top, right, bottom = found.regions[place].box
        change = weakest_change(target, place)
        if patches_alone or found.regions[place].level != "patch":
            y, x = (slice(round(a * n / size), round(b * n / size)) for a, b, n, size in
                    ((top, bottom, rows, high), (left, right, columns, wide)))  # fmt: skip
            overlay[y, x] = to_rgba(FOR if change < 0 else AGAINST, VEIL * min(abs(change) / largest, 1.0))
        own = place == target.found
        frame = {"edgecolor": INK, "linewidth": 1.6, "zorder": 4} if own else {"edgecolor": "0.5", "linewidth": 0.3}
        lines.append(Rectangle((left, top), right - left, bottom - top, fill=False, gid=f"region-{place}", **frame))
    axes.imshow(overlay, extent=(0, wide, high, 0), aspect="auto", interpolation="nearest", origin="upper")
    for one in lines:
        axes.add_patch(one)


def preview_pixels(image: ImageRecord) -> np.ndarray:
    """float64 [height, width, 3], the preview; one pixel of a light grey where there is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image.preview)) as preview:
            preview.thumbnail((round(PANEL * SHARP), round(HIGHEST * SHARP)))
            return np.asarray(preview.convert("RGB")) / 255
    except OSError:
        return np.full((1, 1, 3), 0.8)
