"""The tokens of a prompt and its images, as frozen dataclasses that are checked when they are made. Knows numpy only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

TOKEN_KINDS = ("text", "special", "image", "video")
CELLS = ("image", "video")  # the kinds of tokens that are cells of a grid
MASK_MODES = ("text", "vision", "both")
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"  # what stands for a cell of an image, or of a video

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_PIECE = re.compile(rf"{UNKNOWN}|<0x[0-9A-F]{{2}}>")


def is_piece(text: str) -> bool:
    """Whether a token has a part of a character: bytes that are no text alone, shown as <0xF0>, in older results as UNKNOWN."""
    return _PIECE.search(text) is not None


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """ValueError where an array has another shape."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


@dataclass(frozen=True)
class TokenTable:
    """One entry for each position of the sequence, prompt first, then the produced tokens.

    ids: int64 [n]; texts: each token decoded on its own; kinds: each one of TOKEN_KINDS; image, row, column: int32 [n],
    the number of the image (from 0) and the cell of the decoder's grid, -1 where the token is not part of an image. A pair of a
    video's frames is an image, too: its tokens are of kind `video`.
    """

    ids: np.ndarray
    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.texts)
        for name in ("ids", "image", "row", "column"):
            check_shape(name, getattr(self, name), (n,))
        if len(self.kinds) != n:
            raise ValueError(f"kinds has {len(self.kinds)} entries, expected {n}")
        unknown = set(self.kinds) - set(TOKEN_KINDS)
        if unknown:
            raise ValueError(f"unknown token kinds {sorted(unknown)}; known are {TOKEN_KINDS}")

    def __len__(self) -> int:
        return len(self.texts)

    def masked(self, mask_mode: str) -> np.ndarray:
        """bool [n], which positions a mask mode hides: `vision` the images' and videos' tokens, `text` all others, `both` all."""
        is_image = np.array([kind in CELLS for kind in self.kinds], dtype=bool)
        return {"text": ~is_image, "vision": is_image, "both": np.ones_like(is_image)}[mask_mode]

    def extended(self, ids: list[int], texts: list[str], kinds: list[str]) -> "TokenTable":
        """A new table with produced tokens (never part of an image) behind the present ones."""
        outside = np.full(len(ids), -1, dtype=np.int32)
        return TokenTable(
            ids=np.concatenate([self.ids, np.asarray(ids, dtype=np.int64)]),
            texts=(*self.texts, *texts),
            kinds=(*self.kinds, *kinds),
            image=np.concatenate([self.image, outside]),
            row=np.concatenate([self.row, outside]),
            column=np.concatenate([self.column, outside]),
        )


@dataclass(frozen=True)
class Moment:
    """When in a video an image stands that is a pair of its frames. video: its number, from 0; frames: the first and the last of
    the frames that were taken, from 0; seconds: their times."""

    video: int
    frames: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def time_s(self) -> float:
        """The time that the pair stands for, in seconds."""
        return (self.seconds[0] + self.seconds[1]) / 2

    @property
    def named(self) -> str:
        """Its frames in words: frames 2-3, or frame 4 where the last one stands alone."""
        first, last = self.frames
        return f"frame {first}" if first == last else f"frames {first}-{last}"


@dataclass(frozen=True)
class ImageRecord:
    """One image of the prompt, or the part of one that the vision tower saw by itself: a tile, a thumbnail, a pair of frames.

    source: how it was named, and which part it is. size: (width, height) in pixels of the original, of the part. resized: the
    same as the vision tower saw it. grid: (rows, columns) of its decoder tokens. preview: a JPEG of it to look at, empty where
    there is none. region: (left, top, right, bottom) of a part in pixels of the original, beyond it where the model adds a
    border; None for a whole image. moment: when in a video it stands; None for an image that is of none.
    """

    source: str
    size: tuple[int, int]
    resized: tuple[int, int]
    grid: tuple[int, int]
    preview: bytes = field(default=b"", repr=False)
    region: Box | None = None
    moment: Moment | None = None

    @property
    def n_tokens(self) -> int:
        """How many decoder tokens the image has."""
        return self.grid[0] * self.grid[1]

    def box(self, row: int, column: int) -> Box:
        """(left, top, right, bottom) of a cell in a picture of `size`: the resizing stretched it as a whole."""
        (width, height), (rows, columns) = self.size, self.grid
        return column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows

    def in_original(self, box: Box) -> Box:
        """A box of this picture in pixels of the original image, which differs where this is a part of it."""
        if self.region is None:
            return box
        (left, top, right, bottom), (width, height) = self.region, self.size
        across, down = (right - left) / width, (bottom - top) / height
        return left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down


