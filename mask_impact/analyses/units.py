"""What is hidden together: single tokens, words, cells of images, regions of them, or the groups of a file.

All of it can be said without the model's weights, but for regions, which follow from the estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_impact.analyses.prepared import Prepared
from mask_impact.errors import InputError
from mask_impact.models.loading import Reader
from mask_impact.prompts.encoding import layout_of
from mask_impact.prompts.group_files import read_groups
from mask_impact.prompts.groups import Group
from mask_impact.results.tokens import TokenTable


@dataclass(frozen=True)
class Unit:
    """Positions that are hidden together, ascending. kind: word, region, group, or that of a single token."""

    name: str
    positions: tuple[int, ...]
    kind: str


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


def _of_file(loaded: Reader, prompt: Prepared) -> tuple[Group, ...]:
    groups = tuple(read_groups(prompt.settings.groups, layout_of(loaded, prompt.encoded)))
    if whole := [group.name for group in groups if len(group.positions) == prompt.encoded.n_tokens]:
        raise InputError(f"group {whole[0]!r} is the whole prompt: nothing would be left to see; hide less")
    return groups
