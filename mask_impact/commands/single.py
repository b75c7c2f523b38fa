"""What the commands about one prompt do alike: check what was asked for, load the model, say and write what came of it.

Everything that can be refused without a model is refused before one is loaded; what needs its tokenizer, before its weights.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mask_impact.analyses.settings import GROUPS, Place, RunSettings
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import did_you_mean, launched, say, show, with_flags
from mask_impact.commands.narration import Progress, silence
from mask_impact.commands.options import given
from mask_impact.errors import InputError, UsageError
from mask_impact.prompts.marks import check_image_marks, check_prompt
from mask_impact.results.files import check_output, read_prompt_file
from mask_impact.results.inputs import PROMPT, as_text, read_stream
from mask_impact.results.names import Kind, suffixes
from mask_impact.results.siblings import removal
from mask_impact.studies.writer import sole_writer
from mask_impact.views.summary_json import to_text

DEFAULT_PROMPT_FILE = "prompt.txt"


@dataclass(frozen=True)
class Request:
    """One prompt's run as asked for. path: of the results, without suffix; command: the whole command line; say, show: print
    a line that is not an answer, and lines of views that are."""

    caller: Caller
    settings: RunSettings
    place: Place
    prompt: str
    pictures: tuple[Any, ...]
    path: Path
    command: str
    observer: Progress
    say: Callable[[str], None]
    show: Callable[[str], None]
    as_json: bool

    def prepared(self, reader: Any) -> Any:
        """The prompt as the model's tokenizer or processor makes it; refuses what doesn't fit, see analyses.prepared."""
        from mask_impact.analyses.prepared import prepare

        return prepare(reader, self.prompt, self.settings, self.pictures)

    def note_removed(self, paths: Iterable[Path]) -> None:
        """Names what lay there of an earlier run, was removed and not written again."""
        for remark in removal(paths):
            self.observer.note(remark)

    def answer(self, text: Callable[[], str], data: Callable[[], Any]) -> None:
        """What the run found, as text or as JSON."""
        if self.as_json:
            say(to_text(data()))
        else:
            self.show(f"\n{text()}")


def prepare(
    args: argparse.Namespace,
    caller: Caller,
    command: str,
    kinds: Callable[[RunSettings], Iterable[Kind]],
    title: str | None = None,
    **defaults: Any,
) -> Request:
    """The request, with its title printed (None: by its mask mode). kinds: what is going to be written; defaults: of settings
    that are not given."""
    if launched()[1] > 1:
        raise UsageError("a single prompt takes one process: start it without a launcher")
    settings = RunSettings(**defaults | given(args, RunSettings))
    images, videos = getattr(args, "image", None) or [], getattr(args, "video", None) or []
    if settings.mask_mode == "vision" and not images and not videos:
        raise UsageError("--mask-mode vision needs an image or a video: give --image FILE or --video FILE")
    if settings.groups not in (None, *GROUPS) and not os.path.isfile(settings.groups):
        raise UsageError(
            f"--groups takes tokens, words or a YAML file of groups, and '{settings.groups}' is none of them"
            f"{did_you_mean(settings.groups, GROUPS)}"
        )
    prompt, place = read_prompt(args.prompt, caller), Place(**given(args, Place))
    drawn, page = getattr(args, "plots", False), getattr(args, "report", False)
    path = check_output(place.output_dir, args.output, suffixes(kinds(settings), place.formats, drawn, page))
    pictures = _read_pictures(caller, images, videos, prompt, settings)
    silent = args.quiet or args.json
    request = Request(
        caller, settings, place, prompt, pictures, path, command, Progress(args.quiet, args.verbose),
        silence if silent else say, silence if silent else show, args.json,
    )  # fmt: skip
    title = caller.titles[title or (settings.mask_mode if pictures else "no image")]
    request.say(title)
    request.say("=" * len(title))
    return request


@contextmanager
def opened(request: Request, check: Callable[[Any], object]) -> Iterator[Any]:
    """The model, while nobody else writes the results. check: refuses, by the tokenizer alone, what can't be done."""
    with sole_writer(request.path.parent, request.path.name, [request.path.name]):
        loaded = load_model(request.caller, request.place, request.observer, request.say, check)
        request.observer.on_begin = lambda n_tokens: request.say(f"Analyzing initial prompt ({n_tokens} tokens)...")
        started = time.perf_counter()
        with request.observer:
            yield loaded
        request.observer.detail(f"measured and written in {time.perf_counter() - started:.1f} s")


