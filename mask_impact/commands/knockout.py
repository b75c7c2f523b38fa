"""Cut flows from some tokens to others, layer by layer, and see what becomes of the answer."""

import argparse

from mask_impact.analyses.settings import KNOCKOUT, RunSettings
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.errors import UsageError
from mask_impact.results.flow_files import DEFAULT_FORMATS, save_flows
from mask_impact.results.names import FLOWS
from mask_impact.views.summary_json import knockouts_entry

EPILOG = """\
A flow is "SOURCE -> TARGET": the tokens of SOURCE are hidden from the queries of TARGET, in
a window of layers around each layer. Both are what a group may be: image, question, system,
last (where the next token is produced), a word of the prompt, image 0 rows 1-2, tokens 3-9.
Without a flow: image -> question, image -> last, question -> last.

examples:
  mask-impact knockout "What color is the star?" -i examples/shapes.png -m demo
  mask-impact knockout "What color is the star?" "image -> last" \\
      "star -> last" -i examples/shapes.png
  mask-impact knockout "What color is the star?" --flows flows.yaml --window 5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact knockout`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    add = groups["what to analyse"]
    add("flow", nargs="*", metavar="FLOW", help='flows such as "image -> last" (default: the three named below)')
    add(
        "--flows",
        metavar="FILE",
        help="a YAML file with flows, each with source and target, and perhaps name and heads",
    )
    options.add_settings(groups, [KNOCKOUT], leave_out=["window"])
    window = options.SETTINGS["window"]
    options.add_setting(groups, window, default="9", help="cut each flow in K layers around each layer")
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Cuts the flows, writes NAME.flows.* and prints what became of the answer."""
    flows = _flows(args)
    if options.given(args, RunSettings).get("window") == "all":
        raise UsageError("a knockout slides a window over the depth: give it a number of layers (--window 9)")
    request = single.prepare(args, caller, command, lambda settings: [FLOWS], "knockout")
    window = None if args.window is None else request.settings.window

    def check(reader) -> None:
        from mask_impact.analyses.knockout import plan

        plan(reader, request.prepared(reader), flows, window)

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import knockout
        from mask_impact.views.flows import picture_of, render_flows

        found = knockout.run(
            loaded, request.prompt, flows, request.settings, window, request.pictures, observer=request.observer
        )
        formats = request.place.formats or DEFAULT_FORMATS
        paths = save_flows(found, request.path, formats, command, picture_of(found), request.note_removed)
    request.answer(lambda: render_flows(found, paths), lambda: knockouts_entry(found, paths))
    return 0


def _flows(args: argparse.Namespace):
    """The flows that are asked for; None for the predefined ones."""
    from mask_impact.prompts.group_files import WINDOW, FlowSet, read_flows
    from mask_impact.results.flows import Flow

    if args.flow and args.flows is not None:
        raise UsageError("flows are given either as text or in a file (--flows), not both")
    if args.flows is not None:
        return read_flows(args.flows)
    try:
        return FlowSet(WINDOW, tuple(Flow.parsed(text) for text in args.flow)) if args.flow else None
    except ValueError as error:
        raise UsageError(str(error)) from None
