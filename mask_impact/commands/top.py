"""The strongest tokens, layers or heads of a stored result, as a table.

Knows the command line, where results come from and tables; not what is in them.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, say, show
from mask_impact.commands.options import Groups, add_source, add_talk, count, whole_number
from mask_impact.errors import UsageError
from mask_impact.findings.impact import METRICS
from mask_impact.results.foreign import Results, read_results
from mask_impact.views.summary_json import table_entry, to_text
from mask_impact.views.tables import FORMATS, KINDS, Column, Table, effect_table, render, top_table
from mask_impact.views.text import quoted

MAX_PROMPTS = 64  # of a source that has several

EPILOG = """\
Tokens stand in quotation marks in every format, with line breaks and what can't be seen written out: a spreadsheet takes none
for a formula.

examples:
  mask-impact top output/vl_masking_results
  mask-impact top output/vl_masking_results --by head -k 10 --format markdown
  mask-impact top output/measured_with_effect --effect
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact top`."""
    add_source(parser)
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
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")
    add_talk(Groups(parser), quiet="leave out the remarks")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Which of a result's distances: --step, --metric, --variant."""
    parser.add_argument(
        "--step", metavar="N", type=count, default=0, help="the produced token, counted from 0 (default: %(default)s)"
    )
    parser.add_argument("--metric", choices=tuple(METRICS), default="l2", help="(default: %(default)s)")
    parser.add_argument(
        "--variant", metavar="NAME", help="Full, Attn or Head_0, ... (default: Full where it was measured)"
    )


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """The table on stdout; what the formats for programs have no place for, on stderr."""
    if args.effect and (args.by != "token" or args.variant is not None or args.metric != "l2"):
        raise UsageError(
            "--effect lists tokens by the change of the answer: --by, --metric and --variant are of distances"
        )
    results = read_results(args.source, args.grid, args.prompt_name)
    tables = list(_tables(results, args))
    if len(results) > len(tables) and not args.quiet:
        note(f"the first {len(tables)} of {len(results):,} prompts; `prompt_name` chooses another")
    if args.json:
        say(to_text([_entry(name, table) for name, table in tables]))
        return 0
    if args.format == "text":
        show("\n".join(render(table, "text") for _, table in tables).rstrip("\n"))
        return 0
    for name, table in tables:
        for told in () if args.quiet else table.notes:
            note(f"{quoted(name) + ': ' if len(tables) > 1 else ''}{told}")
    whole = tables[0][1] if len(tables) == 1 else _together(tables)
    show(render(whole, args.format).removesuffix("\n"))  # which ends the last row
    return 0


def _entry(name: str, table: Table) -> dict:
    names = [column.name for column in table.columns]
    return {"name": name} | table_entry(table.title, names, table.rows, table.notes)


def _tables(results: Results, args: argparse.Namespace) -> Iterator[tuple[str, Table]]:
    for name in islice(results, MAX_PROMPTS):
        result = results[name]
        for notice in () if args.quiet else result.meta.get("notices") or ():
            note(str(notice))
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
