"""`NAME.layers.png`: the impact of tokens in each layer."""

import numpy as np

from mask_impact.results.records import Result
from mask_impact.views.plots import colour_map, heading_of, impact_of, norm, share_label
from mask_impact.views.token_map import TokenMap, columns_of, map_figure


def layers_figure(
    result: Result,
    step: int | None = None,
    *,
    variant: str | None = None,
    metric: str = "l2",
    width: float | None = None,
    caption: str = "",
):
    """Heat map of layers x tokens, a matplotlib Figure: the share of each layer's impact on the token produced at `step`,
    or with None on the whole answer (`token_importance(...).shares`: the mean over steps, 0 where a token was not there).

    Each image is one column, the sum of its patches. Tokens that were not masked are left out. variant, metric: the distances
    (None: Full where it was measured). width, caption: see `token_map.map_figure`.
    """
    impact = impact_of(result, step, variant, metric)
    columns = columns_of(result.tokens, result.images, impact.masked, impact.sink)
    values = [impact.percent[:, column.positions].sum(axis=1) for column in columns]
    one = TokenMap(
        columns,
        np.stack(values, axis=1) if values else np.zeros((result.n_layers, 0)),
        result.n_prompt,
        lambda room: heading_of(result, step, impact, room),
        share_label(impact),
        colour_map(),
        norm,
    )
    return map_figure(one, width, caption)
