"""What a report's script gets as JSON: of each prompt its tables, tokens, images, steps and candidates, and what effects say.

Knows records and what is counted from them; not the page, nor distances, which are blocks (see `report_blocks`). What is
counted from effects beside the distances is computed in `agreement`, not on the page.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mask_impact.findings.agreement import MEASURES, Apart, apart, how_measured, step_effect, window_of
from mask_impact.findings.impact import METRICS, step_impact
from mask_impact.results.records import Result, StepRecord
from mask_impact.results.stored import Stored
from mask_impact.results.tokens import ImageRecord, films, image_name
from mask_impact.views.card import question_of
from mask_impact.views.card_html import MOST_TARGETS, picture_key
from mask_impact.views.looked_data import looked_entry
from mask_impact.views.page import clean, image_entry
from mask_impact.views.summary import N_CANDIDATES
from mask_impact.views.text import layers_counted

MOST_TITLE = 160  # characters


def prompt_entry(name: str, stored: Stored, distances: bool = True) -> dict[str, Any]:
    """All that the script gets of what is stored under a name, beside its blocks. distances: whether it gets these."""
    entry = {
        "name": clean(name),
        "title": title_of(name, stored),
        "tables": list(tables_of(stored if distances else replace(stored, result=None))),
        "n_cut": 0 if stored.flows is None else len(stored.flows.steps),
        "targets": _targets(stored),
        "words": _words(stored),
        "notices": [clean(notice) for notice in notices_of(stored)],
        "about": [[label, clean(value)] for label, value in _about(stored)],
        "looked": looked_entry(stored),
        "films": films(_images(stored)),
    }
    if distances and stored.result is not None:
        return entry | _result_entry(stored.result)
    nothing = {key: [] for key in ("variants", "layers", "texts", "special", "cells", "images", "sinks")}
    return entry | nothing | {"effect": None, "steps": [{"text": clean(text)} for text in _produced(stored)]}


def _images(stored: Stored) -> Sequence[ImageRecord]:
    """Of the prompt, as far as the page shows its videos over time."""
    for one in (stored.answer, stored.result):
        if one is not None:
            return one.images
    return ()


def _targets(stored: Stored) -> list[dict[str, Any]]:
    """Of each target that has estimates by layer its steps, and how many positions they are of; others have no steps."""
    targets = [] if stored.answer is None else stored.answer.targets[:MOST_TARGETS]
    return [
        {"steps": list(one.steps), "n_positions": one.by_layer.contribution.shape[1]}
        if one.by_layer is not None
        else {"steps": [], "n_positions": 0}
        for one in targets
    ]


def _words(stored: Stored) -> list[list[int]]:
    """The positions of each word that has several tokens."""
    targets = () if stored.answer is None else stored.answer.targets[:1]  # all have the prompt's words
    units = [unit for one in targets for unit in zip(one.kinds, one.positions, strict=True)]
    return [list(positions) for kind, positions in units if kind == "word" and len(positions) > 1]


def _produced(stored: Stored) -> Sequence[str]:
    """The tokens of the answer."""
    if stored.answer is not None:
        return stored.answer.tokens.texts[stored.answer.n_prompt :]
    if stored.flows is not None:
        return [step.token_text for step in stored.flows.steps]
    if stored.whatif is not None:
        return stored.whatif.answer.token_texts
    return stored.looked[0].tokens.texts[stored.looked[0].n_prompt :] if stored.looked else []


def _result_entry(result: Result) -> dict[str, Any]:
    tokens, answer = result.tokens, result.answer
    return {
        "generated": clean(result.generated_text),
        "n_prompt": result.n_prompt,
        "n_layers": result.n_layers,
        "layers": list(result.layers),
        "variants": list(result.variants),
        "texts": [clean(text) for text in tokens.texts],
        "special": [position for position, kind in enumerate(tokens.kinds) if kind == "special"],
        # [position, image, row, column] of each image token
        "cells": [
            [int(position), *(int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))]
            for position in np.flatnonzero(tokens.image >= 0)
        ],
        "images": [_image_entry(result.images, number, answer is not None) for number in range(len(result.images))],
        "sinks": [_sink_entry(result, position) for position in result.sinks],
        "effect": {"about": clean(how_measured(result)), "window": window_of(result)} if result.has_effects else None,
        "steps": [_step_entry(result, step) for step in result.steps],
    }


def tables_of(stored: Stored) -> Iterator[str]:
    """What there is for the page's sections."""
    if stored.result is not None:
        yield "distances"
        if stored.result.has_effects:
            yield "effect"
    if stored.answer is not None:
        yield "answer"
        if any(one.routes for one in stored.answer.targets):
            yield "routes"
        if stored.answer.matrix is not None:
            yield "matrix"
    if stored.flows is not None:
        yield "flows"
    for kind in ("whatif", "patches", "deepstack", "tower"):
        if getattr(stored, kind) is not None:
            yield kind


