"""A single stored result, as the few numbers of a prompt that statistics over many need. Knows records."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mask_impact.findings.prompt_numbers import ATTN, FULL, Gathering, PromptNumbers, Unit
from mask_impact.results.deepstack import DeepstackEffects
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import is_regular
from mask_impact.results.flows import Knockouts
from mask_impact.results.patches import PatchEffects
from mask_impact.results.records import Result
from mask_impact.results.stored import Stored
from mask_impact.results.table_files import beside
from mask_impact.results.table_reading import MOST_LAYERS
from mask_impact.results.tokens import CELLS

PAGES = ("html", "card.png", "meta.json", "answer.meta.json", "flows.meta.json")  # of a result: what one looks at first
UNKNOWN_WINDOW = "window not stored"


def how_text(run: Mapping[str, Any]) -> str:
    """The settings that effects depend on, in words. run: those of HOW."""
    if run.get("window") is None:
        return UNKNOWN_WINDOW
    window = "all layers" if run["window"] == "all" else f"window {run['window']}"
    parts = [window, f"{run.get('queries') or 'last'} {'query' if run.get('queries') != 'all' else 'queries'}"]
    parts += [f"{name} {run[name]}" for name in ("ablation", "groups") if run.get(name) not in (None, "mask", "tokens")]
    return ", ".join(parts)


def variant_of(name: str) -> int:
    """A variant as a number: FULL, ATTN or that of a head."""
    if name == "Full":
        return FULL
    number = name.removeprefix("Head_")
    is_head = number != name and number.isascii() and number.isdecimal() and len(number) <= len(str(MOST_LAYERS))
    return int(number) if is_head else ATTN if name == "Attn" else ATTN - 2


def of_stored(stem: Path, stored: Stored) -> PromptNumbers:
    """The numbers of all that lies under a name."""
    meta = stored.meta
    effect = meta.get("effect") if isinstance(meta.get("effect"), dict) else {}
    name = meta.get("job") if isinstance(meta.get("job"), str) else stem.name.removesuffix("_results")
    place = next((beside(stem, suffix) for suffix in PAGES if is_regular(beside(stem, suffix))), stem)
    labels = meta.get("carried") if isinstance(meta.get("carried"), dict) else {}
    gathering = Gathering(
        name,
        str(getattr(stored.parts[0], "generated_text", "")),
        labels,
        how_text({"ablation": meta.get("ablation")} | effect),
        effect.get("window") != "all",
        str(place),
    )
    if stored.answer is not None:
        gathering.units += _units(stored.answer)
        for target in stored.answer.targets:
            for route in target.routes:
                gathering.route(route.name, target.step, route.contribution)
                gathering.cut(route.name, target.step, route.whole_change)
    if stored.result is not None:
        _add_result(gathering, stored.result)
    if stored.flows is not None:
        _add_flows(gathering, stored.flows)
    if stored.deepstack is not None:
        _add_parts(gathering, stored.deepstack)
    if stored.patches is not None:
        _add_regions(gathering, stored.patches)
    return gathering.numbers()


def _units(found: Explanation) -> Iterator[Unit]:
    for target in found.targets:
        needed = {
            place for one in target.evidence if one.necessary is not None for place in one.necessary.places
        }  # fmt: skip
        for place, name in enumerate(target.names):
            yield Unit(
                name, tuple(target.positions[place]), target.change(place), bool(target.measured[place]),
                bool(target.content[place]), place in needed,
            )  # fmt: skip


def _add_result(gathering: Gathering, result: Result) -> None:
    variants = np.array([variant_of(name) for name in result.variants])
    kinds = np.array(result.tokens.kinds)
    content = (kinds != "special") & ~np.isin(np.arange(len(kinds)), result.sinks)
    for step in result.steps:
        layer, place, variant = (one.reshape(-1) for one in np.indices(step.l2.shape))
        at = step.positions[place]
        gathering.distances(
            layer, at, variants[variant], np.isin(kinds[at], CELLS), content[at], step.l2.reshape(-1), step.cosine.reshape(-1),
        )  # fmt: skip
    for step in result.steps:
        if (effect := step.effect) is None:
            continue
        groups = effect.groups or [(result.tokens.texts[at], (at,)) for at in step.positions.tolist()]
        layer, group = (one.reshape(-1) for one in np.indices(effect.top1.shape))
        first, sizes = (np.array([rule(at) for _, at in groups]) for rule in (lambda at: at[0], len))
        change = np.where(effect.measured, effect.logprob_change, np.nan).reshape(-1).astype(np.float64)
        estimate = None if effect.estimated is None else effect.estimated.change.reshape(-1).astype(np.float64)
        names = [groups[one][0] for one in group.tolist()]
        gathering.effects(
            layer, first[group], sizes[group], change, effect.below_floor.reshape(-1), estimate, names
        )  # fmt: skip


def _add_flows(gathering: Gathering, found: Knockouts) -> None:
    how = how_text({"window": found.meta.get("window"), "ablation": found.meta.get("ablation"), "queries": "all"})
    for number, one in enumerate(found.flows):
        change = np.sum([step.logprob_change[number] for step in found.steps], axis=0, dtype=np.float64)
        heads = "" if one.flow.heads is None else f" (heads {', '.join(map(str, one.flow.heads))})"
        gathering.knockout(one.flow.name + heads, change, how.partition(",")[0])


def _add_parts(gathering: Gathering, found: DeepstackEffects) -> None:
    sets = range(2 ** len(found.parts))
    for target in found.targets:
        values = {1 << part: float(value) for part, value in enumerate(target.shapley)}
        gathering.parts(
            [found.region] * len(sets), [found.baseline] * len(sets), [found.kept(number) for number in sets],
            target.logprob_change.astype(np.float64), np.array([values.get(number, np.nan) for number in sets]),
        )  # fmt: skip


def _add_regions(gathering: Gathering, found: PatchEffects) -> None:
    for target in found.targets:
        regions = [found.regions[place] for place in target.place]
        gathering.regions(
            [target.steps[0]] * len(regions), [one.image for one in regions], [one.level for one in regions],
            [one.name for one in regions], target.fill, target.route, target.logprob_change.astype(np.float64),
        )  # fmt: skip
