"""Regions of any shape: segments of a picture by its colours (SLIC, of scikit-image), and those of a mask image.

Knows pictures and grids; nothing of what is done to the pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from mask_impact.analyses.picture_regions import NEAREST, Place, Regions
from mask_impact.errors import InputError, ModelError, UsageError
from mask_impact.prompts.label_images import MOST_REGIONS, LabelImage

SEGMENTS = 32  # of a picture, where no number is given
COMPACTNESS = 10.0  # of colours against places, as scikit-image has it


@dataclass(frozen=True)
class Segments:
    """As many segments of each picture, about. UsageError."""

    n: int = SEGMENTS

    def __post_init__(self) -> None:
        if type(self.n) is not int or not 2 <= self.n <= MOST_REGIONS:
            raise UsageError(f"`regions` segments:N must have a whole number from 2 to {MOST_REGIONS}, not {self.n!r}")


def parsed(text: str) -> Segments | None:
    """segments or segments:N; None for anything else, which is a file's name. UsageError."""
    name, _, number = text.partition(":")
    if name != "segments":
        return None
    if not number and ":" not in text:
        return Segments()
    digits = number.isascii() and number.isdigit() and len(number) < 9
    return Segments(int(number) if digits else -1)


def segmented(one: Regions, pixel_values: torch.Tensor, wanted: Segments) -> list[Place]:
    """The segments of one image, which is seen as the vision tower sees it. ModelError where scikit-image is not installed."""
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise ModelError("segments need scikit-image: pip install 'mask-impact[segments]'") from None
    picture = (
        one.grid.picture(pixel_values.float().cpu()).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    )
    labels = slic(picture, n_segments=wanted.n, compactness=COMPACTNESS, start_label=1, channel_axis=-1)
    numbers = np.unique(labels)
    if len(numbers) < 2:
        raise InputError(
            f"image {one.number} is one segment all over; ask for more (`regions` segments:N), or for tokens (`by`)"
        )
    return [
        one.shaped(f"segment {place}", torch.from_numpy(labels == number), "segment")
        for place, number in enumerate(numbers)
    ]


def labelled(one: Regions, given: LabelImage) -> list[Place]:
    """The regions of a mask image of the size of an image. InputError."""
    if given.size != one.record.size:
        (wide, high), own = given.size, one.record.size
        raise InputError(
            f"the regions '{given.source}' have {wide} x {high} pixels and image {one.number} {own[0]} x {own[1]}; give an image "
            "of the same size, black where there is no region"
        )
    small = Image.fromarray(given.labels).resize((one.grid.width, one.grid.height), NEAREST)
    labels = np.asarray(small)
    places = []
    for number, name in enumerate(given.names, start=1):
        mask = torch.from_numpy(labels == number)
        if not mask.any():
            raise InputError(
                f"region {name} of '{given.source}' has no pixel of image {one.number} as the model sees it, {one.grid.width} x "
                f"{one.grid.height}; make it larger, or leave it out"
            )
        places.append(one.shaped(f"region {name}", mask))
    return places


def regions_by(
    images: Sequence[Regions], values: Sequence[torch.Tensor], given: Segments | LabelImage
) -> list[list[Place]]:
    """Of each of the images. values: the pixel_values of each."""
    if isinstance(given, Segments):
        return [segmented(one, of_image, given) for one, of_image in zip(images, values, strict=True)]
    return [labelled(one, given) for one in images]
