"""An interactive page of a result: one HTML file that opens from disk, with all of its numbers and no network.

Knows records, summary's rules and the templates; not how anything was measured. The page is made by Jinja2 from
`templates/`, its charts are drawn by plotly.js, which is inside the file as well. All texts of a prompt or a tokenizer
reach the page as JSON or through Jinja2's escaping, and a content security policy lets the browser run the page's own
script and plotly.js by their hashes, and load nothing.

Distances are float32 in blocks of [layer, position], one for each step, metric and variant, as base64 of gzip of: the
number of binary digits kept of the mantissa (a byte), the number of values (four bytes, lowest first), then the values'
bits, rotated left by one so that the exponent is a byte of its own, in planes: the first byte of all values, their
second byte, ..., and of a byte that is not kept whole each bit, eight values to a byte. Mantissas hardly compress. Where
a file would become larger than `max_megabytes`, the heads (not Full and Attn) are rounded to as many binary digits as
fit, and the page says so.

Where a result has effects on its produced tokens, they are blocks of the same layout, never rounded (see `_effect_values`);
what is counted from them beside the distances is computed in `agreement`, not on the page.
"""

import argparse
import base64
import gzip
import hashlib
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import mask_impact
from mask_impact.agreement import MEASURES, Apart, apart, how_measured, layer_agreement, step_effect, window_of
from mask_impact.console import print_line
from mask_impact.errors import UsageError
from mask_impact.files import without_suffix, write_files
from mask_impact.impact import step_impact
from mask_impact.reading import Grid, Results, parse_grid, read_results
from mask_impact.records import ImageRecord, Result, StepRecord
from mask_impact.summary import N_CANDIDATES, escape

MAX_MEGABYTES = 15.0
MAX_PROMPTS = 64  # in one page
EXACT, FEWEST = (
    23,
    7,
)  # binary digits behind the leading one: those of float32, and the fewest that still tell values apart
METRICS = ("l2", "cosine")
GZIP_WINDOW = 31  # what zlib calls the gzip format with its largest window
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("common.js", "report.js")  # in the order in which they run, as one script

EPILOG = """\
examples:
  python -m mask_impact report output/vl_masking_results
  python -m mask_impact report measured_elsewhere.parquet --grid 16x16 --output page.html
"""


@dataclass(frozen=True)
class Report:
    """html: the page, UTF-8. digits: how many binary digits the heads have (EXACT: all of them). notes: remarks for
    whoever asked for the page, one line each."""

    html: bytes
    digits: int
    notes: tuple[str, ...]


def write_report(
    source: Result | Mapping[str, Result] | str | os.PathLike,
    path: str | os.PathLike | None = None,
    *,
    grids: Sequence[Grid] | None = None,
    prompt_name: str | None = None,
    max_megabytes: float = MAX_MEGABYTES,
) -> Path:
    """Writes the page of a result, of several by name, or of what `read_results` finds at a path; returns its path.

    path: the HTML file (None: beside the source, which must be a path then); grids, prompt_name: see `read_results`.
    max_megabytes: heads are rounded where the file would be larger (see this module). Raises OutputError for what cannot
    be read or written, UsageError for a grid or prompt name that does not fit.
    """
    if isinstance(source, str | os.PathLike):
        path = default_path(source) if path is None else path
        source = read_results(source, grids, prompt_name)
    if path is None:
        raise UsageError("a report of a result in memory needs a path to be written to")
    return _write(build_report(source, max_megabytes), Path(path))


def default_path(source: str | os.PathLike) -> Path:
    """Where the page of a source goes: NAME.html for all files of NAME, or its folder."""
    source = Path(source)
    return source.parent / f"{without_suffix(source.name) or 'report'}.html"


def _write(report: Report, path: Path) -> Path:
    write_files({path: lambda file: file.write(report.html)})
    return path


