"""Results side by side: which token of one is which of the other, which layers lie at the same depth, and how far they agree.

Knows records and impact, difflib and scipy; no files, no models, and it prints nothing. The first result is the one that each
of the others is held against. Dimensions: L layers and P masked positions of a result, B bands of the depth.

Depth. Layer l of L covers the depth from l/L to (l+1)/L, and band b of B that from b/B to (b+1)/B. What is said of a band is
the mean over its layers, each weighted by how much of the band it covers: with 28 layers and 10 bands, the first has layers 0
and 1 whole and 0.8 of layer 2.

Importance. Of a token in a band, or in all layers: that mean of the distances, each over the norm of the unmasked quantity
(cosine distances as they are), so that neither hidden size nor the scale of a layer's updates counts. Where one of the results
has no norms, all have shares of their layers instead.

Chance. The null hypothesis is that it is unrelated which tokens matter in the two results, as far as tokens of one kind go:
the importances are shuffled among the special tokens, among the other texts, and among the patches of each image. That
special tokens or patches as such matter more or less in both is no agreement about tokens then.

Effect. Where results have effects on their produced tokens, the sizes of the changes of its log-probability (see `agreement`)
are averaged over layers as distances are, and compared in the same way; and within each result its importances are held against
them, over the tokens that are not left out and have an effect in the band.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mask_impact.errors import UsageError
from mask_impact.findings.agreement import Effect, rank_correlation, step_effect
from mask_impact.findings.alignment import align, band_layers
from mask_impact.findings.chance import Correlation, correlations
from mask_impact.findings.impact import Impact, mean_over, step_impact
from mask_impact.results.records import Result

MAX_RESULTS = 8
N_BANDS = 10
N_PERMUTATIONS = 9999
SCALES = {"relative": "over the norm of the unmasked quantity", "cosine": "as it is", "share": "share of its layer"}


@dataclass(frozen=True)
class Settings:
    """What is compared, and how. step: the produced token, from 0; metric: `l2` or `cosine`; variant: None is `Full`,
    else `Attn`, else the first variant that all results have; n_bands: of the depth; n_permutations, seed: of the test;
    keep_sinks: attention sinks count like any token."""

    step: int = 0
    metric: str = "l2"
    variant: str | None = None
    n_bands: int = N_BANDS
    n_permutations: int = N_PERMUTATIONS
    seed: int = 0
    keep_sinks: bool = False


@dataclass(frozen=True)
class Side:
    """One of the results.

    produced: the token that the impact is on, empty where it is not known. values: float64 [L, P], the scaled distances, NaN
    where there is no value. sinks, left_out: positions; left out are this result's sinks and what is aligned with another's.
    layers: for each band its (layer, part of the layer that lies in the band), of those that were measured. effect: None
    where it was not measured, or for groups of tokens.
    """

    name: str
    result: Result
    produced: str
    impact: Impact
    values: np.ndarray
    sinks: tuple[int, ...]
    left_out: tuple[int, ...]
    layers: tuple[tuple[tuple[int, float], ...], ...]
    scale: str
    effect: Effect | None = None

    @cached_property
    def bands(self) -> np.ndarray:
        """float64 [B, P], the importance of each token in each band, NaN where it has no value."""
        return self._by_band(self.values)

    def _by_band(self, values: np.ndarray) -> np.ndarray:
        """float64 [B, P], the mean of values [L, P] over the layers of each band, NaN in one without a layer."""
        weights = np.zeros((len(self.layers), len(values)))
        for band, layers in enumerate(self.layers):
            for layer, part in layers:
                weights[band, layer] = part
        has_value = ~np.isnan(values)
        sums, totals = weights @ np.where(has_value, values, 0), weights @ has_value
        return np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)

    @cached_property
    def overall(self) -> np.ndarray:
        """float64 [P], the importance of each token in all layers."""
        return mean_over(self.values, axis=0)

    @cached_property
    def effects(self) -> np.ndarray | None:
        """float64 [1 + B, P], the mean size of each token's effect in all layers, then in each band; None where it was not
        measured."""
        if self.effect is None:
            return None
        sizes = self.effect.sizes("logprob")
        return np.vstack([mean_over(sizes, axis=0), self._by_band(sizes)])

    @cached_property
    def told(self) -> tuple[np.ndarray, np.ndarray] | None:
        """rho float64 [1 + B] and n int64 [1 + B]: importance with the size of the effect, in all layers, then in each band."""
        if self.effects is None:
            return None
        importances = np.vstack([self.overall, self.bands])
        return rank_correlation(np.where(self.impact.counted & (self.effects > 0), importances, np.nan), self.effects)

    def shares(self, importance: np.ndarray) -> np.ndarray:
        """float64 [P], each token's part of an importance (`overall`, or a row of `bands`), NaN for what is left out."""
        counted = np.where(self.impact.counted, importance, np.nan)
        total = np.nansum(counted)
        return counted / total if total > 0 else np.full_like(counted, np.nan)

    @cached_property
    def depth_shares(self) -> np.ndarray | None:
        """float64 [B], the part of the whole impact that each band has, NaN where no layer was measured; None where the scale
        makes all layers alike."""
        if self.scale == "share":
            return None
        totals = np.nansum(np.where(self.impact.counted, self.bands, 0), axis=1)
        totals = np.where(self.has_layers, totals, np.nan)
        return totals / np.nansum(totals) if np.nansum(totals) > 0 else np.full_like(totals, np.nan)

    @property
    def has_layers(self) -> np.ndarray:
        """bool [B], the bands in which a layer was measured."""
        return np.array([bool(layers) for layers in self.layers])

    @property
    def is_image(self) -> np.ndarray:
        """bool [P]"""
        return self.result.tokens.image[self.impact.positions] >= 0


