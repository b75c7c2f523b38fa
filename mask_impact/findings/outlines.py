"""The outline of pixels of any shape, as closed lines along their edges. Knows arrays; nothing of what they are of."""

from collections import defaultdict

import numpy as np

Line = tuple[tuple[int, int], ...]
_STEPS = {(0, 1): 0, (1, 0): 1, (0, -1): 2, (-1, 0): 3}  # right, down, left, up, as (rows, columns)


def outline(mask: np.ndarray) -> tuple[Line, ...]:
    """Closed lines around the pixels of a mask, bool [H, W], and around its holes: corners (x, y) in pixels, without those on a
    straight line, the first not once more at the end. Filled by the even-odd rule they are the mask."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    begins: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    here = padded[1:-1, 1:-1]
    # Each edge runs with the mask on its right: along the top rightwards, down the right side, and so on.
    for (down, across), start, end in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        beside = padded[1 + down : padded.shape[0] - 1 + down, 1 + across : padded.shape[1] - 1 + across]
        for row, column in zip(*(one.tolist() for one in np.nonzero(here & ~beside)), strict=True):
            begins[row + start[0], column + start[1]].append((row + end[0], column + end[1]))
    lines = []
    while begins:
        first = next(iter(begins))
        corner, step, line = first, None, []
        while corner in begins:
            following = begins[corner]
            # Where two pixels meet at a corner alone, the line turns right and stays at its own pixel.
            chosen = min(following, key=lambda one: _turn(step, (one[0] - corner[0], one[1] - corner[1])))
            following.remove(chosen)
            if not following:
                del begins[corner]
            taken = chosen[0] - corner[0], chosen[1] - corner[1]
            if taken != step:
                line.append((corner[1], corner[0]))
            corner, step = chosen, taken
        if len(line) > 1 and _straight(line[-1], line[0], line[1]):
            line = line[1:]
        lines.append(tuple(line))
    return tuple(lines)


def _turn(before: tuple[int, int] | None, after: tuple[int, int]) -> int:
    """0 for a turn to the right, 1 straight on, 2 to the left."""
    return 0 if before is None else (1 - (_STEPS[after] - _STEPS[before])) % 4


def _straight(before: tuple[int, int], corner: tuple[int, int], after: tuple[int, int]) -> bool:
    return before[0] == corner[0] == after[0] or before[1] == corner[1] == after[1]
