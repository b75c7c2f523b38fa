"""Which units are really hidden within a budget, and how far the estimates of a run agree with what was measured.

The best of two rankings, by contribution and by the plain gradient, take turns. What stands near the end is cheap to hide, since
little runs again: of that, too, a share of the budget is measured, which mostly is the question. Some others are drawn at random
as a control.
The estimates are not reliable where their rank correlation with what was measured is below MIN_RHO, or where a unit that was
drawn at random turns out to matter more than the weakest of the LISTED strongest ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mask_impact.findings.agreement import rank_correlation
from mask_impact.results.explanations import Agreement

MIN_RHO = 0.7
NEGLIGIBLE = 0.01  # nats
LISTED = 5  # the strongest ones that are shown first
FEWEST_RANKED, FEWEST_CANDIDATES, FEWEST_CONTROLS, MOST_CONTROLS = 4, 5, 3, 16
MEASURED = 0.5  # of a run's budget goes to measuring units, the rest to evidence
REFINED = 0.65  # of it, with the parts of regions and sentences
EVERYTHING = 0.7  # of it, where that measures all of them
WITH_NOTHING_HIDDEN = 1.0  # forward pass, goes with all that are measured together
FOR_RANKED, FOR_CHEAP = 0.55, 0.2  # of what is for measuring; the rest is for controls


def choose(
    estimates: Mapping[str, np.ndarray],
    cost: np.ndarray,
    content: np.ndarray,
    fine: np.ndarray,
    budget: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(units to measure, those of them that are controls).

    estimates: float [G] by rule; cost: float [G], of hiding each, in forward passes; content: bool [G], those that may be
    candidates, and are controls before others; fine: bool [G], those that are neither, unless they are cheap. At least
    FEWEST_RANKED of the rankings, FEWEST_CANDIDATES in all and FEWEST_CONTROLS whatever the budget; all units where that fits.
    """
    everything = np.arange(len(cost))
    if not fine.any() and (cost.sum() <= budget or len(cost) <= FEWEST_CANDIDATES + FEWEST_CONTROLS):
        return everything, everything[:0]
    may = content & ~fine
    rankings = [
        [place for place in np.argsort(values, kind="stable").tolist() if may[place]] for values in estimates.values()
    ]
    turns = list(dict.fromkeys(place for pair in zip(*rankings, strict=True) for place in pair))
    cheap = [place for place in np.argsort(cost, kind="stable").tolist() if content[place]]
    candidates: list[int] = []
    spent = _take(candidates, turns, cost, FOR_RANKED * budget, 0.0, FEWEST_RANKED)
    spent = _take(candidates, cheap, cost, (FOR_RANKED + FOR_CHEAP) * budget, spent, 0)
    spent = _take(candidates, turns, cost, 0.0, spent, FEWEST_CANDIDATES)
    others = np.random.default_rng(seed).permutation(np.setdiff1d(everything[~fine], candidates))
    controls: list[int] = []
    first = others[np.argsort(~content[others], kind="stable")][:MOST_CONTROLS].tolist()
    _take(controls, first, cost, budget, spent, FEWEST_CONTROLS)
    return np.array([*candidates, *controls], dtype=np.int64), np.array(controls, dtype=np.int64)


def _take(chosen: list[int], order: Sequence[int], cost: np.ndarray, limit: float, spent: float, fewest: int) -> float:
    """Adds units in their order until the next one would spend more than the limit, but so many in all at least; returns what
    is spent then."""
    for place in order:
        if place in chosen:
            continue
        if len(chosen) >= fewest and spent + cost[place] > limit:
            break
        chosen.append(place)
        spent += cost[place]
    return spent


def unsettled(measured: np.ndarray, content: np.ndarray, of_image: np.ndarray) -> np.ndarray:
    """bool [G], the units that estimates are held against: content of a kind (cells, or text) of which some was not measured.
    Where all of a kind was, nothing hangs on its estimates."""
    open_kinds = {bool(kind) for kind in of_image[content & ~np.isfinite(measured)]}
    return content & np.isin(of_image, [*open_kinds])


def agreement_of(
    estimated: np.ndarray, measured: np.ndarray, control: np.ndarray, negligible: float = NEGLIGIBLE
) -> Agreement:
    """How far estimates agree with what was measured (NaN where nothing was). Changes below the negligible one, in nats, count as
    none, since their order says nothing."""
    there = np.isfinite(measured)
    one, other = (
        np.where(np.abs(values[there]) < negligible, 0.0, values[there].astype(float))
        for values in (estimated, measured)
    )
    rho, _ = rank_correlation(one, other)
    at_all = other != 0
    ratios = one[at_all] / other[at_all]
    of_controls = np.abs(measured[there & control])
    return Agreement(
        n=int(there.sum()),
        rho=float(rho),
        same_sign=float((np.sign(one[at_all]) == np.sign(other[at_all])).mean()) if at_all.any() else float("nan"),
        ratio=float(np.median(ratios)) if at_all.any() else float("nan"),
        strongest_control=float(of_controls.max()) if of_controls.size else float("nan"),
    )


def is_reliable(
    agreement: Agreement, measured: np.ndarray, control: np.ndarray, negligible: float = NEGLIGIBLE
) -> bool:
    """By the rule of this module. measured: those that are listed first are the most negative."""
    candidates = np.sort(measured[np.isfinite(measured) & ~control])[:LISTED]  # the most negative first
    weakest = abs(candidates[-1]) if len(candidates) else 0.0
    apart = agreement.rho < MIN_RHO  # NaN where all are alike
    return not apart and not agreement.strongest_control > max(weakest, negligible)


def costs(positions: Sequence[Sequence[int]], n_positions: int) -> np.ndarray:
    """float [G], of hiding each unit, in forward passes: what stands before its first position needs not run again."""
    return 1 - np.array([one[0] for one in positions], dtype=float) / n_positions
