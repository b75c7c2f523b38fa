"""The tables that people ask for first: which tokens, layers or heads of a result matter most, as text, CSV or Markdown.

Knows records, impact and how token texts are made safe; not where a result comes from. Texts of tokens are the same in all
formats: in quotation marks, with everything written out that can't be seen. So a cell of a CSV file never begins with
= + - or @ because a token does, and a token that has line breaks stays in its row.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_impact.errors import UsageError
from mask_impact.findings.agreement import Effect, step_effect, where_hidden, window_of
from mask_impact.findings.impact import Impact, largest, mean_over, step_impact
from mask_impact.results.records import Result
from mask_impact.results.tokens import image_name, original_box_of
from mask_impact.views.text import TOKEN_WIDTH, columns, escape, fitted, percent, quoted, token_label

KINDS = ("layer", "token", "head")
FORMATS = ("text", "csv", "markdown")
N_STRONGEST = 3  # layers named for a token, tokens named for a layer
ROOM = 42  # columns for the latter in a line of WIDTH
NAMED_TOKEN = 13  # columns for a token within a line of others
MOST_TOKEN = 18  # columns for a token in a text table
LEAST_TOKEN = 14  # columns of a text table for tokens, so that tables of the same result look alike


CELL_COLUMNS = ("image", "row", "col", "box")


class Cell(str):
    """The place of an image's cell, as it stands in place of a token's text."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """kind: what its cells are, and with it how they are written: `count` (int), `share` (0 to 1), `number` (float),
    `token` (a token's text), `name` (of a prompt or variant), `text` (safe already). An empty cell is None."""

    name: str
    kind: str


@dataclass(frozen=True)
class Table:
    """title: one line, and notes: lines that say how to read it, both safe for a terminal."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# What is in them


def top_table(
    result: Result, by: str, k: int = 20, *, step: int = 0, metric: str = "l2", variant: str | None = None
) -> Table:
    """At most k rows, strongest first, for the token produced at `step`; attention sinks are left out.

    by `token`: share (the token's part of the impact of all layers, as in the summary), mean impact, and
    the layers with its largest shares. by `layer`: the sum of the impacts of its tokens, and its strongest tokens. by
    `head`: the (layer, head) pairs with the largest impact of a single token, and that token. An impact is L2 over the
    norm of the unmasked quantity, or cosine distance; where a result has no norms it is L2 as it is, and a note says so.
    variant: None is the result's first, usually `Full`. UsageError for what the result does not have.
    """
    if by == "head":
        if variant is not None:
            raise UsageError("`variant` chooses what `by` token and `by` layer show; `by` head shows all heads")
        return _by_head(result, k, step, metric)
    if by not in KINDS:
        raise UsageError(f"a table is by {', '.join(KINDS)}, not {by!r}")
    impact = step_impact(result, step, result.variants[0] if variant is None else variant, metric)
    make = _by_token if by == "token" else _by_layer
    names, rows = make(result, impact, k)
    title = f"Strongest {by}s for {_produced(result, step)} ({_name(impact.variant)}, {impact.unit}):"
    return Table(title, tuple(names), tuple(rows), tuple(_notes(result, impact, by)))


def _by_token(result: Result, impact: Impact, k: int) -> tuple[list[Column], Iterator[tuple]]:
    shares = impact.shares()
    scores, means = impact.scores(), mean_over(impact.relative(), axis=0)
    names = [Column("rank", "count"), *_token_columns(result), Column("share", "share"), Column(impact.unit, "number")]

    def rows() -> Iterator[tuple]:
        for rank, place in enumerate(largest(scores, k), start=1):
            layers = ", ".join(str(layer) for layer in largest(shares[:, place], N_STRONGEST))
            position = int(impact.positions[place])
            yield rank, *_token_cells(result, position), float(scores[place]), float(means[place]), layers

    return [*names, Column("strongest layers", "text")], rows()


def _by_layer(result: Result, impact: Impact, k: int) -> tuple[list[Column], Iterator[tuple]]:
    shares = impact.shares()
    sums = impact.totals()

    def rows() -> Iterator[tuple]:
        for rank, layer in enumerate(largest(sums, k), start=1):
            norm = None if impact.norms is None else float(impact.norms[layer])
            yield rank, layer, float(sums[layer]), norm, _strongest(result, impact.positions, shares[layer])

    names = [Column("rank", "count"), Column("layer", "count"), Column(f"sum of {impact.unit}", "number")]
    return [*names, Column("norm", "number"), Column("strongest tokens (share of the layer)", "text")], rows()


def _strongest(result: Result, positions: np.ndarray, shares: np.ndarray) -> str:
    """The tokens with the largest shares (float64 [P]) of a layer in one line: at most N_STRONGEST, as many as there is
    room for."""
    line = ""
    for place in largest(shares, N_STRONGEST):
        position = int(positions[place])
        one = f"{position} {token_label(result, position, NAMED_TOKEN)} {percent(float(shares[place]))}"
        if line and columns(line) + len("; ") + columns(one) > ROOM:
            break
        line += f"; {one}" if line else one
    return line


def _by_head(result: Result, k: int, step: int, metric: str) -> Table:
    heads = [name for name in result.variants if name.startswith("Head_")]
    if not heads:
        raise UsageError(f"the result has no heads, only {', '.join(result.variants)}; `variants` heads measures them")
    impacts = [step_impact(result, step, name, metric) for name in heads]
    comparable = all(impact.comparable for impact in impacts)
    unit = impacts[0].unit if comparable else "L2"
    values = np.stack(
        [impact.relative() if comparable else impact.distances for impact in impacts], axis=1
    )  # [L, H, P]
    values = np.where(impacts[0].counted, values, np.nan)
    shares = np.stack([impact.shares() for impact in impacts], axis=1)
    best = np.max(np.nan_to_num(values, nan=0), axis=2, initial=0)
    rows = []
    for rank, pair in enumerate(largest(best.reshape(-1), k), start=1):
        layer, head = divmod(pair, len(heads))
        place = int(np.nanargmax(values[layer, head]))
        cells = _token_cells(result, int(impacts[0].positions[place]))
        share = float(shares[layer, head, place])
        rows.append((rank, layer, heads[head], float(best[layer, head]), *cells, share))
    names = [Column("rank", "count"), Column("layer", "count"), Column("head", "name"), Column(unit, "number")]
    names += [*_token_columns(result), Column("share", "share")]
    title = f"Strongest heads for {_produced(result, step)}, each by its strongest token ({unit}):"
    return Table(title, tuple(names), tuple(rows), tuple(_notes(result, impacts[0], "head")))


def effect_table(result: Result, k: int = 20, *, step: int = 0) -> Table:
    """At most k tokens, or groups that were hidden together: those that the token produced at `step` hangs on most, each by
    the layer where hiding it (there, or in the window around it) changes the produced token's log-probability most, up or down.

    Only changes above the noise floor count, and attention sinks like any token: what hiding them does to the answer is
    measured. `becomes` is the most probable token then, where it is another. UsageError for a result without effects.
    """
    if not 0 <= step < len(result.steps):
        raise UsageError(f"step {step} is not there: the result has steps 0 to {len(result.steps) - 1}")
    effect = step_effect(result, step)
    if effect is None:
        raise UsageError("the result has no effects on the produced token: run it again with `effect`")
    sizes, change, kl = effect.sizes("logprob"), effect.values["logprob"], effect.values["kl"]
    layers = np.argmax(np.nan_to_num(sizes, nan=-1), axis=0)
    best = sizes[layers, np.arange(len(layers))]
    rows = []
    for rank, place in enumerate(largest(best, k), start=1):
        at = int(layers[place]), place
        becomes = effect.top1_texts[int(effect.top1[at])] if effect.changed[at] else None
        layer = None if window_of(result) == "all" else at[0]
        rows.append((rank, *_hidden_cells(result, effect, place), layer, float(change[at]), float(kl[at]), becomes))
    hidden = [Column("pos", "text"), Column("group", "token"), Column("tokens", "count")]
    names = [
        Column("rank", "count"),
        *(_token_columns(result) if effect.by_position else hidden),
        Column("layer", "count"),
    ]
    names += [Column("log-prob.", "number"), Column("KL", "number"), Column("becomes", "token")]
    what = "a token" if effect.by_position else "a group of tokens"
    title = (
        f"Strongest effects on {_produced(result, step)}, of hiding {what} from {escape(where_hidden(result))} (nats):"
    )
    everything = {position for positions in effect.hidden for position in positions}
    notes = [f"Attention sink: {_label(result, one)} at position {one}" for one in result.sinks if one in everything]
    n_none, n_measured = int((best == 0).sum()), int(np.isfinite(best).sum())
    if n_none:
        floor = f"{effect.floors['logprob']:.3g} nats"
        notes.append(f"{n_none:,} of {n_measured:,} have no effect above the noise floor, {floor}")
    return Table(title, tuple(names), tuple(rows), tuple(notes))


def _hidden_cells(result: Result, effect: Effect, place: int) -> tuple[Any, ...]:
    """What was hidden: a token and where it is, or a group's positions, its name and how many tokens it has."""
    positions = effect.hidden[place]
    if effect.by_position:
        return _token_cells(result, positions[0])
    first, last = min(positions), max(positions)
    return (str(first) if first == last else f"{first}-{last}"), effect.names[place], len(positions)


def _token_columns(result: Result) -> list[Column]:
    """The cell of an image, and its box in pixels of the original, have columns where there are images."""
    names = [Column("pos", "count"), Column("token", "token")]
    if result.images:
        names += [*(Column(name, "count") for name in ("image", "row", "col")), Column("box", "text")]
    return names


def _token_cells(result: Result, position: int) -> tuple[Any, ...]:
    tokens = result.tokens
    cells: tuple[Any, ...] = (position, tokens.texts[position])
    if not result.images:
        return cells
    if tokens.image[position] < 0:
        return *cells, None, None, None, None
    image, row, column = (int(numbers[position]) for numbers in (tokens.image, tokens.row, tokens.column))
    box = ", ".join(f"{edge:.0f}" for edge in original_box_of(tokens, result.images, [position]))
    return *cells, image, row, column, box


def _label(result: Result, position: int) -> str:
    """A token within a line of others."""
    tokens = result.tokens
    if tokens.image[position] >= 0:
        return f"{image_name(result.images, int(tokens.image[position]))} [{tokens.row[position]}, {tokens.column[position]}]"
    return quoted(tokens.texts[position], TOKEN_WIDTH)


def _produced(result: Result, step: int) -> str:
    text = result.steps[step].token_text
    return f"produced token {step}" + (f", {quoted(text, TOKEN_WIDTH)}" if text else "")


def _name(variant: str) -> str:
    """A variant's name as it is; quoted where it is none of this program's."""
    return variant if re.fullmatch(r"Full|Attn|Head_\d+", variant) else quoted(variant, TOKEN_WIDTH)


def _notes(result: Result, impact: Impact, by: str) -> Iterator[str]:
    for position in result.sinks:
        if position in impact.positions:
            yield f"Attention sink, left out: {_label(result, position)} at position {position}"
    if not impact.comparable:
        same = "heads" if by == "head" else "layers"
        yield f"The result has no norms of the unmasked quantity: its L2 distances can't be compared between {same}"


# ---------------------------------------------------------------------------------------------------------------------
# How they are written


def render(table: Table, form: str) -> str:
    """The table in one of FORMATS, with an end of line behind every row. Only `text` has title and notes."""
    return {"text": _text, "csv": _csv, "markdown": _markdown}[form](table)


def _plain(value: Any, kind: str) -> str:
    """A cell for reading."""
    if value is None:
        return ""
    writers: dict[str, Callable[[Any], str]] = {
        "share": percent,
        "number": lambda number: f"{number:.3g}",
        "token": lambda text: quoted(text, TOKEN_WIDTH),
        "name": _name,
    }
    return writers.get(kind, str)(value)


def _exact(value: Any, kind: str) -> str:
    """A cell for programs: numbers with all digits, a token's text whole."""
    if value is None:
        return ""
    writers: dict[str, Callable[[Any], str]] = {"share": repr, "number": repr, "token": quoted, "name": _name}
    return writers.get(kind, str)(value)


def _text(table: Table) -> str:
    """At most WIDTH columns: a cell of an image is named by its place, and its box is left to the other formats."""
    table = _without_cells(table)
    kinds = [column.kind for column in table.columns]
    lines = [[column.name for column in table.columns]]
    lines += [[_short(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in table.rows]
    least = [LEAST_TOKEN if kind == "token" else 0 for kind in kinds]
    widths = [max(width, *(columns(line[place]) for line in lines)) for place, width in enumerate(least)]
    left = [kind in ("token", "name", "text") for kind in kinds]
    written = []
    for line in lines:
        padded = [_padded(*cell) for cell in zip(line, widths, left, strict=True)]
        written.append(f"  {'  '.join(padded)}".rstrip())
    body = written if table.rows else ["  none: nothing had any impact"]
    return "".join(f"{line}\n" for line in [*fitted([table.title]), *body, *fitted(table.notes)])


def _without_cells(table: Table) -> Table:
    """The table with each cell of an image in the column of tokens, in place of four columns of their own."""
    places = {column.name: place for place, column in enumerate(table.columns)}
    if "box" not in places:
        return table
    kept = [place for place, column in enumerate(table.columns) if column.name not in CELL_COLUMNS]
    image, row, column, token = (places[name] for name in ("image", "row", "col", "token"))
    several = len({values[image] for values in table.rows} - {None}) > 1
    rows = []
    for values in table.rows:
        cells = list(values)
        if cells[image] is not None:
            cells[token] = Cell(f"image {cells[image]} " * several + f"[{cells[row]}, {cells[column]}]")
        rows.append(tuple(cells[place] for place in kept))
    return Table(table.title, tuple(table.columns[place] for place in kept), tuple(rows), table.notes)


def _short(value: Any, kind: str) -> str:
    """A cell of a text table."""
    if isinstance(value, Cell):
        return value
    return quoted(value, MOST_TOKEN) if kind == "token" and value is not None else _plain(value, kind)


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text


def _csv(table: Table) -> str:
    """RFC 4180: CR LF behind every row, quotation marks doubled within quoted cells."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(column.name for column in table.columns)
    for row in table.rows:
        writer.writerow(_exact(value, column.kind) for value, column in zip(row, table.columns, strict=True))
    return file.getvalue()


def _markdown(table: Table) -> str:
    """A table as GitHub reads it. Texts are code: no markup of theirs counts there, and only a | ends a cell."""
    aligned = ["---" if column.kind in ("token", "name", "text") else "---:" for column in table.columns]
    lines = [[column.name for column in table.columns], aligned]
    for row in table.rows:
        cells = zip(row, table.columns, strict=True)
        lines.append([_markdown_cell(_plain(value, column.kind), column.kind) for value, column in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(text: str, kind: str) -> str:
    if not text or kind not in ("token", "name", "text"):
        return text
    # Code stands between more backticks than any run of them within it, and a space where it begins or ends with one.
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}".replace("|", "\\|")
