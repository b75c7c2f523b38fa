"""A comparison of results in words, for a terminal: the verdict, what the answers used, then the local impact.

Knows a comparison and how token texts are made safe; not how it was computed, nor where the results come from.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mask_impact.errors import ranges
from mask_impact.findings.agreement import FEWEST_TOKENS, where_hidden
from mask_impact.findings.chance import Correlation
from mask_impact.findings.comparison import SCALES, Comparison, Pair, Side
from mask_impact.findings.impact import METRICS, largest
from mask_impact.views.comparison_verdict import LETTERS, Told, answers_text, told
from mask_impact.views.text import (
    WIDTH,
    columns,
    cut,
    escape,
    layers_counted,
    padded,
    percent,
    quoted,
    token_label,
    wrapped,
)

TOKEN_WIDTH = 16
SHORT_LABEL = 8  # columns of a token in the table of depths
MAX_NAMED = 12  # tokens in a list of those that are not aligned
UNIT_WIDTH, BECOMES_WIDTH = 34, 10  # columns in the table of effects
MOST_USED = 10  # its rows
LOCAL = (
    "Local impact: how much each layer's update changes where one token is hidden "
    "from it. That says what layers read, and not what the answer needs."
)


def render(comparison: Comparison, k: int = 10) -> str:
    """The comparison in lines of at most WIDTH columns, safe for a terminal. k: how many differing tokens are listed."""
    pairs = told(comparison)
    sections = [_verdict(comparison, pairs), _who(comparison)]
    for one in pairs:
        sections += [part for part in (_used(comparison, one), _evidence(comparison, one)) if part]
    sections += [_heading(comparison), *(_pair(comparison, pair, k) for pair in comparison.pairs)]
    if comparison.scale != "share":
        sections.append(_depths(comparison))
    if with_effects(comparison):
        sections.append(_effects(comparison))
    return "\n\n".join("\n".join(section) for section in sections)


def letter(comparison: Comparison, side: Side) -> str:
    """What a result is called in tables."""
    return LETTERS[comparison.sides.index(side)]


def unit(comparison: Comparison) -> str:
    """What is compared, in words."""
    return f"{METRICS[comparison.settings.metric]} distance of {escape(comparison.variant)}, {SCALES[comparison.scale]}"


def _verdict(comparison: Comparison, pairs: Sequence[Told]) -> list[str]:
    """What comes first: the answers, and of each pair what they used and how deep they read it."""
    if len(pairs) == 1:
        return wrapped(pairs[0].text, "")
    lines = wrapped(said, "") if (said := answers_text(comparison, pairs)) else []
    for one in pairs:
        lines += wrapped(f"{' and '.join(letter(comparison, side) for side in one.sides)}: {one.rest}", "", "  ")
    return lines


def _who(comparison: Comparison) -> list[str]:
    """Which letter is which result."""
    lines = []
    for side in comparison.sides:
        model = side.result.meta.get("model")
        facts = [escape(str(model))] if model else []
        facts += [layers_counted(side.result), f"{len(side.impact.positions)} tokens"]
        facts += [f"produced {quoted(side.produced, TOKEN_WIDTH)}"] if side.produced else []
        lines += wrapped(f"{letter(comparison, side)}  {escape(side.name)}: {', '.join(facts)}", "  ", "     ")
    return lines


def _used(comparison: Comparison, one: Told) -> list[str]:
    """The measured effects side by side; nothing where neither of the two is explained."""
    shown = one.rows()
    if not shown:
        return []
    one_letter, other = (letter(comparison, side) for side in one.sides)
    rows = [("hidden", one_letter, "then", other, "then")]
    for row in shown[:MOST_USED]:
        becomes = [f"-> {quoted(text, BECOMES_WIDTH)}" if text is not None else "" for text in row.becomes]
        rows.append((cut(row.name, UNIT_WIDTH), row.changes[0], becomes[0], row.changes[1], becomes[1]))
    title = (
        f"What {one_letter} and {other} use: change of the answer's log-probability (nats) where it is "
        "hidden, and the most probable token then"
    )
    more = len(shown) - MOST_USED
    estimated = any("~" in change for row in shown for change in row.changes)
    lines = [*wrapped(f"{title}{'; ~ is an estimate' if estimated else ''}:", "", "  "), *_grid(rows, right=(1, 3))]
    return [*lines, f"  and {more} more, each of which matters less"] if more > 0 else lines


def _evidence(comparison: Comparison, one: Told) -> list[str]:
    """The smallest sets of the two, one below the other."""
    lines = []
    for which, side in enumerate(one.sides):
        for nth, sentence in enumerate(one.evidence(which)):
            lines += wrapped(sentence, f"  {letter(comparison, side) if nth == 0 else ' '}  ", "       ")
    return ["Evidence (the smallest sets that were found):", *lines] if lines else []


def _heading(comparison: Comparison) -> list[str]:
    lines = wrapped(LOCAL, "", "  ")
    lines += wrapped(f"Importance for produced token {comparison.settings.step}: {unit(comparison)}", "", "  ")
    return lines + [line for side in comparison.sides for line in _sink_lines(comparison, side)]


def _sink_lines(comparison: Comparison, side: Side) -> Iterator[str]:
    name = letter(comparison, side)
    for position in side.left_out:
        why = (
            f"a sink of {name} (`keep_sinks` counts it)"
            if position in side.sinks
            else "the same token as a sink of another"
        )
        yield from wrapped(f"left out of {name}: {_token(side, position)} at position {position}, {why}", "  ", "    ")


def _pair(comparison: Comparison, pair: Pair, k: int) -> list[str]:
    one, other = (letter(comparison, side) for side in (pair.first, pair.second))
    lines = [f"{one} and {other}: {len(pair.matched)} tokens are the same, {pair.overall.n} of them are compared"]
    for side, places, missing in ((pair.first, pair.unmatched[0], other), (pair.second, pair.unmatched[1], one)):
        if places:
            lines += _wrapped(f"  {letter(comparison, side)} has and {missing} has not: ", _named(side, places))
    return [*lines, "", *_agreement(comparison, pair), "", *_differing(comparison, pair, k)]


def _agreement(comparison: Comparison, pair: Pair) -> list[str]:
    one, other = (letter(comparison, side) for side in (pair.first, pair.second))
    lines = [
        "Do they rank these tokens alike?",
        "  rho: Spearman's rank correlation; p: the chance of one at least as large",
    ]
    kinds = (("all layers", pair.overall), ("texts only", pair.text), ("patches only", pair.image))
    for name, correlation in kinds:
        if correlation is not None:
            rho, p = (cell.strip() for cell in _written(comparison, correlation))
            lines.append(f"  {name}: rho {rho}{f', p {p}' if p else ''}, of {correlation.n} tokens")
    rows = [("depth", f"layers {one}", f"layers {other}", "rho", "p", f"strongest in {one}", f"strongest in {other}")]
    for band, correlation in enumerate(pair.bands):
        layers = (layers_text(side.layers[band]) for side in (pair.first, pair.second))
        strongest = (_strongest(side, side.bands[band]) for side in (pair.first, pair.second))
        rows.append((_short_depth(band, len(pair.bands)), *layers, *_written(comparison, correlation), *strongest))
    return [*lines, *_grid(rows, right=(3, 4)), *(f"  {line}" for line in chance_lines(comparison, pair))]


def chance_lines(comparison: Comparison, pair: Pair) -> list[str]:
    """What p means for a pair, in lines of at most WIDTH - 2 columns."""
    if pair.overall.n < FEWEST_TOKENS:
        return [f"There is no rank correlation of fewer than {FEWEST_TOKENS} tokens."]
    some = next((one for one in (pair.overall, *pair.bands) if one.p is not None), None)
    if some is None:
        return ["There is no rank correlation: all tokens matter equally in one of the two."]
    how = (
        "all arrangements were gone through"
        if some.exact
        else f"{comparison.settings.n_permutations:,} permutations, seed {comparison.settings.seed}"
    )
    return [
        "Null hypothesis: it is unrelated which tokens matter in the two. Importances",
        "are shuffled among special tokens, among other texts, and among the patches",
        "of each image.",
        f"{how[0].upper()}{how[1:]}; the smallest p is {some.smallest_p:.2g}.",
        "Each p is of its line alone: of many lines, some are small by chance.",
    ]


def _written(comparison: Comparison, correlation: Correlation) -> tuple[str, str]:
    """rho and p, with as many decimals as the permutations give."""
    if correlation.rho is None:
        return "none", ""
    return f"{correlation.rho:6.3f}", f"{correlation.p:.{max(4, len(str(comparison.settings.n_permutations)))}f}"


def _strongest(side: Side, importance: np.ndarray, width: int = SHORT_LABEL) -> str:
    shares = side.shares(importance)
    best = largest(shares, 1)
    if not best:
        return "none"
    label = _label(side, best[0], width)
    return f"{padded(label, width)} {100 * float(shares[best[0]]):>3.0f} %"


def _short_depth(band: int, n_bands: int) -> str:
    """`10-20 %`"""
    return depth_text(band, n_bands).replace(" to ", "-")


def depth_text(band: int, n_bands: int) -> str:
    """`10 to 20 %`"""
    return f"{100 * band / n_bands:.3g} to {100 * (band + 1) / n_bands:.3g} %"


def layers_text(layers: Sequence[tuple[int, float]]) -> str:
    """The measured layers of a band, whole or in part: `3-7`, `3,7`; `none`."""
    return ranges(layer for layer, _ in layers) or "none"


def _differing(comparison: Comparison, pair: Pair, k: int) -> list[str]:
    one, other = (letter(comparison, side) for side in (pair.first, pair.second))
    names = (f"pos {one}", f"pos {other}", f"share {one}", f"share {other}", "points", "most at depth")
    rows = [("rank", f"{'token':<{TOKEN_WIDTH}}", *names)]
    shares = [side.shares(side.overall) for side in (pair.first, pair.second)]
    for rank, (first, second, difference, band) in enumerate(pair.differing()[:k], start=1):
        rows.append(
            (
                str(rank),
                _label(pair.first, first, TOKEN_WIDTH),
                str(pair.first.impact.positions[first]),
                str(pair.second.impact.positions[second]),
                percent(float(shares[0][first])),
                percent(float(shares[1][second])),
                f"{100 * difference:+.1f}",
                "" if band is None else depth_text(band, len(pair.bands)),
            )
        )
    if len(rows) == 1:
        return ["Tokens that differ most: none, since no token is compared"]
    title = [
        "Tokens that differ most (shares of the importance in all layers; points: the",
        "difference in percentage points):",
    ]
    return [*title, *_grid(rows, right=(0, 2, 3, 4, 5, 6))]


def _depths(comparison: Comparison) -> list[str]:
    """The part of each result's impact in each band, and where there are images, how much of it is theirs."""
    header, cells = ["depth"], []
    for side in comparison.sides:
        name = letter(comparison, side)
        header.append(name)
        cells.append([_share(share) for share in side.depth_shares])
        images = image_shares(side)
        if images is not None:
            header.append(f"{name} images")
            cells.append([_share(share) for share in images])
    n_bands = comparison.settings.n_bands
    rows = [tuple(header)] + [(depth_text(band, n_bands), *(cell[band] for cell in cells)) for band in range(n_bands)]
    images = " (images: how much of the band's is on their patches)" if len(header) > 1 + len(comparison.sides) else ""
    return [f"Where the impact lies{images}:", *_grid(rows, right=range(1, len(header)))]


