"""Which effects of single layers or windows are really measured, where not all are: the strongest by two rankings, and some
others drawn at random as a control.

Hidden from the last query: by the gradient of that query's row, and by the local distance. Hidden from every query: by the
gradient, and by the contribution (see `engine.backward`). W windows of layers, G groups of positions; place w * G + g of a
variant is group g in window w.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mask_impact.analyses.candidates import agreement_of, is_reliable
from mask_impact.engine.backward import estimate_last, estimates
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.targets import Target, value_of
from mask_impact.engine.variants import Variants
from mask_impact.results.explanations import Agreement

N_CONTROLS = 16


@dataclass(frozen=True)
class Chosen:
    """The variants of a step that are measured. places: int64 [n]; control: bool [W * G], those drawn at random; estimate:
    float64 [W * G], of each the change of the token's log-probability to first order, nats; forwards, all_forwards: what
    measuring these and all takes, in forward passes of the sequence."""

    places: np.ndarray
    control: np.ndarray
    estimate: np.ndarray
    forwards: float
    all_forwards: float

    def spread(self, values: np.ndarray, otherwise: float) -> np.ndarray:
        """[W * G], values [n] at their places."""
        found = np.full(len(self.estimate), otherwise, dtype=values.dtype)
        found[self.places] = values
        return found


def most(top: int | None) -> int | None:
    """How many variants are measured at most."""
    return None if top is None else 2 * top + N_CONTROLS


def choose_strongest(
    engine: RidingEngine,
    hidden: Sequence[Sequence[int]],
    variants: Variants,
    logits: torch.Tensor,
    produced: int,
    top: int,
    seed: int = 0,
) -> Chosen:
    """At the step that the open engine measured last. hidden: the G groups; variants: all W * G; logits: [vocabulary], the
    model's own there; top: how many of each ranking."""
    n, n_layers = engine.n_positions, len(engine.decoder.layers)
    target = Target(n - 1, produced)
    layers = [*zip(variants.first[:: len(hidden)].tolist(), variants.last[:: len(hidden)].tolist(), strict=True)]

    def by_variant(by_layer: np.ndarray) -> np.ndarray:
        """float64 [W * G], the sums over the windows' layers and the groups' positions of [L, N]."""
        windows = np.stack([by_layer[first : last + 1].sum(axis=0) for first, last in layers])
        return np.stack([windows[:, list(positions)].sum(axis=1) for positions in hidden], axis=1).ravel()

    if variants.masks.queries is None:
        odds = by_variant(estimate_last(engine, target).sum(dim=1).double().numpy())
        other = by_variant(_local(engine))
    else:
        by_rule = estimates(engine, [target])
        plain, frozen = (by_variant(by_rule[rule].every.sum(dim=1).double().numpy()) for rule in ("gradient", "frozen"))
        odds, other = (frozen, plain) if len(layers) == 1 < n_layers else (plain, frozen)
    attending = np.array([state.keys is not None for state in engine.states])
    hides = by_variant(np.repeat(attending[:, None], n, axis=1).astype(float)) > 0
    places, control = _drawn((odds, other), top, np.random.default_rng((seed, n)), hides)
    before = float(value_of(logits[None], [target])[0])
    rows = variants.row_layers(n_layers).double() / (n * n_layers)
    return Chosen(places, control, log_prob_changes(odds, before), float(rows[places].sum()), float(rows.sum()))


def _drawn(
    rankings: Sequence[np.ndarray], top: int, rng: np.random.Generator, hides: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n], ascending, the largest of each ranking by absolute value, and others; bool [W * G], which are the others).
    hides: bool [W * G], the variants that hide anything, of which the others are."""
    ranked = [np.argsort(-np.abs(values), kind="stable")[:top] for values in rankings]
    first = np.unique(np.concatenate(ranked))
    control = np.zeros(len(rankings[0]), dtype=bool)
    others = np.setdiff1d(np.flatnonzero(hides), first)
    control[rng.permutation(others)[:N_CONTROLS]] = True
    return np.union1d(first, np.flatnonzero(control)), control


def _local(engine: RidingEngine) -> np.ndarray:
    """float64 [L, N], the local L2 distance of each token that is hidden in each layer: of Full or Attn, or the mean of heads;
    0 in layers without an attention."""
    step = engine.steps[-1]
    distances = step.l2.double().mean(dim=-1) if engine.groups == ("heads",) else step.l2[..., 0].double()
    found = np.zeros((len(engine.decoder.layers), engine.n_positions))
    found[np.ix_(engine.attending.numbers, step.positions.numpy())] = distances.numpy()
    return found


def log_prob_changes(odds: np.ndarray, before: float) -> np.ndarray:
    """Changes of a token's log-odds as those of its log-probability; before: its log-odds with nothing hidden."""
    return np.logaddexp(0.0, -before) - np.logaddexp(0.0, -(before + odds))  # ln p = -ln(1 + e^-odds)


def judged(chosen: Chosen, measured: np.ndarray, floor: float) -> tuple[Agreement, bool]:
    """(how far the estimates agree with what was measured, whether they are to be relied on). measured: float [W * G], changes of
    the log-probability, NaN where there is none; floor: what a change has to be larger than to count."""
    agreement = agreement_of(chosen.estimate, measured, chosen.control, floor)
    return agreement, is_reliable(agreement, -np.abs(measured), chosen.control, floor)
