"""Images whose values name regions: each grey value or colour that is not black is one. Knows no model.

Values are taken as the file has them: 16-bit greys stay what they are, and of a palette its colours count. What is transparent is
no region.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mask_impact.errors import InputError
from mask_impact.prompts.images import reason
from mask_impact.results.inputs import IMAGE, open_file

MOST_REGIONS = 256
ACCEPTED = "a PNG, TIFF or BMP file is accepted, or an array of whole numbers"


@dataclass(frozen=True)
class LabelImage:
    """labels: int32 [height, width], 0 for what is no region, else 1 and more; names: of each region, by its value or colour;
    source: as it was named."""

    labels: np.ndarray
    names: tuple[str, ...]
    source: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.labels.shape[1], self.labels.shape[0]


def read_labels(source: Any) -> LabelImage:
    """The regions of a file, a PIL image or an array [H, W] or [H, W, 3 | 4]. InputError."""
    if isinstance(source, np.ndarray):
        name, values = "regions", source
    elif isinstance(source, Image.Image):
        name, values = "regions", _values(source)
    elif isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        values = _read(name)
    else:
        raise InputError(f"regions are segments, an image or an array, not {type(source).__name__}")
    return _labelled(values, name)


def _read(name: str) -> np.ndarray:
    try:
        with open_file(name, IMAGE) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG"])
            image.load()
            return _values(image)
    except FileNotFoundError:
        raise InputError(
            f"the regions '{name[:200]}' are not there; give segments, segments:N, or a mask image"
        ) from None
    except Exception as error:  # on damaged files Pillow's plug-ins raise whatever they run into
        raise InputError(f"the regions '{name[:200]}' can't be read: {reason(error)[:200]}; {ACCEPTED}") from error


def _values(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L") or image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("RGBA"))


def _labelled(values: np.ndarray, source: str) -> LabelImage:
    """The regions of an array, in the order of their values."""
    fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not fits or not values.size or values.dtype.kind not in "bui":
        raise InputError(f"an array of {values.dtype} {list(values.shape)} has no regions; {ACCEPTED}")
    if values.dtype.kind == "i" and values.min() < 0:
        raise InputError(f"the regions '{source}' have values below 0; 0 is no region, and each larger value is one")
    numbers = values.astype(np.int64)
    if values.ndim == 3:
        seen = values[..., 3] > 0 if values.shape[2] == 4 else np.ones(values.shape[:2], dtype=bool)
        numbers = (numbers[..., 0] << 16 | numbers[..., 1] << 8 | numbers[..., 2]) * seen
    found, labels = np.unique(numbers, return_inverse=True)
    labels = labels.reshape(numbers.shape) + (found[0] != 0)
    found = found[found != 0]
    if not 1 <= len(found) <= MOST_REGIONS:
        has = (
            "black all over"
            if not len(found)
            else f"an image of {len(found):,} values, and {MOST_REGIONS} at most are regions"
        )
        raise InputError(
            f"the regions '{source}' are {has}: give each region one grey value or colour, without smooth edges (no JPEG)"
        )
    greys = values.ndim == 2 or all(one >> 16 == one >> 8 & 255 == one & 255 for one in found.tolist())
    names = [str(one if values.ndim == 2 else one & 255) if greys else f"#{one:06x}" for one in found.tolist()]
    return LabelImage(labels.astype(np.int32), tuple(names), source)
