"""What a study asks about a prompt's images besides: pixels, parts of their features, the vision tower, one line for each.

In: a prompt that is ready, with its images read, and its settings. Out: what the analyses found, as tables and as files. Each
question is the one of the command of that name. Knows no order of prompts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from mask_impact.analyses import deepstack, pixels, tower
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.picture_estimates import OF_ESTIMATE
from mask_impact.analyses.picture_regions import Numbered, Place, coarse_to_fine
from mask_impact.analyses.prepared import Prepared
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.features import tower_rows_of_patch
from mask_impact.errors import InputError, UnsupportedArchitecture
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.patches import grids_of
from mask_impact.results import deepstack_files, patch_files, tower_files
from mask_impact.results.looked import LookedEffects
from mask_impact.results.names import DEEPSTACK, PATCHES, TOWER, Kind

SEARCHES, MOST_ASKED = 4, 4096  # that are tried out for a forecast
ANSWER = 1.0  # a forward pass: the answer, before anything is counted
# Of a search for one more target: what another search has asked about is known (measured: .36 to .57).
SEARCHED_AGAIN = 0.45


@dataclass(frozen=True)
class Look:
    """A question. analysis: the module with its `plan` and `of_prepared`; question: of the settings; tables: of what was found,
    by name; save: writes its files; kind: which these are; rows: of a plan, and of how many searches there are, about how many
    rows go through layers."""

    analysis: ModuleType
    question: Callable[[RunSettings], Any]
    tables: Callable[[Any], dict[str, Any]]
    save: Callable[..., Any]
    kind: Kind
    rows: Callable[[Any, "Sizes", int], float]


@dataclass(frozen=True)
class Sizes:
    """Rows through decoder layers, as the analyses count them. forward: of the prompt and its answer, the images through the
    tower included; decoder: of a variant, from the first image token on; tower: of each image through the tower."""

    forward: float
    decoder: float
    tower: tuple[float, ...]

    @classmethod
    def of(cls, reader: Reader, prepared: Prepared) -> "Sizes":
        """Of a prompt with images, if all tokens that are asked for are produced."""
        encoded, n_layers = prepared.encoded, reader.config.get_text_config().num_hidden_layers
        n = encoded.n_tokens + prepared.settings.num_tokens - 1
        each = tower_rows_of_patch(reader.config)
        tower = tuple(grid.rows * grid.columns * each for grid in grids_of(reader, encoded))
        first = int(np.argmax(encoded.tokens.image >= 0))
        return cls(sum(tower) + n * n_layers, (n - first) * n_layers, tower)

    def variants(self, n: float, images: Sequence[int]) -> float:
        """Of n variants of these images, of each as many as it has patches."""
        rows = [self.tower[image] for image in images]
        return n * (self.decoder + sum(one * one for one in rows) / sum(rows))


def _variants(plan: pixels.Plan, guided: bool) -> float:
    """How many variants of the images run, but for ways: of a search what searches among numbers drawn at random ask about, on
    average. guided: whether estimates say what a search asks about."""
    if plan.question.how != "search":
        return plan.most_runs() - 2 * plan.question.split
    n = 0
    for seed in range(SEARCHES):
        rng, asked = np.random.default_rng(seed), Numbered()
        changes = rng.random(MOST_ASKED)
        weights = [-rng.random(one.record.grid) for one in plan.images] if guided else None

        def ask(places: Sequence[Place], asked: Numbered = asked, changes: np.ndarray = changes) -> list[float]:
            return [-float(changes[asked.number(place) % MOST_ASKED]) for place in places]

        ask(coarse_to_fine(plan.images, plan.question.beam, ask, weights)[1])
        n += len(asked.places)
    return n / SEARCHES + 2 * (len(plan.question.fills) - 1)


def _of_pixels(plan: pixels.Plan, sizes: Sizes, n_searches: int) -> float:
    images = [one.number for one in plan.images]
    searches = plan.question.how == "search"
    split = plan.question.split * (sizes.forward + 3 * sizes.decoder)  # three ways, and the states of the last one
    again = sizes.variants(_variants(plan, True), images)
    estimates = searches * n_searches * OF_ESTIMATE * sizes.forward
    return sizes.forward + estimates + n_searches * split + _of_searches(n_searches) * again


def _of_tower_effects(plan: tower.Plan, sizes: Sizes, n_searches: int) -> float:
    images = [one.number for one in plan.regions.images]
    maps = (1 + tower.OF_MAP) * sum(sizes.tower[image] for image in images)
    n = _of_searches(n_searches) * _variants(plan.regions, False) + 2  # what is read most, and hiding nothing
    return sizes.forward + maps + sizes.variants(n, images)


def _of_deepstack(plan: deepstack.Plan, sizes: Sizes, n_searches: int) -> float:
    tower = sum(sizes.tower)
    return tower + plan.forwards() * (sizes.forward - tower)


def _of_searches(n: int) -> float:
    """As many as the first of n searches that ask about as much."""
    return 1 + (n - 1) * SEARCHED_AGAIN


def _regions(settings: RunSettings) -> pixels.Question:
    return pixels.Question(settings.fills, settings.by, settings.beam, split=settings.split)


def _tower(settings: RunSettings) -> tower.Question:
    regions = pixels.Question(pixels.DEFAULT_FILLS[:1], settings.by, settings.beam)  # hidden, and not filled
    return tower.Question(regions, unit=settings.unit)


def _of_tower(found: Any) -> dict[str, Any]:
    effects = {"tower_effects": tower_files.effect_table(found)} if found.regions else {}
    return {"tower": tower_files.reading_table(found)} | effects


LOOKS = {  # by the setting that asks for it
    "pixels": Look(
        pixels,
        _regions,
        lambda found: {"patches": patch_files.patch_table(found)},
        patch_files.save_patches,
        PATCHES,
        _of_pixels,
    ),
    "deepstack": Look(
        deepstack,
        lambda settings: deepstack.Question(settings.region, settings.baseline, answers=False),
        lambda found: {"deepstack": deepstack_files.deepstack_table(found)},
        deepstack_files.save_deepstack,
        DEEPSTACK,
        _of_deepstack,
    ),
    "tower": Look(tower, _tower, _of_tower, tower_files.save_tower, TOWER, _of_tower_effects),
}


def asked(settings: RunSettings) -> list[str]:
    """Which of LOOKS the settings ask for."""
    return [name for name in LOOKS if getattr(settings, name)]


def plans(reader: Reader, prepared: Prepared) -> tuple[dict[str, Any], dict[str, str]]:
    """The plans of what is asked, and why others can't be had of this prompt or model: without weights. UsageError."""
    found, left_out = {}, {}
    for name in asked(prepared.settings):
        look = LOOKS[name]
        try:
            found[name] = look.analysis.plan(reader, prepared, look.question(prepared.settings))
        except (InputError, UnsupportedArchitecture) as error:
            left_out[name] = str(error)
    return found, left_out