# ---------------------------------------------------------------------------------------------------------------------
# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m mask_impact report`."""
    parser.add_argument(
        "source",
        metavar="RESULT",
        help="a stored result (output/NAME), a .csv, .json or .parquet with the seven columns, or a dataset's folder",
    )
    parser.add_argument("--output", metavar="FILE", help="the page (default: NAME.html beside the result)")
    parser.add_argument(
        "--grid",
        metavar="ROWSxCOLS",
        type=_grid,
        action="append",
        help="how the tokens <|image_pad|> of a table without a meta file lie; once for each image, or once for all "
        "(default: guessed)",
    )
    parser.add_argument("--prompt-name", metavar="NAME", help="only this one of several prompts")
    parser.add_argument(
        "--max-megabytes",
        metavar="MB",
        type=_megabytes,
        default=MAX_MEGABYTES,
        help="round the heads' distances where the page would be larger; Full and Attn are always exact (default: %(default)g)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _grid(text: str) -> Grid:
    try:
        return parse_grid(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _megabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """`python -m mask_impact report`: the path of the page on stdout, remarks on stderr."""
    path = Path(args.output) if args.output else default_path(args.source)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {path} is a page: its name must end in .html")
    report = build_report(read_results(args.source, args.grid, args.prompt_name), args.max_megabytes)
    _write(report, path)
    if not args.quiet:
        for note in report.notes:
            print_line(f"NOTE: {escape(note)}", sys.stderr)
        print_line(f"Report: {escape(str(path))} ({len(report.html) / 1e6:.1f} MB)", sys.stdout)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The page


def build_report(source: Result | Mapping[str, Result], max_megabytes: float = MAX_MEGABYTES) -> Report:
    """The page of a result, or of several by name; see `write_report`."""
    named = {_name_of(source): source} if isinstance(source, Result) else source
    results = {name: named[name] for name in islice(named, MAX_PROMPTS)}
    notes = [f"{name}: {note}" if len(results) > 1 else note for name, one in results.items() for note in _notices(one)]
    page_notes = []
    if len(named) > len(results):
        page_notes.append(f"The first {len(results)} of {len(named):,} prompts; --prompt-name chooses another one")
    plotly, licence = _plotly()
    prompts = [_prompt_entry(name, result) for name, result in results.items()]
    page = {
        "title": _title(results, source),
        "version": mask_impact.__version__,
        "plotly_licence": licence,
        "plotly": plotly.decode(),
        "plotly_hash": _plotly_hash(),
        "prompts": prompts,
    }
    effects = [(name, encode(values)) for name, values in _effect_values(list(results.values()))]
    room = max_megabytes * 1e6 - len(_render(page | {"blocks": effects, "notes": page_notes, "digits": EXACT})) - 500
    digits, blocks = _fitting_blocks(list(results.values()), room)
    blocks += effects
    if digits < EXACT:
        page_notes.append(
            f"To keep this file below {max_megabytes:g} MB, the distances of the heads are rounded to {digits + 1} binary "
            f"digits (relative error at most {_error(digits)}); Full and Attn are exact. --max-megabytes 1000 keeps all, as do "
            "the result's own files"
        )
    html = _render(page | {"blocks": blocks, "notes": page_notes, "digits": digits})
    if len(html) > max_megabytes * 1e6:
        page_notes.append(f"The page has {len(html) / 1e6:.1f} MB; fewer do not hold this result")
    return Report(html, digits, (*page_notes, *notes))


def _name_of(result: Result) -> str:
    return str(result.meta.get("name") or "result")


def _title(results: Mapping[str, Result], source: Any) -> str:
    if isinstance(source, Results):
        return without_suffix(Path(source.source).name) or source.source
    return next(iter(results), "result")


def _error(digits: int) -> str:
    return f"{100 * 2.0 ** -(digits + 1):.1g} %"


def _notices(result: Result) -> list[str]:
    notices = [str(notice) for notice in result.meta.get("notices") or ()]
    if any(step.l2.dtype != np.float32 for step in result.steps):
        notices.append("The distances were measured in float64; here they are rounded to float32")
    return notices


def _render(page: dict[str, Any]) -> bytes:
    """The page from its template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    script = _script()
    files = {"style": Markup(_template("report.css")), "script": Markup(script), "script_hash": _hash(script)}
    return environment.get_template("report.html").render(page | files).encode()


@cache
def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _script() -> str:
    return "\n".join(_template(name) for name in SCRIPTS)


def _hash(text: str) -> str:
    """The text's name in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _plotly() -> tuple[bytes, str]:
    """plotly.js as base64 of its gzip, and the licence notice at its top."""
    import plotly.offline

    text = plotly.offline.get_plotlyjs()
    notice = re.match(r"/\*\*(.*?)\*/", text, re.DOTALL)
    licence = " ".join(notice[1].replace("*", " ").split()) if notice else "plotly.js"
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)), licence


@cache
def _plotly_hash() -> str:
    import plotly.offline

    return _hash(plotly.offline.get_plotlyjs())


# ---------------------------------------------------------------------------------------------------------------------
# What the script gets as JSON


