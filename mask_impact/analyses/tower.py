"""The vision tower: which patches its layers read, and what hiding patches in these layers does to the answer.

Two questions. What a layer reads is local: how much its attention output changes where a patch is hidden from all other patches
(`engine.tower_map`). Whether that matters is asked of the answer: the tower runs again with patches hidden as keys in its layers,
through its merger and DeepStack into the decoder, against the same run that `pixels` is held against.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mask_impact.analyses import pixels
from mask_impact.analyses.looking import Change, Looking, changes_of, check_images, check_rows
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.picture_regions import Cut, Numbered, Place, Regions, coarse_to_fine, coarsest_within
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.choices import UNITS
from mask_impact.engine.features import Features
from mask_impact.engine.ownership import owned, refuse_hooks
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.tower import Tower, keys_hidden, readings, tower_of
from mask_impact.errors import UsageError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.images import Picture
from mask_impact.results.tower import TowerEffects, TowerReading, TowerTarget

PATCH, TOKEN = UNITS
MOST_PROBES = 1024
OF_MAP = 3  # passes of the tower that a map takes beside the one that it rides on (benchmarks/bench_tower.py)
OF_PROBE = 1  # more for each probe
# Of a video's frames, those in which most is read: so a search costs as much in a video of any length.
PAIRS_SEARCHED = 4


@dataclass(frozen=True)
class Question:
    """What is asked. regions: which regions are hidden (of a `pixels` question, without its fills); effects: whether any is;
    unit: what the map is of, one of UNITS; probes: random ones for the layers' whole update (0: none); layers: in which regions
    are hidden (None: all); windows: of how many layers are those in which what is found is hidden, too (None: in none).
    UsageError."""

    regions: pixels.Question = field(default_factory=pixels.Question)
    effects: bool = True
    unit: str = PATCH
    probes: int = 0
    layers: tuple[int, ...] | None = None
    windows: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UsageError(f"`unit` must be {' or '.join(UNITS)}, not {self.unit!r}")
        if type(self.probes) is not int or not 0 <= self.probes <= MOST_PROBES:
            raise UsageError(f"`probes` must be a whole number from 0 to {MOST_PROBES}, not {self.probes!r}")
        if self.windows is not None and (type(self.windows) is not int or self.windows < 1):
            raise UsageError(f"`windows` must be a whole number of layers, at least 1, not {self.windows!r}")


@dataclass(frozen=True)
class Plan:
    """The regions that are asked about, the number of the tower's layers, and those in which regions are hidden."""

    question: Question
    regions: pixels.Plan
    n_layers: int
    layers: tuple[int, ...]

    @property
    def windows(self) -> tuple[tuple[int, ...], ...]:
        """The windows, one around each layer."""
        n, size = self.n_layers, self.question.windows
        if size is None:
            return ()
        firsts = (layer - (size - 1) // 2 for layer in range(n))
        return tuple(tuple(range(max(0, first), min(n, first + size))) for first in firsts)

    def most_runs(self) -> int:
        """How often the model is run again at most, for one target."""
        if not self.question.effects:
            return 0
        given = len(self.regions.given)
        largest = self.first([one.record.n_tokens for one in self.regions.images])
        of_regions = self.regions.most_runs(largest) - 2 * given  # of which no way is split
        return of_regions + 2 + (given + 1) * len(self.windows)

    def first(self, read: Sequence[float]) -> list[Cut]:
        """What a search asks about first. A pair of frames sees itself alone: hidden as a whole it changes nothing. read: of each
        image, how much is read of what is read most of it."""
        return coarsest_within(self.regions.images, PAIRS_SEARCHED, read)


def plan(reader: Reader, prepared: Prepared, question: Question) -> Plan:
    """What is asked about, in this prompt; works without the model's weights. InputError, UsageError, UnsupportedArchitecture."""
    check_images(reader, prepared, videos=True)
    n = reader.config.vision_config.depth
    layers = tuple(range(n)) if question.layers is None else tuple(sorted({*question.layers}))
    if not layers:
        raise UsageError("no layers of the vision tower are given: name some, or leave `layers` out for all")
    if outside := [layer for layer in layers if not 0 <= layer < n]:
        raise UsageError(f"layer {outside[0]} is not there: the vision tower has layers 0 to {n - 1}")
    return Plan(question, pixels.plan(reader, prepared, question.regions), n, layers)


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    question: Question,
    settings: RunSettings,
    pictures: Sequence[Picture] = (),
    *,
    observer: Observer | None = None,
) -> TowerEffects:
    """The map of each image, and the effects of its regions; the images are already read. Errors as in `plan`, and
    ExactnessError."""
    return of_prepared(loaded, prepare(loaded, prompt, settings, pictures), question, observer)


