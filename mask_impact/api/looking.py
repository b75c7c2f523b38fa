"""The Python functions that ask what an image's parts do: pixels, deepstack, tower."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from mask_impact.analyses import deepstack as parts
from mask_impact.analyses import pixels as replaced
from mask_impact.analyses import shaped_regions
from mask_impact.analyses import tower as towers
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.settings import ANSWER_TOKENS, make_settings
from mask_impact.api.given import model_of, observer_of, pictures_of, takes_settings
from mask_impact.api.results import DeepstackEffects, PatchEffects, TowerEffects
from mask_impact.errors import UsageError, need
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.label_images import read_labels


@takes_settings("pixels", num_tokens=ANSWER_TOKENS)
def pixels(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    videos: Any = (),
    boxes: Sequence[Any] = (),
    mask: Any = None,
    where: str | None = None,
    regions: Any = None,
    by: str | None = None,
    beam: int = 1,
    fills: str | Sequence[str] = replaced.DEFAULT_FILLS,
    image_number: int | None = None,
    split: bool = False,
    observer: Observer | None = None,
    **given: Any,
) -> PatchEffects:
    """Replace the pixels of regions of an image or a video, one region after the other, and see what becomes of the answer.

    model, prompt, images, videos: as in `analyze`. boxes: a region (left, top, right, bottom) in pixels of the image, or a list
    of them; in a video, of each of its frames. mask: an image of the same size, white where the region is. where: in which
    images or frames, in group words (video 0 frames 2-3, video 0 seconds 1.5-3); alone, these cells are the region. regions: in
    place of tokens `segments` or `segments:N` (of the picture, by its colours), or an image of the same size, a path or an
    array, in which each grey value or colour but black is a region. by: `search` (coarse to fine, where no region is given),
    `tokens` or `patches`. beam: how many rectangles each level of a search goes on from. fills: what replaces the pixels, some
    of `border`, `mean`, `blur`, `grey`. image_number: in which image (None: all, or the only one). split: whether the effect of
    what is found is split, as that of a region given is.
    Errors: InputError for a region that is not in the image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    need("`where`", where, (str, type(None)), "text")
    question = replaced.Question(
        fills=(fills,) if isinstance(fills, str) else tuple(fills),
        by=by,
        beam=beam,
        boxes=_boxes(boxes),
        mask=None if mask is None else read_picture(mask),
        image=image_number,
        where=where,
        regions=_shaped(regions),
        split=split,
    )
    chosen = make_settings("pixels", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = pictures_of(images, chosen, videos)
    found = replaced.run(model_of(model), prompt, question, chosen, pictures, observer=observer_of(observer))
    return PatchEffects(**vars(found))


@takes_settings("deepstack", num_tokens=ANSWER_TOKENS)
def deepstack(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    videos: Any = (),
    region: str = parts.EVERYTHING,
    baseline: str = "blank",
    other: Any = None,
    answers: bool = True,
    observer: Observer | None = None,
    **given: Any,
) -> DeepstackEffects:
    """Keep some parts of an image's features (main ones, DeepStack's levels), the rest a baseline's, and see what becomes of the
    answer: every set of parts, exact Shapley values and interactions.

    model, prompt, images, videos: as in `analyze`. region: spec of image tokens (see `prompts.groups`), such as `video 0 frames
    2-3`; `image` stands for the videos where there is no image. baseline: `blank` (the same
    picture with the region blanked), `mean` (over the image's tokens) or `zero`. other: a picture that the baseline is instead.
    answers: whether answers are generated with each part alone and without each.
    Errors: InputError for a region that is not of an image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    need("`region`", region, str, "text")
    question = parts.Question(region, baseline, None if other is None else read_picture(other), bool(answers))
    chosen = make_settings("deepstack", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = pictures_of(images, chosen, videos)
    found = parts.run(model_of(model), prompt, question, chosen, pictures, observer=observer_of(observer))
    return DeepstackEffects(**vars(found))


@takes_settings("tower", num_tokens=ANSWER_TOKENS)
def tower(
    model: LoadedModel | str | PathLike,
    prompt: str | Mapping[str, Any],
    *,
    images: Any = (),
    videos: Any = (),
    unit: str = "patch",
    probes: int = 0,
    effects: bool = True,
    layers: Sequence[int] | None = None,
    windows: int | None = None,
    boxes: Sequence[Any] = (),
    mask: Any = None,
    where: str | None = None,
    by: str | None = None,
    beam: int = 1,
    image_number: int | None = None,
    observer: Observer | None = None,
    **given: Any,
) -> TowerEffects:
    """Which patches the layers of the vision tower read, and what hiding regions in these layers does to the answer: two
    questions.

    model, prompt, images, videos: as in `analyze`. unit: what is hidden together for the map, `patch` or `token`. probes: random
    ones for the layers' whole update, to first order (0: none). effects: whether the answer is asked about. layers: the tower's,
    in which regions are hidden (None: all). windows: also hide what is found in so many layers around each (None: not). boxes,
    mask, where, by, beam, image_number: the regions, as in `pixels`.
    Errors: InputError for a region that is not in the image, UsageError, UnsupportedArchitecture, ExactnessError.
    """
    need("`where`", where, (str, type(None)), "text")
    picture = None if mask is None else read_picture(mask)
    regions = replaced.Question(by=by, beam=beam, boxes=_boxes(boxes), mask=picture, where=where, image=image_number)
    for layer in layers or ():
        need("a layer", layer, int, "a whole number")
    chosen_layers = None if layers is None else tuple(layers)
    question = towers.Question(regions, bool(effects), unit, probes, chosen_layers, windows)
    chosen = make_settings("tower", {"num_tokens": ANSWER_TOKENS} | given)
    pictures = pictures_of(images, chosen, videos)
    found = towers.run(model_of(model), prompt, question, chosen, pictures, observer=observer_of(observer))
    return TowerEffects(**vars(found))


def _shaped(regions: Any) -> Any:
    """Segments, or a mask image."""
    named = shaped_regions.parsed(regions) if isinstance(regions, str) else None
    return None if regions is None else named or read_labels(regions)


def _boxes(boxes: Any) -> tuple[replaced.Box, ...]:
    """One box where several may stand."""
    boxes = list(boxes) if isinstance(boxes, Iterable) else [boxes]
    listed = [boxes] if len(boxes) == 4 and not any(isinstance(one, Iterable) for one in boxes) else boxes
    try:
        found = tuple(tuple(float(edge) for edge in one) for one in listed)
    except (TypeError, ValueError):
        found = ((),)
    if any(len(one) != 4 for one in found):
        raise UsageError(f"a box is (left, top, right, bottom) in pixels, not {listed[0]!r}")
    return found
