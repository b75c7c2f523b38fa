"""Every produced token by the words of the prompt, as an HTML table without a script. Knows explanations."""

from dataclasses import dataclass

import numpy as np

from mask_impact.results.explanations import Explanation
from mask_impact.results.tokens import image_name
from mask_impact.views.card import Card
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import rendered, shown

MOST_COLUMNS, MOST_ROWS = 40, 64  # that are drawn


@dataclass(frozen=True)
class Column:
    """A word, or all cells of an image. values: float [T], the contribution to each produced token, log-odds."""

    name: str
    values: np.ndarray


def matrix_html(found: Explanation) -> str:
    """The table, empty where there is no matrix: the words that contribute most to some token, in the prompt's order."""
    if found.matrix is None:
        return ""
    columns = _columns(found, found.matrix[:MOST_ROWS])
    strongest = sorted(range(len(columns)), key=lambda place: -float(abs(columns[place].values).max()))[:MOST_COLUMNS]
    drawn = [columns[place] for place in sorted(strongest)]
    largest = max((float(abs(one.values).max()) for one in drawn), default=0.0) or 1.0
    texts = found.tokens.texts[found.n_prompt :][:MOST_ROWS]
    rows = [
        (shown(text), [(round(abs(one.values[row]) / largest, 3), *_said(one, row, text)) for one in drawn])
        for row, text in enumerate(texts)
    ]
    left_out = max(len(columns) - len(drawn), 0), max(len(found.matrix) - MOST_ROWS, 0)
    return rendered("matrix.html", {"columns": drawn, "rows": rows, "left_out": left_out})


def _said(column: Column, row: int, text: str) -> tuple[str, str]:
    """(tone, tip) of a cell of the table."""
    value = float(column.values[row])
    return "for" if value <= 0 else "against", f"{shown(column.name)} for {shown(text)}: {nats(value, False)}"


def _columns(found: Explanation, matrix: np.ndarray) -> list[Column]:
    """Of the prompt's content: words by their tokens together, images by all of their cells."""
    card, columns = Card(found), []
    for image in range(len(found.images)):
        cells = np.flatnonzero(found.tokens.image[: found.n_prompt] == image)
        columns.append((int(cells[0]), Column(image_name(found.images, image), matrix[:, cells].sum(axis=1))))
    for place in dict.fromkeys(word.place for word in card.words if word.place is not None):
        positions = list(card.target.positions[place])
        name = card.target.names[place].strip() or card.target.names[place]
        columns.append((positions[0], Column(name, matrix[:, positions].sum(axis=1))))
    return [column for _, column in sorted(columns, key=lambda one: one[0])]
