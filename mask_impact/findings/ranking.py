"""How much each token matters: shares of the impact, by layer and over all layers. Knows records; no files, no text."""

from dataclasses import dataclass

import numpy as np

from mask_impact.results.records import Result


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
