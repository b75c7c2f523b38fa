"""Regions of an image's pixels: image tokens, patches, boxes, masks, blocks of tokens, and the search from coarse to fine.
A pair of a video's frames is an image.

A region has pixels of the resized picture, which the vision tower sees. Knows grids and pixels; nothing of what becomes of the
answer without a region: the search asks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mask_impact.analyses.candidates import NEGLIGIBLE
from mask_impact.errors import InputError
from mask_impact.prompts.encoding import EncodedPrompt
from mask_impact.prompts.images import Picture
from mask_impact.prompts.patches import PatchGrid
from mask_impact.results.patches import PictureRegion
from mask_impact.results.tokens import ImageRecord, image_name

Edges = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the resized picture, or in tokens
HALF = 128  # of the brightness of a mask's pixel
BEST_PARTS, BEST_TOKENS = 2, 2  # that a search asks about where an estimate says which
NEAREST = 0  # Pillow's way of resizing that makes no new colours


@dataclass(frozen=True)
class Place:
    """A region with its pixels. mask: bool [H, W], in each of its images; tokens: bool [tokens of one image], those that have a
    pixel of it."""

    region: PictureRegion
    mask: torch.Tensor
    tokens: torch.Tensor

    @property
    def is_rectangle(self) -> bool:
        """Whether it is all of the box around it."""
        wide, high = self.region.size
        return int(self.mask.sum()) == wide * high


class Numbered:
    """Regions in the order in which they were first asked about. places: these."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self._numbers: dict[tuple[int, str], int] = {}

    def number(self, place: Place) -> int:
        """Of a region, which is a new one if none of its image has its name."""
        key = place.region.image, place.region.name
        if key not in self._numbers:
            self._numbers[key] = len(self.places)
            self.places.append(place)
        return self._numbers[key]

    @property
    def regions(self) -> tuple[PictureRegion, ...]:
        """All of them."""
        return tuple(place.region for place in self.places)


