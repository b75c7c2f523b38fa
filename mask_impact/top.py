"""The strongest tokens, layers or heads of a stored result, as a table.

Knows the command line, where results come from and tables; not what is in them.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from mask_impact.console import print_line
from mask_impact.errors import UsageError
from mask_impact.impact import METRICS
from mask_impact.reading import Grid, Results, parse_grid, read_results
from mask_impact.summary import escape, quoted
from mask_impact.tables import FORMATS, KINDS, Column, Table, effect_table, render, top_table

MAX_PROMPTS = 64  # of a source that has several

EPILOG = """\
Tokens stand in quotation marks in every format, with line breaks and what can't be seen written out: a spreadsheet takes none
for a formula.

examples:
  python -m mask_impact top output/vl_masking_results
  python -m mask_impact top output/vl_masking_results --by head -k 10 --format markdown
  python -m mask_impact top output/measured_with_effect --effect
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m mask_impact top`."""
    parser.add_argument(
        "source",
        metavar="RESULT",
        help="a stored result (output/NAME), a .csv, .json or .parquet with the seven columns, or a dataset's folder",
    )
    parser.add_argument("--by", choices=KINDS, default="token", help="what the rows are (default: %(default)s)")
    parser.add_argument("-k", metavar="N", type=whole_number, default=20, help="most rows (default: %(default)s)")
    add_choices(parser)
    parser.add_argument(
        "--effect",
        action="store_true",
        help="tokens by what hiding them does to the produced token, where a run with --effect measured it",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="how the table is written (default: %(default)s)"
    )
    parser.add_argument(
        "--grid",
        metavar="ROWSxCOLS",
        type=grid,
        action="append",
        help="how the tokens <|image_pad|> of a table without a meta file lie (default: guessed)",
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Which of a result's distances: --step, --metric, --variant."""
    parser.add_argument(
        "--step", metavar="N", type=count, default=0, help="the produced token, counted from 0 (default: %(default)s)"
    )
    parser.add_argument("--metric", choices=tuple(METRICS), default="l2", help="(default: %(default)s)")
    parser.add_argument(
        "--variant", metavar="NAME", help="Full, Attn or Head_0, ... (default: Full where it was measured)"
    )


def count(text: str) -> int:
    """An int of at least 0."""
    return _at_least(text, 0)


def whole_number(text: str) -> int:
    """An int of at least 1."""
    return _at_least(text, 1)


def _at_least(text: str, low: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < low:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low}, not {text!r}")
    return int(text)


def grid(text: str) -> Grid:
    """(rows, columns)."""
    try:
        return parse_grid(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """`python -m mask_impact top`: the table on stdout; what the formats for programs have no place for, on stderr."""
    if args.effect and (args.by != "token" or args.variant is not None or args.metric != "l2"):
        raise UsageError(
            "--effect lists tokens by the change of the answer: --by, --metric and --variant are of distances"
        )
    results = read_results(args.source, args.grid, args.prompt_name)
    tables = list(_tables(results, args))
    if len(results) > len(tables):
        print_line(
            f"NOTE: the first {len(tables)} of {len(results):,} prompts; --prompt-name chooses another", sys.stderr
        )
    if args.format == "text":
        print_line("\n".join(render(table, "text") for _, table in tables).rstrip("\n"), sys.stdout)
        return 0
    for name, table in tables:
        for note in table.notes:
            print_line(f"NOTE: {quoted(name) + ': ' if len(tables) > 1 else ''}{note}", sys.stderr)
    whole = tables[0][1] if len(tables) == 1 else _together(tables)
    print_line(render(whole, args.format).removesuffix("\n"), sys.stdout)  # which ends the last row
    return 0


def _tables(results: Results, args: argparse.Namespace) -> Iterator[tuple[str, Table]]:
    for name in islice(results, MAX_PROMPTS):
        result = results[name]
        for notice in result.meta.get("notices") or ():
            print_line(f"NOTE: {escape(str(notice))}", sys.stderr)
        if args.effect:
            table = effect_table(result, args.k, step=args.step)
        else:
            table = top_table(result, args.by, args.k, step=args.step, metric=args.metric, variant=args.variant)
        if len(results) > 1:
            table = replace(table, title=f"{quoted(name)}: {table.title}")
        yield name, table


def _together(tables: list[tuple[str, Table]]) -> Table:
    """The tables of several prompts as one, with the prompt's name in a column before the others.

    They have the columns of the one that has most: a prompt without an image has no cells to name.
    """
    names: list[Column] = max((table.columns for _, table in tables), key=len)
    rows = []
    for prompt, table in tables:
        places = {column.name: place for place, column in enumerate(table.columns)}
        for row in table.rows:
            rows.append((prompt, *(row[places[column.name]] if column.name in places else None for column in names)))
    return Table("", (Column("prompt", "token"), *names), tuple(rows), ())
