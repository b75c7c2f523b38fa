"""A figure to publish, of a stored result: PDF, SVG or PNG, as wide as a paper asks, without a browser.

Knows the command line and where results come from; not how anything is drawn.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from mask_impact.commands.caller import Caller
from mask_impact.commands.compare import default_path as compared_path
from mask_impact.commands.compare import read_sources
from mask_impact.commands.console import note, say
from mask_impact.commands.options import Groups, add_source, add_talk, count
from mask_impact.errors import OutputError, UsageError
from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.findings.impact import METRICS
from mask_impact.results.deepstack import DeepstackEffects
from mask_impact.results.explanations import Explanation
from mask_impact.results.files import name_and_kind
from mask_impact.results.patches import PatchEffects
from mask_impact.results.records import Result
from mask_impact.results.stored import Stored, read_stored, stem_of
from mask_impact.results.tower import TowerEffects
from mask_impact.views.card_figure import card_figure
from mask_impact.views.comparison_plot import comparison_figure
from mask_impact.views.deepstack_plot import deepstack_figure
from mask_impact.views.estimates_plot import ESTIMATES, estimates_figure
from mask_impact.views.figure_files import WIDTHS, figure_path, figure_width, save_figure
from mask_impact.views.layers_plot import layers_figure
from mask_impact.views.patches_plot import patches_figure
from mask_impact.views.pixels import pixels_figure
from mask_impact.views.plots import caption_of
from mask_impact.views.routes_plot import flows_strips, routes_figure
from mask_impact.views.summary_json import to_text
from mask_impact.views.tower_plot import tower_figure

# What each kind shows, and which of the choices it takes.
KINDS = {
    "card": ("what the answer used: words, cells, the strongest, the evidence", ("target",)),
    "map": (
        "what each token gives in each layer, or its local impact",
        ("shown", "target", "step", "variant", "metric", "grid", "prompt_name"),
    ),
    "routes": ("which flows of tokens carry the answer, in which layers", ("target", "step")),
    "patches": ("each image under the impact of its patches", ("step", "variant", "metric", "grid", "prompt_name")),
    "pixels": ("each image under what replacing the pixels of regions does", ("target",)),
    "deepstack": ("what each part of an image's features does", ("target",)),
    "tower": ("what the vision tower's layers read, and what matters to the answer", ("target",)),
    "compare": ("several results side by side", ("step", "variant", "metric", "grid", "prompt_name")),
}

EPILOG = """\
kinds:
{}

Widths: column, 3.35 inches, is one of two columns (ACL, ICML, IEEE); text, 5.5 inches, a page of one column (NeurIPS,
ICLR); page, 6.9 inches, both columns. A PDF has its fonts embedded, an SVG its texts as shapes, a PNG has 300 dots per
inch. The same result gives the same bytes.

examples:
  mask-impact figure card output/vl_masking_results
  mask-impact figure map output/vl_masking_results -o map.svg --width column
  mask-impact figure compare output/first output/second -o both.pdf
