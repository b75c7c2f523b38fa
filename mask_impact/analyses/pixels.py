"""Pixels: what replacing a region of an image or a video does to the answer, in total, and by which way it comes about.

Of each region the pixels are replaced (`fills`), the vision tower sees the new picture, and the model runs with the features that
it gives. That is the total effect. It is split in three: only the region's own image tokens take the new features (main and
DeepStack's), only all other tokens do (what the tower has carried from the region to them), or the pixels stay and the
region's tokens are hidden as keys in the decoder (`hiding`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mask_impact.analyses import given_regions
from mask_impact.analyses.fills import filled
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.looking import Change, Looking, changes_of, check_images, check_rows
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.picture_estimates import OF_ESTIMATE, contributions
from mask_impact.analyses.picture_regions import (
    BEST_TOKENS,
    Cut,
    Numbered,
    Place,
    Regions,
    coarse_to_fine,
    coarsest,
    search,
)
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import MOST_BEAM, SETTINGS, RunSettings
from mask_impact.analyses.shaped_regions import Segments
from mask_impact.analyses.targets import resolve
from mask_impact.engine.choices import FILLS, REGIONS
from mask_impact.engine.features import Features
from mask_impact.engine.kept import keep
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.targets import TargetEffects
from mask_impact.errors import UsageError
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import token_texts
from mask_impact.prompts.images import Picture
from mask_impact.prompts.label_images import LabelImage
from mask_impact.prompts.patches import grids_of
from mask_impact.prompts.videos import Clip
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL, PatchEffects, PatchTarget

DEFAULT_FILLS = FILLS[:2]
GIVEN = "regions"  # how it is asked about segments and the regions of a mask image
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """Which regions are asked about. fills: what replaces their pixels, in this order; by: one of REGIONS (None: `search` where
    no region is given); beam: how many rectangles each level of a search goes on from; boxes: left, top, right, bottom in pixels
    of the original image; mask: a picture that is white where the region is; image: number of the image (None: all, or the only
    one); where: group words of cells, in whose images the regions are, or which are a region where nothing else is given;
    regions: segments of the images, or those of a mask image, which are asked about in place of tokens; split: whether the
    strongest token's effect is split, as that of given regions is. UsageError."""

    fills: tuple[str, ...] = DEFAULT_FILLS
    by: str | None = None
    beam: int = 1
    boxes: tuple[Box, ...] = ()
    mask: Picture | None = None
    image: int | None = None
    where: str | None = None
    regions: Segments | LabelImage | None = None
    split: bool = False

    def __post_init__(self) -> None:
        wrong = [fill for fill in self.fills if fill not in FILLS]
        if wrong or not self.fills or len({*self.fills}) < len(self.fills):
            said = f", not {wrong[0]!r}" if wrong else ", each once"
            raise UsageError(f"`fills` must be some of {', '.join(FILLS)}{said}")
        if self.by is not None and self.by not in REGIONS:
            raise UsageError(f"`by` must be {', '.join(REGIONS[:-1])} or {REGIONS[-1]}, not {self.by!r}")
        if self.regions is not None and self.by is not None:
            raise UsageError(
                f"`regions` and `by` both say which regions are asked about: give one of them, not {self.by!r} too"
            )
        if type(self.beam) is not int or not 1 <= self.beam <= MOST_BEAM:
            raise UsageError(f"`beam` must be a whole number from 1 to {MOST_BEAM}, not {self.beam!r}")

    @property
    def how(self) -> str | None:
        """The regions that are not given; None where there are given ones alone."""
        if self.regions is not None:
            return GIVEN
        return self.by or (None if self.has_shape or self.where is not None else REGIONS[0])

    @property
    def has_shape(self) -> bool:
        """Whether boxes or a mask are given."""
        return bool(self.boxes) or self.mask is not None


@dataclass(frozen=True)
class Plan:
    """The images that are asked about, the regions that are given, and those of any shape that are asked about one by one."""

    question: Question
    images: tuple[Regions, ...]
    given: tuple[Place, ...]
    shaped: tuple[Place, ...] = ()

    def most_runs(self, first: Sequence[Cut] | None = None) -> int:
        """How often the model is run again at most, for one target. first: what a search without an estimate asks about first
        (None: it has an estimate)."""
        n_fills, how = len(self.question.fills), self.question.how
        runs = len(self.given) * (n_fills + 2)
        if how == "tokens":
            runs += n_fills * sum(one.record.n_tokens for one in self.images)
        elif how == GIVEN:
            runs += n_fills * len(self.shaped)
        elif how == "patches":
            runs += n_fills * sum(one.grid.rows * one.grid.columns for one in self.images)
        else:
            asked: list[int] = []
            ask = partial(_largest_first, asked=asked)
            weigh = None if first is not None else lambda cut: ask([cut], asked=[])[0]
            tokens = search(coarsest(self.images) if first is None else first, self.question.beam, ask, weigh)
            asked += [BEST_TOKENS] if first is None else []
            n_patches = self.images[0].grid.merge ** 2
            runs += 0 if how is None else sum(asked) + len(tokens) * n_patches + 2 * (n_fills - 1)
        return runs + 2 * self.question.split

    def together(self) -> set[tuple[int, ...]]:
        """The images of which pixels are replaced at once."""
        return {(one.number,) for one in self.images} | {
            place.region.every_image for place in (*self.given, *self.shaped)
        }

    def every(self) -> list[Place]:
        """Each token, each patch, or each region of any shape, as the question asks."""
        if self.question.how == GIVEN:
            return [*self.shaped]
        tokens = self.question.how == "tokens"
        return [place for one in self.images for place in (one.all_tokens() if tokens else one.all_patches())]


