"""Text for a terminal: escaped, so that no token can move the cursor, colour it or reorder a line, and as wide as asked for.

Knows no results but for the name of a token in one. A width is in columns: two for a wide character, none for a mark."""

import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from math import exp, log
from os import PathLike, fspath
from typing import Any

from mask_impact.results.records import Result
from mask_impact.results.tokens import CELLS, image_name

WIDTH = 80  # columns that every page of text fits in; paths are never broken
TOKEN_WIDTH = 22


def escape(text: str) -> str:
    """The text with everything that a terminal would act on written out (`\\n`, `\\x1b`, `\\u202e`); letters stay."""
    written = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}
    return "".join(written.get(char) or (char if char.isprintable() else _code(char)) for char in text)


def visible(text: str, kept: str = "") -> str:
    """Text of anywhere with everything that a terminal would act on written out, but for the characters `kept`. What is escaped
    already stays as it is: all text goes through here on its way out."""
    return "".join(char if char.isprintable() or char in kept else escape(char) for char in text)


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def quoted(text: str, width: int | None = None) -> str:
    """The escaped text in double quotes, cut with an ellipsis to `width` columns."""
    inner = escape(text).replace('"', '\\"')
    if width is not None and columns(inner) > width - 2:
        inner = _cut(inner, width - 3) + "…"
    return f'"{inner}"'


def columns(text: str) -> int:
    """How many terminal columns the text takes: two for a wide character, none for a combining mark."""
    return sum(_char_columns(char) for char in text)


def _char_columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _cut(text: str, width: int) -> str:
    """The longest beginning of the text that fits into `width` columns."""
    used = 0
    for index, char in enumerate(text):
        used += _char_columns(char)
        if used > width:
            return text[:index]
    return text


def cut(text: str, width: int) -> str:
    """The text, cut with an ellipsis to `width` columns."""
    return text if columns(text) <= width else _cut(text, width - 1) + "…"


def padded(text: str, width: int) -> str:
    """The text with spaces behind it, as wide as `width` columns of a terminal."""
    return text + " " * (width - columns(text))


def wrapped(text: str, indent: str = "  ", further: str | None = None) -> list[str]:
    """Lines of at most WIDTH columns, broken behind a space where there is one. further: the indent behind the first line."""
    further = indent if further is None else further
    lines: list[str] = []
    while columns(indent) + columns(text) > WIDTH:
        line = _cut(text, WIDTH - columns(indent))
        space = line.rstrip().rfind(" ")
        line = line[: space + 1] if space > 0 else line
        lines.append(indent + line.rstrip())
        text, indent = text[len(line) :], further
    return [*lines, (indent + text).rstrip()]


def fitted(lines: Iterable[str]) -> list[str]:
    """The lines, with those that are wider than WIDTH broken behind a space and moved in."""
    found: list[str] = []
    for line in lines:
        text = line.lstrip(" ")
        indent = " " * (len(line) - len(text))
        found += wrapped(text, indent, indent + "  ")
    return found


def token_label(result: Result, position: int, width: int = TOKEN_WIDTH) -> str:
    """How a token is named in text: quoted, or as its place in an image, [row, column]; without the image's number where there is
    one image and little width."""
    tokens = result.tokens
    if tokens.kinds[position] in CELLS and tokens.image[position] >= 0:
        image, row, column = (int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))
        name = image_name(result.images, image)
        label = f"{name} [{row}, {column}]"
        short = f"[{row}, {column}]" if len(result.images) == 1 else f"{name.removeprefix('image ')} [{row}, {column}]"
        return label if columns(label) <= width else _cut(short, width)
    return quoted(tokens.texts[position], width)


def percent(share: float) -> str:
    """A share as a percentage of fixed width with one decimal; what would round to nothing is `<0.1 %`."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def percent_after(probability: float, change: float) -> str:
    """What is left of a probability above 0 whose logarithm changes by so many nats."""
    return percent(exp(min(log(probability) + change, 0.0)))


def layers_counted(result: Result) -> str:
    """How many layers a result has numbers of: `36 layers`, or `12 of 48 layers`."""
    n, n_layers = len(result.layers), result.n_layers
    return f"{n} of {n_layers} layers" if n < n_layers else f"{n} layer{'s' * (n > 1)}"


def model_lines(meta: Mapping[str, Any]) -> list[str]:
    """What a meta file says of the model: notices first, then its name."""
    lines = [line for notice in meta.get("notices") or () for line in wrapped(f"Note: {escape(str(notice))}", "")]
    if isinstance(meta.get("model"), str):
        lines += wrapped(f"Model: {escape(meta['model'])}", "")
    return lines


def saved_lines(paths: Iterable[str | PathLike]) -> list[str]:
    """A line for each file that was written, the CSV first."""
    paths = sorted(map(fspath, paths), key=lambda path: not path.lower().endswith(".csv"))
    return [f"{'Also written:' if index else 'Results saved to:'} {escape(path)}" for index, path in enumerate(paths)]


def page_width() -> int:
    """Columns of the terminal, and WIDTH where there is none or it is smaller."""
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
