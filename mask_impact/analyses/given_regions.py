"""Regions that are given: boxes, a mask, or cells by their group words, in one image or over several pairs of a video's frames.

Knows the prompt, its images and their grids; nothing of what is done to the pixels.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from mask_impact.analyses.picture_regions import Place, Regions, spanning
from mask_impact.errors import InputError, UsageError
from mask_impact.models.loading import Reader
from mask_impact.prompts.encoding import EncodedPrompt, layout_of
from mask_impact.prompts.images import Picture
from mask_impact.results.tokens import ImageRecord


class Given(Protocol):
    """What a question says of them: see `pixels.Question`."""

    boxes: tuple[tuple[float, float, float, float], ...]
    mask: Picture | None
    image: int | None
    where: str | None

    @property
    def has_shape(self) -> bool:
        """Whether boxes or a mask say where in their images the regions are."""

    @property
    def how(self) -> str | None:
        """The regions that are not given."""


def chosen(reader: Reader, encoded: EncodedPrompt, images: Sequence[Regions], asked: Given) -> tuple[Regions, ...]:
    """The images that are asked about. InputError, UsageError."""
    if asked.image is not None:
        if not 0 <= asked.image < len(images):
            raise UsageError(f"`image_number` {asked.image} is not there: the prompt has {_count(len(images))}")
        images = (images[asked.image],)
    if asked.where is None:
        return tuple(images)
    named = {int(number) for number in encoded.tokens.image[_cells(reader, encoded, asked.where)]}
    if asked.image is not None and asked.image not in named:
        raise UsageError(f"`where` '{asked.where}' is not in image {asked.image}, which `image_number` names")
    return tuple(one for one in images if one.number in named)


def regions(reader: Reader, encoded: EncodedPrompt, images: Sequence[Regions], asked: Given) -> list[Place]:
    """Those that are given, in the chosen images. InputError, UsageError."""
    found: list[Place] = []
    if asked.has_shape:
        if asked.where is not None:
            _check_whole(encoded, _cells(reader, encoded, asked.where), images, asked.where)
        _check_together(images)
        found += [_over(images, [one.box(box) for one in images]) for box in asked.boxes]
        if asked.mask is not None:
            found.append(_over(images, [one.masked(asked.mask) for one in images]))
    elif asked.where is not None and asked.how is None:
        _check_together(images)
        found.append(_named(encoded, _cells(reader, encoded, asked.where), images, asked.where))
    for place in found:
        _check_something_is_left(place, encoded.images)
    return found


def _cells(reader: Reader, encoded: EncodedPrompt, where: str) -> list[int]:
    """Positions of the cells that the words name."""
    positions = list(layout_of(reader, encoded).resolve(where))
    outside = [place for place in positions if encoded.tokens.image[place] < 0]
    if outside:
        raise InputError(
            f"`where` '{where}' has tokens that are no part of an image, such as {encoded.tokens.texts[outside[0]]!r}; name "
            "cells, such as video 0 frames 2-3, video 0 seconds 1.5-3, image 0 rows 1-2"
        )
    return positions


def _check_whole(encoded: EncodedPrompt, positions: Sequence[int], images: Sequence[Regions], where: str) -> None:
    numbers = encoded.tokens.image[list(positions)]
    if any((numbers == one.number).sum() < one.record.n_tokens for one in images):
        raise UsageError(
            f"`where` '{where}' names some cells of its frames, and a box or a mask says where in them the region is: name "
            "frames alone, such as video 0 frames 2-3"
        )


def _check_together(images: Sequence[Regions]) -> None:
    """A region is in one image, or in pairs of one video's frames."""
    moments = [one.record.moment for one in images]
    if len(images) > 1 and len({None if one is None else one.video for one in moments}) > 1:
        raise UsageError(
            f"the prompt has {len(images)} images: say with `image_number` or `where` in which one the region is"
        )
    if len(images) > 1 and None in moments:
        raise UsageError(f"the prompt has {len(images)} images: say with `image_number` in which one the region is")


def _over(images: Sequence[Regions], places: Sequence[Place]) -> Place:
    """The same region of each of the images as one."""
    name = places[0].region.name
    if len(places) > 1:
        own = name.removeprefix(images[0].called).strip()
        name = f"{_frames(images)} {own}"
    return spanning(places, name)


def _frames(images: Sequence[Regions]) -> str:
    """As `image_name` calls a pair: frames 2-5, frames 0-1 and 6-7, video 1 frames 2-5."""
    runs: list[list[int]] = []
    for first, last in (one.record.moment.frames for one in images):
        if runs and first == runs[-1][1] + 1:
            runs[-1][1] = last
        else:
            runs.append([first, last])
    before = "video " + images[0].called.split()[1] + " " if images[0].called.startswith("video ") else ""
    return f"{before}frames {' and '.join(f'{first}-{last}' if last > first else f'{first}' for first, last in runs)}"


def _named(encoded: EncodedPrompt, positions: Sequence[int], images: Sequence[Regions], where: str) -> Place:
    """The cells as one region, by the words that name them."""
    flags = []
    for one in images:
        mine = [place for place in positions if encoded.tokens.image[place] == one.number]
        flags.append(np.zeros(one.grid.tokens, dtype=bool))
        flags[-1][encoded.tokens.row[mine], encoded.tokens.column[mine]] = True
    if any((one != flags[0]).any() for one in flags):
        raise UsageError(
            f"`where` '{where}' names other cells in one pair of frames than in another; name the same in each"
        )
    name = " ".join(where.split())
    places = [one.of_tokens(name, torch.from_numpy(flag)) for one, flag in zip(images, flags, strict=True)]
    return spanning(places, name)


def _check_something_is_left(place: Place, images: Sequence[ImageRecord]) -> None:
    region = place.region
    moment = images[region.image].moment
    of_video = [
        one for one in images if one.moment is not None and moment is not None and one.moment.video == moment.video
    ]
    if bool(place.mask.all()) and len(region.every_image) >= len(of_video):
        what = "image" if moment is None else "video"
        raise InputError(f"the region is the whole {what}: nothing around it would be left; give a smaller one")


def _count(n: int) -> str:
    return "one image, which is 0" if n == 1 else f"{n} images, 0 to {n - 1}"
