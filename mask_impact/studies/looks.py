"""What a study asks about a prompt's images besides: pixels, parts of their features, the vision tower, one line for each.

In: a prompt that is ready, with its images read, and its settings. Out: what the analyses found, as tables and as files. Each
question is the one of the command of that name. Knows no order of prompts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mask_impact.analyses import deepstack, pixels, tower
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared
from mask_impact.analyses.settings import RunSettings
from mask_impact.errors import InputError, UnsupportedArchitecture
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.results import deepstack_files, patch_files, tower_files
from mask_impact.results.looked import LookedEffects
from mask_impact.results.names import DEEPSTACK, PATCHES, TOWER, Kind

TO_READ = 2.0  # forward passes: the answer, and the same again as all variants run
MAP_OF_TOWER = 1.0  # the tower's map: a few passes of the tower alone


@dataclass(frozen=True)
class Look:
    """A question. analysis: the module with its `plan` and `of_prepared`; question: of the settings; tables: of what was found,
    by name; save: writes its files; kind: which these are; runs: of a plan, how often the model is run again at most for a
    target."""

    analysis: ModuleType
    question: Callable[[RunSettings], Any]
    tables: Callable[[Any], dict[str, Any]]
    save: Callable[..., Any]
    kind: Kind
    runs: Callable[[Any], float]


def _regions(settings: RunSettings) -> pixels.Question:
    return pixels.Question(settings.fills, settings.by, settings.beam, split=settings.split)


def _tower(settings: RunSettings) -> tower.Question:
    return tower.Question(pixels.Question(by=settings.by, beam=settings.beam), unit=settings.unit)


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
        lambda plan: plan.most_runs(),
    ),
    "deepstack": Look(
        deepstack,
        lambda settings: deepstack.Question(settings.region, settings.baseline, answers=False),
        lambda found: {"deepstack": deepstack_files.deepstack_table(found)},
        deepstack_files.save_deepstack,
        DEEPSTACK,
        lambda plan: plan.forwards(),
    ),
    "tower": Look(
        tower, _tower, _of_tower, tower_files.save_tower, TOWER, lambda plan: plan.most_runs() + MAP_OF_TOWER
    ),
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
    """About how many forward passes of the prompt all of it takes; a variant counts as a whole one."""
    planned, _ = plans(reader, prepared)
    settings, total = prepared.settings, 0.0
    for name, plan in planned.items():
        searches = name != "deepstack" and settings.by in (None, "search")
        n_targets = settings.num_tokens if searches and settings.target == "each" else 1
        total += TO_READ + n_targets * LOOKS[name].runs(plan)
    return total
