"""`NAME.patches.regions.png`: the pixels of regions of any shape, one plane below the other, there and back.

A plane is of one image as the model sees it, 16-bit grey: 0 where there is none of its regions, else the region's number plus 1.
Regions that share pixels are in different planes. The meta file says which planes there are; where the file is follows from the
result's name alone.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import OutputError
from mask_impact.results.inputs import IMAGE, read_file
from mask_impact.results.patches import PictureRegion
from mask_impact.results.table_files import beside, checksum

SUFFIX = "patches.regions.png"
MOST_PIXELS = 2**26  # of all planes


@dataclass(frozen=True)
class Planes:
    """images: of each plane; labels: of each, uint16 [H, W]."""

    images: tuple[int, ...]
    labels: tuple[np.ndarray, ...]

    @property
    def entry(self) -> dict[str, Any]:
        """What a meta file says of them."""
        planes = [[image, one.shape[1], one.shape[0]] for image, one in zip(self.images, self.labels, strict=True)]
        return {"file": SUFFIX, "planes": planes, "crc32": checksum(*self.labels)}

    def write(self, file: BinaryIO) -> None:
        """As a PNG file."""
        from PIL import Image

        whole = np.zeros(
            (sum(one.shape[0] for one in self.labels), max(one.shape[1] for one in self.labels)), np.uint16
        )
        top = 0
        for one in self.labels:
            whole[top : top + one.shape[0], : one.shape[1]] = one
            top += one.shape[0]
        Image.fromarray(whole).save(file, "PNG")


def planes_of(regions: Sequence[PictureRegion], shapes: Mapping[int, np.ndarray]) -> Planes | None:
    """The planes of regions of any shape, None where there are none."""
    images: list[int] = []
    labels: list[np.ndarray] = []
    for number, mask in shapes.items():
        image = regions[number].image
        free = [
            place
            for place, (of, one) in enumerate(zip(images, labels, strict=True))
            if of == image and one.shape == mask.shape and not one[mask].any()
        ]
        if not free:
            images.append(image)
            labels.append(np.zeros(mask.shape, dtype=np.uint16))
        labels[free[0] if free else -1][mask] = number + 1
    return Planes(tuple(images), tuple(labels)) if images else None


def read_shapes(stem: Path, entry: Mapping[str, Any], regions: Sequence[PictureRegion]) -> dict[int, np.ndarray]:
    """By region bool [H, W]. OutputError where the file is not there, or is not what the meta file says."""
    path = beside(stem, SUFFIX)
    sizes = [(width, height) for _, width, height in entry["planes"]]
    whole = _read(path, (max(width for width, _ in sizes), sum(height for _, height in sizes)))
    found, top, parts = {}, 0, []
    for image, width, height in entry["planes"]:
        labels = whole[top : top + height, :width]
        parts.append(labels)
        top += height
        for value in np.unique(labels[labels > 0]).tolist():
            number = int(value) - 1
            if number >= len(regions) or regions[number].image != image or number in found:
                raise OutputError(
                    f"{path} has pixels of a region {number}, which is not of image {image} in {stem.name}'s meta file"
                )
            found[number] = labels == value
    if checksum(*parts) != entry["crc32"]:
        raise OutputError(
            f"{path} does not hold the regions of the run in {stem.name}.patches.meta.json: its crc32 is another"
        )
    return dict(sorted(found.items()))


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint16 [height, width]"""
    from PIL import Image

    if size[0] * size[1] > MOST_PIXELS:
        raise OutputError(f"{path} would have {size[0]} x {size[1]} pixels, and {MOST_PIXELS:,} at most are read")
    try:
        with Image.open(io.BytesIO(read_file(path, IMAGE)), formats=["PNG"]) as image:
            if image.size != size:
                raise ValueError(f"it has {image.width} x {image.height} pixels, expected {size[0]} x {size[1]}")
            if image.mode not in ("I;16", "I"):
                raise ValueError(f"it is of mode {image.mode}, expected 16-bit grey")
            image.load()
            return np.asarray(image).astype(np.uint16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        said = getattr(error, "strerror", None) or str(error)[:200]
        raise OutputError(f"{path}, the pixels of the result's regions, can't be read: {said}") from error