def _largest_first(cuts: Sequence[Cut], asked: list[int]) -> list[float]:
    """A search that goes into what is largest asks about most."""
    asked.append(len(cuts))
    return [-float((right - left) * (bottom - top)) for _, (left, top, right, bottom) in cuts]


def plan(reader: Reader, prepared: Prepared, question: Question) -> Plan:
    """What is asked about, in this prompt; works without the model's weights. InputError, UsageError, UnsupportedArchitecture."""
    check_images(reader, prepared, videos=True)
    encoded = prepared.encoded
    every = [Regions(encoded, number, grid) for number, grid in enumerate(grids_of(reader, encoded))]
    images = given_regions.chosen(reader, encoded, every, question)
    given = given_regions.regions(reader, encoded, images, question)
    return Plan(question, images, tuple(given), tuple(given_regions.shaped(encoded, images, question.regions)))


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    question: Question,
    settings: RunSettings,
    pictures: Sequence[Picture | Clip] = (),
    *,
    observer: Observer | None = None,
) -> PatchEffects:
    """Replace the pixels of the regions, one after the other; the images and videos are already read. Errors as in `plan`, and
    ExactnessError."""
    return of_prepared(loaded, prepare(loaded, prompt, settings, pictures), question, observer)


def of_run(loaded: LoadedModel, prepared: Prepared, produced: Sequence[int], observer: Observer) -> PatchEffects:
    """The search with default settings, for the target of a run, or for its answer's first token where none was named. produced:
    by the run."""
    settings = prepared.settings
    if settings.target == SETTINGS["target"].default:
        texts, kinds = token_texts(loaded.tokenizer, produced)
        first = resolve(settings.target, produced, texts, kinds, loaded.tokenizer.decode)[0][0]
        settings = replace(settings, target=str(first), num_tokens=first + 1)
    return of_prepared(loaded, replace(prepared, settings=settings), Question(), observer)


def of_prepared(
    loaded: LoadedModel, prepared: Prepared, question: Question, observer: Observer | None = None
) -> PatchEffects:
    """The same of a prompt that is ready."""
    observer = observer or Observer()
    asked, settings = plan(loaded, prepared, question), prepared.settings
    with owned(decoder_of(loaded.model)), torch.no_grad():
        looking = Looking(loaded, prepared, observer)
        n_targets = len(looking.asked) if asked.question.how == "search" else 1
        runs, again = asked.most_runs() * n_targets, looking.again
        seen = max(sum(map(again.tower_rows, one)) for one in asked.together())
        each = seen + again.decoder_rows()
        estimated = n_targets * OF_ESTIMATE * again.forward_rows() * (asked.question.how == "search")
        check_rows(
            runs * each + estimated,
            again.forward_rows(),
            settings.max_cost,
            "ask about fewer regions, or search (`by`)",
        )
        observer.changing("Replacing pixels", runs)
        measured = _Measured(looking, asked)
        found = measured.all_regions()
        observer.all_changed()
        return measured.result(found)