def load_model(
    caller: Caller, place: Place, observer: Progress, say: Callable[[str], None], check: Callable | None = None
) -> Any:
    """The model that was asked for, with what is said of it."""
    observer.note(f"Loading model {place.model or caller.default_model} ...")
    started = time.perf_counter()
    loaded = load_from(place, caller.kind, check, progress_bars=not observer.quiet and sys.stderr.isatty())
    if loaded.note:
        observer.note(f"NOTE: {loaded.note}.")
    observer.detail(
        f"{type(loaded.model).__name__}, {loaded.model.dtype}, on {loaded.model.device}, loaded in "
        f"{time.perf_counter() - started:.1f} s"
    )
    say("Model loaded successfully!")
    say(f"Text model layers: {loaded.config.get_text_config().num_hidden_layers}")
    return loaded


def load_from(place: Place, kind: str | None, check: Callable | None = None, progress_bars: bool = False) -> Any:
    """The model of a place, and nothing is printed. A worker elsewhere calls this, too."""
    from mask_impact.models import loading  # heavy from here on: torch and transformers

    loading.quieten(progress_bars=progress_bars)
    loaded = loading.load(
        place.model, kind=kind, device=place.device, dtype=place.dtype, revision=place.revision,
        device_map=place.device_map, check=check,
    )  # fmt: skip
    return replace(loaded, note=loaded.note and with_flags(loaded.note))  # as it is stored with a result, too


class _Enough(Exception):
    """The tokenizer is read; the weights are not needed."""


def read_without_weights(caller: Caller, place: Place) -> Any:
    """The reader of a place's model."""
    found = []

    def check(reader: Any) -> None:
        found.append(reader)
        raise _Enough

    with suppress(_Enough):
        load_from(place, caller.kind, check)
    return found[0]


def read_prompt(argument: str | None, caller: Caller) -> str:
    """The prompt that the argument gives: itself, or the content of the file if it is a path ending in .txt; None stands for
    prompt.txt, and - for standard input, but not for the scripts. InputError for a file or a prompt that cannot be used."""
    if argument is None:
        if not Path(DEFAULT_PROMPT_FILE).is_file():
            given = '--prompt "..." (or --prompt FILE.txt)' if caller.kind else "one, a path ending in .txt, or -"
            raise UsageError(f"no prompt: give {given}, or put one into {DEFAULT_PROMPT_FILE}")
        argument = DEFAULT_PROMPT_FILE
    if argument == "-" and caller.kind is None:
        prompt = _read_stdin()
    else:
        prompt = read_prompt_file(argument) if _is_path(argument) else argument
    check_prompt(prompt)
    return prompt


def _is_path(argument: str) -> bool:
    """Whether a prompt is the path of one: it ends in .txt, and is no sentence that ends so: one with spaces that is no file, and
    in no folder that is there."""
    if not argument.endswith(".txt") or "\n" in argument:
        return False
    folder = os.path.dirname(argument)
    return " " not in argument or os.path.isfile(argument) or (folder != "" and os.path.isdir(folder))


def _read_stdin() -> str:
    """Read as a prompt file is: UTF-8, any line ends, no line breaks at the ends."""
    try:
        data = read_stream(getattr(sys.stdin, "buffer", sys.stdin), PROMPT)
        return as_text(data if isinstance(data, bytes) else data.encode()).strip("\n")
    except UnicodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start}); give it as UTF-8") from None
    except (OSError, AttributeError) as error:  # AttributeError: it is closed, and None
        reason = getattr(error, "strerror", None) or "it is closed"
        raise InputError(f"standard input can't be read: {reason}; give a prompt") from None


def _read_pictures(
    caller: Caller, images: list[str], videos: list[str], prompt: str, settings: RunSettings
) -> tuple[Any, ...]:
    """The images and, behind them, the videos."""
    if caller.kind == "text":
        return ()
    if images or videos or caller.kind == "vl":
        check_image_marks(prompt, len(images), len(videos))
    if not images and not videos:
        return ()
    from mask_impact.prompts.videos import read_visuals

    return read_visuals(images, videos, settings)