def of_prepared(
    loaded: LoadedModel, prepared: Prepared, question: Question, observer: Observer | None = None
) -> TowerEffects:
    """The same of a prompt that is ready."""
    observer = observer or Observer()
    asked, settings = plan(loaded, prepared, question), prepared.settings
    decoder, tower = decoder_of(loaded.model), tower_of(loaded.model)
    with owned(decoder), torch.no_grad():
        refuse_hooks(decoder, {f"visual.blocks.{number}": layer for number, layer in enumerate(tower.layers)})
        looking = Looking(loaded, prepared, observer)
        again = looking.again
        numbers = [one.number for one in asked.regions.images]
        runs = asked.most_runs() * (len(looking.asked) if question.regions.how == "search" else 1)
        each = max(sum(map(again.tower_rows, one)) for one in asked.regions.together()) + again.decoder_rows()
        maps = sum(map(again.tower_rows, numbers)) * (1 + OF_MAP + OF_PROBE * question.probes)
        check_rows(
            maps + runs * each, again.forward_rows(), settings.max_cost, "ask about fewer regions, or search (`by`)"
        )
        found = {number: _read(looking, tower, asked, number) for number in numbers}
        looking.rows += maps
        observer.changing("Hiding patches in the tower", runs)
        measured = _Measured(looking, tower, asked)
        most = measured.all_regions(found) if question.effects else ([-1] * len(looking.asked), -1)
        observer.all_changed()
        return measured.result(found, *most)


def _read(looking: Looking, tower: Tower, asked: Plan, image: int) -> TowerReading:
    """The map of one image."""
    again, question = looking.again, asked.question
    (grid,) = (one.grid for one in asked.regions.images if one.number == image)
    values = again.pixel_values(image).unsqueeze(0)
    unit = grid.merge**2 if question.unit == TOKEN else 1
    layers = readings(
        decoder_of(looking.loaded.model), tower, lambda: again.seen(looking.own, image, values), unit, question.probes
    )

    def placed(name: str) -> np.ndarray | None:
        if getattr(layers[0], name) is None:
            return None
        numbers = torch.stack([getattr(layer, name) for layer in layers])
        numbers = grid.placed(numbers) if question.unit == PATCH else numbers.view(len(layers), *grid.tokens)
        return numbers.float().numpy()

    return TowerReading(placed("attention"), placed("full"), placed("error") if question.probes > 1 else None)