@dataclass(frozen=True)
class Pair:
    """The first result and another one.

    matched: int64 [M, 2], places in the `positions` of first and second that are the same token, in the first's order.
    compared: bool [M], those that count (not left out, with a value in every band of both in which a layer was measured).
    unmatched: places of first and of second. overall, text, image: of all layers, for all tokens that are compared, and for
    those of either kind (None where there is one kind only). bands: of each band, for all tokens. effect: of the sizes of the
    effects in all layers, for the tokens that are compared (None where one of the two was measured without effects).
    """

    first: Side
    second: Side
    matched: np.ndarray
    compared: np.ndarray
    unmatched: tuple[tuple[int, ...], tuple[int, ...]]
    overall: Correlation
    text: Correlation | None
    image: Correlation | None
    bands: tuple[Correlation, ...]
    effect: Correlation | None = None

    def differing(self) -> list[tuple[int, int, float, int | None]]:
        """(place in first, place in second, share in second - share in first, the band with the largest difference of the
        token's shares) of the tokens that are compared, largest difference first, ties in their order."""
        pairs = self.matched[self.compared]
        differences = self._shares(1, pairs) - self._shares(0, pairs)
        order = np.argsort(-np.abs(np.nan_to_num(differences[0])), kind="stable")
        bands = np.abs(differences[1:])
        return [
            (
                *(int(place) for place in pairs[one]),
                float(differences[0, one]),
                None if np.isnan(bands[:, one]).all() else int(np.nanargmax(bands[:, one])),
            )
            for one in order
        ]

    def _shares(self, which: int, pairs: np.ndarray) -> np.ndarray:
        """float64 [1 + B, number of pairs]: overall, then each band."""
        side = (self.first, self.second)[which]
        return np.stack([side.shares(row)[pairs[:, which]] for row in (side.overall, *side.bands)])


@dataclass(frozen=True)
class Comparison:
    """sides: the results, the first one first; pairs: the first with each of the others. scale: one of SCALES."""

    settings: Settings
    variant: str
    scale: str
    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def compare_results(results: Mapping[str, Result], settings: Settings | None = None) -> Comparison:
    """Holds each of the results against the first one; see this module for what the numbers are.

    results: two to MAX_RESULTS, by name. UsageError for another number, or a step, metric or variant that one of them does
    not have.
    """
    settings = settings or Settings()
    if not 2 <= len(results) <= MAX_RESULTS:
        raise UsageError(f"{len(results)} result{'s' * (len(results) != 1)}: two to {MAX_RESULTS} can be compared")
    variant = _variant(results, settings.variant)
    impacts = {}
    for name, result in results.items():
        try:
            impacts[name] = step_impact(result, settings.step, variant, settings.metric)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    names = list(results)
    alignments = {
        name: align(results[names[0]], impacts[names[0]].positions, results[name], impacts[name].positions)
        for name in names[1:]
    }
    left_out = {name: [] for name in names} if settings.keep_sinks else _left_out(results, impacts, alignments)
    scale = "cosine" if settings.metric == "cosine" else "relative"
    if not all(impact.comparable for impact in impacts.values()):
        scale = "share"
    sides = tuple(_side(name, results[name], settings, variant, scale, left_out[name]) for name in names)
    rng = np.random.default_rng(settings.seed)
    pairs = [_pair(sides[0], side, alignments[side.name], settings.n_permutations, rng) for side in sides[1:]]
    pairs = tuple(replace(pair, effect=_effect(pair, settings)) for pair in pairs)
    return Comparison(settings, variant, scale, sides, pairs, tuple(_notes(sides, scale)))


def _variant(results: Mapping[str, Result], wanted: str | None) -> str:
    if wanted is not None:
        return wanted
    common = [
        name for name in next(iter(results.values())).variants if all(name in r.variants for r in results.values())
    ]
    if not common:
        raise UsageError("the results have no variant in common")
    return next((name for name in ("Full", "Attn") if name in common), common[0])


