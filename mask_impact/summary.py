"""What a result says, in a page of plain text: candidates, the tokens that matter and where, what was left out.

Knows records and numpy; no files, no models, and it prints nothing. All text that comes from a prompt or a tokenizer is
escaped, so that no token can move the cursor, colour the terminal or reorder a line.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np

from mask_impact.records import Result, StepRecord

WIDTH = 100  # columns of a terminal that the page fits in; paths are never broken
BAR_WIDTH = 20
TOKEN_WIDTH = 26
N_CANDIDATES = 5

# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def find_sinks(attention: np.ndarray, min_share: float = 0.3, min_ratio: float = 3.0) -> tuple[int, ...]:
    """Positions that most attention collapses onto, whatever the token there says (usually the first one).

    attention: [S], or [..., S] and averaged over the leading dimensions; the weight each position gets from the query.
    A position is a sink if its share of the attention, averaged over all layers and heads, is at least `min_share` and
    at least `min_ratio` times the mean share of the other positions. The second condition keeps short prompts right,
    where a third of the attention is nothing special; it is relative to the others and not to 1/S, because 3/S is 0.6
    for five tokens. Fewer than three positions have no sink: nothing would be left to compare.
    Source of the phenomenon: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
    """
    n_positions = attention.shape[-1]
    share = attention.reshape(-1, n_positions).mean(axis=0, dtype=np.float64)
    total = share.sum()
    if n_positions < 3 or not total > 0:
        return ()
    share = share / total
    others = (1 - share) / (n_positions - 1)
    return tuple(int(position) for position in np.flatnonzero((share >= min_share) & (share >= min_ratio * others)))


@dataclass(frozen=True)
class Importance:
    """How much each position matters.

    scores: float64 [S], the share of the impact, mean over layers; they sum to 1 (0 if nothing had an impact), sinks
    have 0. shares: float64 [L, S], the same for each layer. measure: the quantity whose L2 distance was taken.
    """

    scores: np.ndarray
    shares: np.ndarray
    measure: str

    def ranked(self, n: int) -> list[int]:
        """The n positions with the largest scores, largest first, ties by position; only those above 0."""
        order = np.argsort(-self.scores, kind="stable")[:n]
        return [int(position) for position in order if self.scores[position] > 0]

    def top_layers(self, position: int, n: int = 3) -> list[int]:
        """The n layers where the position's share is the largest, largest first; only those where it is above 0."""
        shares = self.shares[:, position]
        return [int(layer) for layer in np.argsort(-shares, kind="stable")[:n] if shares[layer] > 0]


def token_importance(result: Result, step: int | None = None) -> Importance:
    """The impact of each position on the token produced at `step`, or, with None, on the whole answer.

    share[l, j] = d[l, j] / sum of d[l, k] over all k that are not sinks;   score[j] = mean over l of share[l, j]

    with d the L2 distance of `Full` (of `Attn`, or the mean over heads, where the former was not measured). A share
    makes all layers count the same, whatever the norm of their updates; a layer, or a step, in which nothing had an
    impact is left out of the mean. With step=None the scores are averaged over the steps; a position that a step did
    not have yet counts 0 there.
    """
    steps = result.steps if step is None else (result.steps[step],)
    measure, variants = _measure(result.variants)
    shares = np.zeros((len(steps), result.n_layers, steps[-1].n_positions))
    for index, record in enumerate(steps):
        distances = record.l2[:, :, variants].mean(axis=2, dtype=np.float64)
        distances[:, np.isin(record.positions, result.sinks)] = 0
        totals = distances.sum(axis=1, keepdims=True)
        shares[index][:, record.positions] = np.divide(distances, totals, out=distances, where=totals > 0)
    counted = shares.sum(axis=2) > 0  # [T, L]
    scores = [share[keep].mean(axis=0) for share, keep in zip(shares, counted, strict=True) if keep.any()]
    n_positions = shares.shape[2]
    return Importance(
        scores=np.sum(scores, axis=0) / len(scores) if scores else np.zeros(n_positions),
        shares=shares.mean(axis=0),
        measure=measure,
    )


def _measure(variants: tuple[str, ...]) -> tuple[str, list[int]]:
    """The name of the measure and the variants whose mean it is."""
    for name in ("Full", "Attn"):
        if name in variants:
            return name, [variants.index(name)]
    return "mean of heads", list(range(len(variants)))


# ---------------------------------------------------------------------------------------------------------------------
# Text that is safe and stays in its column


