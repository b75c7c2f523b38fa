"""One step's distances as numbers that can be put beside those of other layers and other models: over norms, as shares.

Knows records and numpy; no files, no models, and it prints nothing. Dimensions: L layers, P positions that were masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.errors import UsageError
from mask_impact.results.records import Result

METRICS = {"l2": "L2", "cosine": "cosine"}  # as in the files' columns, and as they are called in text


@dataclass(frozen=True)
class Impact:
    """The distances of one metric and variant at one step.

    positions: int64 [P], ascending. distances: float64 [L, P] as measured, NaN where there is no value. norms: float64
    [L], the L2 norm of the unmasked quantity (NaN in layers that were not measured), or None where the result does not have
    it. counted: bool [P], False for
    what is left out (attention sinks).
    """

    metric: str
    variant: str
    positions: np.ndarray
    distances: np.ndarray
    norms: np.ndarray | None
    counted: np.ndarray

    def relative(self) -> np.ndarray:
        """float64 [L, P]: how far the quantity moves for its own size, which can be compared between layers and models:
        L2 over the norm of the unmasked quantity. Cosine distance has no size in it and stays. Where there are no norms
        the distances stay too; `unit` says which it is. NaN in a layer whose norm is 0."""
        if self.metric != "l2" or self.norms is None:
            return self.distances
        norms = self.norms[:, None]
        return np.divide(self.distances, norms, out=np.full_like(self.distances, np.nan), where=norms > 0)

    @property
    def comparable(self) -> bool:
        """Whether `relative` can be compared between layers and models."""
        return self.metric != "l2" or self.norms is not None

    @property
    def unit(self) -> str:
        """What `relative` gives: `L2/norm`, `cosine` or, where there are no norms, `L2`."""
        return "L2/norm" if self.metric == "l2" and self.norms is not None else METRICS[self.metric]

    def shares(self) -> np.ndarray:
        """float64 [L, P]: each position's part of its layer's distances, NaN for what is left out or has no value, and in
        a layer in which nothing had an impact. Slightly negative cosine distances of others count as 0."""
        distances = np.where(self.counted, np.maximum(self.distances, 0), np.nan)
        totals = np.nansum(distances, axis=1, keepdims=True)
        return np.divide(distances, totals, out=np.full_like(distances, np.nan), where=totals > 0)

    def totals(self) -> np.ndarray:
        """float64 [L]: what each layer reads at all, the sum of `relative` over the positions that are counted; NaN where none
        has a value."""
        values = np.where(self.counted, self.relative(), np.nan)
        return np.where(np.isfinite(values).any(axis=1), np.nansum(values, axis=1), np.nan)

    def weights(self) -> np.ndarray:
        """float64 [L]: how much a layer counts where layers are put together. It is what the layer reads at all: the sum of
        `relative` over its positions. Where layers can't be compared, each in which something had an impact counts 1."""
        totals = np.nansum(np.where(self.counted, np.maximum(self.relative(), 0), 0), axis=1)
        return totals if self.comparable else (totals > 0).astype(np.float64)

    def scores(self) -> np.ndarray:
        """float64 [P]: each position's part of the impact of all layers together; see `put_together`."""
        return put_together(self.shares(), self.weights())


def put_together(shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [P]: the mean over layers of shares [L, P], by the layers' weights [L]. A position without a share has none of
    its layer; NaN where it has none in any layer, or no layer has a weight."""
    total, has_share = weights.sum(), ~np.isnan(shares)
    sums = weights @ np.where(has_share, shares, 0)
    return np.divide(sums, total, out=np.full_like(sums, np.nan), where=has_share.any(axis=0) & (total > 0))


def step_impact(result: Result, step: int, variant: str, metric: str, left_out: Sequence[int] | None = None) -> Impact:
    """The distances of a step. left_out: positions that are not counted (None: the result's sinks). UsageError for a step,
    variant or metric that the result does not have."""
    if metric not in METRICS:
        raise UsageError(f"metric '{metric}' is not known; use one of {', '.join(METRICS)}")
    if not 0 <= step < len(result.steps):
        raise UsageError(f"step {step} is not there: the result has steps 0 to {len(result.steps) - 1}")
    check_variant(result, variant)
    record, index = result.steps[step], result.variants.index(variant)
    norms = record.baseline_norm[:, index].astype(np.float64)
    return Impact(
        metric=metric,
        variant=variant,
        positions=record.positions,
        distances=getattr(record, metric)[:, :, index].astype(np.float64),
        norms=norms if np.isfinite(norms[record.has_numbers]).all() else None,
        counted=~np.isin(record.positions, result.sinks if left_out is None else left_out),
    )


def check_variant(result: Result, variant: str) -> None:
    """UsageError where the result does not have the variant."""
    if variant not in result.variants:
        some = ", ".join(result.variants[:6]) + (", ..." if len(result.variants) > 6 else "")
        raise UsageError(f"variant '{variant}' is not there; the result has {some}")


def mean_over(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what has a value, NaN where nothing has one (numpy's nanmean warns there)."""
    has_value = ~np.isnan(values)
    n_values = has_value.sum(axis=axis)
    total = np.where(has_value, values, 0).sum(axis=axis)
    return np.divide(total, n_values, out=np.full(total.shape, np.nan), where=n_values > 0)


def largest(values: np.ndarray, n: int) -> list[int]:
    """Places of the n largest values, largest first, ties in their order; only of those above 0."""
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:n]
    return [int(place) for place in order if values[place] > 0]
