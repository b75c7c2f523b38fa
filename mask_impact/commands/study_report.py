"""What holds over the prompts of a study: means with intervals, groups beside each other, from the stored tables alone.

Knows the command line; not what is in the tables, nor how it is told.
"""

import argparse
from pathlib import Path

from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, remark, say, show
from mask_impact.commands.options import Groups, add_talk, count
from mask_impact.errors import OutputError, UsageError
from mask_impact.findings.correctness import COLUMNS, MATCHES
from mask_impact.findings.over_prompts import Question, over_prompts
from mask_impact.results.files import check_files, write_files
from mask_impact.results.remote import Place, place_of
from mask_impact.studies.reading import find_study
from mask_impact.views.figure_files import figure_path, save_figure
from mask_impact.views.report import build_report
from mask_impact.views.study_page import build_study_page
from mask_impact.views.study_plot import study_figure
from mask_impact.views.study_tables import TABLES, as_csv, as_json
from mask_impact.views.study_text import render
from mask_impact.views.summary_json import to_text

PAGE, CARDS = "report.html", "cards.html"

EPILOG = """\
DIR is the folder that `mask-impact study` wrote: NAME with the tables of a dataset, or the folder of the results of a
configuration. No model is loaded. The numbers are those of each prompt, averaged over prompts: a prompt of many tokens counts
once. Groups are tested by permutation, and p is corrected after Holm.

examples:
  mask-impact study report output/questions --by category,correct
  mask-impact study report output/qwen --against output/gemma --output-dir both
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact study report`."""
    parser.add_argument("source", metavar="DIR", help="the folder that a study wrote")
    parser.add_argument(
        "--by",
        metavar="COLUMNS",
        help="group the prompts by columns that the dataset carried along, with commas between them; correct is whether the "
        "answer is the expected one",
    )
    parser.add_argument(
        "--against", metavar="DIR", help="a second study, for the same prompts by their names where it has them"
    )
    parser.add_argument(
        "--expected",
        metavar="COLUMN",
        help=f"the column of the expected answer (default: the first of {', '.join(COLUMNS)} that is there)",
    )
    parser.add_argument(
        "--match",
        choices=MATCHES,
        default=MATCHES[0],
        help="when an answer is correct, but for case, spaces and the mark at its end (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=count, default=0, help="of resamples and permutations (default: %(default)s)"
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="where report.html, the tables report.*.csv and the cards of the prompts that are named (cards.html) go (default: "
        "DIR.report)",
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="also draw flows by layer, parts of the images' features and pixels, with a line or bar for each group, to publish: "
        "a .pdf, .svg or .png",
    )
    add_talk(Groups(parser))


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """The summary on stdout, remarks on stderr, and the files."""
    by = tuple(name.strip() for name in (args.by or "").split(",")) if args.by is not None else ()
    if not all(by) or len(set(by)) < len(by):
        raise UsageError(f"--by must be different names of columns with commas between them, not {args.by!r}")
    studies = [find_study(place_of(source)) for source in (args.source, args.against) if source is not None]
    if len({one.place.resolve() for one in studies}) < len(studies):
        raise UsageError(f"--against {args.against} is the same study")
    folder = Path(args.output_dir) if args.output_dir else _beside(studies[0].place)
    paths = {name: folder / f"report.{name}.csv" for name in TABLES} | {"page": folder / PAGE, "cards": folder / CARDS}
    figure = figure_path(args.figure) if args.figure else None
    check_files(paths.values())
    prompts = {one.source: [*one.prompts()] for one in studies}
    for source, found in prompts.items():
        if not found:
            raise OutputError(f"{source} has no prompt that can be read")
    over = over_prompts(prompts, Question(by, args.expected, args.match, args.seed))
    tables = {paths[name]: as_csv(over, name) for name in TABLES}
    cards = studies[0].cards(over.named)
    if cards:
        tables[paths["cards"]] = build_report(cards).html
    tables[paths["page"]] = build_study_page(
        over, folder, {name: f"{CARDS}#prompt={at}" for at, name in enumerate(cards)}
    )
    write_files({path: lambda file, content=content: file.write(content) for path, content in tables.items()})
    if figure is not None:
        save_figure(lambda: study_figure(over), figure)
    notes = [*(text for one in studies for text in one.notes), *over.notes]
    if args.json:
        say(to_text(as_json(over) | {"notes": notes, "files": [str(path) for path in tables]}))
    elif not args.quiet:
        show(render(over))
    if figure is not None and not args.quiet:
        (remark if args.json else say)(f"Figure: {figure}")
    if not args.quiet:
        beside = f", and the named prompts' cards ({CARDS})," if cards else ""
        for told in notes:
            note(told)
        (remark if args.json else say)(
            f"Report: {paths['page']}, and {len(TABLES)} tables report.*.csv{beside} beside it"
        )
    return 0


def _beside(source: Place) -> Path:
    """Where the report goes. UsageError for a study that is not on this machine."""
    if not isinstance(source, Path):
        raise UsageError(f"{source} is not on this machine: say with --output-dir where the report goes")
    return _beside_path(source)


def _beside_path(source: Path) -> Path:
    """A folder of its own, as a dataset's other tables have one: whoever reads all files of DIR finds what the study wrote."""
    whole = source if source.name else source.resolve()
    return whole.with_name(f"{whole.name}.report")
