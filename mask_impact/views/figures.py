"""`result.plot()`: a result as an interactive plotly figure, for notebooks.

Knows records and summary; no models and no files. plotly is imported where it is used. It takes some HTML in texts for
markup, so what comes from tokens is escaped.
"""

from html import escape as escape_html
from itertools import groupby
from typing import Any

import numpy as np

from mask_impact.errors import UsageError
from mask_impact.results.records import Result
from mask_impact.results.tokens import image_name
from mask_impact.views.text import escape

METRICS = {"l2": "L2 distance", "cosine": "cosine distance"}
MAX_LABELS = 80  # above it the columns have numbers only
COLOURS = "Magma_r"  # readable without seeing colours: it runs from light to dark


def layers_figure(
    result: Result, *, step: int = 0, variant: str | None = None, metric: str = "l2", sinks: bool = False
):
    """Heat map of layers x tokens, a plotly Figure, for the token produced at `step`.

    Colours are each token's share of its layer's distances, so that all layers can be compared; the distance itself is shown
    where the pointer is. variant: one of `result.variants` (None: the first). Each image is one column, the sum of its
    patches. sinks: whether attention sinks, which are left empty otherwise, are shown and counted. UsageError for a step,
    variant or metric that is not there.
    """
    import plotly.graph_objects as go

    variant = result.variants[0] if variant is None else variant
    if not 0 <= step < len(result.steps):
        raise UsageError(f"step {step} is not there: the result has steps 0 to {len(result.steps) - 1}")
    if variant not in result.variants:
        raise UsageError(f"variant '{variant}' is not there; the result has {', '.join(result.variants)}")
    if metric not in METRICS:
        raise UsageError(f"metric '{metric}' is not known; use one of {', '.join(METRICS)}")
    record = result.steps[step]
    distances = getattr(record, metric)[:, :, result.variants.index(variant)].astype(np.float64)  # [L, P]
    shown = np.ones(len(record.positions), dtype=bool) if sinks else ~np.isin(record.positions, result.sinks)
    totals = np.nansum(np.where(shown, distances, 0), axis=1, keepdims=True)
    shares = np.divide(100 * distances, totals, out=np.zeros_like(distances), where=totals > 0)
    shares[~record.has_numbers] = np.nan
    columns = _columns(result, record.positions, shown)
    labels = [label for label, _ in columns]
    places = list(range(len(columns)))
    figure = go.Figure(
        go.Heatmap(
            x=places,
            y=list(range(result.n_layers)),
            z=np.stack([shares[:, rows].sum(axis=1) for _, rows in columns], axis=1) if columns else None,
            customdata=np.stack([distances[:, rows].sum(axis=1) for _, rows in columns], axis=1) if columns else None,
            text=[labels] * result.n_layers,
            hovertemplate="%{text}<br>layer %{y}<br>"
            + METRICS[metric]
            + " %{customdata:.6g}<br>share %{z:.2f} %<extra></extra>",
            colorscale=COLOURS,
            colorbar={"title": {"text": f"share of the layer's {escape_html(variant)}, %"}},
        )
    )
    produced = escape_html(escape(result.tokens.texts[result.n_prompt + step]))
    ticks: dict[str, Any] = {"tickvals": places, "ticktext": labels} if len(columns) <= MAX_LABELS else {}
    figure.update_layout(
        title={
            "text": f"Impact on the produced token {step}, “{produced}”{_left_out(result, record.positions, sinks)}"
        },
        xaxis={"title": {"text": "hidden token"}, "tickangle": -90, **ticks},
        yaxis={"title": {"text": "layer"}},
    )
    return figure


def _columns(result: Result, positions: np.ndarray, shown: np.ndarray) -> list[tuple[str, list[int]]]:
    """(label, rows of the step's arrays): a token each, and each image in one column where its tokens begin."""
    rows = [row for row in range(len(positions)) if shown[row]]

    def image_of(row: int) -> tuple[int, int]:
        image = int(result.tokens.image[positions[row]])
        return image, -1 if image >= 0 else row

    columns = []
    for (image, _), group in groupby(rows, key=image_of):
        members = list(group)
        first, last = (int(positions[row]) for row in (members[0], members[-1]))
        if image >= 0:
            columns.append((f"{first}-{last} {image_name(result.images, image)}", members))
        else:
            columns.append((f"{first} “{escape_html(escape(result.tokens.texts[first]))}”", members))
    return columns


def _left_out(result: Result, positions: np.ndarray, sinks: bool) -> str:
    names = [
        f"{position} “{escape_html(escape(result.tokens.texts[position]))}”"
        for position in result.sinks
        if position in positions
    ]
    return f"<br><sub>attention sinks left out: {', '.join(names)}</sub>" if names and not sinks else ""
