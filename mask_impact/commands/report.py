"""An interactive page of a result: one HTML file that opens from disk, with all of its numbers and no network.

Knows the command line and where results come from; not how the page is made.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, say
from mask_impact.commands.options import Groups, above_zero, add_source, add_talk, page_path
from mask_impact.results.files import check_files
from mask_impact.results.stored import AllStored, joined, read_stored
from mask_impact.views.report import MAX_MEGABYTES, build_report, default_path, save_report
from mask_impact.views.summary_json import to_text

EPILOG = """\
examples:
  mask-impact report output/vl_masking_results
  mask-impact report output             all results of a folder, with a table
  mask-impact report output/questions   all prompts of a dataset, with a table
  mask-impact report measured_elsewhere.parquet --grid 16x16 --output page.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact report`."""
    add_source(
        parser,
        name="sources",
        nargs="+",
        help="a stored result (output/NAME) with all that is stored under its name, a .csv, .json or .parquet with the seven "
        "columns, or a folder of results or of a dataset; several are one page with a table of them",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the page (default: NAME.html beside the result; report.html for several)"
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")
    parser.add_argument(
        "--max-megabytes",
        metavar="MB",
        type=above_zero,
        default=MAX_MEGABYTES,
        help="round the heads' distances where the page would be larger; Full and Attn are always exact (default: %(default)g)",
    )
    add_talk(Groups(parser))


def _default_path(sources: Sequence[str]) -> Path:
    return default_path(sources[0]) if len(sources) == 1 else Path(sources[0]).parent / "report.html"


def _read(args: argparse.Namespace) -> AllStored:
    """What the sources have by prompt."""
    found = [read_stored(source, args.grid, args.prompt_name) for source in args.sources]
    return found[0] if len(found) == 1 else joined(found)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """The path of the page on stdout, remarks on stderr."""
    path = page_path(args.output) if args.output else _default_path(args.sources)
    found = _read(args)
    check_files([path])
    report = build_report(found, args.max_megabytes)
    save_report(report, path)
    if args.json:
        say(to_text({"page": str(path), "bytes": len(report.html), "notes": list(report.notes)}))
    elif not args.quiet:
        for remark in report.notes:
            note(remark)
        say(f"Report: {path} ({len(report.html) / 1e6:.1f} MB)")
    return 0
