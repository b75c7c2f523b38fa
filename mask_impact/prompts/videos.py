"""From a video to the frames that a model gets.

A video is a file, a folder of frames, a list of them or an array. GIF, animated WebP and PNG are read by Pillow, other films by
PyAV (`prompts.films`). Frames are taken by the time at which they are seen, and are as images are: upright, RGB on white, without
metadata. What can't be read whole is an error of one line. Knows no model.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from mask_impact.errors import InputError, MaskImpactError, UsageError
from mask_impact.prompts.images import Picture, read_picture, read_pictures, reason
from mask_impact.prompts.sampling import Taken, Timeline, spread, take
from mask_impact.results.inputs import VIDEO, open_file

ACCEPTED = "an MP4, WebM, GIF or animated WebP file, or a folder of frames, is accepted"
FPS, MOST_TAKEN = 2.0, 32  # what is taken where nothing else is said
MOST_FRAMES = 200_000  # of a film
MOST_SECONDS = 4 * 3600.0
MOST_PIXELS = 2**24  # of a frame: 4K has half of it, 8K twice as many
MOST_DECODED = 2**34  # pixels of all frames of a file that has to be decoded whole to know its times
MOST_HELD = 2**30  # bytes of the frames that are taken
_UNTIMED_S = 0.1  # how long a frame without a duration is seen, as browsers have it
_MOST_UNTIMED_S = 0.0105  # and one of up to 10 ms
_BY_PILLOW = {b"GIF8": "GIF", b"RIFF": "WEBP", b"\x89PNG": "PNG"}
_FRAMES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Clip:
    """A video as a model gets it. frames: those that are taken, in their order, of one size; seconds: of each; source: how it was
    named; size: (width, height) of the original; note: in one line what was left out, empty where nothing was."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    source: str
    size: tuple[int, int]
    note: str = ""


def read_videos(
    sources: Sequence[Any], *, fps: float = FPS, most: int = MOST_TAKEN, max_resolution: int | None = None
) -> tuple[Clip, ...]:
    """Each of `sources` as `read_video` reads it, in their order."""
    return tuple(read_video(one, fps=fps, most=most, max_resolution=max_resolution) for one in sources)


class HowToRead(Protocol):
    """The settings that images and videos are read by."""

    max_image_resolution: int | None
    allow_remote: bool
    video_fps: float
    video_frames: int


def read_visuals(images: Sequence[Any], videos: Sequence[Any], how: HowToRead) -> tuple[Picture | Clip, ...]:
    """A prompt's images and, behind them, its videos. Errors of `read_picture` and `read_video`."""
    limit = how.max_image_resolution
    pictures = read_pictures(images, max_resolution=limit, allow_remote=how.allow_remote)
    return *pictures, *read_videos(videos, fps=how.video_fps, most=how.video_frames, max_resolution=limit)


def read_video(
    source: Any, *, fps: float = FPS, most: int = MOST_TAKEN, max_resolution: int | None = None, name: str | None = None
) -> Clip:
    """The video that `source` names: a path of a file or of a folder of frames (by name, numbers by value), a list of frames as
    `read_picture` takes them, or a uint8 array [frames, height, width, 3].

    fps: how many frames of each second are taken, and how fast frames without times follow each other; most: how many at most.
    max_resolution: the longest edge of a frame in pixels. name: what a file is called, where that is not its path. InputError
    for what can't be read whole, UsageError for numbers that can't be.
    """
    if not 0 < fps <= 1000 or most < 1:
        raise UsageError(f"`video_fps` must be above 0, and `video_frames` at least 1, not {fps} and {most}")
    if isinstance(source, Clip):  # which was read before
        return source
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.dtype != np.uint8 or not source.size:
            raise InputError(
                f"an array of {source.dtype} {list(source.shape)} is no video; uint8 [frames, height, width, 3] is accepted"
            )
        return _of_frames("video", source, fps, most, max_resolution)
    if isinstance(source, list | tuple):
        return _of_frames("video", source, fps, most, max_resolution)
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"a video is a path, a list of frames or a numpy array, not {type(source).__name__}")
    path = os.fsdecode(source)
    name = name or path
    if re.match("[a-z][a-z0-9+.-]+:", path, re.IGNORECASE) and not os.path.exists(path):
        raise InputError(f"video '{name[:100]}' is an address, and videos are not fetched; give a file")
    if os.path.isdir(path):
        return _of_frames(name, _frames_in(Path(path), name), fps, most, max_resolution)
    with _opened(path, name) as file, _reading(name), closing(_reader(file, name)) as reader:
        taken = take(_checked(reader.timeline(), name), fps, most)
        _check_room(reader.size, len(taken.numbers), max_resolution, name)
        frames = [
            _frame(image, max_resolution, name, at) for at, image in zip(taken.numbers, reader(taken), strict=True)
        ]
    return _clip(frames, taken, name, reader.timeline())


# --- frames that are given one by one ------------------------------------------------------------------------------------------


def _frames_in(folder: Path, name: str) -> list[str]:
    try:
        found = [one.path for one in os.scandir(folder) if one.name.lower().endswith(_FRAMES)]
    except OSError as error:
        raise InputError(f"video '{name}' cannot be read: {error.strerror}; {ACCEPTED}") from error
    if not found:
        raise InputError(f"video '{name}' is a folder without frames; files such as 0001.png are accepted")
    return sorted(
        found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", path)]
    )


