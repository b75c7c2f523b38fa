"""Arguments that several commands have, most of them made from the settings. What is not given is None."""

import argparse
import math
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from mask_impact.analyses.kinds import MOST, MOST_LAYERS, YES_NO, number
from mask_impact.analyses.settings import SETTINGS, Place, RunSettings, Setting, of_class
from mask_impact.errors import UsageError
from mask_impact.results.foreign_tables import Grid, parse_grid

SHORT = {"num_tokens": "-n", "model": "-m"}


class Groups:
    """The argument groups of a parser by their headings, each made when it is first used."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser, self._groups = parser, {}

    def __getitem__(self, heading: str) -> Callable[..., Any]:
        if heading not in self._groups:
            self._groups[heading] = self._parser.add_argument_group(heading)
        return self._groups[heading].add_argument


def add_settings(
    groups: Groups,
    commands: Collection[str],
    *,
    short: bool = True,
    images: bool = True,
    leave_out: Collection[str] = (),
    **defaults: Any,
) -> None:
    """Flags of all settings that one of the commands takes. defaults: in words, where a command has another."""
    for one in (*of_class(RunSettings), *of_class(Place)):
        if set(one.commands) & set(commands) and one.name not in leave_out and (images or not one.images):
            add_setting(groups, one, short, defaults.get(one.name))


def add_setting(
    groups: Groups, one: Setting, short: bool = True, default: str | None = None, help: str | None = None
) -> None:
    """The flag of a setting. default, help: in words, where a command has others."""
    names = [SHORT[one.name], one.flag] if short and one.name in SHORT else [one.flag]
    text = f"{help or one.help}{f' (default: {default})' if default else _default(one)}".replace("%", "%%")
    if one.kind.accepted == YES_NO.accepted:
        action = argparse.BooleanOptionalAction if default else "store_true"  # what may be on can be switched off
        groups[one.heading](*names, action=action, default=None, help=text)
    else:
        groups[one.heading](*names, metavar=one.metavar, type=one.kind.parse, help=text)


def _default(one: Setting) -> str:
    """Its default in parentheses; nothing for what is off unless it is asked for."""
    if one.kind.accepted == YES_NO.accepted:
        return ""
    if one.default is None:
        return f" (default: {one.kind.null})"
    value = ",".join(one.default) if isinstance(one.default, tuple) else one.default
    return f" (default: {value})"


def given(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The settings of a class that stand on the command line, checked. SettingError."""
    values = {one.name: getattr(args, one.name, None) for one in of_class(settings)}
    return {name: SETTINGS[name].checked(value) for name, value in values.items() if value is not None}


# --- what is no setting ---------------------------------------------------------------------------------------------------


def add_prompt(groups: Groups, videos: bool = True) -> None:
    """The prompt, its images and, where the command takes them, its videos."""
    add = groups["what to analyse"]
    add(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the prompt, a ChatML conversation, a path ending in .txt, or - for standard input (default: prompt.txt)",
    )
    add_images(groups, "-i")
    if videos:
        add_videos(groups)


def add_images(groups: Groups, *short: str) -> None:
    """--image"""
    groups["what to analyse"](
        *short,
        "--image",
        metavar="FILE",
        action="append",
        help="an image, of any format that Pillow reads; repeatable. <image> in the prompt marks where each goes "
        "(default: all before the text)",
    )


def add_videos(groups: Groups) -> None:
    """--video"""
    groups["what to analyse"](
        "--video",
        metavar="FILE",
        action="append",
        help="a video: GIF, animated WebP, a folder of frames, or (with the extra video) MP4 and WebM; repeatable. <video> in "
        "the prompt marks where each goes (default: all before the text)",
    )


def add_output_name(groups: Groups, default: str | None, said: str, *short: str) -> None:
    """--output NAME. said: the default in words."""
    groups["output"](
        *short, "--output", metavar="NAME", default=default, help=f"name of the result's files (default: {said})"
    )


def add_pages(groups: Groups) -> None:
    """--plots and --report"""
    add_plots(groups, "draw NAME.layers.png, NAME.patches.png of the images, and NAME.card.png of what the answer used")
    groups["output"]("--report", action="store_true", help="write NAME.html, an interactive page of the result")


def add_plots(groups: Groups, said: str) -> None:
    """--plots. said: which pictures are drawn."""
    groups["output"]("--plots", action="store_true", help=said)


def add_layers(groups: Groups) -> None:
    """--layers LIST"""
    groups["what to analyse"](
        "--layers", metavar="LIST", help="the layers to hide tokens in, such as 0-35 or 3,5-9 (default: all)"
    )


def add_talk(
    groups: Groups, quiet: str = "print nothing but errors, and what --json asks for", loads: bool = False
) -> None:
    """What every command has: how much it says, and how. quiet: what --quiet does; loads: whether a model is loaded."""
    add = groups["what is printed"]
    add("--json", action="store_true", help="print the summary as JSON, and nothing else on stdout")
    add("-q", "--quiet", action="store_true", help=quiet)
    if loads:
        add(
            "-v",
            "--verbose",
            action="store_true",
            help="show all that was found, what the model is and where the time went",
        )
    add("--debug", action="store_true", help="show the traceback of an error")


def add_source(parser: argparse.ArgumentParser, **how: Any) -> None:
    """Where a stored result comes from: RESULT, and --grid for tables of others."""
    parser.add_argument(
        how.pop("name", "source"),
        metavar="RESULT",
        help=how.pop(
            "help",
            "a stored result (output/NAME), a .csv, .json or .parquet with the seven columns, or a dataset's folder",
        ),
        **how,
    )
    parser.add_argument(
        "--grid",
        metavar="ROWSxCOLS",
        type=grid,
        action="append",
        help="how the tokens <|image_pad|> of a table without a meta file lie; once for each image, or once for all "
        "(default: guessed)",
    )


# --- values ---------------------------------------------------------------------------------------------------------------


def count(text: str) -> int:
    """An int of at least 0."""
    return _whole(text, 0, MOST)


def above_zero(text: str) -> float:
    """A number above 0, MOST at most."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST:
        bound = f", at most {MOST:,}" if value > MOST else ""
        raise argparse.ArgumentTypeError(f"must be a number above 0{bound}, not {text!r}")
    return value


def whole_number(text: str) -> int:
    """An int of at least 1."""
    return _whole(text, 1, MOST)


def at_most(most: int) -> Callable[[str], int]:
    """Reads an int of at least 1, `most` at most."""
    return partial(_whole, low=1, most=most)


def _whole(text: str, low: int, most: int) -> int:
    digits = text.isascii() and text.isdigit()
    value = number(text) if digits else text
    if isinstance(value, str) or not low <= value <= most:
        bound = f" to {most:,}" if digits and value != 0 else ""
        raise argparse.ArgumentTypeError(f"must be a whole number from {low}{bound}, not {text!r}")
    return value


def grid(text: str) -> Grid:
    """(rows, columns)."""
    try:
        return parse_grid(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def layer_list(text: str | None) -> tuple[int, ...] | None:
    """3,5-9 as numbers; UsageError for anything else."""
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        if not found or not int(found[1]) <= int(found[2] or found[1]) < MOST_LAYERS:
            raise UsageError(f"--layers must be numbers and ranges such as 0-35 or 3,5-9, not '{text}'")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(layers)


def page_path(text: str) -> Path:
    """The file of a page; UsageError where its name does not say so."""
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--output {path} is a page: its name must end in .html")
    return path