def image_name(images: Sequence[ImageRecord], number: int) -> str:
    """What an image is called: image 0; a pair of a video's frames: frames 2-3, or video 1 frames 2-3 where there are several."""
    moment = images[number].moment if number < len(images) else None
    if moment is None:
        return f"image {number}"
    several = any(one.moment is not None and one.moment.video != moment.video for one in images)
    return f"video {moment.video} {moment.named}" if several else moment.named


def image_title(images: Sequence[ImageRecord], number: int) -> str:
    """The same, with the time of a pair of frames: frames 2-3 · 1.5 s."""
    moment = images[number].moment
    return image_name(images, number) + ("" if moment is None else f" · {moment.time_s:.1f} s")


def films(images: Sequence[ImageRecord]) -> list[list[int]]:
    """Of each video the numbers of its pairs of frames, in the order of time; none of one that is a single pair."""
    found: dict[int, list[int]] = {}
    for number, image in enumerate(images):
        if image.moment is not None:
            found.setdefault(image.moment.video, []).append(number)
    return [pairs for pairs in found.values() if len(pairs) > 1]


def counted(images: Sequence[ImageRecord]) -> str:
    """How many there are, in words: 2 images, 1 video of 8 frames; empty where there are none."""
    n_images = n_pictures([one for one in images if one.moment is None])
    frames: dict[int, int] = {}
    for one in images:
        if one.moment is not None:
            frames[one.moment.video] = max(frames.get(one.moment.video, 0), one.moment.frames[1] + 1)
    said = [f"{n_images} image{'s' * (n_images > 1)}"] if n_images else []
    if frames:
        n = sum(frames.values())
        said.append(f"{len(frames)} video{'s' * (len(frames) > 1)} of {n} frame{'s' * (n > 1)}")
    return ", ".join(said)


# What a source is followed by where the record is of a part of a picture: see `prompts.cells`.
_PART = re.compile(r", (tile \d+ \(row \d+, column \d+ of \d+ x \d+\)|thumbnail|in detail)\Z")


def n_pictures(images: Sequence[ImageRecord]) -> int:
    """How many pictures the records are of: parts of one, such as its tiles, count once."""
    n, source, parts = 0, None, set()
    for image in images:
        part = _PART.search(image.source)
        of = image.source[: part.start()] if part else image.source
        name = part[1] if part else None
        if name is None or of != source or name in parts:
            n, source, parts = n + 1, of if name else None, set()
        parts.add(name)
    return n


def original_box_of(tokens: TokenTable, images: Sequence[ImageRecord], positions: Sequence[int]) -> Box | None:
    """The same as `box_of`, in pixels of the original image."""
    box = box_of(tokens, images, positions)
    return box and images[int(tokens.image[positions[0]])].in_original(box)


def box_of(tokens: TokenTable, images: Sequence[ImageRecord], positions: Sequence[int]) -> Box | None:
    """(left, top, right, bottom) around the cells at the positions, in a picture of their image's size; None where they are not
    all of one image."""
    places = list(positions)
    image = int(tokens.image[places[0]])
    if image < 0 or not (tokens.image[places] == image).all():
        return None
    rows, columns = tokens.row[places], tokens.column[places]
    left, top, _, _ = images[image].box(int(rows.min()), int(columns.min()))
    _, _, right, bottom = images[image].box(int(rows.max()), int(columns.max()))
    return left, top, right, bottom
