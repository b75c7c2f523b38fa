"""A comparison as one HTML file: the verdict, what the answers used, and the heat maps side by side and linked.

Knows a comparison; not where the results come from. The page is built and protected as a report is (see `page`), and has its
look and its blocks of distances (see `blocks`): for each result, a block of the distances as measured and one of what is
compared, [layer, place], where a place is the number of a token among those that were masked.
"""

from typing import Any

import numpy as np

from mask_impact.findings.comparison import Comparison, Pair, Side
from mask_impact.findings.impact import METRICS
from mask_impact.findings.verdict import use_of
from mask_impact.views.blocks import encode
from mask_impact.views.card import Card
from mask_impact.views.card_html import pictures_html
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_text import (
    chance_lines,
    depth_text,
    effect_settings,
    image_shares,
    layers_text,
    letter,
    unit,
    with_effects,
)
from mask_impact.views.comparison_verdict import Told, answers_text, told
from mask_impact.views.page import clean, image_entry, render_page
from mask_impact.views.text import escape


def build_page(comparison: Comparison) -> bytes:
    """The page, UTF-8."""
    values = {
        "title": " · ".join(escape(side.name) for side in comparison.sides),
        "data": _cleaned(_data(comparison)),
        "blocks": [block for number, side in enumerate(comparison.sides) for block in _blocks(number, side)],
        **dict(zip(("images", "pictures"), pictures_html(_cards(comparison)), strict=True)),
    }
    return render_page("compare", values, ["report.css", "card.css", "compare.css"])


def _cards(comparison: Comparison) -> dict[int, Card]:
    """Of each side, by its number, what its answer used for the compared token; those that know it."""
    uses = {number: use_of(side, comparison.settings.step) for number, side in enumerate(comparison.sides)}
    return {
        number: Card(comparison.sides[number].result.answer, use.number)
        for number, use in uses.items()
        if use.number is not None
    }


def _blocks(number: int, side: Side) -> list[tuple[str, str]]:
    return [
        (f"b-{number}-distance", encode(side.impact.distances)),
        (f"b-{number}-value", encode(side.values)),
    ]


def _data(comparison: Comparison) -> dict[str, Any]:
    settings, pairs = comparison.settings, told(comparison)
    n_bands, numbers = settings.n_bands, as_json(comparison, pairs)
    return {
        "step": settings.step,
        "metric": METRICS[settings.metric],
        "variant": comparison.variant,
        "scale": comparison.scale,
        "unit": unit(comparison),
        "notes": list(comparison.notes),
        "bands": [depth_text(band, n_bands) for band in range(n_bands)],
        "sides": [_side(comparison, side) for side in comparison.sides],
        "effect": _effect(comparison, numbers),
        "answers": answers_text(comparison, pairs),
        "pairs": [
            _pair(comparison, pair) | _told(said) | {name: one[name] for name in ("overall", "text", "image", "bands")}
            for pair, said, one in zip(comparison.pairs, pairs, numbers["pairs"], strict=True)
        ],
    }


def _side(comparison: Comparison, side: Side) -> dict[str, Any]:
    """Tokens by place, image cells as [place, image, row, column]."""
    result, positions = side.result, side.impact.positions
    tokens, images = result.tokens, image_shares(side)
    model = result.meta.get("model")
    return {
        "letter": letter(comparison, side),
        "name": side.name,
        "model": model if isinstance(model, str) else "",
        "produced": side.produced,
        "n_layers": result.n_layers,
        "measured": list(result.layers),
        "positions": positions.tolist(),
        "texts": [tokens.texts[position] for position in positions],
        "special": [place for place, position in enumerate(positions) if tokens.kinds[position] == "special"],
        "cells": [
            [int(place), *(int(numbers[positions[place]]) for numbers in (tokens.image, tokens.row, tokens.column))]
            for place in np.flatnonzero(side.is_image)
        ],
        "images": [image_entry(image) for image in result.images],
        "left_out": np.flatnonzero(~side.impact.counted).tolist(),
        "sinks": list(side.sinks),
        "layers": [layers_text(layers) for layers in side.layers],
        "depth_shares": None if side.depth_shares is None else [_number(share) for share in side.depth_shares],
        "image_shares": None if images is None else [_number(share) for share in images],
    }


def _pair(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    """Places throughout: aligned [[first, second]], unmatched [of first, of second], differing as `Pair.differing`."""
    return {
        "second": comparison.sides.index(pair.second),
        "aligned": pair.matched.tolist(),
        "unmatched": [list(places) for places in pair.unmatched],
        "differing": [[one, other, _number(difference), band] for one, other, difference, band in pair.differing()],
        "chance": chance_lines(comparison, pair),
        "map": _map(pair),
    }


def _map(pair: Pair) -> dict[str, Any]:
    """Of the tokens that are compared: tokens, [place in first, place in second]; shares, of first and of second [band][token],
    each token's part of the band."""
    tokens = pair.matched[pair.compared]
    shares = []
    for which, side in enumerate((pair.first, pair.second)):
        bands = [side.shares(row)[tokens[:, which]] for row in side.bands]
        shares.append([[_short(share) for share in row] for row in bands])
    return {"tokens": tokens.tolist(), "shares": shares}


def _told(said: Told) -> dict[str, Any]:
    """said: the verdict without the answers; used: of each unit its name, [number of a result, place] of its first token there,
    and for both results what is written, the change in nats, whether it was measured, and what the answer becomes; explained:
    whether what the first and the second used was measured; evidence: sentences of the first and of the second."""
    return {
        "said": said.rest,
        "used": [
            {
                "name": row.name,
                "token": _token(said, row.unit.positions),
                "written": list(row.changes),
                "changes": [_number(change) for change in row.unit.changes],
                "measured": list(row.unit.measured),
                "becomes": list(row.becomes),
            }
            for row in said.rows()
        ],
        "explained": [card is not None for card in said.cards],
        "evidence": [said.evidence(which) for which in (0, 1)],
    }


def _token(said: Told, positions: tuple[tuple[int, ...], tuple[int, ...]]) -> list[int] | None:
    """[0 for the first or 1 for the second, place] of a unit's first token that has distances."""
    for which, (side, some) in enumerate(zip(said.sides, positions, strict=True)):
        found = np.flatnonzero(np.isin(side.impact.positions, some))
        if len(found):
            return [which, int(found[0])]
    return None


def _effect(comparison: Comparison, numbers_told: dict[str, Any]) -> dict[str, Any] | None:
    """measured: in words; sides: of each result whose effects are compared its number and its correlations of importance with
    effect, all layers first; pairs: of each pair that of the two results' effects, or null. None where there are none."""
    sides = with_effects(comparison)
    if not sides:
        return None
    numbers = [comparison.sides.index(side) for side in sides]
    found = [numbers_told["results"][number]["effect"] for number in numbers]
    return {
        "measured": effect_settings(comparison),
        "sides": [[number, [one["overall"], *one["bands"]]] for number, one in zip(numbers, found, strict=True)],
        "pairs": [one.get("effect") for one in numbers_told["pairs"]],
    }


def _short(share: float) -> float | None:
    """With as many digits as are seen."""
    return float(f"{share:.4g}") if np.isfinite(share) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cleaned(data: Any) -> Any:
    """Every text of the data as UTF-8 can hold it."""
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {name: _cleaned(value) for name, value in data.items()}
    return [_cleaned(value) for value in data] if isinstance(data, list) else data
