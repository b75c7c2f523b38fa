"""Which frames of a video are taken: by the time at which they are seen, within a budget.

A video of one rate gives the frames that the models' own processors take: as many as `fps` asks for, at least MIN_FRAMES,
from the first to the last, evenly. Where frames last for different times, each moment gives the frame that is seen then.
Knows numbers only.
"""

from dataclasses import dataclass

import numpy as np

MIN_FRAMES = 4  # where a video has as many
STEADY = 0.1  # by so much of their median the lengths of frames may differ in a video of one rate: times are rounded in files


@dataclass(frozen=True)
class Timeline:
    """When frames are seen. starts: float64 [n], seconds from the first one's, ascending; seconds: of the whole; joined: whether
    equal frames may have been joined to one, so that their number says nothing."""

    starts: np.ndarray
    seconds: float
    joined: bool = False


@dataclass(frozen=True)
class Taken:
    """Frames that are taken, in their order. numbers: which of all, the same twice where one lasts; seconds: their times; wanted:
    how many it would be without a budget."""

    numbers: tuple[int, ...]
    seconds: tuple[float, ...]
    wanted: int


def take(timeline: Timeline, fps: float, most: int) -> Taken:
    """The frames of a timeline at `fps` frames each second, `most` at most."""
    lengths = np.diff(np.append(timeline.starts, timeline.seconds))
    middle = float(np.median(lengths))
    shortest = float(lengths[lengths > 0].min())
    steady = float(np.abs(lengths - middle).max()) <= STEADY * middle
    if timeline.joined and shortest > 1 / fps:
        steady, shortest = False, 1 / fps
    n_ticks = len(lengths) if steady else max(1, round(timeline.seconds / shortest))
    tick = timeline.seconds / n_ticks
    wanted = min(max(int(timeline.seconds * fps + 1e-6), MIN_FRAMES), n_ticks)
    ticks = np.linspace(0, n_ticks - 1, min(wanted, most)).round()
    numbers = ticks if steady else np.searchsorted(timeline.starts, (ticks + 1e-3) * tick, side="right") - 1
    return Taken(tuple(numbers.astype(int).tolist()), tuple((ticks * tick).tolist()), wanted)


def spread(n_frames: int, fps: float, most: int) -> Taken:
    """Of frames that come without times, `fps` in each second: all of them, or `most` from the first to the last, evenly."""
    numbers = np.linspace(0, n_frames - 1, min(n_frames, most)).round().astype(int)
    return Taken(tuple(numbers.tolist()), tuple((numbers / fps).tolist()), n_frames)
