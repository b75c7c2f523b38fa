"""Which cells of a prompt's videos a spec stands for, by frames, seconds, rows and columns; and the texts that say their times.

A pair of frames is an image of its own, with its moment. Frames are those that were taken, from 0. Knows tokens and images.
"""

import re
from collections.abc import Sequence

import numpy as np

from mask_impact.errors import InputError
from mask_impact.prompts.spans import SPAN, integer, span
from mask_impact.results.tokens import ImageRecord, Moment, TokenTable

_SECONDS = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_WHEN = f"(?: frames? ({SPAN})| seconds? ({_SECONDS}(?:-{_SECONDS})?))?"
VIDEO = re.compile(f"video(?: ([0-9]+))?{_WHEN}(?: rows ({SPAN}))?(?: columns ({SPAN}))?")


class Films:
    """The videos of a prompt, which is the first n_prompt positions of the tokens; false where it has none."""

    def __init__(self, tokens: TokenTable, images: Sequence[ImageRecord], n_prompt: int) -> None:
        self._tokens, self._n_prompt = tokens, n_prompt
        self._moments = {number: one.moment for number, one in enumerate(images) if one.moment is not None}
        self._grids = {number: images[number].grid for number in self._moments}
        self._n_videos = 1 + max((one.video for one in self._moments.values()), default=-1)

    def __bool__(self) -> bool:
        return bool(self._moments)

    def cells(
        self, number: str | None, frames: str | None, seconds: str | None, rows: str | None, columns: str | None
    ) -> list[int]:
        """The positions of the parts of a spec that VIDEO matches. InputError for what is not there."""
        pairs, where = (
            self._pairs(number, whole=(frames, seconds, rows, columns) == (None,) * 4),
            f"video {number or 0}",
        )
        if frames is not None:
            asked = span(frames, "frame", 1 + self._moments[pairs[-1]].frames[1], where)
            pairs = [one for one in pairs if {*asked} & {*_frames_of(self._moments[one])}]
        if seconds is not None:
            pairs = self._within(pairs, seconds, where)
        chosen = np.isin(self._tokens.image, pairs)
        sides = (("row", rows, self._tokens.row), ("column", columns, self._tokens.column))
        for (side, asked, own), n in zip(sides, self._grids[pairs[0]], strict=True):
            if asked is not None:
                chosen &= np.isin(own, span(asked, side, n, where))
        return self._positions(chosen)

    @property
    def timed(self) -> bool:
        """Whether the prompt says the times of its videos."""
        try:
            return bool(self.timestamps())
        except InputError:
            return False

    def timestamps(self) -> list[int]:
        """The text in front of each pair, from its < to its >, or the number that stands behind it between
        marks. InputError for a model that is told times otherwise."""
        found: list[int] = []
        for pair in self._moments:
            positions = self._positions(self._tokens.image == pair)
            found += self._before(positions[0]) or self._behind(positions[-1])
        return sorted(found)

    def _before(self, first: int) -> list[int]:
        """What says a time in front of the cell; nothing where that is something else."""
        text, found, at = "", [], first - 1
        while at > 0 and self._tokens.kinds[at] == "special":  # the mark before the cells
            at -= 1
        while at >= 0 and self._tokens.kinds[at] == "text" and "<" not in text:
            text = self._tokens.texts[at] + text
            found.append(at)
            at -= 1
        return found if re.fullmatch(r"[^<]*<[0-9.]+ seconds>", text) else []

    def _behind(self, last: int) -> list[int]:
        """What says a time behind the mark behind the cell: a number alone between marks. InputError for what says none."""
        kinds, n = self._tokens.kinds, self._n_prompt
        begin = last + 2
        end = next((at for at in range(begin, n) if kinds[at] != "text"), n)
        text = "".join(self._tokens.texts[begin:end])
        if kinds[last + 1 : begin] != ("special",) or end == n or not re.fullmatch("[0-9]+", text):
            raise InputError("the prompt says no times of its video; this model is told them otherwise")
        return [*range(begin, end)]

    def _positions(self, chosen: np.ndarray) -> list[int]:
        return np.flatnonzero(chosen[: self._n_prompt]).tolist()

    def _pairs(self, number: str | None, whole: bool) -> list[int]:
        """Numbers of images. whole: nothing but the video is named, and without a number all of them are meant."""
        n = self._n_videos
        if number is not None and integer(number) >= n:
            has = f"{n} videos, 0 to {n - 1}" if n > 1 else "one video, which is 0"
            raise InputError(f"there is no video {number}; the prompt has {has}")
        if number is None and n > 1 and not whole:
            raise InputError(f"the prompt has {n} videos: say which, video 0 to video {n - 1}")
        return [pair for pair, one in self._moments.items() if number is None or one.video == int(number)]

    def _within(self, pairs: Sequence[int], seconds: str, where: str) -> list[int]:
        """The pairs that are seen within some seconds."""
        first, _, last = seconds.partition("-")
        low, high = float(first), float(last or first)
        if low > high:
            raise InputError(f"seconds {seconds} run backwards; give the smaller number first")
        times = {one: self._moments[one].seconds for one in pairs}
        found = [one for one, (begin, end) in times.items() if begin <= high and end >= low]
        if not found:
            begin, end = min(times.values(), key=lambda time: abs(sum(time) - low - high))
            raise InputError(
                f"no frames of {where} are seen within seconds {seconds}; the nearest are at {begin:g}-{end:g}"
            )
        return found


def _frames_of(moment: Moment) -> range:
    return range(moment.frames[0], moment.frames[1] + 1)