def title_of(name: str, stored: Stored) -> str:
    """What was asked, its middle left out where it is long; the result's name where it is not known."""
    asked = question_of(stored.answer) if stored.answer else " ".join(str(stored.meta.get("prompt") or "").split())
    title = clean(asked or name)
    return title if len(title) <= MOST_TITLE else f"{title[: MOST_TITLE // 2]} … {title[-MOST_TITLE // 2 :]}"


def _image_entry(images: Sequence[ImageRecord], number: int, in_card: bool) -> dict[str, Any]:
    """Where the card has the preview, its key in place of it. A pair of a video's frames has a name, too."""
    image = images[number]
    entry = image_entry(image)
    if image.moment is not None:
        entry |= {"name": image_name(images, number), "time": f"{image.moment.time_s:.1f} s"}
    return entry | {"preview": "", "key": picture_key(image, number)} if in_card else entry


def _about(stored: Stored) -> Iterator[tuple[str, str]]:
    meta, result = stored.meta, stored.result
    for key in ("model", "dtype", "device", "mask_mode", "date", "command"):
        if isinstance(meta.get(key), str) and meta[key]:
            yield key.replace("_", " "), meta[key]
    if result is not None:
        n_steps = len(result.steps)
        yield (
            "size",
            f"{layers_counted(result)}, {result.n_prompt} prompt tokens, {n_steps} produced, {result.n_rows:,} rows",
        )


def _sink_entry(result: Result, position: int) -> dict[str, Any]:
    """share: of the attention at the first step that has the position, null where there are no weights."""
    attention = next((step.attention for step in result.steps if position < step.n_positions), np.zeros(1))
    total = float(attention.sum())
    return {"position": int(position), "share": float(attention[position]) / total if total > 0 else None}


def _step_entry(result: Result, step: StepRecord) -> dict[str, Any]:
    """positions: null where all of the sequence's were masked."""
    effect = {"effect": _effect_entry(result, step.step)} if result.has_effects else {}
    return effect | {
        "text": clean(step.token_text),
        "id": int(step.token_id),
        "n_positions": step.n_positions,
        "positions": step.positions.tolist() if len(step.positions) < step.n_positions else None,
        "candidates": [
            {"id": int(one.id), "text": clean(one.text), "probability": float(one.probability)}
            for one in step.candidates[:N_CANDIDATES]
        ],
    }


def _effect_entry(result: Result, step: int) -> dict[str, Any]:
    """groups: [name, positions] of each, null where each position was hidden by itself. floors: by measure. top1_texts: by
    id. apart: by measure, metric and variant the two lists of `agreement.apart`, null for groups."""
    effect = step_effect(result, step)
    entry: dict[str, Any] = {
        "groups": None,
        "floors": dict(effect.floors),
        "likeliest": effect.likeliest,
        "top1_texts": {str(token): clean(text) for token, text in effect.top1_texts.items()},
        "apart": None,
    }
    if not effect.by_position:
        pairs = zip(effect.names, effect.hidden, strict=True)
        return entry | {"groups": [[clean(name), list(positions)] for name, positions in pairs]}
    sizes = {measure: effect.sizes(measure) for measure in MEASURES}

    def lists(metric: str, variant: str, measure: str) -> list[list[list[float]]]:
        impact = step_impact(result, step, variant, metric)
        return [[_apart_entry(one, impact.positions) for one in tokens] for tokens in apart(impact, sizes[measure])]

    return entry | {
        "apart": {
            measure: {metric: {name: lists(metric, name, measure) for name in result.variants} for metric in METRICS}
            for measure in MEASURES
        }
    }


def _apart_entry(one: Apart, positions: np.ndarray) -> list[float]:
    """[position, share, its rank, size, its rank], numbers with as many digits as are shown and some more."""
    share, size = (float(f"{number:.7g}") for number in (one.share, one.size))
    return [int(positions[one.place]), share, one.share_rank, size, one.size_rank]


def notices_of(stored: Stored) -> list[str]:
    """What a reader should know of how the result was made."""
    notices = [str(notice) for notice in stored.meta.get("notices") or ()]
    if stored.answer is not None and not all(image.preview for image in stored.answer.images):
        notices.append("Not all images were kept: the card draws the cells of the others on an empty ground")
    if stored.result is not None and any(step.l2.dtype != np.float32 for step in stored.result.steps):
        notices.append("The distances were measured in float64; here they are rounded to float32")
    return [*notices, *stored.notes]
