"""A comparison of results as JSON types, with all of its numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import mask_impact
from mask_impact.findings.agreement import where_hidden
from mask_impact.findings.chance import Correlation
from mask_impact.findings.comparison import Comparison, Pair, Side
from mask_impact.findings.verdict import MEASURES, Depth
from mask_impact.views.comparison_text import image_shares, unit, with_effects
from mask_impact.views.comparison_verdict import Shown, Told, told, verdict_text


def as_json(comparison: Comparison, pairs: Sequence[Told] | None = None) -> dict[str, Any]:
    """All of a comparison as JSON types. Bands go from 0, the first layer's side; positions are those of the sequence; a
    number that there is not is null."""
    settings, effects = comparison.settings, with_effects(comparison)
    return {
        "program": f"mask-impact {mask_impact.__version__}",
        "verdict": _verdict_json(comparison, told(comparison) if pairs is None else pairs),
        "step": settings.step,
        "metric": settings.metric,
        "variant": comparison.variant,
        "scale": {"name": comparison.scale, "meaning": unit(comparison)},
        "bands": [[band / settings.n_bands, (band + 1) / settings.n_bands] for band in range(settings.n_bands)],
        "permutations": settings.n_permutations,
        "seed": settings.seed,
        "notes": list(comparison.notes),
        "results": [
            _side_json(side) | ({"effect": _effect_json(side)} if side in effects else {}) for side in comparison.sides
        ],
        "pairs": [_pair_json(pair) for pair in comparison.pairs],
    }


def _verdict_json(comparison: Comparison, pairs: Sequence[Told]) -> dict[str, Any]:
    """text: all of it; of each pair what was used in both, and how deep it is read. Depths go from 0 to 1."""
    return {"text": verdict_text(comparison, pairs), "pairs": [_told_json(one) for one in pairs]}


def _told_json(one: Told) -> dict[str, Any]:
    found = one.found
    return {
        "first": one.sides[0].name,
        "second": one.sides[1].name,
        "text": one.text,
        "answers": list(found.answers),
        "same_answer": found.same_answer,
        "explained": [use.target is not None for use in found.uses],
        "used": [_used_json(row) for row in one.rows()],
        "evidence": [_evidence_json(one, which) for which in (0, 1)],
        "depth": _depth_json(found.depth),
        "impact_depth": _depth_json(found.impact_depth),
    }


def _used_json(row: Shown) -> dict[str, Any]:
    """A unit that either used; lists have a value for each of the two."""
    unit = row.unit
    return {
        "name": row.name,
        "positions": [list(positions) for positions in unit.positions],
        "logprob_change": [_number(change) for change in unit.changes],
        "measured": list(unit.measured),
        "becomes": list(row.becomes),
        "reason": list(unit.reason),
    }


def _evidence_json(one: Told, which: int) -> list[dict[str, Any]]:
    card = one.cards[which]
    if card is None:
        return []
    return [
        {
            "role": found.role,
            "kind": found.kind,
            "name": found.name,
            "positions": sorted(at for place in found.places for at in card.target.positions[place]),
            "text": found.text,
            "confirmed": found.confirmed,
        }
        for found in card.verdicts
    ]


def _depth_json(depth: Depth | None) -> dict[str, Any] | None:
    """later: `first`, `second`, or null where that can't be said."""
    if depth is None:
        return None
    return {
        "measure": MEASURES[depth.measure],
        "own": depth.own,
        "centres": [depth.first, depth.second],
        "least": depth.least,
        "agreed": depth.agreed,
        "later": {1: "second", -1: "first", 0: None}[depth.order],
    }


def _side_json(side: Side) -> dict[str, Any]:
    tokens = side.result.tokens
    importances, shares = side.overall, side.shares(side.overall)
    images = image_shares(side)
    return {
        "name": side.name,
        "model": side.result.meta.get("model") if isinstance(side.result.meta.get("model"), str) else None,
        "n_layers": side.result.n_layers,
        "produced": side.produced,
        "sinks": list(side.sinks),
        "left_out": list(side.left_out),
        "bands": [
            {
                "layers": [{"layer": layer, "part": part} for layer, part in layers],
                "share": None if side.depth_shares is None else _number(side.depth_shares[band]),
                "image_share": None if images is None else _number(images[band]),
            }
            for band, layers in enumerate(side.layers)
        ],
        "tokens": [
            {
                "position": int(position),
                "text": tokens.texts[position],
                "kind": tokens.kinds[position],
                "image": _cell(side, position),
                "importance": _number(importances[place]),
                "share": _number(shares[place]),
                "bands": [_number(value) for value in side.bands[:, place]],
            }
            for place, position in enumerate(side.impact.positions)
        ],
    }


def _effect_json(side: Side) -> dict[str, Any]:
    """Of importance with effect: the correlation in all layers, and in each band."""
    told = [{"n": int(n), "rho": _number(rho)} for rho, n in zip(*side.told, strict=True)]
    return {
        "measured": where_hidden(side.result),
        "floor": side.effect.floors["logprob"],
        "overall": told[0],
        "bands": told[1:],
        "sizes": [_number(size) for size in side.effects[0]],
    }


def _cell(side: Side, position: int) -> dict[str, int] | None:
    tokens = side.result.tokens
    if tokens.image[position] < 0:
        return None
    return {name: int(getattr(tokens, name)[position]) for name in ("image", "row", "column")}


def _pair_json(pair: Pair) -> dict[str, Any]:
    effect = {} if pair.effect is None else {"effect": _correlation_json(pair.effect)}
    positions = [side.impact.positions for side in (pair.first, pair.second)]
    shares = [side.shares(side.overall) for side in (pair.first, pair.second)]
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "aligned": [[int(positions[0][one]), int(positions[1][other])] for one, other in pair.matched],
        "unmatched": [
            [int(where[place]) for place in places] for where, places in zip(positions, pair.unmatched, strict=True)
        ],
        "overall": _correlation_json(pair.overall),
        "text": _correlation_json(pair.text),
        "image": _correlation_json(pair.image),
        "bands": [_correlation_json(one) for one in pair.bands],
        "differing": [
            {
                "positions": [int(positions[0][one]), int(positions[1][other])],
                "text": pair.first.result.tokens.texts[positions[0][one]],
                "shares": [_number(shares[0][one]), _number(shares[1][other])],
                "difference": _number(difference),
                "band": band,
            }
            for one, other, difference, band in pair.differing()
        ],
    } | effect


def _correlation_json(correlation: Correlation | None) -> dict[str, Any] | None:
    if correlation is None:
        return None
    names = ("n", "rho", "p", "smallest_p", "exact")
    return {name: getattr(correlation, name) for name in names}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
