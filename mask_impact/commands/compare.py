"""Stored results side by side: what each answer used and how deep it is read, then the local impact of every token.

Knows the command line and where results come from; not how they are compared, nor how that is told.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from mask_impact.analyses.kinds import MOST_LAYERS
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, remark, say, show
from mask_impact.commands.options import Groups, add_source, add_talk, at_most, count, page_path, whole_number
from mask_impact.commands.top import add_choices
from mask_impact.errors import UsageError
from mask_impact.findings.comparison import MAX_RESULTS, N_BANDS, N_PERMUTATIONS, Settings, compare_results
from mask_impact.results.files import check_files, without_suffix, write_files
from mask_impact.results.foreign import Results, read_results
from mask_impact.results.foreign_tables import Grid
from mask_impact.results.records import Result
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_page import build_page
from mask_impact.views.comparison_text import render

MOST_PERMUTATIONS = 100_000
MAX_IN_NAME = 40  # characters of a result's name in that of a page

EPILOG = """\
First comes a verdict: whether the answers are the same, which words and cells each of them used, and which result reads them
later. It needs results whose run measured what the answer used; for others it says what local impact alone can say.

Tokens are aligned by their texts in their order, patches of images by their cells where the grids are the same, layers by their
relative depth: one layer of few counts in several of the depth's bands, by overlap. The test of chance shuffles the tokens'
importances among the special tokens, among other texts, and among the patches of each image.

examples:
  mask-impact compare output/vl_masking_results output/masking_results
  mask-impact compare output/first output/second output/third --step 1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact compare`."""
    add_source(
        parser,
        name="sources",
        nargs="+",
        help="stored results (output/NAME), tables with the seven columns, or datasets' folders; the first is what the others "
        f"are held against (two to {MAX_RESULTS} results)",
    )
    add_choices(parser)
    parser.add_argument(
        "--bands",
        metavar="N",
        type=at_most(MOST_LAYERS),
        default=N_BANDS,
        help="parts of the depth (default: %(default)s)",
    )
    parser.add_argument(
        "--permutations",
        metavar="N",
        type=at_most(MOST_PERMUTATIONS),
        default=N_PERMUTATIONS,
        help="of the test of chance (default: %(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of the permutations (default: %(default)s)")
    parser.add_argument(
        "-k",
        metavar="N",
        type=whole_number,
        default=10,
        help="how many differing tokens are listed (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt-name",
        metavar="NAME",
        action="append",
        help="of sources that have several prompts, only this one; repeatable",
    )
    parser.add_argument("--keep-sinks", action="store_true", help="count attention sinks like any token")
    parser.add_argument("--output", metavar="FILE", help="the page (default: compare_A_B.html beside the first result)")
    parser.add_argument("--no-page", action="store_true", help="write no page")
    add_talk(Groups(parser))


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """The comparison on stdout, remarks on stderr, and the page."""
    if args.output and args.no_page:
        raise UsageError("--output names the page that --no-page leaves out")
    if args.output:
        page_path(args.output)
    results = read_sources(args.sources, args.prompt_name or (), args.grid)
    settings = Settings(args.step, args.metric, args.variant, args.bands, args.permutations, args.seed, args.keep_sinks)
    path = Path(args.output) if args.output else default_path(args.sources[0], list(results))
    if not args.no_page:
        check_files([path])
    comparison = compare_results(results, settings)
    if not args.no_page:
        page = build_page(comparison)
        write_files({path: lambda file: file.write(page)})
    if args.json:
        say(json.dumps(as_json(comparison), allow_nan=False))
    if args.quiet:
        return 0
    if not args.json:
        show(render(comparison, args.k).replace("`keep_sinks`", "--keep-sinks") + "\n" * (not args.no_page))
    for told in comparison.notes:
        note(told)
    if not args.no_page:
        (remark if args.json else say)(f"Side by side: {path}")
    return 0


def default_path(source: str, names: Sequence[str]) -> Path:
    """Where the page goes: beside the first source, named after the results."""
    parts = [re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[:MAX_IN_NAME] for name in names]
    more = [f"and_{len(parts) - 3}_more"] if len(parts) > 3 else []
    return Path(source).parent / f"compare_{'_'.join([*parts[:3], *more])}.html"


# ---------------------------------------------------------------------------------------------------------------------
# Which results


def read_sources(
    sources: Sequence[str], prompt_names: Sequence[str] = (), grids: Sequence[Grid] | None = None
) -> dict[str, Result]:
    """The results of all sources in their order, by names that tell them apart: the shortest of prompt, file and prompt,
    path and prompt. grids: of the images in tables that have no meta file. UsageError for too many results, one that is
    given twice, a prompt that no source has, or a grid that does not fit."""
    found = [(source, _read(source, grids)) for source in sources]
    missing = [name for name in prompt_names if not any(name in results for _, results in found)]
    if missing:
        raise UsageError(f"no source has a prompt {missing[0]!r}")
    wanted = [(source, results, name) for source, results in found for name in _wanted(results, prompt_names)]
    if len(wanted) > MAX_RESULTS:
        raise UsageError(
            f"{len(wanted)} results are more than {MAX_RESULTS}; --prompt-name chooses some of a source's prompts"
        )
    labels = list(zip(*(_labels(source, name) for source, _, name in wanted), strict=True))
    unique = next((names for names in labels if len(set(names)) == len(names)), None)
    if unique is None:
        twice = next(name for name in labels[-1] if labels[-1].count(name) > 1)
        raise UsageError(f"{twice} is given twice")
    return {label: results[name] for label, (_, results, name) in zip(unique, wanted, strict=True)}


def _read(source: str, grids: Sequence[Grid] | None) -> Results:
    """Grids are for those sources only that have images and do not say how these lie."""
    results = read_results(source)
    if grids:
        first = results[next(iter(results))]
        if first.images and "source" in first.meta:  # which names the table that a result was made from
            return read_results(source, grids)
    return results


def _wanted(results: Results, prompt_names: Sequence[str]) -> list[str]:
    """A source that has one result has no prompts to choose from."""
    if len(results) == 1 or not prompt_names:
        return list(results)
    return [name for name in results if name in prompt_names]


def _labels(source: str, name: str) -> tuple[str, str, str]:
    stem = without_suffix(Path(source).name) or source
    if name == stem:
        return stem, stem, source
    return name, f"{stem}: {name}", f"{source}: {name}"
