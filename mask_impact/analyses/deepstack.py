"""DeepStack: which of an image's features the answer needs: the main ones, or those that are added behind decoder layers.

At the image tokens of a region, each set of parts is kept and the rest is a baseline's: the same picture with the region blanked,
another picture, the mean over the image's tokens, or zero. A pair of a video's frames is an image. The tower runs once more, for
a baseline that is a picture; the decoder runs for all sets together (`engine.feature_sets`). From all sets follow exact Shapley
values and interactions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from mask_impact.analyses.fills import filled
from mask_impact.analyses.generation import produce
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.looking import Asked, Change, Looking, changes_of, check_images, check_rows
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.choices import BASELINES
from mask_impact.engine.feature_sets import EverySet, Rows, noting, rows_of_sets
from mask_impact.engine.features import Features
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.targets import TargetEffects
from mask_impact.errors import InputError, UnsupportedArchitecture, UsageError
from mask_impact.findings.shapley import interactions, shapley
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import layout_of
from mask_impact.prompts.images import Picture
from mask_impact.prompts.patches import GRIDS, PIXELS, PatchGrid, grids_of
from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget, FeaturePart
from mask_impact.results.tokens import ImageRecord

EVERYTHING, VIDEOS = "image", "video"  # the region where none is given
FILL = "border"  # of a region that is blanked
PICTURE = "picture"  # the baseline that is another picture


@dataclass(frozen=True)
class Question:
    """What is asked. region: spec of image tokens; baseline: one of BASELINES; other: a picture that the baseline is instead;
    answers: whether answers are generated with each part alone and without each. UsageError."""

    region: str = EVERYTHING
    baseline: str = BASELINES[0]
    other: Picture | None = None
    answers: bool = True

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise UsageError(
                f"`baseline` must be {', '.join(BASELINES[:-1])} or {BASELINES[-1]}, not {self.baseline!r}"
            )

    def region_of(self, images: Sequence[ImageRecord]) -> str:
        """The region, in a prompt with these images: all of a prompt's videos, where it has no image and nothing is asked for."""
        no_image = all(image.moment is not None for image in images)
        return VIDEOS if self.region == EVERYTHING and no_image and images else self.region

    @property
    def kind(self) -> str:
        """The baseline, as a result names it."""
        return self.baseline if self.other is None else PICTURE


@dataclass(frozen=True)
class Plan:
    """Where it is asked about. region: in group words; positions: of the region's image tokens; every: int64 [M], of all image
    tokens, those of videos behind all others; tokens: bool [M], which of these are the region's; images: their images; values:
    pixel_values of the other picture, where there is one; n_tokens: of the prompt; n_layers: of the decoder."""

    question: Question
    region: str
    parts: tuple[FeaturePart, ...]
    positions: tuple[int, ...]
    every: torch.Tensor
    tokens: torch.Tensor
    images: tuple[int, ...]
    grids: tuple[PatchGrid, ...]
    values: torch.Tensor | None
    n_tokens: int
    n_layers: int

    def forwards(self) -> float:
        """About how many forward passes of the prompt all sets take: those that differ in later parts alone share layers, and
        rows before the region do not run."""
        states = sum(2 ** min(len(self.parts), layer + 1) for layer in range(self.n_layers))
        return (1 - min(self.positions) / self.n_tokens) * states / self.n_layers


def parts_of(reader: Reader) -> tuple[FeaturePart, ...]:
    """The parts that a model's decoder gets, from its configuration. UnsupportedArchitecture for one without DeepStack."""
    layers = getattr(getattr(reader.config, "vision_config", None), "deepstack_visual_indexes", None)
    if not layers:
        raise UnsupportedArchitecture(
            f"'{reader.name}' ({reader.config.model_type}) has no DeepStack: nothing of an image is added behind decoder layers; "
            f"Qwen3-VL has it"
        )
    levels = (FeaturePart(f"level {level}", layer, level) for level, layer in enumerate(sorted(layers)))
    return (FeaturePart("main", None, None), *levels)