def _share(share: float) -> str:
    return "none" if np.isnan(share) else percent(float(share))


def with_effects(comparison: Comparison) -> tuple[Side, ...]:
    """The results whose effects on the produced token are compared: none, or the first and each other that has some."""
    others = [pair.second for pair in comparison.pairs if pair.effect is not None]
    return (comparison.sides[0], *others) if others else ()


def effect_settings(comparison: Comparison) -> str:
    """Where and how tokens were hidden, once where it is the same in all results whose effects are compared."""
    said = {letter(comparison, side): escape(where_hidden(side.result)) for side in with_effects(comparison)}
    if len(set(said.values())) == 1:
        return f"by hiding a token from {next(iter(said.values()))}"
    return f"by hiding a token, {'; '.join(f'in {name} from {where}' for name, where in said.items())}"


def _effects(comparison: Comparison) -> list[str]:
    """Whether the results agree about effects, and in each whether the importance tells them."""
    sides = with_effects(comparison)
    lines = wrapped(f"Effect on the answer (change of the log-probability {effect_settings(comparison)}):", "", "    ")
    for pair in comparison.pairs:
        if pair.effect is not None:
            names = " and ".join(letter(comparison, side) for side in (pair.first, pair.second))
            rho, p = (cell.strip() for cell in _written(comparison, pair.effect))
            lines.append(f"  {names}, all layers: rho {rho}{f', p {p}' if p else ''}, of {pair.effect.n} tokens")
    lines.append("  rho of importance with effect within each, of n tokens that have an effect:")
    rows = [("depth", *(name for side in sides for name in (letter(comparison, side), "n")))]
    n_bands = comparison.settings.n_bands
    for row, name in enumerate(["all layers", *(depth_text(band, n_bands) for band in range(n_bands))]):
        found = [(rho[row], n[row]) for rho, n in (side.told for side in sides)]
        rows.append((name, *(cell for rho, n in found for cell in ("none" if np.isnan(rho) else f"{rho:.3f}", str(n)))))
    return [*lines, *_grid(rows, right=range(1, len(rows[0])))]


