"""What a result says, in a page of plain text: candidates, the tokens that matter and where, what was left out.

Knows records and numpy; no files, no models, and it prints nothing. All text that comes from a prompt or a tokenizer is
escaped, so that no token can move the cursor, colour the terminal or reorder a line.
"""

from collections.abc import Iterable
from os import PathLike

import numpy as np

from mask_impact.findings.impact import mean_over
from mask_impact.findings.ranking import token_importance, vision_impact
from mask_impact.results.records import Estimated, Result, StepRecord
from mask_impact.results.tokens import image_name, original_box_of
from mask_impact.views.explanation import agreement_lines, answer_sections
from mask_impact.views.pixels import found_lines
from mask_impact.views.text import (
    TOKEN_WIDTH,
    WIDTH,
    columns,
    escape,
    fitted,
    layers_counted,
    model_lines,
    padded,
    percent,
    quoted,
    saved_lines,
    token_label,
    wrapped,
)

BAR_WIDTH = 16
N_CANDIDATES = 5


def render_summary(
    result: Result, paths: Iterable[str | PathLike] = (), top: int = 5, verbose: bool | None = None
) -> str:
    """The result as a page of plain text of at most WIDTH columns (paths are not broken).

    What the answer used stands first, where that was asked for, and where each layer reads behind it. paths: the files written,
    the CSV anywhere among them; top: how many tokens the ranking names; verbose: whether all is shown (None: where nothing says
    what the answer used). From `result.meta` the page shows `model` (a text), `notices` (a list of texts, first of all) and
    `verification` (triples and error).
    """
    verbose = result.answer is None if verbose is None else verbose
    details = [
        _images(result) if result.images else [],
        _candidates(result.steps[0]),
    ]
    further = [*_image_sections(result, top), _steps(result) if len(result.steps) > 1 else []]
    sections = [
        *_heading(result, verbose),
        *(details if verbose else []),
        _ranking(result, top) if _masks_text(result) or not verbose else [],
        *(further if verbose else []),
        _effects(result, top, verbose) if result.has_effects else [],
        [] if result.patches is None else ["Pixels replaced, coarse to fine:", *found_lines(result.patches)],
        [*_sinks(result), *_checks(result)],
    ]
    pages = [*map(fitted, sections), saved_lines(paths)]
    return "\n\n".join("\n".join(section) for section in pages if section)


def _heading(result: Result, verbose: bool) -> list[list[str]]:
    model = model_lines(result.meta)
    if result.answer is not None:
        return [model, *answer_sections(result.answer, verbose=verbose)]
    return [[*model, "Generated text:", *wrapped(quoted(result.generated_text))]]


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
        f"Where it is read for the first token, {quoted(step.token_text, 16)} "
        f"(share of {importance.measure} impact, {layers_counted(result)}):"
    )
    if not ranked:
        return [title, "  none: no token that is not a sink had any impact"]
    label_width = max(columns("token"), *(columns(token_label(result, position)) for position in ranked))
    lines = [title, f"  rank   pos  {padded('token', label_width)}    share  {'':<{BAR_WIDTH}}  top layers"]
    for rank, position in enumerate(ranked, start=1):
        score = importance.scores[position]
        bar = "█" * max(1, round(BAR_WIDTH * score / importance.scores[ranked[0]]))
        layers = ", ".join(str(layer) for layer in importance.top_layers(position))
        label = padded(token_label(result, position), label_width)
        lines.append(f"  {rank:>4}  {position:>4}  {label}  {percent(score):>7}  {bar:<{BAR_WIDTH}}  {layers}")
    return lines


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
        lines.append(f"  {image_name(result.images, number)}: {escape(image.source)}")
        lines.append(
            f"    {width} x {height} pixels, seen by the model as {seen_width} x {seen_height}; "
            f"{rows} rows x {columns} columns"
        )
    return lines


def _vision_layers(result: Result, per_line: int = 10) -> list[str]:
    values, meaning = vision_impact(result, step=0)
    lines = [f"Vision tokens, layer by layer, for the first token ({meaning}, in %):"]
    for first in range(0, result.n_layers, per_line):
        last = min(first + per_line, result.n_layers) - 1
        cells = " ".join("    -" if np.isnan(value) else f"{100 * value:5.1f}" for value in values[first : last + 1])
        lines.append(f"  layers {first:>2}-{last:<2}  {cells}")
    return [*lines, f"  mean {percent(float(mean_over(values, axis=0)))}"]


def _vision_steps(result: Result, n_layers: int = 3) -> list[str]:
    lines = ["Layers where the vision tokens are read most for each produced token:"]
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
        f"Patches that are read most for the first token (share of {importance.measure} impact; box: left, top, right, bottom "
        "in pixels of the original image):",
        "  rank  image  row  col       share  box",
    ]
    for rank, position in enumerate(ranked[:top], start=1):
        image, row, column = (
            int(cells[position]) for cells in (result.tokens.image, result.tokens.row, result.tokens.column)
        )
        box = ", ".join(f"{edge:.0f}" for edge in original_box_of(result.tokens, result.images, [position]))
        share = percent(importance.scores[position])
        layers = ", ".join(str(layer) for layer in importance.top_layers(position))
        lines.append(f"  {rank:>4}  {image:>5}  {row:>3}  {column:>3}  {share:>10}  {box:<24} layers {layers}")
    return lines