def _left_out(
    results: Mapping[str, Result], impacts: Mapping[str, Impact], alignments: Mapping[str, np.ndarray]
) -> dict[str, list[int]]:
    """The positions of each result that are a sink in it, or the same token as one that is a sink in another: the shares
    of two results can be compared only if they are parts of the same tokens' impact."""
    first, *others = results
    found = {name: set(result.sinks) for name, result in results.items()}

    def aligned(name: str) -> Iterator[tuple[int, int]]:
        for one, other in alignments[name]:
            yield int(impacts[first].positions[one]), int(impacts[name].positions[other])

    for name in others:
        found[first] |= {one for one, other in aligned(name) if other in found[name]}
    for name in others:
        found[name] |= {other for one, other in aligned(name) if one in found[first]}
    return {name: sorted(positions) for name, positions in found.items()}


def _side(name: str, result: Result, settings: Settings, variant: str, scale: str, left_out: Sequence[int]) -> Side:
    impact = step_impact(result, settings.step, variant, settings.metric, left_out)
    effect, measured = step_effect(result, settings.step), {*result.layers}
    return Side(
        name=name,
        result=result,
        produced=result.steps[settings.step].token_text,
        impact=impact,
        values=impact.shares() if scale == "share" else impact.relative(),
        sinks=tuple(position for position in result.sinks if position in impact.positions),
        left_out=tuple(int(position) for position in impact.positions[~impact.counted]),
        layers=tuple(
            tuple(one for one in band if one[0] in measured) for band in band_layers(result.n_layers, settings.n_bands)
        ),
        scale=scale,
        effect=effect if effect is not None and effect.by_position else None,
    )


def _notes(sides: Sequence[Side], scale: str) -> Iterator[str]:
    for side in sides:
        if side.effect is None and side.result.has_effects:
            yield f"{side.name}: its effects on the answer are of groups of tokens, and are not compared"
        for notice in side.result.meta.get("notices") or ():
            yield f"{side.name}: {notice}"
    if scale == "share":
        without = ", ".join(side.name for side in sides if side.impact.norms is None)
        yield (
            f"Shares within each layer are compared, since {without} has no norms of the unmasked quantity to divide by; "
            "how much of the impact lies at which depth can't be said"
        )
    if len({side.produced for side in sides if side.produced}) > 1:
        yield "The results do not have the same produced token here: what is compared is how each came to its own"


# ---------------------------------------------------------------------------------------------------------------------
# The same depth


# ---------------------------------------------------------------------------------------------------------------------
# The same token


# ---------------------------------------------------------------------------------------------------------------------
# Agreement


def _pair(first: Side, second: Side, matched: np.ndarray, n_permutations: int, rng: np.random.Generator) -> Pair:
    ones, others = matched.T
    compared = first.impact.counted[ones] & second.impact.counted[others]
    for side, places in ((first, ones), (second, others)):
        compared &= ~np.isnan(side.overall[places]) & ~np.isnan(side.bands[side.has_layers][:, places]).any(axis=0)
    x = np.vstack([first.overall, first.bands])[:, ones[compared]]
    y = np.vstack([second.overall, second.bands])[:, others[compared]]
    is_image = first.is_image[ones[compared]]
    kinds = _kinds(first)[ones[compared]]
    overall, *bands = correlations(x, y, kinds, n_permutations, rng)
    both = is_image.any() and not is_image.all()

    def of(wanted: np.ndarray) -> Correlation | None:
        return correlations(x[:1, wanted], y[:1, wanted], kinds[wanted], n_permutations, rng)[0] if both else None

    unmatched = tuple(
        tuple(int(place) for place in np.setdiff1d(np.arange(len(side.impact.positions)), places))
        for side, places in ((first, ones), (second, others))
    )
    return Pair(first, second, matched, compared, unmatched, overall, of(~is_image), of(is_image), tuple(bands))


def _effect(pair: Pair, settings: Settings) -> Correlation | None:
    """With permutations of its own, so that the others are the same whether effects were measured or not."""
    if pair.first.effects is None or pair.second.effects is None:
        return None
    ones, others = pair.matched[pair.compared].T
    x, y = pair.first.effects[:1, ones], pair.second.effects[:1, others]
    known = np.isfinite(x[0]) & np.isfinite(y[0])
    rng = np.random.default_rng(settings.seed)
    return correlations(x[:, known], y[:, known], _kinds(pair.first)[ones[known]], settings.n_permutations, rng)[0]


def _kinds(side: Side) -> np.ndarray:
    """int64 [P], equal for tokens that may be shuffled among each other: -2 special, -1 other text, else the image."""
    tokens = side.result.tokens
    special = np.array([kind == "special" for kind in tokens.kinds])
    return np.where(special, -2, tokens.image)[side.impact.positions].astype(np.int64)
