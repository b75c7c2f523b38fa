"""What each token gives to an answer in each layer, by estimate, as a map of layers x tokens."""

import numpy as np

from mask_impact.results.explanations import Explanation
from mask_impact.views.plots import AGAINST, FOR, MARGIN, TITLE, fitted, with_model
from mask_impact.views.token_map import TokenMap, columns_of, map_figure

# What can be shown, as `LayerEstimates` calls it, and in words.
ESTIMATES = {
    "contribution": "contribution, wherever a layer reads it",
    "estimate": "hidden from the last in one layer, estimated",
}


def estimates_figure(
    found: Explanation, number: int = 0, *, shown: str = "contribution", width: float | None = None, caption: str = ""
):
    """Heat map of layers x tokens, a matplotlib Figure: nats that each token gives to a target in each layer, orange for it, blue
    against it. They add up, so each image is one column, the sum of its patches.

    number: of the target, which has to have its estimates by layer; shown: of ESTIMATES. width, caption: see
    `token_map.map_figure`.
    """
    target = found.targets[number]
    estimates = getattr(target.by_layer, shown).astype(np.float64)  # [L, N']
    there = np.arange(len(found.tokens)) < estimates.shape[1]
    columns = columns_of(found.tokens, found.images, there, np.zeros(len(there), dtype=bool))
    said = found.said(target)

    def heading(room: float) -> tuple[str, str]:
        title = fitted("What each token gives to “", said, "”", TITLE, room - 2 * MARGIN)
        return title, with_model(found.meta.get("model"), ESTIMATES[shown], room - 2 * MARGIN)

    one = TokenMap(
        columns,
        np.stack([estimates[:, column.positions].sum(axis=1) for column in columns], axis=1),
        found.n_prompt,
        heading,
        f"change of {target.changes_of} without it, nats",
        _colours(),
        _scale,
    )
    return map_figure(one, width, caption)


def _colours():
    """Orange for what speaks for the answer (negative numbers), white for nothing, blue for what speaks against it."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("for and against", [FOR, "white", AGAINST])


def _scale(values: np.ndarray):
    """The colours' scale, alike on both sides of 0; square roots, since a few tokens have most of it."""
    from matplotlib.colors import FuncNorm

    most = float(np.abs(values).max(initial=0)) or 1.0
    both = (lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * np.square(x))
    return FuncNorm(both, vmin=-most, vmax=most)
