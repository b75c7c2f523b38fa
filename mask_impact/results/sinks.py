"""Attention sinks: positions that attention collapses onto, whatever the token there says. Knows numpy only.

What one query looks at tells nothing: it may be what the answer is read from. A sink takes attention from all that see it.
Source of the phenomenon: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
"""

import numpy as np

ON_AVERAGE = 0.3  # of the attention, over all layers
IN_A_LAYER = 0.5  # of one layer's
MIN_RATIO = 3.0  # to the mean of the others: in short prompts a third of the attention is nothing special


def find_sinks(received: np.ndarray) -> tuple[int, ...]:
    """Positions that most of the queries behind them look at: with at least ON_AVERAGE of their attention over all layers, or
    IN_A_LAYER in one of them, and with MIN_RATIO times what the other positions have on average. received: [L, S], the mean
    weight that each position gets in each layer from the queries behind it, NaN where there are too few of them."""
    received = np.asarray(received, dtype=np.float64)
    n_known = np.isfinite(received).sum(axis=0)
    overall = np.nansum(received, axis=0) / np.maximum(n_known, 1)
    found = _stands_out(overall[None], ON_AVERAGE) | _stands_out(received, IN_A_LAYER)
    return tuple(np.flatnonzero(found).tolist())


def sinks_of_shares(shares: np.ndarray) -> tuple[int, ...]:
    """The same where only the last query is known: shares: [..., S], what each position has of it, averaged over the rest."""
    n_positions = shares.shape[-1]
    share = shares.reshape(-1, n_positions).mean(axis=0, dtype=np.float64)
    if not share.sum() > 0:
        return ()
    return tuple(np.flatnonzero(_stands_out((share / share.sum())[None], ON_AVERAGE)).tolist())


def _stands_out(received: np.ndarray, least: float) -> np.ndarray:
    """bool [S], whether a position has at least so much, and enough more than the others, in any of some rows [n, S]. Fewer than
    three positions have no sink: nothing would be left to compare."""
    n_positions = received.shape[-1]
    if n_positions < 3:
        return np.zeros(n_positions, dtype=bool)
    known = np.nan_to_num(received, nan=0.0)
    others = (known.sum(axis=-1, keepdims=True) - known) / (n_positions - 1)
    return ((known >= least) & (known >= MIN_RATIO * others)).any(axis=0)