def _of_frames(name: str, sources: Any, fps: float, most: int, max_resolution: int | None) -> Clip:
    n_frames = len(sources)
    if not 0 < n_frames <= MOST_FRAMES:
        raise InputError(f"video '{name}' has {n_frames:,} frames; 1 to {MOST_FRAMES:,} are accepted")
    taken = spread(n_frames, fps, most)
    frames: list[Picture] = []
    for number in taken.numbers:
        frames.append(_frame(sources[number], max_resolution, name, number))
        if len(frames) == 1:
            _check_room(frames[0].size, len(taken.numbers), max_resolution, name)
    return _clip(frames, taken, name, None)


def _frame(source: Any, max_resolution: int | None, name: str, number: int) -> Picture:
    try:
        return read_picture(source, max_resolution=max_resolution)
    except InputError as error:
        raise InputError(f"video '{name}', frame {number}: {error}") from error


def _clip(frames: Sequence[Picture], taken: Taken, name: str, timeline: Timeline | None) -> Clip:
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        different = " and ".join(f"{width} x {height}" for width, height in sorted(sizes)[:2])
        raise InputError(f"video '{name}' has frames of different sizes, {different} pixels; give frames of one size")
    n_all = taken.wanted if timeline is None else len(timeline.starts)
    n, lasts = len({*taken.numbers}), "" if timeline is None else f" in {timeline.seconds:.1f} s"
    note = ""
    if n < n_all:
        limited = ", all that video_frames allows" if len(frames) < taken.wanted else ""
        note = f"Of the {n_all:,} frames of video '{name}'{lasts} {n} are taken, evenly by time{limited}"
    return Clip(tuple(frame.image for frame in frames), taken.seconds, name, frames[0].size, note)


# --- files --------------------------------------------------------------------------------------------------------------------


def _opened(path: str, name: str) -> BinaryIO:
    try:
        return open_file(path, VIDEO)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or characters that no file name can have
        missing = isinstance(error, FileNotFoundError)
        problem = "does not exist" if missing else f"cannot be opened: {getattr(error, 'strerror', None) or error}"
        raise InputError(f"video '{name}' {problem}; {ACCEPTED}") from error


class _Animation:
    """A file that Pillow reads. All of its frames are decoded to know their times, and again to be taken."""

    def __init__(self, file: BinaryIO, format: str, name: str) -> None:
        self._image, self._name = Image.open(file, formats=[format]), name
        self.size = self._image.size
        self._known: Timeline | None = None

    def timeline(self) -> Timeline:
        """When each frame is seen."""
        if self._known is None:
            n = getattr(self._image, "n_frames", 1)
            if n * self.size[0] * self.size[1] > MOST_DECODED or n > MOST_FRAMES:
                raise InputError(
                    f"video '{self._name}' has {n:,} frames of {self.size[0]} x {self.size[1]} pixels; shorten it"
                )
            lengths = []
            for number in range(n):
                self._seek(number)
                length = float(self._image.info.get("duration") or 0) / 1000
                lengths.append(length if length > _MOST_UNTIMED_S else _UNTIMED_S)
            ends = np.cumsum(lengths)
            self._known = Timeline(np.append(0.0, ends[:-1]), float(ends[-1]), joined=True)
        return self._known

    def __call__(self, taken: Taken) -> Iterator[Image.Image]:
        """The frames that are taken."""
        for number in taken.numbers:
            self._seek(number)
            yield self._image.copy()

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    def _seek(self, number: int) -> None:
        self._image.seek(number)
        self._image.load()


def _reader(file: BinaryIO, name: str) -> Any:
    """What gives a file's timeline and the frames that are taken."""
    head = file.read(16)
    file.seek(0)
    format = next((known for magic, known in _BY_PILLOW.items() if head.startswith(magic)), None)
    if format == "WEBP" and head[8:12] != b"WEBP":
        format = None
    if format is None:
        from mask_impact.prompts.films import Film

        return _bounded(Film(file, head, name), name)
    return _bounded(_Animation(file, format, name), name)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """While the block is open, whatever a library runs into on a damaged file is an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MaskImpactError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"video '{name}' cannot be read: {reason(error)[:200]}; {ACCEPTED}") from error


def _bounded(reader: Any, name: str) -> Any:
    """The reader, where its frames are not too large."""
    width, height = reader.size
    if not 0 < width * height <= MOST_PIXELS:
        raise InputError(
            f"video '{name}' has frames of {width} x {height} pixels; {MOST_PIXELS:,} pixels at most are accepted, scale it down"
        )
    return reader


def _checked(timeline: Timeline, name: str) -> Timeline:
    if timeline.seconds > MOST_SECONDS:
        raise InputError(
            f"video '{name}' lasts {timeline.seconds:,.0f} s, and {MOST_SECONDS:,.0f} s at most are read; cut it"
        )
    return timeline


def _check_room(size: tuple[int, int], n: int, max_resolution: int | None, name: str) -> None:
    width, height = size
    factor = min(1.0, (max_resolution or max(size)) / max(size))
    if (held := n * 3 * width * height * factor**2) > MOST_HELD:
        raise InputError(
            f"{n} frames of video '{name}', {width} x {height} pixels each, take {held / 2**20:,.0f} MiB, and "
            f"{MOST_HELD / 2**20:,.0f} are allowed: take fewer (`video_frames`), or smaller ones (`max_image_resolution`)"
        )
