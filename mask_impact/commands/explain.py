"""What the answer used: which words, which cells of the image, and what becomes of it without them."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from mask_impact.analyses.settings import ANSWER_TOKENS, EXPLAIN
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.results.explanation_files import DEFAULT_FORMATS, save_explanation
from mask_impact.results.names import ANSWER
from mask_impact.views.explanation import render_explanation
from mask_impact.views.summary_json import explanation_entry

EPILOG = """\
Every token is estimated at once, from two backward passes. The strongest ones, and some drawn at
random to hold the estimates against, are really hidden from everything that reads them, in all
layers, and the smallest sets that decide the answer are looked for. --budget says how many
forward passes that may take.

examples:
  mask-impact explain "What color is the star?" -i examples/shapes.png -m demo
  mask-impact explain "What is the capital of France?" -m smollm2 --target Paris
  mask-impact explain "What color is it?" -i examples/shapes.png --instead blue
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact explain`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    options.add_settings(groups, [EXPLAIN], num_tokens=str(ANSWER_TOKENS))
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_plots(groups, "draw NAME.card.png, what the answer used on one page")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Explains the answer, writes NAME.answer.* and prints the strongest tokens."""
    return explained(args, caller, command, num_tokens=ANSWER_TOKENS)


def explained(args: argparse.Namespace, caller: Caller, command: str, **defaults: Any) -> int:
    """The same with other defaults of the settings."""
    request = single.prepare(args, caller, command, lambda settings: [ANSWER], "explain", **defaults)

    def check(reader) -> None:
        from mask_impact.analyses import explain

        explain.check(reader, request.prepared(reader))

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import explain

        found = explain.run(loaded, request.prompt, request.settings, request.pictures, observer=request.observer)
        formats = request.place.formats or DEFAULT_FORMATS
        removed: list[Path] = []
        paths = save_explanation(found, request.path, formats, command, removed.extend)
    if getattr(args, "plots", False):
        from mask_impact.views.pictures import save_card

        paths = (*paths, *save_card(replace(found, meta=found.meta | {"command": command}), request.path))
    request.note_removed(removed)
    request.answer(
        lambda: render_explanation(found, paths, verbose=args.verbose), lambda: explanation_entry(found, paths)
    )
    return 0