def _clean(text: str) -> str:
    """The text with lone surrogates as U+FFFD: the page is UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _prompt_entry(name: str, result: Result) -> dict[str, Any]:
    tokens = result.tokens
    return {
        "name": _clean(name),
        "about": [[label, _clean(value)] for label, value in _about(result)],
        "notices": [_clean(notice) for notice in _notices(result)],
        "generated": _clean(result.generated_text),
        "n_prompt": result.n_prompt,
        "n_layers": result.n_layers,
        "variants": list(result.variants),
        "texts": [_clean(text) for text in tokens.texts],
        "special": [position for position, kind in enumerate(tokens.kinds) if kind == "special"],
        # [position, image, row, column] of each image token
        "cells": [
            [int(position), *(int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))]
            for position in np.flatnonzero(tokens.image >= 0)
        ],
        "images": [_image_entry(image) for image in result.images],
        "sinks": [_sink_entry(result, position) for position in result.sinks],
        "effect": {"about": _clean(how_measured(result)), "window": window_of(result)} if result.has_effects else None,
        "steps": [_step_entry(result, step) for step in result.steps],
    }


def _about(result: Result) -> Iterator[tuple[str, str]]:
    meta, n_steps = result.meta, len(result.steps)
    for key in ("model", "dtype", "device", "mask_mode", "date"):
        if isinstance(meta.get(key), str):
            yield key.replace("_", " "), meta[key]
    yield (
        "size",
        f"{result.n_layers} layers, {result.n_prompt} prompt tokens, {n_steps} produced, {result.n_rows:,} rows",
    )


def _image_entry(image: ImageRecord) -> dict[str, Any]:
    return {
        "source": _clean(image.source),
        "size": list(image.size),
        "grid": list(image.grid),
        "preview": base64.b64encode(image.preview).decode(),
    }


def _sink_entry(result: Result, position: int) -> dict[str, Any]:
    """share: of the attention at the first step that has the position, null where there are no weights."""
    attention = next((step.attention for step in result.steps if position < step.n_positions), np.zeros(1))
    total = float(attention.sum())
    return {"position": int(position), "share": float(attention[position]) / total if total > 0 else None}


def _step_entry(result: Result, step: StepRecord) -> dict[str, Any]:
    """positions: null where all of the sequence's were masked."""
    effect = {"effect": _effect_entry(result, step.step)} if result.has_effects else {}
    return effect | {
        "text": _clean(step.token_text),
        "id": int(step.token_id),
        "n_positions": step.n_positions,
        "positions": step.positions.tolist() if len(step.positions) < step.n_positions else None,
        "candidates": [
            {"id": int(one.id), "text": _clean(one.text), "probability": float(one.probability)}
            for one in step.candidates[:N_CANDIDATES]
        ],
    }


def _effect_entry(result: Result, step: int) -> dict[str, Any]:
    """groups: [name, positions] of each, null where each position was hidden by itself. floors: by measure. top1_texts: by
    id. apart: by measure, metric and variant the two lists of `agreement.apart`, null for groups."""
    effect = step_effect(result, step)
    entry: dict[str, Any] = {
        "groups": None,
        "floors": dict(effect.floors),
        "likeliest": effect.likeliest,
        "top1_texts": {str(token): _clean(text) for token, text in effect.top1_texts.items()},
        "apart": None,
    }
    if not effect.by_position:
        pairs = zip(effect.names, effect.hidden, strict=True)
        return entry | {"groups": [[_clean(name), list(positions)] for name, positions in pairs]}
    sizes = {measure: effect.sizes(measure) for measure in MEASURES}

    def lists(metric: str, variant: str, measure: str) -> list[list[list[float]]]:
        impact = step_impact(result, step, variant, metric)
        return [[_apart_entry(one, impact.positions) for one in tokens] for tokens in apart(impact, sizes[measure])]

    return entry | {
        "apart": {
            measure: {metric: {name: lists(metric, name, measure) for name in result.variants} for metric in METRICS}
            for measure in MEASURES
        }
    }


def _apart_entry(one: Apart, positions: np.ndarray) -> list[float]:
    """[position, share, its rank, size, its rank], numbers with as many digits as are shown and some more."""
    share, size = (float(f"{number:.7g}") for number in (one.share, one.size))
    return [int(positions[one.place]), share, one.share_rank, size, one.size_rank]


# ---------------------------------------------------------------------------------------------------------------------
# Distances as text


def _effect_values(results: list[Result]) -> Iterator[tuple[str, np.ndarray]]:
    """(block's name, values) of each step that has effects: those of each measure and the most probable token's id, [layer,
    group]; and where each position was hidden by itself the norms, [layer, variant], and the rank correlations and how many
    tokens they are of, [measure, metric, variant, layer].

    All are float32, which holds an id exactly: a vocabulary has fewer than 2^24 tokens.
    """
    for number, result in enumerate(results):
        if not result.has_effects:
            continue
        for record in result.steps:
            effect = step_effect(result, record.step)
            name = f"e-{number}-{record.step}"
            for measure in MEASURES:
                yield f"{name}-{measure}", effect.values[measure]
            yield f"{name}-top1", effect.top1
            if not effect.by_position:
                continue
            yield f"{name}-norm", record.baseline_norm
            found = [
                layer_agreement(step_impact(result, record.step, variant, metric), effect, measure)
                for measure in MEASURES
                for metric in METRICS
                for variant in result.variants
            ]
            yield f"{name}-rho", np.array([rho for rho, _ in found])
            yield f"{name}-n", np.array([n for _, n in found])


