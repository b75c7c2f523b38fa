"""Does the local impact of a token tell what hiding it does to the answer? A step's effects by position, beside its distances.

Knows records and impact, scipy's ranks; no files, no models, and it prints nothing. Dimensions: L layers, P positions that
were masked, G groups of positions that were hidden together for the effect (each masked position is one, where there are no
others). Distances are of single positions and do not add up, so only effects of single positions are put beside them.

None. An effect that is no larger than its noise floor (`EffectRecord.floor`: what shows where nothing was hidden) counts as
none: its size is 0. A size is an absolute value in nats: a token that makes the answer more likely has an effect as well.

Agreement in a layer is Spearman's rank correlation, over the tokens that are not attention sinks and have an effect there, of
their distances with the sizes of their effects. There is none (NaN) for fewer than FEWEST_TOKENS tokens, or where all have the
same distance or the same size.

Where they come apart. Tokens that are not sinks are ranked twice, the strongest first, ties by their mean rank: by their local
impact (mean over all layers of their shares of the layer's distances) and by their effect (mean over all layers of the sizes).
The tokens of large impact and little effect are those of the stronger half by impact whose rank by effect is furthest behind
that by impact, and the other way round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mask_impact.findings.impact import Impact, mean_over
from mask_impact.results.records import Result

MEASURES = {"logprob": "logprob_change", "kl": "kl_divergence"}  # as they are called here, and in the files' columns
FLOORS = {"logprob": 1, "kl": 2}  # their places in `EffectRecord.floor`
FEWEST_TOKENS = 3  # that a rank correlation is given for
N_APART = 5
ABLATIONS = {
    "mask": "its attention logit is set to minus infinity",
    "zero-value": "its attention weight stays, and its value is replaced by 0",
    "mean-value": "its attention weight stays, and its value is replaced by the mean of the values that the query sees",
}


@dataclass(frozen=True)
class Effect:
    """The effects of one step on its produced token.

    hidden: of each group the positions; names: of groups that have one, None where each is a single position of the step, in
    its order. values: of each of MEASURES float32 [L, G] in nats (logprob: negative is less likely). top1: int64 [L, G], the
    most probable token then, -1 where nothing was measured; top1_texts: their texts by id. likeliest: id of the most probable
    token with nothing hidden.
    floors: of each of MEASURES.
    """

    hidden: tuple[tuple[int, ...], ...]
    names: tuple[str, ...] | None
    values: Mapping[str, np.ndarray]
    top1: np.ndarray
    top1_texts: Mapping[int, str]
    likeliest: int
    floors: Mapping[str, float]

    def sizes(self, measure: str) -> np.ndarray:
        """float64 [L, G]: absolute values, 0 where they are no larger than the floor, NaN where there is no number."""
        sizes = np.abs(self.values[measure].astype(np.float64))
        return np.where(sizes <= self.floors[measure], 0.0, np.where(np.isfinite(sizes), sizes, np.nan))

    @cached_property
    def changed(self) -> np.ndarray:
        """bool [L, G]: whether another token becomes the most probable."""
        return (self.top1 >= 0) & (self.top1 != self.likeliest)

    @property
    def by_position(self) -> bool:
        """Whether the columns are the step's masked positions, as those of its distances are."""
        return self.names is None


def step_effect(result: Result, step: int) -> Effect | None:
    """The effects of a step; None where they were not measured. Nothing else says which columns of an EffectRecord are what.

    Groups that are single masked tokens by their own names (words of one token, patches) are put at their positions; positions
    that were not hidden have no value there then.
    """
    record = result.steps[step]
    if record.effect is None:
        return None
    values = {measure: getattr(record.effect, name) for measure, name in MEASURES.items()}
    top1, groups = record.effect.top1, record.effect.groups
    likeliest = record.token_id if record.effect.likeliest is None else record.effect.likeliest
    if groups is not None and _are_tokens(result, step):
        places = np.searchsorted(record.positions, [position for _, (position,) in groups])
        values = {measure: _placed(column, places, record.l2.shape[:2], np.nan) for measure, column in values.items()}
        top1, groups = _placed(top1, places, record.l2.shape[:2], -1), None
    return Effect(
        hidden=tuple((int(position),) for position in record.positions)
        if groups is None
        else tuple(tuple(positions) for _, positions in groups),
        names=None if groups is None else tuple(name for name, _ in groups),
        values=values,
        top1=top1,
        top1_texts=record.effect.top1_texts,
        likeliest=likeliest,
        floors={measure: float(record.effect.floor[place]) for measure, place in FLOORS.items()},
    )


def _are_tokens(result: Result, step: int) -> bool:
    """Whether each group of a step is one of its masked positions, each another, by the name of its token."""
    record, tokens = result.steps[step], result.tokens
    places = [positions[0] for _, positions in record.effect.groups if len(positions) == 1]
    if len(set(places)) < len(record.effect.groups) or not np.isin(places, record.positions).all():
        return False
    return all(tokens.image[j] >= 0 or tokens.texts[j] == name for name, (j,) in record.effect.groups)


def _placed(columns: np.ndarray, places: np.ndarray, shape: tuple[int, ...], otherwise: float) -> np.ndarray:
    """The columns at their places in an array of `shape`."""
    array = np.full(shape, otherwise, dtype=columns.dtype)
    array[:, places] = columns
    return array


