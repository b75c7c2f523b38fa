"""An interactive page of a result: one HTML file that opens from disk, with all of its numbers and no network.

Knows the command line and where results come from; not how the page is made.
"""

import argparse
import math

from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, say
from mask_impact.commands.options import Groups, add_source, add_talk, page_path
from mask_impact.results.stored import read_stored
from mask_impact.views.report import MAX_MEGABYTES, build_report, default_path, save_report
from mask_impact.views.summary_json import to_text
from mask_impact.views.text import escape

EPILOG = """\
examples:
  mask-impact report output/vl_masking_results
  mask-impact report measured_elsewhere.parquet --grid 16x16 --output page.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact report`."""
    add_source(parser)
    parser.add_argument("--output", metavar="FILE", help="the page (default: NAME.html beside the result)")
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")
    parser.add_argument(
        "--max-megabytes",
        metavar="MB",
        type=_megabytes,
        default=MAX_MEGABYTES,
        help="round the heads' distances where the page would be larger; Full and Attn are always exact (default: %(default)g)",
    )
    add_talk(Groups(parser))


def _megabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """The path of the page on stdout, remarks on stderr."""
    path = page_path(args.output) if args.output else default_path(args.source)
    report = build_report(read_stored(args.source, args.grid, args.prompt_name), args.max_megabytes)
    save_report(report, path)
    if args.json:
        say(to_text({"page": str(path), "bytes": len(report.html), "notes": list(report.notes)}))
    elif not args.quiet:
        for remark in report.notes:
            note(remark)
        say(f"Report: {escape(str(path))} ({len(report.html) / 1e6:.1f} MB)")
    return 0