def _fitting_blocks(results: list[Result], room: float) -> tuple[int, list[tuple[str, str]]]:
    """(digits of the heads, blocks as (name, text)) with the most digits whose blocks take no more than `room` bytes."""
    exact = dict(_blocks(results, EXACT))
    if _size(exact) <= room:
        return EXACT, list(exact.items())
    whole = {name: text for name, text in exact.items() if name not in _head_names(results)}
    fitting = room - _size(whole)
    # Digits cost the same in every block: a sample tells which number comes near, and the whole then decides.
    every = max(1, len(list(_head_blocks(results))) // 24)
    low, high = FEWEST, EXACT - 1
    while low < high:
        middle = (low + high + 1) // 2
        sample = [len(encode(values, middle)) for _, values in islice(_head_blocks(results), 0, None, every)]
        low, high = (middle, high) if every * sum(sample) <= fitting else (low, middle - 1)
    for digits in range(low, FEWEST - 1, -1):
        rounded = {name: encode(values, digits) for name, values in _head_blocks(results)}
        if _size(rounded) <= fitting or digits == FEWEST:
            return digits, list((whole | rounded).items())
    raise AssertionError("the loop ends with FEWEST")


def _size(blocks: Mapping[str, str]) -> int:
    markup = len('<script type="text/plain" id=""></script>\n')
    return sum(len(name) + len(text) + markup for name, text in blocks.items())


def _named_values(results: list[Result]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(block's name, variant, float [L, P]) of each block."""
    for number, result in enumerate(results):
        for step in result.steps:
            for metric in METRICS:
                distances = getattr(step, metric)
                for index, variant in enumerate(result.variants):
                    yield f"b-{number}-{step.step}-{metric}-{index}", variant, distances[:, :, index]


def _head_blocks(results: list[Result]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, values) for name, variant, values in _named_values(results) if variant.startswith("Head_"))


def _head_names(results: list[Result]) -> set[str]:
    return {name for name, _ in _head_blocks(results)}


def _blocks(results: list[Result], digits: int) -> Iterator[tuple[str, str]]:
    return ((name, encode(values, digits)) for name, _, values in _named_values(results))


def encode(values: np.ndarray, digits: int = EXACT) -> str:
    """Distances as text: float32, rounded to `digits` binary digits behind the leading one, in the layout that this
    module's head describes. NaN stays NaN; values below float32's normal range (1e-38) have fewer digits. A block with a
    negative number keeps all, since a sign has no place beside fewer."""
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
    if digits < EXACT and (values < 0).any():
        digits = EXACT
    if digits < EXACT:
        bits = _rounded(bits, digits)
    turned = (bits << np.uint32(1)) | (bits >> np.uint32(31))
    planes = turned.astype(">u4").view(np.uint8).reshape(-1, 4).T
    n_kept = 32 if digits == EXACT else 8 + digits
    parts = [np.array([digits], np.uint8), np.array([turned.size], "<u4").view(np.uint8), *planes[: n_kept // 8]]
    parts += [np.packbits((turned >> np.uint32(31 - place)) & np.uint32(1)) for place in range(n_kept // 8 * 8, n_kept)]
    compress = zlib.compressobj(6, zlib.DEFLATED, GZIP_WINDOW, strategy=zlib.Z_FILTERED)  # smallest for such bytes
    return base64.b64encode(compress.compress(np.concatenate(parts).tobytes()) + compress.flush()).decode()


def _rounded(bits: np.ndarray, digits: int) -> np.ndarray:
    """Bits of numbers that are not negative, rounded to nearest, ties to even."""
    dropped = np.uint32(EXACT - digits)
    half = (np.uint32(1) << (dropped - np.uint32(1))) - np.uint32(1) + ((bits >> dropped) & np.uint32(1))
    rounded = ((bits + half) >> dropped) << dropped
    infinite = np.uint32(0x7F800000)
    is_nan, overflows = (bits & np.uint32(0x7FFFFFFF)) > infinite, rounded >= infinite
    rounded = np.where(overflows, (bits >> dropped) << dropped, rounded)  # the largest would become infinite
    return np.where(is_nan, np.uint32(0x7FC00000), rounded).astype(np.uint32)
