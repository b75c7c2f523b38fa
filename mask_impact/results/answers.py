"""The answer with nothing hidden beside those with tokens hidden, as data. Knows records only."""

from dataclasses import dataclass
from typing import Any

from mask_impact.results.tokens import TokenTable


@dataclass(frozen=True)
class Answer:
    """What the model produces with some tokens hidden (or none).

    spec: what was hidden, as it was asked for (None: nothing); positions: where that is. token_ids, token_texts: what was
    produced, an end token included; probabilities: of each produced token, when it was produced; text: without special
    tokens. probability: of the first token of the answer with nothing hidden. differs_at: the first produced token that
    is another one than with nothing hidden, None where the answers are the same.
    """

    spec: str | None
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    probabilities: tuple[float, ...]
    text: str
    probability: float
    differs_at: int | None


@dataclass(frozen=True)
class WhatIf:
    """The answer with nothing hidden, and the others; layers: in which tokens were hidden; tokens: the prompt's."""

    answer: Answer
    others: tuple[Answer, ...]
    layers: tuple[int, ...]
    tokens: TokenTable
    n_layers: int
    meta: dict[str, Any]