def image_shares(side: Side) -> np.ndarray | None:
    """float64 [B], the part of each band's importance that patches of images have, NaN where no layer was measured; None where
    there are none."""
    if not side.is_image.any():
        return None
    shares = np.array([np.nansum(side.shares(row)[side.is_image]) for row in side.bands])
    return np.where(side.has_layers, shares, np.nan)


def _named(side: Side, places: Sequence[int]) -> list[str]:
    """Tokens in a list; patches are counted, since they are many and say nothing on their own."""
    texts = [_label(side, place, TOKEN_WIDTH) for place in places if not side.is_image[place]]
    n_patches = sum(bool(side.is_image[place]) for place in places)
    more = [f"{len(texts) - MAX_NAMED} more"] if len(texts) > MAX_NAMED else []
    return texts[:MAX_NAMED] + more + ([f"{n_patches} patches"] if n_patches else [])


def _label(side: Side, place: int, width: int) -> str:
    return _token(side, int(side.impact.positions[place]), width)


def _token(side: Side, position: int, width: int = TOKEN_WIDTH) -> str:
    tokens = side.result.tokens
    if tokens.image[position] >= 0:
        return token_label(side.result, position, width)
    return quoted(tokens.texts[position], width)


def _grid(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells in columns; those at the places in `right` are moved to the right."""
    widths = [max(columns(row[place]) for row in rows) for place in range(len(rows[0]))]
    n_fitting = _n_fitting(widths)
    if n_fitting < len(widths):  # the others below, with the first column again
        first = [row[:n_fitting] for row in rows]
        rest = [(row[0], *row[n_fitting:]) for row in rows]
        moved = [0] * (0 in right) + [place - n_fitting + 1 for place in right if place >= n_fitting]
        return [*_grid(first, [place for place in right if place < n_fitting]), "", *_grid(rest, moved)]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - columns(cell))
            cells.append(space + cell if place in right else cell + space)
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _n_fitting(widths: Sequence[int]) -> int:
    """How many columns of a table fit into WIDTH, two at least."""
    ends = np.cumsum([width + 2 for width in widths])
    return max(2, int(np.searchsorted(ends, WIDTH, side="right")))


def _wrapped(start: str, words: Sequence[str], between: str = ", ") -> list[str]:
    """A list in lines of at most WIDTH columns; no word is broken."""
    lines = [start]
    for index, word in enumerate(words):
        piece = word + (between if index < len(words) - 1 else "")
        if columns(lines[-1]) + columns(piece.rstrip()) > WIDTH and lines[-1].strip():
            lines.append(" " * 4)
        lines[-1] += piece
    return [line.rstrip() for line in lines]
