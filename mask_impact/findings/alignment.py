"""Which token of one result is which of another, and which layers lie in a band of the depth.

Layer l of L covers the depth from l/L to (l+1)/L, and band b of B that from b/B to (b+1)/B.
"""

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from mask_impact.results.records import Result
from mask_impact.results.tokens import UNKNOWN


def band_layers(n_layers: int, n_bands: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """For each band the (layer, part of the layer that lies in the band), for parts above 0; see this module.

    In whole numbers, layer l covers l * n_bands to (l + 1) * n_bands, and band b covers b * n_layers to (b + 1) * n_layers.
    """
    bands = []
    for band in range(n_bands):
        low, high = band * n_layers, (band + 1) * n_layers
        layers = range(low // n_bands, min(-(-high // n_bands), n_layers))
        parts = ((layer, min(high, (layer + 1) * n_bands) - max(low, layer * n_bands)) for layer in layers)
        bands.append(tuple((layer, part / n_bands) for layer, part in parts if part > 0))
    return tuple(bands)


def align(first: Result, first_positions: np.ndarray, second: Result, second_positions: np.ndarray) -> np.ndarray:
    """int64 [M, 2]: places in the two lists of positions that are the same token, in the first's order.

    Patches are the same if number, row and column are, in images with the same grid. Other tokens are aligned by their
    texts in their order (special tokens among them), images left out of it; what is left between two aligned tokens is
    aligned once more by the texts without spaces at their ends, since tokenizers differ in where they keep these.
    """
    cells = [_cells(first, first_positions), _cells(second, second_positions)]
    pairs = [(place, cells[1][cell]) for cell, place in cells[0].items() if cell in cells[1]]
    texts, places = [], []
    for result, positions in ((first, first_positions), (second, second_positions)):
        outside = [place for place, position in enumerate(positions) if result.tokens.image[position] < 0]
        places.append(outside)
        texts.append([_name(result, positions[place]) for place in outside])
    pairs += [(places[0][one], places[1][other]) for one, other in _align_texts(*texts)]
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _name(result: Result, position: int) -> str:
    """What a token is known by: its text, and its id where bytes that are no text alone were stored without saying which."""
    text = result.tokens.texts[position]
    return f"{text}#{result.tokens.ids[position]}" if UNKNOWN in text else text


def _cells(result: Result, positions: np.ndarray) -> dict[tuple[Any, ...], int]:
    """Place by (image, its grid, row, column)."""
    tokens = result.tokens
    return {
        (image, result.images[image].grid, int(tokens.row[position]), int(tokens.column[position])): place
        for place, position in enumerate(positions)
        if (image := int(tokens.image[position])) >= 0
    }


def _align_texts(first: list[str], second: list[str]) -> Iterator[tuple[int, int]]:
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    for tag, from_1, to_1, from_2, to_2 in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(range(from_1, to_1), range(from_2, to_2), strict=True)
        elif tag == "replace":
            # Texts of spaces alone stay apart: stripped, they would all be the same.
            bare = [[text.strip() or repr(text) for text in part] for part in (first[from_1:to_1], second[from_2:to_2])]
            for block in SequenceMatcher(None, *bare, autojunk=False).get_matching_blocks():
                yield from ((from_1 + block.a + i, from_2 + block.b + i) for i in range(block.size))