def look(
    loaded: LoadedModel, prepared: Prepared, observer: Observer | None
) -> tuple[dict[str, LookedEffects], dict[str, str]]:
    """What was found, and what was left out and why. Errors of the analyses, but for a prompt or model that has none of it."""
    planned, left_out = plans(loaded, prepared)
    settings = prepared.settings
    return {
        name: LOOKS[name].analysis.of_prepared(loaded, prepared, LOOKS[name].question(settings), observer)
        for name in planned
    }, left_out


def tables_of(looked: Mapping[str, LookedEffects]) -> Iterator[tuple[str, Any]]:
    """Each table with its name."""
    for name, found in looked.items():
        yield from LOOKS[name].tables(found).items()


def forwards_of(reader: Reader, prepared: Prepared) -> float:
    """About how many forward passes of the prompt all of it takes: rows through layers, of those of one pass. What stands before
    the first image runs once for all variants."""
    planned, _ = plans(reader, prepared)
    if not planned:
        return 0.0
    settings, sizes = prepared.settings, Sizes.of(reader, prepared)
    searches = settings.by in (None, "search") and settings.target == "each"
    n_searches = settings.num_tokens if searches else 1
    return sum(ANSWER + LOOKS[name].rows(plan, sizes, n_searches) / sizes.forward for name, plan in planned.items())