""".format("\n".join(f"  {name:<11}{about}" for name, (about, _) in KINDS.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact figure`."""
    parser.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=f"{', '.join(KINDS)} (see below)")
    add_source(
        parser,
        name="sources",
        nargs="+",
        help="a stored result (output/NAME), what `explain`, `knockout`, `pixels`, `deepstack` or `tower` stored, or a table "
        "with the seven columns; for compare two or more",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a .pdf, .svg or .png (default: NAME.KIND.pdf beside the result)"
    )
    widths = ", ".join(f"{name} ({inches:g})" for name, inches in WIDTHS.items())
    parser.add_argument(
        "--width", metavar="WIDTH", type=_width, default=WIDTHS["page"], help=f"{widths} or inches (default: page)"
    )
    parser.add_argument(
        "--shown",
        choices=(*ESTIMATES, "impact"),
        help="of map: contribution (estimated, wherever a layer reads a token), estimate (hiding it from the last position in "
        "one layer) or the measured local impact (default: contribution where it was stored)",
    )
    parser.add_argument(
        "--target",
        metavar="N",
        type=count,
        help="of all but patches and compare: which target of the answer, from 0 (default: 0)",
    )
    parser.add_argument(
        "--step", metavar="N", type=count, help="the produced token, from 0 (default: all for map and patches, else 0)"
    )
    parser.add_argument("--metric", choices=tuple(METRICS), help="the distances (default: l2)")
    parser.add_argument(
        "--variant", metavar="NAME", help="Full, Attn or Head_0, ... (default: Full where it was measured)"
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")
    add_talk(Groups(parser))


def _width(text: str) -> float:
    try:
        return figure_width(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Draws the figure and writes its file; the path on stdout."""
    _check_choices(args)
    path = figure_path(args.output) if args.output else None
    draw, default = _drawing(args)
    path = path or default
    size = save_figure(draw, path)
    if args.json:
        say(to_text({"figure": str(path), "kind": args.kind, "width": args.width, "bytes": size}))
    elif not args.quiet:
        say(f"Figure: {path} ({size / 1e3:.0f} kB)")
    return 0


def _check_choices(args: argparse.Namespace) -> None:
    """UsageError for a choice that the kind does not take."""
    takes = KINDS[args.kind][1]
    for name in ("shown", "target", "step", "metric", "variant", "grid", "prompt_name"):
        if getattr(args, name) is not None and name not in takes:
            *kinds, last = (kind for kind, (_, choices) in KINDS.items() if name in choices)
            of = f"{', '.join(kinds)} and {last}" if kinds else last
            raise UsageError(f"--{name.replace('_', '-')} is of {of}, not of {args.kind}")
    if args.kind != "compare" and len(args.sources) > 1:
        raise UsageError(f"{args.kind} shows one result, not {len(args.sources)}; compare takes several")


def _drawing(args: argparse.Namespace) -> tuple[Callable[[], Any], Path]:
    """What draws the figure, and the file that it goes to unless another is asked for."""
    source = args.sources[0]
    if args.kind == "compare":
        prompts = () if args.prompt_name is None else (args.prompt_name,)
        results = read_sources(args.sources, prompts, args.grid)
        comparison = compare_results(results, Settings(args.step or 0, args.metric or "l2", args.variant))
        return partial(comparison_figure, comparison, args.width), compared_path(source, list(results)).with_suffix(
            ".pdf"
        )
    stem = _stem(source)
    stored = _stored(args)
    kinds = {"card": _card, "map": _map, "routes": _routes, "patches": _patches}
    draw = (kinds | {"pixels": _pixels, "deepstack": _deepstack, "tower": _tower})[args.kind](args, stem.name, stored)
    return draw, stem.with_name(f"{stem.name}.{args.kind}.pdf")


def _stem(source: str) -> Path:
    """The name of a result, without what follows it in the names of its files."""
    return stem_of(source) if Path(source).name else Path(source).resolve()


def _stored(args: argparse.Namespace) -> Stored:
    """What is stored under the name, of one prompt."""
    source = args.sources[0]
    found = read_stored(source, args.grid, args.prompt_name)
    if len(found) > 1:
        name = next(iter(found))
        raise UsageError(f"{source} has {len(found)} prompts; --prompt-name chooses one, such as {name!r}")
    stored = found[next(iter(found))]
    for remark in () if args.quiet else stored.notes:
        note(remark)
    return stored


# --- the kinds --------------------------------------------------------------------------------------------------------------


def _card(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    if stored.answer is None:
        _lacks(name, "card", 'ask what the answer used with "mask-impact explain" (or "run" without --no-answer)')
    return partial(card_figure, stored.answer, _target(args, stored.answer), args.width)


def _routes(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    """Those of an explained answer; of cut flows where the source names their files or there are no others."""
    answer, flows = stored.answer, stored.flows
    of_flows = name_and_kind(Path(args.sources[0]).name)[1] == "flows" or args.step is not None
    if flows is not None and (of_flows or answer is None or not any(target.routes for target in answer.targets)):
        if args.target is not None:
            raise UsageError("--target is of an explained answer; of cut flows --step chooses the produced token")
        _check_number("step", args.step or 0, len(flows.steps))
        return partial(flows_strips, flows, args.step or 0, args.width)
    if args.step is not None:
        raise UsageError(
            "--step is of flows that knockout has cut; --target chooses what of an explained answer is shown"
        )
    number = 0 if answer is None else _target(args, answer)
    if answer is None or not answer.targets[number].routes:
        _lacks(name, "routes", 'run it again with --routes auto, or cut flows with "mask-impact knockout"')
    return partial(routes_figure, answer, number, args.width)


def _map(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    """Of estimates by layer where there are any and nothing of distances was asked for; else of distances."""
    of_distances = next((one for one in ("step", "variant", "metric", "grid") if getattr(args, one) is not None), None)
    if args.shown in ESTIMATES and of_distances:
        raise UsageError(f"--{of_distances} is of the local impact; of estimates --target chooses what is shown")
    if args.target is not None and (args.shown == "impact" or of_distances):
        raise UsageError("--target is of estimates; of the local impact --step chooses the produced token")
    answer = stored.answer
    has_estimates = answer is not None and any(target.by_layer for target in answer.targets)
    if args.shown in ESTIMATES or args.target is not None or (has_estimates and not args.shown and not of_distances):
        number = 0 if answer is None else _target(args, answer)
        if answer is None or answer.targets[number].by_layer is None:
            _lacks(name, "estimates by layer", 'ask again with "mask-impact run"')
        shown, caption = args.shown or "contribution", caption_of(answer.meta)
        return partial(estimates_figure, answer, number, shown=shown, width=args.width, caption=caption)
    what, how = _distances(args, name, stored)
    return partial(layers_figure, *what, **how)


def _patches(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    """Of distances, or of replaced pixels where there is nothing else."""
    of_distances = any(getattr(args, one) is not None for one in ("step", "variant", "metric"))
    if stored.result is None and stored.patches is not None and not of_distances:
        return _pixels(args, name, stored)
    what, how = _distances(args, name, stored)
    if not any((what[0].tokens.image[step.positions] >= 0).any() for step in what[0].steps):
        _lacks(
            name,
            "patches",
            "no token of an image was hidden; run it again with an image, and not with --mask-mode text",
        )
    return partial(patches_figure, *what, **how)


def _pixels(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    if (found := stored.patches) is None:
        _lacks(name, "pixels", 'replace the pixels of regions with "mask-impact pixels"')
    return partial(pixels_figure, found, _target(args, found), args.width, caption_of(found.meta))


def _deepstack(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    if (found := stored.deepstack) is None:
        _lacks(name, "parts of features", 'take them away with "mask-impact deepstack"')
    return partial(deepstack_figure, found, _target(args, found), args.width)


def _tower(args: argparse.Namespace, name: str, stored: Stored) -> Callable[[], Any]:
    if (found := stored.tower) is None:
        _lacks(name, "vision tower", 'ask what its layers read with "mask-impact tower"')
    return partial(tower_figure, found, _target(args, found), args.width)


def _distances(args: argparse.Namespace, name: str, stored: Stored) -> tuple[tuple[Result, int | None], dict[str, Any]]:
    """What the two pictures of distances take."""
    if (result := stored.result) is None:
        _lacks(name, args.kind, 'measure the impact of its tokens with "mask-impact run"')
    if args.step is not None:
        _check_number("step", args.step, len(result.steps))
    if args.variant is not None and args.variant not in result.variants:
        raise UsageError(f"--variant {args.variant} is not there; the result has {', '.join(result.variants)}")
    how = {"variant": args.variant, "metric": args.metric or "l2", "width": args.width}
    return (result, args.step), how | {"caption": caption_of(result.meta)}


def _target(args: argparse.Namespace, found: Explanation | PatchEffects | DeepstackEffects | TowerEffects) -> int:
    _check_number("target", args.target or 0, len(found.targets))
    return args.target or 0


def _check_number(what: str, number: int, n: int) -> None:
    if number >= n:
        there = "only 0 is" if n == 1 else f"there are 0 to {n - 1}"
        raise UsageError(f"--{what} {number} is not there; {there}")


def _lacks(name: str, kind: str, what_to_do: str) -> NoReturn:
    raise OutputError(f"{name} has no {kind}: {what_to_do}")
