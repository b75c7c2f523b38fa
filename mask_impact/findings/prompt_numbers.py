"""The few numbers of one prompt that statistics over many need, formed while its tables are read, piece by piece.

Knows numpy only: no files, no records. Dimensions: L layers, H heads, R rows of a piece.

By layer there are curves: the part of the image in what all tokens do, and the reading of the evidence, which is how that is
spread over the layers. Each is of the measured effect where there is one, and of local impact elsewhere. Shares within a layer
are of the L2 distance; what is put beside another layer is of the cosine distance, which does not grow with the size of a
layer's updates. Special tokens and attention sinks do not count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

EFFECT, ESTIMATED, IMPACT = "measured effect", "effect, partly estimated", "local impact"
CUT, BY_ESTIMATE = "measured", "estimated"  # of flows
BY_SHAPLEY = "parts of the images' features, Shapley values"
FULL, ATTN = -2, -1  # variants as numbers; others are heads
LITTLE, STRONGEST = 0.1, 2  # nats, units: the reasons where the evidence was not searched, as in `findings.verdict`
EVIDENCE, STRONG, ALL = "evidence", "the two strongest", "all tokens"
IMAGE_SHARE, READING, DEPTH, CORRECT, LARGEST = "image share", "reading", "depth", "correct", "largest effect"
FLOW, HEADS = "flow ", "heads"
# Of images: what a part of their features adds, and what replacing the pixels of the strongest region does, in total and by ways.
PART, WITHOUT, PIXELS, WAY = "part ", "without all parts", "pixels of the strongest ", "pixels, by way of "
TOTAL = "total"  # a route of the table of patches


class Kind(NamedTuple):
    """What a number is. Only numbers of one kind are averaged. quantity: its name; measure: by what; n_layers: of the model;
    how: the window and the like, empty where there is none."""

    quantity: str
    measure: str
    n_layers: int
    how: str = ""


@dataclass(frozen=True)
class PromptNumbers:
    """One prompt. answer: what was generated; labels: columns that were carried along; curves: float64 [L]; numbers: single ones;
    heads: float32 [L, H], shares; reasons: what was taken for the evidence, one of EVIDENCE, STRONG, ALL; strongest: the name of
    what has the largest effect; n_layers: of the model; place: the file that has it."""

    name: str
    answer: str
    labels: Mapping[str, Any]
    n_layers: int
    curves: Mapping[Kind, np.ndarray]
    numbers: Mapping[Kind, float]
    heads: Mapping[Kind, np.ndarray]
    reasons: str = ALL
    strongest: str = ""
    place: str = ""


@dataclass(frozen=True)
class Unit:
    """What was hidden together for an answer: positions, the change of log-probability (nats), whether that was measured."""

    name: str
    positions: tuple[int, ...]
    change: float
    measured: bool
    content: bool
    necessary: bool


@dataclass
class Gathering:
    """Forms the numbers of a prompt. Units come first, then distances, then effects; each may come in pieces or not at all.

    how: settings that effects depend on, in words; by_layer: whether effects are of single layers, and not of all at once;
    reduced: whether of each token and layer there is the strongest head only.
    """

    name: str
    answer: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    how: str = ""
    by_layer: bool = True
    place: str = ""
    reduced: bool = False
    units: list[Unit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._l2, self._cosine, self._heads = {}, {}, np.zeros((0, 0))
        self._n_rows = np.zeros(3, dtype=np.int64)
        self._images: set[int] = set()
        self._content: set[int] = set()
        self._sizes, self._all_measured, self._has_effects = np.zeros((3, 0)), True, False
        self._largest, self._strongest = 0.0, ""
        self._flows: dict[Kind, np.ndarray] = {}
        self._routes: dict[str, np.ndarray] = {}
        self._targets: dict[str, set[int]] = {}  # of each flow, by their steps
        self._cuts: dict[str, dict[int, float]] = {}
        self._carried = np.zeros((0, 0))
        self._parts: dict[tuple[str, str], dict[str, float]] = {}
        self._regions: dict[tuple[int, str, int, str], dict[tuple[str, str], float]] = {}
        self._n_layers = 0
        self._reasons: tuple[str, frozenset[int]] | None = None

    # --- pieces -----------------------------------------------------------------------------------------------------------

    def distances(
        self, layer: np.ndarray, position: np.ndarray, variant: np.ndarray, is_image: np.ndarray, content: np.ndarray,
        l2: np.ndarray, cosine: np.ndarray,
    ) -> None:  # fmt: skip
        """Rows of a table of distances, [R] each. variant: FULL, ATTN or the number of a head."""
        self._n_layers = max(self._n_layers, int(layer.max(initial=-1)) + 1)
        self._images |= {*np.unique(position[is_image & content]).tolist()}
        self._content |= {*np.unique(position[content]).tolist()}
        l2, cosine = (np.maximum(np.nan_to_num(values.astype(np.float64)), 0) for values in (l2, cosine))
        read = np.isin(position, [*self.reasons()[1]])
        for one in (FULL, ATTN):
            here = content & (variant == one)
            if here.any():
                sums = self._l2.setdefault(one, np.zeros((2, 0)))
                self._l2[one] = _added(sums, layer[here], l2[here], [is_image[here], ~is_image[here]])
                sums = self._cosine.setdefault(one, np.zeros((2, 0)))
                self._cosine[one] = _added(sums, layer[here], cosine[here], [read[here], np.ones(here.sum(), bool)])
        here = content & (variant >= 0)
        self._n_rows += [int((variant == FULL).sum()), int((variant == ATTN).sum()), int((variant >= 0).sum())]
        if here.any():
            self._heads = _added_at(self._heads, layer[here], variant[here], l2[here])

    def effects(
        self, layer: np.ndarray, position: np.ndarray, n_tokens: np.ndarray, change: np.ndarray, below_floor: np.ndarray,
        estimate: np.ndarray | None, names: Sequence[str],
    ) -> None:  # fmt: skip
        """Rows of a table of effects, [R] each. change: nats, NaN where it was not measured; estimate: in place of those;
        position: of a group of n_tokens its first one; names: of what was hidden."""
        self._has_effects, self._n_layers = True, max(self._n_layers, int(layer.max(initial=-1)) + 1)
        missing = ~np.isfinite(change)
        if (fallen := np.where(missing, 0, -change)).max(initial=0) > self._largest:
            row = int(fallen.argmax())
            self._largest, self._strongest = float(fallen[row]), names[row]
        if missing.any():
            self._all_measured = False
            change = np.where(missing, 0.0 if estimate is None else estimate, change)
        sizes = np.where(below_floor & ~missing, 0.0, np.abs(change))
        content = np.isin(position, [*self._content]) | (n_tokens > 1) | (not self._content)
        image, read = np.isin(position, [*self._images]), np.isin(position, [*self.reasons()[1]])
        self._sizes = _added(self._sizes, layer, sizes, [image & content, ~image & content, read])

    def route(self, flow: str, step: int, estimate: np.ndarray) -> None:
        """A flow of an answer's routes to the target that begins at a step: float [L, H], what cutting it in one head is
        estimated to do."""
        self._targets.setdefault(flow, set()).add(step)
        self._n_layers = max(self._n_layers, len(estimate))
        by_layer = self._routes.get(flow, np.zeros(0))
        by_layer = _padded(by_layer, max(len(by_layer), len(estimate)))
        by_layer[: len(estimate)] += estimate.sum(axis=1, dtype=np.float64)
        self._routes[flow] = by_layer
        self._carried = _widened(self._carried, estimate.shape)
        self._carried[: len(estimate), : estimate.shape[1]] += estimate

    def cut(self, flow: str, step: int, change: float | None) -> None:
        """What really cutting it in all layers did to this target, nats; nothing where it was not cut."""
        if change is not None and math.isfinite(change):
            self._cuts.setdefault(flow, {})[step] = change

    def knockout(self, flow: str, change: np.ndarray, how: str) -> None:
        """What cutting a flow around each layer did, float [L], nats."""
        kind = Kind(FLOW + flow, CUT, len(change), how)
        self._n_layers = max(self._n_layers, len(change))
        self._flows[kind] = self._flows.get(kind, 0) + change.astype(np.float64)

    def parts(
        self, region: Sequence[str], baseline: Sequence[str], kept: Sequence[str], change: np.ndarray, shapley: np.ndarray
    ) -> None:  # fmt: skip
        """Rows of a table of parts of features, one for each set that is kept. change: what keeping that alone does, nats;
        shapley: of the sets of one part, else NaN. Values of several targets are added, as those of flows are."""
        for row, name in enumerate(kept):
            found = self._parts.setdefault((region[row], baseline[row]), {})
            if math.isfinite(shapley[row]):
                found[PART + name] = found.get(PART + name, 0.0) + float(shapley[row])
            elif name == "none":
                found[WITHOUT] = found.get(WITHOUT, 0.0) + float(change[row])

    def regions(
        self, step: Sequence[int], image: Sequence[int], level: Sequence[str], region: Sequence[str], fill: Sequence[str],
        route: Sequence[str], change: np.ndarray,
    ) -> None:  # fmt: skip
        """Rows of a table of replaced pixels. step: of the target; change: nats."""
        for row, value in enumerate(change.tolist()):
            place = (step[row], level[row], image[row], region[row])
            self._regions.setdefault(place, {})[route[row], fill[row] or ""] = value

    # --- the numbers --------------------------------------------------------------------------------------------------------

    def reasons(self) -> tuple[str, frozenset[int]]:
        """What is taken for the evidence: its positions, and which rule chose them."""
        if self._reasons is None:
            self._reasons = _reasons(self.units)
        return self._reasons

    def numbers(self) -> PromptNumbers:
        """All of the prompt."""
        n = self._n_layers
        curves = self._flows | {
            Kind(FLOW + name, BY_ESTIMATE, n): _padded(values, n) for name, values in self._routes.items()
        }
        numbers = {
            Kind(FLOW + name, CUT, n, "all layers"): sum(changes.values())
            for name, changes in self._cuts.items()
            if self._targets.get(name, set()) <= {*changes}  # of all targets, or it is less than the answer's
        }
        effect = EFFECT if self._all_measured else ESTIMATED
        shares, of = self._shares()
        if shares is not None:
            kind = Kind(IMAGE_SHARE, effect if of == EFFECT else IMPACT, n, self.how if of == EFFECT else "")
            curves[kind], numbers[kind] = shares, _mean(shares)
        reading, of = self._reading()
        if reading is not None:
            what = f"of {ALL if self.reasons()[0] == ALL else 'the evidence'}"
            measure = f"{effect if of == EFFECT else IMPACT} {what}"
            kind = Kind(READING, measure, n, self.how if of == EFFECT else "")
            curves[kind] = reading
            numbers[kind._replace(quantity=DEPTH)] = float(reading @ ((np.arange(n) + 0.5) / n))
        numbers |= self._of_parts() | self._of_regions()
        largest, strongest, how = self._largest_effect()
        if largest > 0:
            numbers[Kind(LARGEST, EFFECT, n, how)] = largest
        return PromptNumbers(
            self.name, self.answer, self.labels, n, curves, numbers, self._head_shares(), self.reasons()[0], strongest,
            self.place,
        )  # fmt: skip

    def _of_parts(self) -> dict[Kind, float]:
        return {
            Kind(name, BY_SHAPLEY, self._n_layers, f"at {region}, baseline {baseline}"): value
            for (region, baseline), found in self._parts.items()
            for name, value in found.items()
        }

    def _of_regions(self) -> dict[Kind, float]:
        """Of each level the region that matters most, by the fill that does least, which all of them show; of the region that was
        split and matters most, its ways. Over all targets."""
        numbers: dict[Kind, float] = {}
        totals, fills = {}, dict.fromkeys(fill for one in self._regions.values() for _, fill in one if fill)
        for place, found in self._regions.items():
            totals[place] = max((value for (route, _), value in found.items() if route == TOTAL), default=math.nan)
        how = f"pixels replaced by {' and '.join(fills)}"

        def add(quantity: str, value: float) -> None:
            kind = Kind(quantity, CUT, self._n_layers, how)
            numbers[kind] = numbers.get(kind, 0.0) + value

        for step, level in dict.fromkeys(place[:2] for place in totals):
            changes = [value for place, value in totals.items() if place[:2] == (step, level) and math.isfinite(value)]
            if changes and level != "block":
                add(PIXELS + level, min(changes))
        for step in dict.fromkeys(place[0] for place in totals):
            split = [
                place for place in totals if place[0] == step and len({*(way for way, _ in self._regions[place])}) > 1
            ]
            if split:
                best = min(split, key=lambda place: totals[place])
                for (way, _), value in self._regions[best].items():
                    if way != TOTAL:
                        add(WAY + way, value)
        return numbers

    def _largest_effect(self) -> tuple[float, str, str]:
        """How much less probable the answer becomes without one unit or token (nats), which that is, and what was hidden how."""
        measured = [one for one in self.units if one.measured and one.content]
        if measured:
            best = min(measured, key=lambda one: one.change)
            return max(0.0, -best.change), best.name, "hidden in all layers"
        return self._largest, self._strongest, self.how

    def _shares(self) -> tuple[np.ndarray | None, str]:
        if not self._images or self._images == self._content:
            return None, ""
        if self._has_effects and self._sizes[:2].any():
            sums, of = self._sizes[:2], EFFECT
        else:
            sums, of = self._l2.get(FULL, self._l2.get(ATTN)), IMPACT
        return (None, "") if sums is None else (_divided(sums[0], sums.sum(axis=0), self._n_layers), of)

    def _reading(self) -> tuple[np.ndarray | None, str]:
        has_reasons = self.reasons()[0] != ALL
        candidates = []
        if self._has_effects and self.by_layer:
            candidates.append((self._sizes[2] if has_reasons else self._sizes[:2].sum(axis=0), EFFECT))
        cosines = self._cosine.get(FULL, self._cosine.get(ATTN))
        if cosines is not None:
            candidates.append((cosines[0 if has_reasons else 1], IMPACT))
        for weights, of in candidates:
            if weights.sum() > 0:
                return _padded(weights, self._n_layers) / weights.sum(), of
        return None, ""

    def _head_shares(self) -> dict[Kind, np.ndarray]:
        """Of what cutting flows is estimated to do: the part of each head in what all heads do for the answer. Else of local
        impact: its part of its layer."""
        carried = np.maximum(-self._carried, 0)
        if carried.any():
            return {Kind(HEADS, "estimated effect of cutting flows", len(carried)): _single(carried / carried.sum())}
        totals = self._heads.sum(axis=1, keepdims=True)
        if not totals.any():
            return {}
        of = "local impact of each token's strongest head" if self._strong_only() else "local impact in its layer"
        shares = np.divide(self._heads, totals, out=np.zeros_like(self._heads), where=totals > 0)
        return {Kind(HEADS, of, len(shares)): _single(shares)}

    def _strong_only(self) -> bool:
        """Whether of each token and layer there is one head: as many rows as of another variant, where nothing says it."""
        others = self._n_rows[:2][self._n_rows[:2] > 0]
        return self.reduced or (self._heads.shape[1] > 1 and len(others) > 0 and int(others[0]) == int(self._n_rows[2]))


def _reasons(units: Sequence[Unit]) -> tuple[str, frozenset[int]]:
    needed = [one for one in units if one.necessary]
    if needed:
        return EVIDENCE, frozenset(at for one in needed for at in one.positions)
    content = sorted((one for one in units if one.content and one.change < -LITTLE), key=lambda one: one.change)
    ordered = [*(one for one in content if one.measured), *(one for one in content if not one.measured)]
    taken: set[int] = set()
    chosen = 0
    for one in ordered:
        if chosen < STRONGEST and not taken & {*one.positions}:
            taken |= {*one.positions}
            chosen += 1
    return (STRONG, frozenset(taken)) if taken else (ALL, frozenset())


def _single(shares: np.ndarray) -> np.ndarray:
    return shares.astype(np.float32)


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, np.zeros(n - len(values))])


def _divided(part: np.ndarray, whole: np.ndarray, n: int) -> np.ndarray:
    """float64 [L], NaN where there is nothing."""
    part, whole = _padded(part, n), _padded(whole, n)
    return np.divide(part, whole, out=np.full(n, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else math.nan


def _added(sums: np.ndarray, layer: np.ndarray, values: np.ndarray, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """The sums [K, L] by layer, as long as need be, with the values [R] of those rows that are chosen, K times."""
    n = max(sums.shape[1], int(layer.max(initial=-1)) + 1)
    more = np.stack([np.bincount(layer, np.where(rows, values, 0), minlength=n) for rows in chosen])
    more[:, : sums.shape[1]] += sums
    return more


def _added_at(sums: np.ndarray, layer: np.ndarray, head: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sums [L, H], as large as need be, with values [R] at their places."""
    shape = (max(sums.shape[0], int(layer.max()) + 1), max(sums.shape[1], int(head.max()) + 1))
    more = np.bincount(layer * shape[1] + head, values, minlength=shape[0] * shape[1]).reshape(shape)
    more[: sums.shape[0], : sums.shape[1]] += sums
    return more


def _widened(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values [L, H] in an array that is at least as large."""
    size = tuple(max(one, other) for one, other in zip(values.shape, shape, strict=True))
    wide = np.zeros(size)
    wide[: values.shape[0], : values.shape[1]] = values
    return wide
