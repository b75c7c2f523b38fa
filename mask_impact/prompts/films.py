"""Films (MP4, WebM, AVI) by PyAV, the extra `video`: when their frames are seen, and those that are taken.

What a file is, its first bytes say, and nothing but these containers is opened: playlists would name other files. Times are those
of presentation, from the first frame's. Knows no model.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from mask_impact.errors import InputError
from mask_impact.prompts.sampling import Taken, Timeline

MOST_FRAMES = 200_000
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # which decoder reads transparency, too
_NEEDED = "pip install 'mask-impact[video]'; GIF, animated WebP and folders of frames are read without it"


class Film:
    """A film that is open. size: (width, height) of a frame as it is stored."""

    def __init__(self, file: BinaryIO, head: bytes, name: str) -> None:
        """head: the file's first 16 bytes. InputError where it is no film, has no pictures, or PyAV is missing."""
        self._name = name
        container = _container(head)
        if container is None:
            raise InputError(
                f"video '{name}' is in no format that can be read, or damaged; MP4, WebM, AVI, GIF and animated WebP are accepted"
            )
        try:
            import av
        except ImportError as error:
            raise InputError(f"video '{name}' needs the package av (PyAV): {_NEEDED}") from error
        av.logging.set_level(av.logging.PANIC)
        self._film = av.open(file, mode="r", format=container)
        films = [one for one in self._film.streams.video if not one.disposition & one.disposition.attached_pic]
        if not films:
            raise InputError(f"video '{name}' has no pictures, only sound or text")
        self._stream = films[0]
        self._stream.thread_type = "AUTO"
        self.size: tuple[int, int] = (self._stream.codec_context.width, self._stream.codec_context.height)
        self._known: Timeline | None = None
        self._ticks = self._keys = np.zeros(0, dtype=np.int64)

    def timeline(self) -> Timeline:
        """When each frame is seen; nothing is decoded."""
        if self._known is None:
            found = [(one.pts, one.is_keyframe, one.duration or 0) for one in self._packets()]
            if not found:
                raise InputError(f"video '{self._name}' has no frames; give one that has")
            found.sort()
            self._ticks = np.array([pts for pts, _, _ in found], dtype=np.int64)
            self._keys = np.array([pts for pts, key, _ in found if key], dtype=np.int64)
            starts = (self._ticks - self._ticks[0]) * float(self._stream.time_base)
            rate = self._stream.average_rate
            last = found[-1][2] * float(self._stream.time_base) or (1 / float(rate) if rate else 0.1)
            self._known = Timeline(starts, float(starts[-1]) + last)
        return self._known

    def close(self) -> None:
        """Let go of the file."""
        self._film.close()

    def _packets(self) -> Iterator[Any]:
        n = 0
        for packet in self._film.demux(self._stream):
            if packet.pts is None or packet.is_discard:
                continue
            n += 1
            if n > MOST_FRAMES:
                raise InputError(f"video '{self._name}' has more than {MOST_FRAMES:,} frames; cut it")
            yield packet

    def __call__(self, taken: Taken) -> Iterator[np.ndarray]:
        """The frames that are taken, uint8 [height, width, 3 | 4], upright."""
        before: Any = None  # the last frame that was decoded
        frames = self._from(int(self._ticks[taken.numbers[0]]))
        ahead: Any = next(frames, None)
        for number in taken.numbers:
            wanted = int(self._ticks[number])
            key = self._key_before(wanted)
            if ahead is not None and key > ahead.pts:
                frames = self._from(wanted)
                before, ahead = None, next(frames, None)
            while ahead is not None and (before is None or ahead.pts <= wanted):
                before, ahead = ahead, next(frames, None)
            if before is None:
                raise InputError(
                    f"video '{self._name}' has no frame at {number} that can be decoded; it may be damaged"
                )
            yield _pixels(before)

    def _key_before(self, tick: int) -> int:
        earlier = self._keys[self._keys <= tick]
        return int(earlier[-1]) if len(earlier) else int(self._ticks[0])

    def _from(self, tick: int) -> Iterator[Any]:
        """Frames in the order they are seen in, from the key frame before the tick on."""
        self._film.seek(self._key_before(tick), stream=self._stream, backward=True)
        return (frame for frame in self._decoded() if frame.pts is not None)

    def _decoded(self) -> Iterator[Any]:
        """WebM keeps transparency beside the pictures, where PyAV's usual decoder leaves it."""
        usual = self._stream.codec_context.name
        if usual not in _WITH_ALPHA or self._stream.metadata.get("alpha_mode") != "1":
            yield from self._film.decode(self._stream)
            return
        from av import CodecContext

        decoder = CodecContext.create(_WITH_ALPHA[usual], "r")
        for packet in self._film.demux(self._stream):
            yield from decoder.decode(packet if packet.size else None)


def _container(head: bytes) -> str | None:
    """The name of the container, as PyAV has it."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:11] == b"AVI" else None


def _pixels(frame: Any) -> np.ndarray:
    has_alpha = any(part.is_alpha for part in frame.format.components)
    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns))
