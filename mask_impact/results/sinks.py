"""Attention sinks: positions that most attention collapses onto. Knows numpy only."""

import numpy as np


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