@dataclass
class _Measured:
    """What is known so far of hidden regions, of all targets. known: by region and layers of each target."""

    looking: Looking
    tower: Tower
    plan: Plan
    asked: Numbered = field(default_factory=Numbered)
    known: dict[tuple[int, tuple[int, ...]], list[Change]] = field(default_factory=dict)
    floor: float = 0.0

    def all_regions(self, found: Mapping[int, TowerReading]) -> tuple[list[int], int]:
        """Asks about all regions; returns of each target the one that matters most, and what is read most."""
        regions, how = self.plan.regions, self.plan.question.regions.how
        self.measure(regions.given)
        n_targets = len(self.looking.asked)
        if how == "search":
            read_most = [float(found[one.number].attention.mean(axis=0).max()) for one in self.plan.regions.images]
            first = self.plan.first(read_most)
            most = [self._searched(target, first) for target in range(n_targets)]
        else:
            every = regions.given if how is None else regions.every()
            self.measure(every)
            most = [self._strongest(every, target) for target in range(n_targets)]
        read = self._most_read(found)
        self.measure([read])
        for layers in self.plan.windows:
            self.measure([*regions.given, *(self.asked.places[number] for number in dict.fromkeys(most))], layers)
        self._note_floor(read)
        return most, self.asked.number(read)

    def _searched(self, target: int, first: Sequence[Cut]) -> int:
        """The token that the search finds; its patches are asked about, too."""

        def changes(places: Sequence[Place]) -> list[float]:
            self.measure(places)
            return [self._change(place, target) for place in places]

        beam = self.plan.question.regions.beam
        (found, *_), patches = coarse_to_fine(self.plan.regions.images, beam, changes, first=first)
        self.measure(patches)
        return self.asked.number(found)

    def _of_image(self, number: int) -> Regions:
        return next(one for one in self.plan.regions.images if one.number == number)

    def _most_read(self, found: Mapping[int, TowerReading]) -> Place:
        means = {number: one.attention.mean(axis=0) for number, one in found.items()}
        number = max(means, key=lambda one: means[one].max())
        row, column = np.unravel_index(int(means[number].argmax()), means[number].shape)
        regions = self._of_image(number)
        make = regions.patch if self.plan.question.unit == PATCH else regions.token
        return make(int(row), int(column))

    # --- asking -------------------------------------------------------------------------------------------------------------

    def measure(self, places: Sequence[Place], layers: tuple[int, ...] | None = None) -> None:
        """The effect of each of the regions that is not known yet, hidden in some layers (None: in those of the plan)."""
        layers = self.plan.layers if layers is None else layers
        new = [one for one in places if (self.asked.number(one), layers) not in self.known]
        for images in dict.fromkeys(place.region.every_image for place in new):
            of_images = [place for place in new if place.region.every_image == images]
            for place, *found in zip(of_images, *self._effects(of_images, layers), strict=True):
                self.known[self.asked.number(place), layers] = found

    def _effects(self, places: Sequence[Place], layers: tuple[int, ...], hides: bool = True) -> list[list[Change]]:
        """Of each target, of each of some regions, which are all of the same images; the tower sees each image by itself. hides:
        whether the mask hides them, or nothing."""
        looking, again, images = self.looking, self.looking.again, places[0].region.every_image
        grid = self._of_image(images[0]).grid  # a video's frames are of one size
        keys = torch.stack([grid.ordered(grid.patches_with(place.mask)) for place in places]) & hides
        flags = torch.zeros(len(places), self.plan.n_layers, dtype=torch.bool)
        flags[:, list(layers)] = True

        def features(which: slice) -> Features:
            some, found = keys[which], looking.own
            for image in images:
                with keys_hidden(decoder_of(looking.loaded.model), self.tower, some, flags[which]):
                    found = again.seen(found, image, again.pixel_values(image).expand(len(some), -1, -1))
            return found

        tower = sum(map(again.tower_rows, images))
        return [changes_of(one) for one in looking.effects(len(places), features, tower)]

    def _note_floor(self, place: Place) -> None:
        """By how much a mask that hides nothing changes log-probabilities."""
        found = self._effects([place], self.plan.layers, hides=False)
        self.floor = max(abs(one.logprob) for (one,) in found)

    def _change(self, place: Place, target: int) -> float:
        return self.known[self.asked.number(place), self.plan.layers][target].logprob

    def _strongest(self, places: Sequence[Place], target: int) -> int:
        return self.asked.number(min(places, key=lambda place: self._change(place, target)))

    # --- the record ---------------------------------------------------------------------------------------------------------

    def result(self, found: Mapping[int, TowerReading], most: Sequence[int], read: int) -> TowerEffects:
        """All that was measured. most: of each target the region that matters most; read: the one that is read most."""
        looking, question, plan = self.looking, self.plan.question, self.plan
        own = {
            "tower_attention_backend": self.tower.module.config._attn_implementation,
            "by": question.regions.how if question.effects else None,
            "beam": question.regions.beam,
            "windows": question.windows,
            "target": looking.prepared.settings.target,
        }
        return TowerEffects(
            readings=dict(found),
            unit=question.unit,
            probes=question.probes,
            n_layers=plan.n_layers,
            layers=plan.layers,
            regions=self.asked.regions,
            targets=tuple(self._target(number, place) for number, place in enumerate(most)),
            most_read=read,
            patches=self._shaped(),
            **looking.record(own) | {"floor": max(self.floor, looking.floor)},
        )

    def _shaped(self) -> dict[int, np.ndarray]:
        """The patches of regions that are no rectangles."""
        shaped = {number: place for number, place in enumerate(self.asked.places) if not place.is_rectangle}
        grids = {number: self._of_image(place.region.image).grid for number, place in shaped.items()}
        return {number: grids[number].patches_with(place.mask).numpy() for number, place in shaped.items()}

    def _target(self, number: int, found: int) -> TowerTarget:
        keys = sorted(self.known)
        return TowerTarget(
            place=np.array([key[0] for key in keys], dtype=np.int64),
            layers=tuple(key[1] for key in keys),
            found=found,
            **self.looking.target(self.looking.asked[number], [self.known[key][number] for key in keys]),
        )