class Regions:
    """Makes the regions of one image. number: of the image; called: what regions are called after, where there are more."""

    def __init__(self, encoded: EncodedPrompt, number: int, grid: PatchGrid) -> None:
        self.number, self.grid = number, grid
        self.record: ImageRecord = encoded.images[number]
        self.called = image_name(encoded.images, number) if len(encoded.images) > 1 else ""
        self._positions = np.flatnonzero(encoded.tokens.image == number)

    def token(self, row: int, column: int) -> Place:
        """An image token, which is a block of one."""
        return self.block((column, row, column + 1, row + 1))

    def block(self, tokens: Edges) -> Place:
        """A rectangle of image tokens."""
        left, top, right, bottom = tokens
        if (right - left, bottom - top) == (1, 1):
            level, name = "token", f"[{top}, {left}]"
        elif self.record.moment is not None and (right - left, bottom - top) == self.grid.tokens[::-1]:
            level, name = "frames", ""
        else:
            level, name = "block", f"[{_span(top, bottom)}, {_span(left, right)}]"
        return self._rectangle(level, name, (top, left), tuple(self.grid.token * edge for edge in tokens))

    def patch(self, row: int, column: int) -> Place:
        """A patch, by its place in the grid of patches."""
        size = self.grid.patch
        edges = (column * size, row * size, (column + 1) * size, (row + 1) * size)
        return self._rectangle("patch", f"patch [{row}, {column}]", (row, column), edges)

    def patches_of(self, tokens: Edges) -> list[Place]:
        """The patches of a rectangle of tokens, in reading order."""
        left, top, right, bottom = (self.grid.merge * edge for edge in tokens)
        return [self.patch(row, column) for row in range(top, bottom) for column in range(left, right)]

    def all_tokens(self) -> list[Place]:
        """Every image token."""
        rows, columns = self.grid.tokens
        return [self.token(row, column) for row in range(rows) for column in range(columns)]

    def all_patches(self) -> list[Place]:
        """Every patch, in reading order."""
        return self.patches_of((0, 0, *self.grid.tokens[::-1]))

    def box(self, edges: tuple[float, float, float, float]) -> Place:
        """A rectangle in pixels of the original image: those pixels of the resized one whose middle is in it. InputError."""
        left, top, right, bottom = edges
        wide, high = self.record.size
        name = f"box {','.join(f'{edge:g}' for edge in edges)}"
        if not (0 <= left < right <= wide and 0 <= top < bottom <= high):
            raise InputError(
                f"{name} is no region of image {self.number}, which has {wide} x {high} pixels: give left,top,right,bottom "
                f"with left < right and top < bottom within it"
            )
        x = (torch.arange(self.grid.width) + 0.5) * wide / self.grid.width
        y = (torch.arange(self.grid.height) + 0.5) * high / self.grid.height
        mask = ((top <= y) & (y < bottom))[:, None] & ((left <= x) & (x < right))[None]
        if not mask.any():
            raise InputError(
                f"{name} has no pixel of image {self.number} as the model sees it, {self.grid.width} x {self.grid.height}; give "
                "a larger one"
            )
        return self._place("region", name, (-1, -1), mask, edges)

    def masked(self, picture: Picture) -> Place:
        """The pixels at which a picture of the image's size is light. InputError."""
        if picture.size != self.record.size:
            (wide, high), own = picture.size, self.record.size
            raise InputError(
                f"the mask '{picture.source}' has {wide} x {high} pixels and image {self.number} "
                f"{own[0]} x {own[1]}; give one of the same size, white where the region is"
            )
        small = picture.image.convert("L").resize((self.grid.width, self.grid.height), NEAREST)
        mask = torch.from_numpy(np.asarray(small) >= HALF)
        if not mask.any():
            raise InputError(f"the mask '{picture.source}' is black all over; make it white where the region is")
        return self.shaped("mask", mask)

    def shaped(self, name: str, mask: torch.Tensor, level: str = "region") -> Place:
        """A region of any shape. mask: bool [H, W], with a pixel at least."""
        return self._place(level, name, (-1, -1), mask, None)

    def of_tokens(self, name: str, tokens: torch.Tensor) -> Place:
        """The pixels of some image tokens. tokens: bool [rows, columns]."""
        size = self.grid.token
        return self.shaped(name, tokens.repeat_interleave(size, dim=0).repeat_interleave(size, dim=1))

    def _rectangle(self, level: str, name: str, at: tuple[int, int], edges: Edges) -> Place:
        left, top, right, bottom = edges
        mask = torch.zeros(self.grid.height, self.grid.width, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return self._place(level, name, at, mask, None)

    def _place(
        self,
        level: str,
        name: str,
        at: tuple[int, int],
        mask: torch.Tensor,
        box: tuple[float, float, float, float] | None,
    ) -> Place:
        rows, columns = self.grid.tokens
        size = self.grid.token
        tokens = mask.reshape(rows, size, columns, size).any(dim=3).any(dim=1).flatten()
        (top, bottom), (left, right) = (_reach(mask.any(dim=axis)) for axis in (1, 0))
        if box is None:
            wide, high = self.record.size
            x, y = wide / self.grid.width, high / self.grid.height
            box = (left * x, top * y, right * x, bottom * y)
        shown = f"{self.called} {name}".strip() or self.record.moment.named
        positions = tuple(self._positions[tokens.numpy()].tolist())
        region = PictureRegion(level, shown, self.number, *at, tuple(box), (right - left, bottom - top), positions)
        return Place(region, mask, tokens)


def spanning(places: Sequence[Place], name: str) -> Place:
    """The same pixels in several images, as one region."""
    first = places[0].region
    positions = tuple(sorted(position for place in places for position in place.region.positions))
    images = tuple(place.region.image for place in places)
    region = replace(first, name=name, positions=positions, images=images if len(images) > 1 else ())
    return replace(places[0], region=region)


def _span(first: int, end: int) -> str:
    return f"{first}" if end - first == 1 else f"{first}-{end - 1}"


def _reach(flags: torch.Tensor) -> tuple[int, int]:
    """The first of those that are set, and behind the last."""
    where = flags.nonzero().flatten()
    return int(where[0]), int(where[-1]) + 1


# --- coarse to fine ---------------------------------------------------------------------------------------------------------

Cut = tuple[int, Edges]  # which of the images, and a rectangle of its tokens


def coarsest(images: Sequence[Regions]) -> list[Cut]:
    """What a search asks about first: each pair of a video's frames, where there are several, and the quarters of each image."""
    cuts: list[Cut] = []
    for number, one in enumerate(images):
        whole = (0, 0, *one.grid.tokens[::-1])
        parts = [whole] if one.record.moment is not None and len(images) > 1 else quarters(whole)
        cuts += [(number, part) for part in parts]
    return cuts


def coarsest_within(images: Sequence[Regions], most: int, weights: Sequence[float]) -> list[Cut]:
    """The same for what changes nothing where all of a pair is asked about: the quarters of each image, and of the `most` pairs
    whose weight is largest. weights: of each of the images."""
    pairs = [number for number, one in enumerate(images) if one.record.moment is not None]
    chosen = sorted(pairs, key=lambda number: -weights[number])[:most]
    return [
        (number, part)
        for number, one in enumerate(images)
        if number in chosen or one.record.moment is None
        for part in quarters((0, 0, *one.grid.tokens[::-1]))
    ]


def coarse_to_fine(
    images: Sequence[Regions],
    beam: int,
    changes: Callable[[Sequence[Place]], list[float]],
    weights: Sequence[np.ndarray] | None = None,
    first: Sequence[Cut] | None = None,
) -> tuple[list[Place], list[Place]]:
    """The tokens that are found to matter most, the strongest first, `beam` at most, and their patches. changes: what becomes of
    the answer without each of some regions, the lowest for the strongest. weights: of each image [rows, columns], what an
    estimate says of each token, the lowest for the strongest; None where there is none. first: what is asked about first (None:
    the `coarsest`).

    With an estimate, each level asks about the BEST_PARTS of the quarters that it calls the strongest, and then about the
    BEST_TOKENS of all tokens, too; where none of the tokens has an effect, the estimate says which is the strongest.
    """

    def places(cuts: Sequence[Cut]) -> list[Place]:
        return [images[number].block(edges) for number, edges in cuts]

    def ask(cuts: Sequence[Cut]) -> list[float]:
        return changes(places(cuts))

    weigh = None if weights is None else lambda cut: _weight(weights, cut)
    cuts = search(coarsest(images) if first is None else first, beam, ask, weigh)
    if weights is not None:
        cuts = [*dict.fromkeys([*cuts, *strongest_tokens(weights)])]
        found = dict(zip(cuts, ask(cuts), strict=True))
        some = min(found.values()) < -NEGLIGIBLE
        cuts = sorted(cuts, key=found.__getitem__ if some else weigh)[:beam]
    return places(cuts), [one for number, edges in cuts for one in images[number].patches_of(edges)]


def strongest_tokens(weights: Sequence[np.ndarray]) -> list[Cut]:
    """The BEST_TOKENS that an estimate calls the strongest, as rectangles."""
    every = [
        (float(of_image[row, column]), (number, (column, row, column + 1, row + 1)))
        for number, of_image in enumerate(weights)
        for row, column in np.ndindex(of_image.shape)
    ]
    return [cut for _, cut in sorted(every)[:BEST_TOKENS]]


def _weight(weights: Sequence[np.ndarray], cut: Cut) -> float:
    """What an estimate says of a rectangle: the sum of what speaks for the answer."""
    number, (left, top, right, bottom) = cut
    return float(np.minimum(weights[number][top:bottom, left:right], 0).sum())


def quarters(tokens: Edges) -> Iterator[Edges]:
    """The rectangle, cut in the middle of both sides, as far as they have more than one token."""
    left, top, right, bottom = tokens
    for up, down in _halves(top, bottom):
        for begin, end in _halves(left, right):
            yield begin, up, end, down


def _halves(first: int, end: int) -> list[tuple[int, int]]:
    middle = (first + end + 1) // 2
    return [(first, middle), (middle, end)] if end - first > 1 else [(first, end)]


def _is_token(tokens: Edges) -> bool:
    return (tokens[2] - tokens[0], tokens[3] - tokens[1]) == (1, 1)


def search(
    cuts: Sequence[Cut],
    beam: int,
    ask: Callable[[list[Cut]], list[float]],
    weigh: Callable[[Cut], float] | None = None,
) -> list[Cut]:
    """The tokens that are found to matter most, the strongest first, `beam` at most. cuts: what is asked about first.

    ask: what becomes of the answer without each of the rectangles, the lowest for the strongest. Each level asks about the
    quarters of the `beam` rectangles that were the strongest so far, with `weigh` about the BEST_PARTS of each that weigh least;
    a token stays as it is.
    """
    cuts = list(cuts)
    kept: list[tuple[float, Cut]] = []
    while cuts:
        done = [(change, cut) for change, cut in kept if _is_token(cut[1])]
        kept = sorted([*done, *zip(ask(cuts), cuts, strict=True)], key=lambda one: one[0])[:beam]
        cuts = []
        for _, (number, tokens) in kept:
            parts = [] if _is_token(tokens) else [(number, part) for part in quarters(tokens)]
            cuts += parts if weigh is None else sorted(parts, key=weigh)[:BEST_PARTS]
    return [cut for _, cut in kept]