@dataclass
class _Measured:
    """What is known so far, of all targets. known: by region, fill and route of each target."""

    looking: Looking
    plan: Plan
    asked: Numbered = field(default_factory=Numbered)
    known: dict[tuple[int, str, str], list[Change]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        again = self.looking.again
        self._pictures = {
            one.number: one.grid.pictures(again.pixel_values(one.number).cpu()) for one in self.plan.images
        }
        self._grids = {one.number: one.grid for one in self.plan.images}

    def all_regions(self) -> list[int]:
        """Asks about all regions; returns of each target the one that matters most."""
        question, fills = self.plan.question, self.plan.question.fills
        for fill in fills:
            self.measure(self.plan.given, fill)
        for place in self.plan.given:
            self.split(place)
        n_targets, how = len(self.looking.asked), question.how
        if how is None:
            return [self._strongest(self.plan.given, target) for target in range(n_targets)]
        if how == "search":
            return [self._searched(target) for target in range(n_targets)]
        every = self.plan.every()
        for fill in fills:
            self.measure(every, fill)
        found = [self._strongest(every, target) for target in range(n_targets)]
        if question.split:
            for number in dict.fromkeys(found):
                self.split(self.asked.places[number])
        return found

    def _searched(self, target: int) -> int:
        """The token that the search finds; its patches and the other fills are asked about, too."""
        first, *others = self.plan.question.fills

        def changes(places: Sequence[Place]) -> list[float]:
            self.measure(places, first)
            return [self._change(place, first, target) for place in places]

        weights = contributions(self.looking, [one.number for one in self.plan.images], target)
        tokens, patches = coarse_to_fine(self.plan.images, self.plan.question.beam, changes, weights)
        best = patches[int(np.argmin(changes(patches)))]
        for fill in others:
            self.measure([tokens[0], best], fill)
        if self.plan.question.split:
            self.split(tokens[0])
        return self.asked.number(tokens[0])

    # --- asking -------------------------------------------------------------------------------------------------------------

    def measure(self, places: Sequence[Place], fill: str) -> None:
        """The total effect of each of the regions that is not known yet."""
        new = [one for one in places if (self.asked.number(one), fill, TOTAL) not in self.known]
        for images in dict.fromkeys(place.region.every_image for place in new):
            of_images = [place for place in new if place.region.every_image == images]

            def features(which: slice, of_images: list[Place] = of_images) -> Features:
                return self._seen(of_images[which], fill)

            tower = sum(map(self.looking.again.tower_rows, images))
            self._note(of_images, fill, TOTAL, self.looking.effects(len(of_images), features, tower))

    def split(self, place: Place) -> None:
        """What of a region's effect goes by its own tokens, by all others, and is lost where it is hidden in the decoder."""
        if (self.asked.number(place), "", HIDDEN) in self.known:
            return
        looking, fill = self.looking, self.plan.question.fills[0]
        own, seen = looking.own, self._seen([place], fill)
        tokens = torch.zeros(own.parts[0].shape[1], dtype=torch.bool)
        for image in place.region.every_image:
            looking.rows += looking.again.tower_rows(image)
            tokens[looking.again.image_tokens(image)] = place.tokens
        for route, where in ((OWN, tokens), (OTHERS, ~tokens)):
            taken = own.taking(seen, where)
            self._note([place], fill, route, looking.effects(1, lambda which, taken=taken: taken[which], 0))
        self._note([place], "", HIDDEN, self._hidden(place))

    def _seen(self, places: Sequence[Place], fill: str) -> Features:
        """What the tower gives where the pixels of one region are replaced, a variant for each; they are all of the same images.
        Each frame has a fill of its own."""
        again, found = self.looking.again, self.looking.own
        for image in places[0].region.every_image:
            fills = torch.stack(
                [torch.stack([filled(one, place.mask, fill) for one in self._pictures[image]]) for place in places]
            )
            values = again.pixel_values(image)
            masks = torch.stack([place.mask for place in places]).to(values.device)
            found = again.seen(found, image, self._grids[image].changed(values, masks, fills))
        return found

    def _hidden(self, place: Place) -> list[TargetEffects]:
        """The region's tokens hidden from all queries in all decoder layers, of each target."""
        looking = self.looking
        kept = keep(looking.loaded.model, looking.inputs, len(looking.produced))
        found = []
        for one in looking.asked:
            hiding = Hiding(kept.until(looking.n_prompt + one.steps[-1]), one.targets, Observer())
            found.append(hiding.measure([place.region.positions]))
            looking.rows += round(hiding.forwards * hiding.n_positions * hiding.n_layers)
        looking.rows += looking.again.forward_rows()
        return found

    def _note(self, places: Sequence[Place], fill: str, route: str, effects: Sequence[TargetEffects]) -> None:
        for place, *found in zip(places, *map(changes_of, effects), strict=True):
            self.known[self.asked.number(place), fill, route] = found

    def _change(self, place: Place, fill: str, target: int) -> float:
        return self.known[self.asked.number(place), fill, TOTAL][target].logprob

    def _strongest(self, places: Sequence[Place], target: int) -> int:
        """By the fill that does less: what both show."""
        fills = self.plan.question.fills

        def weaker(place: Place) -> float:
            return max(self._change(place, fill, target) for fill in fills)

        return self.asked.number(min(places, key=weaker))

    # --- the record ---------------------------------------------------------------------------------------------------------

    def result(self, found: Sequence[int]) -> PatchEffects:
        """All that was measured; found: of each target the region that matters most."""
        looking, question = self.looking, self.plan.question
        own = {
            "by": question.how,
            "beam": question.beam,
            "fills": list(question.fills),
            "target": looking.prepared.settings.target,
        }
        return PatchEffects(
            regions=self.asked.regions,
            targets=tuple(self._target(number, place) for number, place in enumerate(found)),
            fills=question.fills,
            shapes={
                number: place.mask.numpy() for number, place in enumerate(self.asked.places) if not place.is_rectangle
            },
            **looking.record(own),
        )

    def _target(self, number: int, found: int) -> PatchTarget:
        keys = sorted(self.known, key=lambda key: (key[0], [*self.plan.question.fills, ""].index(key[1])))
        return PatchTarget(
            place=np.array([key[0] for key in keys], dtype=np.int64),
            fill=tuple(key[1] for key in keys),
            route=tuple(key[2] for key in keys),
            found=found,
            **self.looking.target(self.looking.asked[number], [self.known[key][number] for key in keys]),
        )
