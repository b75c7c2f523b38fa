"""What is hidden together: single tokens, words, cells of images, or the groups of a file; where there are many, regions of cells
and sentences.

All of it can be said without the model's weights, but for regions, which follow from the estimates. One cell among a thousand
carries little, so what is measured goes from coarse to fine: regions and sentences first, then their parts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mask_impact.analyses.prepared import Prepared
from mask_impact.errors import InputError
from mask_impact.findings.regions import Rectangle, blocks, grown, parts
from mask_impact.models.loading import Reader
from mask_impact.prompts.encoding import layout_of
from mask_impact.prompts.group_files import read_groups
from mask_impact.prompts.groups import Group
from mask_impact.results.tokens import ImageRecord, TokenTable

MANY = 100  # cells of an image, or words, above which not each is a candidate
N_REGIONS = 8  # of an image
LONGEST = 40  # words of a sentence
_ENDS = re.compile("[.!?\u2026\u3002\uff01\uff1f]$|\n")


@dataclass(frozen=True)
class Unit:
    """Positions that are hidden together, ascending. kind: word, sentence, region, block (of an image's whole grid), group, or
    that of a single token; region: the rectangle of a region or block."""

    name: str
    positions: tuple[int, ...]
    kind: str
    region: Rectangle | None = None


def effect_groups(loaded: Reader, prompt: Prepared) -> tuple[Group, ...] | None:
    """The groups for a run's effects; None for each masked position by itself, or without effects."""
    encoded, settings = prompt.encoded, prompt.settings
    if not settings.effect or settings.groups in (None, "tokens"):
        return None
    if settings.groups != "words":
        return _of_file(loaded, prompt)
    masked = encoded.tokens.masked(settings.mask_mode)
    return tuple(group for group in layout_of(loaded, encoded).words() if masked[list(group.positions)].all())


def answer_units(loaded: Reader, prompt: Prepared) -> tuple[Unit, ...]:
    """The units of a prompt for what its answer used: words and cells, unless the settings say something else."""
    kinds, layout = prompt.encoded.tokens.kinds, layout_of(loaded, prompt.encoded)
    if prompt.settings.groups not in (None, "words", "tokens"):
        return tuple(Unit(group.name, group.positions, "group") for group in _of_file(loaded, prompt))
    groups = layout.each_token() if prompt.settings.groups == "tokens" else layout.words()
    return tuple(
        Unit(one.name, one.positions, "word" if len(one.positions) > 1 else kinds[one.positions[0]]) for one in groups
    )


def produced_units(tokens: TokenTable, n_prompt: int, n_positions: int) -> tuple[Unit, ...]:
    """A unit for each produced token before the position that is the n_positions-th."""
    return tuple(Unit(tokens.texts[at], (at,), tokens.kinds[at]) for at in range(n_prompt, n_positions))


def summed(values: np.ndarray, units: Sequence[Unit]) -> np.ndarray:
    """float [G], of each unit the sum over its positions; values: float [N]."""
    return np.array([values[list(unit.positions)].sum() for unit in units])


def coarse_units(
    units: Sequence[Unit], tokens: TokenTable, images: Sequence[ImageRecord], contribution: np.ndarray
) -> tuple[list[Unit], np.ndarray]:
    """(the units, behind them regions, blocks and sentences where an image has more than MANY cells or the text more than MANY
    words; bool [G], which of them are too fine to be measured first). contribution: float [N], of each position."""
    units, coarse = list(units), []
    fine = np.zeros(len(units), dtype=bool)
    single = {unit.positions[0]: at for at, unit in enumerate(units) if len(unit.positions) == 1}
    for number, image in enumerate(images):
        cells = _cells_of(tokens, number)
        if image.n_tokens <= MANY or any(int(cell) not in single for cell in cells):
            continue
        fine[[single[int(cell)] for cell in cells]] = True
        regions = grown(contribution[cells].reshape(image.grid), number, N_REGIONS)
        taken = {cell for one in regions for cell in one.cells()}
        for one in (_region_unit(region, tokens, "region") for region in regions):
            if len(one.positions) > 1:
                coarse.append(one)
            else:  # a cell that is a region by itself
                at = single[one.positions[0]]
                units[at], fine[at] = replace(units[at], region=one.region), False
        coarse += [
            _region_unit(one, tokens, "block") for one in blocks(number, image.grid) if not taken & {*one.cells()}
        ]
    words = [at for at, unit in enumerate(units) if unit.kind in ("word", "text")]
    if len(words) > MANY:
        fine[words] = True
        coarse += _sentences([units[at] for at in words])
    return [*units, *coarse], np.concatenate([fine, np.zeros(len(coarse), dtype=bool)])


def finer_units(unit: Unit, units: Sequence[Unit], tokens: TokenTable) -> list[Unit]:
    """The parts of a region, or the words of a sentence that are not units yet; nothing for any other unit."""
    if unit.kind == "region":
        return [_region_unit(one, tokens, "region") for one in parts(unit.region)]
    if unit.kind == "sentence":
        return [one for one in units if one.kind in ("word", "text") and {*one.positions} < {*unit.positions}]
    return []


def _cells_of(tokens: TokenTable, image: int) -> np.ndarray:
    """Positions of an image's cells, in reading order."""
    places = np.flatnonzero(tokens.image == image)
    return places[np.lexsort((tokens.column[places], tokens.row[places]))]


def _region_unit(one: Rectangle, tokens: TokenTable, kind: str) -> Unit:
    inside = (tokens.image == one.image) & (tokens.row >= one.first_row) & (tokens.row <= one.last_row)
    inside &= (tokens.column >= one.first_column) & (tokens.column <= one.last_column)
    return Unit(one.spec, tuple(np.flatnonzero(inside).tolist()), kind, one)


def _sentences(words: Sequence[Unit]) -> list[Unit]:
    """Words that follow each other up to the end of a sentence: its mark, a line break, or something else in between."""
    found: list[list[Unit]] = [[]]
    for word in words:
        if found[-1] and found[-1][-1].positions[-1] + 1 != word.positions[0]:
            found.append([])
        found[-1].append(word)
        if _ENDS.search(word.name) or len(found[-1]) >= LONGEST:
            found.append([])
    return [
        Unit("".join(word.name for word in one), tuple(at for word in one for at in word.positions), "sentence")
        for one in found
        if len(one) > 1
    ]


def _of_file(loaded: Reader, prompt: Prepared) -> tuple[Group, ...]:
    groups = tuple(read_groups(prompt.settings.groups, layout_of(loaded, prompt.encoded)))
    if whole := [group.name for group in groups if len(group.positions) == prompt.encoded.n_tokens]:
        raise InputError(f"group {whole[0]!r} is the whole prompt: nothing would be left to see; hide less")
    return groups