def escape(text: str) -> str:
    """The text with everything that a terminal would act on written out (`\\n`, `\\x1b`, `\\u202e`); letters stay."""
    written = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
    return "".join(written.get(char) or (char if char.isprintable() else _code(char)) for char in text)


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def quoted(text: str, width: int | None = None) -> str:
    """The escaped text in double quotes, cut with an ellipsis to `width` columns."""
    inner = escape(text).replace('"', '\\"')
    if width is not None and columns(inner) > width - 2:
        inner = _cut(inner, width - 3) + "…"
    return f'"{inner}"'


def columns(text: str) -> int:
    """How many terminal columns the text takes: two for a wide character, none for a combining mark."""
    return sum(_char_columns(char) for char in text)


def _char_columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _cut(text: str, width: int) -> str:
    """The longest beginning of the text that fits into `width` columns."""
    used = 0
    for index, char in enumerate(text):
        used += _char_columns(char)
        if used > width:
            return text[:index]
    return text


def padded(text: str, width: int) -> str:
    """The text with spaces behind it, as wide as `width` columns of a terminal."""
    return text + " " * (width - columns(text))


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of at most WIDTH columns, broken behind a space where there is one."""
    lines, room = [], WIDTH - columns(indent)
    while columns(text) > room:
        line = _cut(text, room)
        space = line.rfind(" ")
        line = line[: space + 1] if space > 0 else line
        lines.append(indent + line.rstrip())
        text = text[len(line) :]
    return [*lines, (indent + text).rstrip()]


def token_label(result: Result, position: int, width: int = TOKEN_WIDTH) -> str:
    """How a token is named in text: quoted, or as its place in an image, [row, column]."""
    tokens = result.tokens
    if tokens.kinds[position] == "image" and tokens.image[position] >= 0:
        image, row, column = (int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))
        return _cut(f"image {image} [{row}, {column}]", width)
    return quoted(tokens.texts[position], width)


def percent(share: float) -> str:
    """A share as a percentage of fixed width with one decimal; what would round to nothing is `<0.1 %`."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def render_summary(result: Result, paths: Iterable[str | PathLike] = (), top: int = 5) -> str:
    """The result as a page of plain text of at most WIDTH columns (paths are not broken).

    paths: the files written, the CSV anywhere among them; top: how many tokens the ranking names. From `result.meta`
    the page shows `model` (a text), `notices` (a list of texts, first of all) and `verification` (triples and error).
    """
    sections = [
        _heading(result),
        _images(result) if result.images else [],
        _candidates(result.steps[0]),
        _ranking(result, top) if _masks_text(result) else [],
        *_image_sections(result, top),
        _steps(result) if len(result.steps) > 1 else [],
        _effects(result, top) if result.has_effects else [],
        [*_sinks(result), *_checks(result)],
        _files([fspath(path) for path in paths]),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def model_lines(meta: Mapping[str, Any]) -> list[str]:
    """What a meta file says of the model: notices first, then its name."""
    lines = [line for notice in meta.get("notices") or () for line in _wrapped(f"Note: {escape(str(notice))}", "")]
    if isinstance(meta.get("model"), str):
        lines += _wrapped(f"Model: {escape(meta['model'])}", "")
    return lines


def _heading(result: Result) -> list[str]:
    return [*model_lines(result.meta), "Generated text:", *_wrapped(quoted(result.generated_text))]


def _candidates(step: StepRecord) -> list[str]:
    lines = ["Candidates for the first token (probability over the whole vocabulary):"]
    for rank, candidate in enumerate(step.candidates[:N_CANDIDATES], start=1):
        label = padded(quoted(candidate.text, TOKEN_WIDTH), TOKEN_WIDTH)
        chosen = "  <- produced" if candidate.id == step.token_id else ""
        lines.append(f"  {rank:>4}  {label}  id {candidate.id:>7}  {100 * candidate.probability:>7.3f} %{chosen}")
    return lines if step.candidates else []


def _ranking(result: Result, top: int) -> list[str]:
    step = result.steps[0]
    importance = token_importance(result, step=0)
    ranked = importance.ranked(top)
    title = (
        f"Most important for the first token, {quoted(step.token_text, 16)} "
        f"(share of {importance.measure} impact, {result.n_layers} layers):"
    )
    if not ranked:
        return [title, "  none: no token that is not a sink had any impact"]
    label_width = max(columns("token"), *(columns(token_label(result, position)) for position in ranked))
    lines = [title, f"  rank   pos  {padded('token', label_width)}    share  {'':<{BAR_WIDTH}}  strongest in layers"]
    for rank, position in enumerate(ranked, start=1):
        score = importance.scores[position]
        bar = "█" * max(1, round(BAR_WIDTH * score / importance.scores[ranked[0]]))
        layers = ", ".join(str(layer) for layer in importance.top_layers(position))
        label = padded(token_label(result, position), label_width)
        lines.append(f"  {rank:>4}  {position:>4}  {label}  {percent(score):>7}  {bar:<{BAR_WIDTH}}  {layers}")
    return lines


def vision_impact(result: Result, step: int) -> tuple[np.ndarray, str] | None:
    """How much the image tokens matter in each layer at `step`, float64 [L], and what that number is; None where none of
    them was masked.

    Where text was masked too it is the share of the layer's impact that falls on image tokens (sinks left out). Where it was
    not, that share says nothing, and it is the sum of their L2 distances over the norm of the layer's update.
    """
    record = result.steps[step]
    is_image = result.tokens.image[record.positions] >= 0
    if not is_image.any():
        return None
    if not is_image.all():
        shares = token_importance(result, step).shares
        return shares[:, result.tokens.image[: record.n_positions] >= 0].sum(axis=1), "share of the layer's impact"
    measure, variants = _measure(result.variants)
    counted = ~np.isin(record.positions, result.sinks)
    distances = record.l2[:, :, variants].astype(np.float64)[:, counted].sum(axis=1)
    norms = record.baseline_norm[:, variants].astype(np.float64)
    ratios = np.divide(distances, norms, out=np.zeros_like(distances), where=norms > 0).mean(axis=1)
    return ratios, f"sum of their {measure} L2 over the norm of the unmasked {measure}"


def _image_sections(result: Result, top: int) -> list[list[str]]:
    """What the images matter in each layer and for each produced token, and the patches that matter most."""
    if vision_impact(result, step=0) is None:
        return []
    return [_vision_layers(result), _vision_steps(result), _patches(result, top)]


def _masks_text(result: Result) -> bool:
    return bool((result.tokens.image[result.steps[0].positions] < 0).any())


def _images(result: Result) -> list[str]:
    lines = [f"Images ({sum(image.n_tokens for image in result.images)} vision tokens):"]
    for number, image in enumerate(result.images):
        (width, height), (seen_width, seen_height), (rows, columns) = image.size, image.resized, image.grid
        lines.append(f"  image {number}: {escape(image.source)}")
        lines.append(
            f"    {width} x {height} pixels, seen by the model as {seen_width} x {seen_height}; "
            f"{rows} rows x {columns} columns = {image.n_tokens} tokens"
        )
    return lines


def _vision_layers(result: Result, per_line: int = 12) -> list[str]:
    values, meaning = vision_impact(result, step=0)
    lines = [f"Vision tokens, layer by layer, for the first token ({meaning}, in %):"]
    for first in range(0, result.n_layers, per_line):
        last = min(first + per_line, result.n_layers) - 1
        cells = " ".join(f"{100 * value:5.1f}" for value in values[first : last + 1])
        lines.append(f"  layers {first:>2}-{last:<2}  {cells}")
    return [*lines, f"  mean {percent(values.mean())}"]


def _vision_steps(result: Result, n_layers: int = 3) -> list[str]:
    lines = ["Layers where the vision tokens matter most for each produced token:"]
    for step in result.steps:
        values, _ = vision_impact(result, step.step)
        strongest = [layer for layer in np.argsort(-values, kind="stable")[:n_layers] if values[layer] > 0]
        cells = ", ".join(f"layer {layer} ({percent(values[layer])})" for layer in strongest)
        lines.append(f"  {step.step:>4}  {padded(quoted(step.token_text, 12), 12)} <- {cells or 'none'}")
    return lines


def _patches(result: Result, top: int) -> list[str]:
    """The image tokens that matter most for the first produced token."""
    importance = token_importance(result, step=0)
    ranked = [position for position in importance.ranked(len(importance.scores)) if result.tokens.image[position] >= 0]
    if not ranked:
        return []
    lines = [
        f"Patches that matter most for the first token (share of {importance.measure} impact; box: left, top, right, bottom",
        "in pixels of the original image):",
        "  rank  image  row  col       share  box",
    ]
    for rank, position in enumerate(ranked[:top], start=1):
        image, row, column = (
            int(cells[position]) for cells in (result.tokens.image, result.tokens.row, result.tokens.column)
        )
        box = ", ".join(f"{edge:.0f}" for edge in result.images[image].box(row, column))
        share = percent(importance.scores[position])
        layers = ", ".join(str(layer) for layer in importance.top_layers(position))
        lines.append(f"  {rank:>4}  {image:>5}  {row:>3}  {column:>3}  {share:>10}  {box:<24} layers {layers}")
    return lines


def _steps(result: Result) -> list[str]:
    """A line for each produced token with the three tokens that mattered most for it."""
    lines = ["Most important tokens for each produced token:"]
    for step in result.steps:
        importance = token_importance(result, step=step.step)
        cells = []
        for position in importance.ranked(3):
            label = token_label(result, position, width=16)
            cells.append(padded(f"{label} {percent(importance.scores[position])}", 24))
        lines.append(f"  {step.step:>4}  {padded(quoted(step.token_text, 12), 12)} <- {'  '.join(cells)}".rstrip())
    return lines


def _effects(result: Result, top: int) -> list[str]:
    """What hiding a token from a layer, or the layers around it, does to the first produced token: of the tokens with the
    largest effect, each in the layer where it is the largest."""
    step = result.steps[0]
    effect, how = step.effect, result.meta.get("effect") or {}
    window, what = how.get("window", 1), "group" if effect.groups else "token"
    where = {1: "one layer", "all": "all layers"}.get(window, f"{window} layers around a layer")
    ablation = result.meta.get("ablation", "mask")
    manner = f"{ablation}, for {'every' if how.get('queries') == 'all' else 'the last'} query"
    lines = [f"Effect on the first token, {quoted(step.token_text, 12)}, of hiding a {what} from {where} ({manner}):"]
    sizes = np.abs(effect.logprob_change)
    layers = sizes.argmax(axis=0)  # of each token the layer where its effect is the largest
    changed = effect.top1_changed(step.token_id)
    lines.append(f"  {'layer':>5} {'pos':>5}  {padded('token', 18)} {'log-prob.':>10} {'KL (nats)':>10}  becomes")
    for row in np.argsort(-sizes.max(axis=0), kind="stable")[:top]:
        layer = layers[row]
        change, kl, top1 = (values[layer, row] for values in (effect.logprob_change, effect.kl_divergence, effect.top1))
        becomes = quoted(effect.top1_texts[int(top1)], 16) if changed[layer, row] else ""
        if effect.groups is None:
            position = int(step.positions[row])
            label = token_label(result, position, width=18)
            becomes += " (attention sink)" if position in result.sinks else ""
        else:
            name, (position, *_) = effect.groups[row]
            label = quoted(name, 18)
        at = "all" if window == "all" else layer
        lines.append(f"  {at:>5} {position:>5}  {padded(label, 18)} {change:>10.3g} {kl:>10.3g}  {becomes}".rstrip())
    if window == "all":  # which every layer's row repeats
        lines.append(
            f"  {int(changed[0].sum()):,} of {changed.shape[1]:,} {what}s change which token is the most probable"
        )
    else:
        lines.append(
            f"  {int(changed.sum()):,} of {changed.size:,} (layer, {what}) change which token is the most probable"
        )
    if effect.rounding:
        lines.append(f"  Rounding changes them by {percent(effect.rounding[0])} (median of a sample)")
    return lines


def _sinks(result: Result) -> list[str]:
    lines = []
    for position in result.sinks:
        step = next((step for step in result.steps if position < step.n_positions), None)
        if step is not None:
            share = float(step.attention[position] / step.attention.sum()) if step.attention.any() else 0.0
            lines.append(
                f"Attention sink, left out of the rankings: {token_label(result, position)} at position {position} "
                f"({percent(share)} of attention)"
            )
    return lines


def _checks(result: Result) -> list[str]:
    errors = np.concatenate([step.self_check for step in result.steps])
    floors = np.concatenate([step.noise_floor for step in result.steps])
    errors, measured = errors[np.isfinite(errors)], floors[np.isfinite(floors)]
    lines = []
    if errors.size:
        lines.append(
            f"Self-check: the model's own rows were reproduced with a relative error of at most {errors.max():.1e}"
        )
    verification = result.meta.get("verification")
    if verification:
        lines.append(
            f"Verified by really masking: {len(verification['triples'])} random (step, layer, token), "
            f"largest relative error {verification['error']:.1e}"
        )
    if measured.size:
        lines.append(
            f"Noise floor of Full (mixture of experts): rounding alone makes an L2 of up to {measured.max():.1e}"
        )
        if "Full" in result.variants:
            lines.append(f"  {percent(_below_floor(result))} of the Full distances are not above it")
    return lines


def _below_floor(result: Result) -> float:
    """Share of the Full distances, in layers that have a noise floor, that do not rise above it."""
    full = result.variants.index("Full")
    below = total = 0
    for step in result.steps:
        layers = np.isfinite(step.noise_floor)
        below += int((step.l2[layers, :, full] <= step.noise_floor[layers, None]).sum())
        total += int(layers.sum()) * len(step.positions)
    return below / total


def _files(paths: list[str]) -> list[str]:
    paths = sorted(paths, key=lambda path: not path.lower().endswith(".csv"))  # the CSV first, the others as given
    return [f"{'Also written:' if index else 'Results saved to:'} {escape(path)}" for index, path in enumerate(paths)]
