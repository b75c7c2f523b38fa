"""How much each token matters: shares of the impact, by layer and over all layers. Knows records; no files, no text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mask_impact.findings.impact import Impact, put_together, step_impact
from mask_impact.results.records import Result


@dataclass(frozen=True)
class Importance:
    """How much each position matters.

    scores: float64 [S], the share of the impact in all layers; they sum to 1 (0 if nothing had an impact), sinks have 0.
    shares: float64 [L, S], of each layer's impact, NaN in layers that were not measured. measure: the quantity whose
    distances were taken.
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


def token_importance(
    result: Result, step: int | None = None, variant: str | None = None, metric: str = "l2"
) -> Importance:
    """The impact of each position on the token produced at `step`, or, with None, on the whole answer.

    share[l, j] = d[l, j] / sum of d[l, k] over all k that are not sinks;   score[j] = sum of w[l] share[l, j] / sum of w[l]

    with d the distance, and w[l] what the layer reads at all: the sum of d[l, k] over the norm of the layer's update (see
    `Impact.weights`). So a layer that does much the same whichever token is hidden has little to say. With step=None shares
    and scores are averaged over the steps in which anything had an impact; a position that a step did not have yet counts 0
    there. variant: None for `Full` (`Attn`, or the mean over heads, where the former was not measured).
    """
    measure, variants = (variant, [variant]) if variant is not None else _measure(result.variants)
    steps = result.steps if step is None else (result.steps[step],)
    n_positions = steps[-1].n_positions
    shares, scores = np.zeros((len(steps), result.n_layers, n_positions)), []
    for index, record in enumerate(steps):
        impacts = [step_impact(result, record.step, name, metric) for name in variants]
        of_step = _mean(impacts).shares()
        shares[index][:, record.positions] = np.nan_to_num(of_step)
        if not np.isnan(of_step).all():
            scores.append(np.zeros(n_positions))
            together = put_together(of_step, np.mean([impact.weights() for impact in impacts], axis=0))
            scores[-1][record.positions] = np.nan_to_num(together)
    shares = shares.mean(axis=0)
    shares[~np.any([record.has_numbers for record in steps], axis=0)] = np.nan
    return Importance(np.mean(scores, axis=0) if scores else np.zeros(n_positions), shares, measure)


def _mean(impacts: Sequence[Impact]) -> Impact:
    """The mean of some variants' distances."""
    return replace(impacts[0], distances=np.mean([impact.distances for impact in impacts], axis=0))


def _measure(variants: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The name of the measure and the variants whose mean it is."""
    for name in ("Full", "Attn"):
        if name in variants:
            return name, [name]
    return "mean of heads", variants


def vision_impact(result: Result, step: int) -> tuple[np.ndarray, str] | None:
    """How much the image tokens matter in each layer at `step`, float64 [L] (NaN in layers that were not measured), and what
    that number is; None where none of them was masked, or it is not known.

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
    impacts = [step_impact(result, step, name, "l2") for name in variants]
    if any(impact.norms is None for impact in impacts):
        return None
    totals = np.mean([impact.totals() for impact in impacts], axis=0)
    return totals, f"sum of their {measure} L2 over the norm of the unmasked {measure}"