def _steps(result: Result) -> list[str]:
    """A line for each produced token with the three tokens that mattered most for it."""
    lines = ["Tokens that are read most for each produced token:"]
    for step in result.steps:
        importance = token_importance(result, step=step.step)
        line = f"  {step.step:>4}  {padded(quoted(step.token_text, 12), 12)} <- "
        for number, position in enumerate(importance.ranked(3)):
            cell = f"{token_label(result, position, width=12)} {percent(importance.scores[position])}"
            cell = padded(cell, 18) if number < 2 else cell
            if columns(line) + columns(cell.rstrip()) <= WIDTH:
                line += cell + " "
        lines.append(line.rstrip())
    return lines


def _effects(result: Result, top: int, verbose: bool) -> list[str]:
    """What hiding a token from a layer, or the layers around it, does to the first produced token: of the tokens with the
    largest effect, each in the layer where it is the largest, of those that were measured."""
    step = result.steps[0]
    effect, how = step.effect, result.meta.get("effect") or {}
    window, what = how.get("window", 1), "group" if effect.groups else "token"
    where = {1: "one layer", "all": "all layers"}.get(window, f"{window} layers around a layer")
    ablation = result.meta.get("ablation", "mask")
    manner = f"{ablation}, for {'every' if how.get('queries') == 'all' else 'the last'} query"
    lines = [f"Effect on the first token, {quoted(step.token_text, 12)}, of hiding a {what} from {where} ({manner}):"]
    sizes = np.where(effect.measured, np.abs(effect.logprob_change), -1.0)
    layers = sizes.argmax(axis=0)  # of each token the layer where its effect is the largest
    changed = effect.top1_changed(step.token_id)
    lines.append(f"  {'layer':>5} {'pos':>5}  {padded('token', 18)} {'log-prob.':>10} {'KL (nats)':>10}  becomes")
    for row in np.argsort(-sizes.max(axis=0), kind="stable")[:top]:
        layer = layers[row]
        if not effect.measured[layer, row]:
            break
        change, kl, top1 = (values[layer, row] for values in (effect.logprob_change, effect.kl_divergence, effect.top1))
        becomes = quoted(effect.top1_texts[int(top1)], 16) if changed[layer, row] else ""
        if effect.groups is None:
            position = int(step.positions[row])
            label = token_label(result, position, width=18)
            becomes += " (sink)" if position in result.sinks else ""
        else:
            name, (position, *_) = effect.groups[row]
            label = quoted(name, 18)
        at = "all" if window == "all" else layer
        lines.append(f"  {at:>5} {position:>5}  {padded(label, 18)} {change:>10.3g} {kl:>10.3g}  {becomes}".rstrip())
    measured, counted = effect.measured, f"(layer, {what})"
    if window == "all":  # which every layer's row repeats
        measured, changed, counted = measured[:1], changed[:1], f"{what}s"
    lines.append(
        f"  {int(changed.sum()):,} of {int(measured.sum()):,} {counted} change which token is the most probable"
    )
    lines += _estimated(effect.estimated, measured, counted, verbose) if effect.estimated else []
    if effect.rounding:
        lines.append(f"  Rounding changes them by {percent(effect.rounding[0])} (median of a sample)")
    return lines


def _estimated(one: Estimated, measured: np.ndarray, what: str, verbose: bool) -> list[str]:
    """What was measured, where not all was, and how far the estimates agree with it. what: was hidden."""
    cost = f"{one.forwards:.1f} forward passes; all would take {one.all_forwards:.1f}"
    lines = [f"  {int(measured.sum()):,} of {measured.size:,} {what} were really hidden, the others estimated ({cost})"]
    if measured.all():
        lines = [f"  All {what} were really hidden ({one.forwards:.1f} forward passes)"]
    if not one.reliable:
        lines.append(
            "  NOT RELIABLE here: the estimates do not agree with what was measured; without --top all is measured"
        )
    if verbose:
        lines += agreement_lines(one.agreement, int(one.control[: len(measured)].sum()))
    return lines


def _sinks(result: Result) -> list[str]:
    lines = []
    for position in result.sinks:
        step = next((step for step in result.steps if position < step.n_positions), None)
        if step is not None:
            share = float(step.attention[position] / step.attention.sum()) if step.attention.any() else 0.0
            lines.append(
                f"Attention sink, left out of the rankings: {token_label(result, position)} at position {position} "
                f"({percent(share)} of the last position's attention)"
            )
    return lines


def _checks(result: Result) -> list[str]:
    errors = np.concatenate([step.self_check for step in result.steps])
    floors = np.concatenate([step.noise_floor for step in result.steps])
    errors, measured = errors[np.isfinite(errors)], floors[np.isfinite(floors)]
    lines = []
    if errors.size:
        lines.append(f"Self-check: the model's own rows were reproduced within {errors.max():.1e} (relative)")
    verification = result.meta.get("verification")
    if verification:
        lines.append(
            f"Verified by really masking: {len(verification['triples'])} random places, "
            f"largest relative error {verification['error']:.1e}"
        )
    if measured.size:
        lines.append(f"Noise floor of Full (mixture of experts): rounding alone makes {measured.max():.1e}")
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
