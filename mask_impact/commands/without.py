"""Generate the answer again with some tokens hidden from everything that reads them."""

import argparse
from pathlib import Path

from mask_impact.analyses.settings import ANSWER_TOKENS, WITHOUT
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.errors import UsageError
from mask_impact.results.answer_files import save_whatif
from mask_impact.results.names import WHATIF
from mask_impact.views.summary_json import whatif_entry

EPILOG = """\
SPEC says which tokens: image, image 0 rows 1-2, question, system, tokens 3-9, or a word of the
prompt. Each SPEC gives one more answer; join several with " + " to hide them together.

examples:
  mask-impact without "What color is the star?" star image \\
      -i examples/shapes.png -m demo
  mask-impact without "What color is the star?" "star + color" --layers 0-17
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact without`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    groups["what to analyse"]("spec", nargs="+", metavar="SPEC", help="the tokens to hide, one answer for each SPEC")
    options.add_layers(groups)
    options.add_settings(groups, [WITHOUT], num_tokens=f"{ANSWER_TOKENS}")
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Generates the answers, writes NAME.whatif.json and prints them side by side."""
    layers, specs = options.layer_list(args.layers), args.spec
    if args.prompt is None and caller.kind is None and not Path(single.DEFAULT_PROMPT_FILE).is_file():
        raise UsageError(
            f"{specs[0]!r} is taken for a SPEC, and there is no prompt: give one before it, or put one into "
            f"{single.DEFAULT_PROMPT_FILE}"
        )
    request = single.prepare(args, caller, command, lambda settings: [WHATIF], "without", num_tokens=ANSWER_TOKENS)

    def check(reader) -> None:
        from mask_impact.analyses.without import checked_layers, hidden_by

        prepared = request.prepared(reader)
        checked_layers(reader, layers)
        hidden_by(reader, prepared, specs)

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import without
        from mask_impact.views.answers import render_whatif

        found = without.run(
            loaded, request.prompt, specs, request.settings, layers, request.pictures, observer=request.observer
        )
        path = save_whatif(found, request.path, command, request.note_removed)
    request.answer(lambda: render_whatif(found, path), lambda: whatif_entry(found, path))
    return 0