# ---------------------------------------------------------------------------------------------------------------------
# In words


def window_of(result: Result) -> int | str | None:
    """In how many layers a token was hidden at once, or `all`; None where the result does not say."""
    window = _how(result, "window")
    return window if window == "all" or (isinstance(window, int) and window >= 1) else None


def where_hidden(result: Result) -> str:
    """In as few words as it can be said: `9 layers around each layer, mask`."""
    window, said = window_of(result), [_how(result, "ablation")]
    where = {1: "one layer", "all": "all layers", None: "some layers around each layer"}.get(
        window, f"{window} layers around each layer"
    )
    said += ["all queries"] if _how(result, "queries") == "all" else []
    return ", ".join([where, *(one for one in said if isinstance(one, str))])


def how_measured(result: Result) -> str:
    """What was hidden, and where, in whole sentences; a text of the result is as it stands there."""
    window, ablation = window_of(result), _how(result, "ablation")
    if window == "all":
        where = "all layers at once (so every layer has the same effect)"
    elif window is None:
        where = "some layers around each layer (the result does not say how many)"
    elif window == 1:
        where = "that layer alone"
    else:
        first, last = (window - 1) // 2, window // 2
        begins = f"l \N{MINUS SIGN} {first}" if first else "l"
        where = f"the {window} layers around it (for layer l from {begins} to l + {last}, cut at both ends)"
    queries = "every position" if _how(result, "queries") == "all" else "the position that produces the answer's token"
    effect = step_effect(result, 0)
    what = "each token" if effect is None or effect.by_position else "each group of tokens"
    begin = f"{what[0].upper()}{what[1:]}" if window == "all" else f"For each layer, {what}"
    how = ""
    if isinstance(ablation, str):
        how = f": {ABLATIONS[ablation]} ({ablation})" if ablation in ABLATIONS else f" ({ablation})"
    return (
        f"{begin} is hidden in {where} from {queries}{how}. The later layers see what that changes, up to the output."
    )


def _how(result: Result, name: str) -> Any:
    """A setting of the measurement: what `ablation` means holds for the distances too and stands beside the effect's own."""
    effect = result.meta.get("effect")
    return effect[name] if isinstance(effect, Mapping) and name in effect else result.meta.get(name)


# ---------------------------------------------------------------------------------------------------------------------
# How far they agree


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's rank correlation along the last axis, and how many pairs it is of: float64 and int64 [...].

    x, y: float64 [..., P] of shapes that fit together; a pair counts where both are numbers. NaN where there is none.
    """
    from scipy.stats import rankdata

    x, y = np.broadcast_arrays(x, y)
    paired = np.isfinite(x) & np.isfinite(y)
    n = paired.sum(axis=-1)
    # The mean of n ranks is (n + 1) / 2 whatever the ties: so equal values have deviations that are exactly 0.
    deviations = [
        np.nan_to_num(rankdata(np.where(paired, values, np.nan), axis=-1, nan_policy="omit") - (n + 1)[..., None] / 2)
        for values in (x, y)
    ]
    products, *squares = (
        (one * other).sum(axis=-1)
        for one, other in (deviations, (deviations[0], deviations[0]), (deviations[1], deviations[1]))
    )
    spread = np.sqrt(squares[0] * squares[1])
    exists = (n >= FEWEST_TOKENS) & (spread > 0)
    return np.clip(np.divide(products, spread, out=np.full(n.shape, np.nan), where=exists), -1, 1), n


def layer_agreement(impact: Impact, effect: Effect, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """rho float64 [L] and n int64 [L]: in each layer, local impact with the size of the effect; see this module. Dividing a
    layer by its norm changes no rank. Effects of single positions only."""
    sizes = effect.sizes(measure)
    local = np.where(impact.counted & (sizes > 0), impact.relative(), np.nan)
    return rank_correlation(local, sizes)


@dataclass(frozen=True)
class Apart:
    """A token whose ranks by local impact and by effect differ.

    place: in the step's positions; share: its share of the impact of all layers; size: the mean size of its effect, nats;
    the ranks begin with 1, the strongest.
    """

    place: int
    share: float
    share_rank: float
    size: float
    size_rank: float


def apart(impact: Impact, sizes: np.ndarray, k: int = N_APART) -> tuple[list[Apart], list[Apart]]:
    """At most k tokens of large local impact and little effect, and of little impact and large effect, the furthest apart
    first, ties in their order; see this module. sizes: float64 [L, P]."""
    from scipy.stats import rankdata

    shares, means = impact.scores(), mean_over(sizes, axis=0)
    places = np.flatnonzero(impact.counted & np.isfinite(shares) & np.isfinite(means))
    if not places.size:
        return [], []
    share_ranks, size_ranks = rankdata(-shares[places]), rankdata(-means[places])

    def furthest(ahead: np.ndarray, behind: np.ndarray) -> list[Apart]:
        differences = np.where(ahead <= (len(places) + 1) / 2, behind - ahead, 0)
        order = [i for i in np.argsort(-differences, kind="stable")[:k] if differences[i] > 0]
        columns = (places, shares[places], share_ranks, means[places], size_ranks)
        return [Apart(*(column[i].item() for column in columns)) for i in order]

    return furthest(share_ranks, size_ranks), furthest(size_ranks, share_ranks)