def plan(reader: Reader, prepared: Prepared, question: Question) -> Plan:
    """What is asked about, in this prompt; works without the model's weights. InputError, UsageError, UnsupportedArchitecture."""
    parts = parts_of(reader)
    check_images(reader, prepared, videos=True)
    encoded = prepared.encoded
    if encoded.tokens.image[-1] >= 0:
        raise InputError("the prompt ends in an image token: put text behind the image")
    region = question.region_of(encoded.images)
    positions = layout_of(reader, encoded).resolve(region)
    of_images = encoded.tokens.image[list(positions)]
    if (of_images < 0).any():
        wrong = encoded.tokens.texts[positions[int(np.argmax(of_images < 0))]]
        raise InputError(
            f"'{region}' has tokens that are no part of an image, such as {wrong!r}; give cells of one, or of a video"
        )
    images = tuple(dict.fromkeys(of_images.tolist()))
    grids = grids_of(reader, encoded)
    values = None
    if question.other is not None:
        if len(images) > 1:
            raise UsageError(f"another picture stands for one image, and the region '{region}' is in {len(images)}")
        values = _values_of(reader, question.other, grids[images[0]])
    every = np.flatnonzero(encoded.tokens.image >= 0)
    every = every[np.argsort(encoded.tokens.image[every], kind="stable")]  # videos behind images, as their features are
    chosen, every = torch.from_numpy(np.isin(every, positions)), torch.from_numpy(every)
    n_layers = reader.config.get_text_config().num_hidden_layers
    return Plan(question, region, parts, positions, every, chosen, images, grids, values, encoded.n_tokens, n_layers)


def _values_of(reader: Reader, picture: Picture, grid: PatchGrid) -> torch.Tensor:
    """pixel_values [P, d] of a picture, brought to the size of another by the model's own processor."""
    if reader.processor is None:
        raise InputError(
            f"another picture needs the processor of model '{reader.name}', and it was given a tokenizer only"
        )
    image = (
        picture.image.resize((grid.width, grid.height))
        if picture.image.size != (grid.width, grid.height)
        else picture.image
    )
    found = reader.processor.image_processor(images=[image], return_tensors="pt")
    if found["image_grid_thw"][0].tolist() != [1, grid.rows, grid.columns]:
        raise InputError(
            f"the model's processor makes another size of '{picture.source}' than {grid.width} x {grid.height} pixels; give a "
            "picture of the same size"
        )
    return found["pixel_values"]


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    question: Question,
    settings: RunSettings,
    pictures: Sequence[Picture] = (),
    *,
    observer: Observer | None = None,
) -> DeepstackEffects:
    """Keep each set of parts, the rest the baseline's; the images are already read. Errors as in `plan`, and ExactnessError."""
    return of_prepared(loaded, prepare(loaded, prompt, settings, pictures), question, observer)


def of_prepared(
    loaded: LoadedModel, prepared: Prepared, question: Question, observer: Observer | None = None
) -> DeepstackEffects:
    """The same of a prompt that is ready."""
    observer = observer or Observer()
    asked, settings = plan(loaded, prepared, question), prepared.settings
    with owned(decoder_of(loaded.model)), torch.no_grad(), noting(loaded.model) as noted:
        looking = Looking(loaded, prepared, observer, noted)
        again, rows = looking.again, _rows(looking, asked)
        n_rows = rows_of_sets(again, len(asked.parts), rows)
        check_rows(n_rows, again.forward_rows(), settings.max_cost, "shorten the prompt or shrink its images")
        base = _baseline(looking, asked)
        every = EverySet(again, noted.keys, looking.own, base, asked.every, asked.tokens, rows)
        answers = _Answers(looking, len(asked.parts) if question.answers else 0)
        observer.changing("Keeping parts", 2 ** len(asked.parts) + len(answers.sets))
        logits = every.logits(looking.smaller, observer.changed, {*map(every.seen_as, answers.sets)}, answers.go_on)
        looking.against(logits[-1], n_rows)  # the last set has all parts: nothing is replaced
        effects = looking.held(logits[:-1])
        observer.all_changed()
    meta = {"region": asked.region, "baseline": question.kind, "target": settings.target}
    meta |= {} if question.other is None else {"other": question.other.source}
    return DeepstackEffects(
        parts=asked.parts,
        region=asked.region,
        positions=asked.positions,
        baseline=question.kind,
        targets=tuple(_target(looking, *pair) for pair in zip(looking.asked, effects, strict=True)),
        norm_share=_norm_share(looking.own, asked.tokens),
        answers={number: answers.found[every.seen_as(number)] for number in answers.sets},
        **looking.record(meta),
    )


