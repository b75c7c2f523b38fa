"""What follows from measured regions, parts of features and maps of the vision tower: which matter most, which two belong
together, and whether what is read matters. Knows records."""

from collections.abc import Iterator

import numpy as np

from mask_impact.results.deepstack import DeepstackTarget
from mask_impact.results.patches import TOTAL, PatchTarget, PictureRegion
from mask_impact.results.tokens import ImageRecord
from mask_impact.results.tower import TowerEffects, TowerReading, TowerTarget

MATTERS = 0.01  # nats: less changes no answer


def weakest_change(target: PatchTarget, place: int) -> float:
    """What replacing a region does, nats, of the fill that does least, which all of them show."""
    return max(float(target.logprob_change[row]) for row in target.rows(place, route=TOTAL))


def strongest_part(target: DeepstackTarget) -> int:
    """The part that adds most."""
    return int(np.argmax(target.shapley))


def strongest_pair(target: DeepstackTarget) -> tuple[int, int, float] | None:
    """Two parts and their interaction, nats, the largest there is; None for a single part."""
    if len(target.shapley) < 2:
        return None
    sizes = np.abs(np.triu(target.interaction, 1))
    one, other = (int(place) for place in np.unravel_index(int(sizes.argmax()), sizes.shape))
    return one, other, float(target.interaction[one, other])


# --- the vision tower -------------------------------------------------------------------------------------------------------


def matters(target: TowerTarget, row: int) -> bool:
    """Whether a measurement changes the answer, or its log-probability by MATTERS."""
    return bool(target.differs[row]) or abs(float(target.logprob_change[row])) >= MATTERS


def hidden_rows(found: TowerEffects, target: TowerTarget) -> list[int]:
    """The measurements of regions that were hidden in all of the layers that were asked about."""
    return [row for row, layers in enumerate(target.layers) if layers == found.layers]


def most_read_row(found: TowerEffects, target: TowerTarget) -> int | None:
    """The measurement of what is read most; None where no effects were measured."""
    return target.row(found.most_read, found.layers) if found.most_read >= 0 else None


def window_size(found: TowerEffects, target: TowerTarget) -> int:
    """Of how many layers the windows are in which regions were hidden, too; 0 without any."""
    return max((len(layers) for layers in target.layers if layers != found.layers), default=0)


def by_window(found: TowerEffects, target: TowerTarget) -> Iterator[tuple[PictureRegion, np.ndarray]]:
    """Of each region that was hidden in windows (region, change [L], nats, in the window around each layer); NaN where it was
    not."""
    size, n = window_size(found, target), found.n_layers
    firsts = [layer - (size - 1) // 2 for layer in range(n)]
    windows = [tuple(range(max(0, first), min(n, first + size))) for first in firsts]
    measured = dict(
        zip(zip(target.place.tolist(), target.layers, strict=True), target.logprob_change.tolist(), strict=True)
    )
    for place in dict.fromkeys(place for place, layers in measured if layers != found.layers):
        yield found.regions[place], np.array([measured.get((place, layers), np.nan) for layers in windows])


def largest_of(change: np.ndarray) -> float:
    """Of changes by window the size of the largest, 0 where none was measured."""
    return float(np.nan_to_num(np.abs(change)).max())


def read_in_all(reading: TowerReading) -> np.ndarray:
    """float64 [L], what each layer reads of all units: the sum of their shares."""
    return reading.attention.sum(axis=(1, 2), dtype=np.float64)


def read_by_region(found: TowerEffects, image: int) -> list[tuple[str, np.ndarray]]:
    """(name, what each layer reads of one of its units, float64 [L], the mean) of each region of an image that was given by a box
    or a mask, and of the rest; none where none was given, or there is no rest."""
    numbers = found.readings[image].attention.astype(np.float64)
    given = {
        number: region
        for number, region in enumerate(found.regions)
        if region.level == "region" and image in region.every_image
    }
    masks = [
        _units_of(found.patches[number], numbers.shape[1:])
        if number in found.patches
        else _units_in(region, found.images[image], numbers.shape[1:])
        for number, region in given.items()
    ]
    rest = ~np.logical_or.reduce(masks) if masks else np.zeros(numbers.shape[1:], bool)
    if not rest.any():
        return []
    named = [(region.called, mask) for region, mask in zip(given.values(), masks, strict=True)] + [("the rest", rest)]
    return [(name, numbers[:, mask].mean(axis=1)) for name, mask in named if mask.any()]


def _units_of(patches: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """bool [rows, columns], the units that have some of a region's patches."""
    rows, columns = grid
    return patches.reshape(rows, patches.shape[0] // rows, columns, patches.shape[1] // columns).any(axis=(1, 3))


def _units_in(region: PictureRegion, image: ImageRecord, grid: tuple[int, ...]) -> np.ndarray:
    """bool [rows, columns], the units that have some of a region's box."""
    (left, top, right, bottom), (width, height), (rows, columns) = region.box, image.size, grid
    y, x = np.arange(rows) * height / rows, np.arange(columns) * width / columns
    down, across = (y < bottom) & (y + height / rows > top), (x < right) & (x + width / columns > left)
    return down[:, None] & across[None, :]