def _rows(looking: Looking, asked: Plan) -> Rows:
    """From the first token of the region to the last row that is asked about."""
    n = looking.n_prompt
    return Rows(min(asked.positions), n + looking.last_step, n - 1)


def _baseline(looking: Looking, asked: Plan) -> Features:
    """The features that stand in for a part that is not kept, n = 1; only those of the region are used."""
    own, again, kind = looking.own, looking.again, asked.question.kind
    if kind == "zero":
        return Features(tuple(torch.zeros_like(part) for part in own.parts))
    if kind == "mean":
        parts = [part.clone() for part in own.parts]
        for part in parts:
            for image in asked.images:
                where = again.image_tokens(image)
                part[:, where] = part[:, where].mean(dim=1, keepdim=True)
        return Features(tuple(parts))
    base = own
    for image in asked.images:
        values = asked.values if kind == PICTURE else _blanked(looking, asked, image)
        base = again.seen(base, image, values.to(again.pixel_values(image)).unsqueeze(0))
        looking.rows += again.tower_rows(image)
    return base


def _blanked(looking: Looking, asked: Plan, image: int) -> torch.Tensor:
    """pixel_values [P, d] of an image with the region's cells blanked, in each of a pair's frames by itself."""
    grid, values = asked.grids[image], looking.again.pixel_values(image)
    cells = asked.tokens[looking.again.image_tokens(image)].view(grid.tokens)
    mask = cells.repeat_interleave(grid.token, dim=0).repeat_interleave(grid.token, dim=1)
    fills = torch.stack([filled(one, mask, FILL) for one in grid.pictures(values.cpu())])
    return grid.changed(values, mask[None].to(values.device), fills[None])[0]


def _norm_share(own: Features, tokens: torch.Tensor) -> np.ndarray:
    """float64 [n]"""
    norms = [float(part[0, tokens.to(part.device)].double().norm(dim=-1).mean()) for part in own.parts]
    return np.array(norms) / max(sum(norms), 1e-30)


def _target(looking: Looking, asked: Asked, effects: TargetEffects) -> DeepstackTarget:
    """With the set that has all parts behind those that were run."""
    nothing = Change(0.0, 0.0, int(looking.logits[asked.steps[0]].argmax()), False)
    fields = looking.target(asked, [*changes_of(effects), nothing])
    change = fields["logprob_change"].astype(np.float64)
    return DeepstackTarget(shapley=shapley(change), interaction=interactions(change), **fields)


# --- answers ----------------------------------------------------------------------------------------------------------------


def alone_and_without(n: int) -> list[int]:
    """The sets with each part alone, and with all but one, by number."""
    return [*dict.fromkeys([1 << part for part in range(n)] + [2**n - 1 - (1 << part) for part in range(n)])]


class _Answers:
    """What the model's own generate() says with some sets kept: with none of n_parts (0: no answers), each alone, and each but
    one. found: by their numbers."""

    def __init__(self, looking: Looking, n_parts: int) -> None:
        self.sets = [0, *alone_and_without(n_parts)] if n_parts else []
        self.found: dict[int, str] = {}
        self._looking = looking
        encoded = looking.prepared.encoded
        self._inputs = {
            name: value for name, value in encoded.inputs.items() if name not in PIXELS and name not in GRIDS
        }
        self._config = greedy_config(looking.loaded.model, looking.prepared.settings.num_tokens)

    def go_on(self, sets: list[int], cache: DynamicCache) -> None:
        """From what the sets hold of all positions of the prompt but the last."""
        inputs = {
            name: value.expand(len(sets), *value.shape[1:]) if isinstance(value, torch.Tensor) else value
            for name, value in self._inputs.items()
        }
        loaded = self._looking.loaded
        every = produce(loaded.model, inputs | {"past_key_values": cache}, self._config)
        for number, ids in zip(sets, every, strict=True):
            self.found[number] = loaded.tokenizer.decode(ids, skip_special_tokens=True)
        self._looking.observer.changed(len(sets))
