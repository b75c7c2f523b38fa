"""Which architectures are supported, and whether a checkpoint is, from its configuration alone."""

import argparse
from dataclasses import asdict

from mask_impact.commands import options
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import say, show, with_flags
from mask_impact.views.summary_json import to_text
from mask_impact.views.text import escape

EPILOG = """\
examples:
  mask-impact models
  mask-impact models ./my_checkpoint
"""


OTHERS = (
    "Other text and vision-language models of transformers are measured in the same way. Each kind of layer is proven on your",
    "checkpoint when it first runs. If it does not prove sound, you get one line and no numbers. What can be asked of them:",
    "  run, without                  in layers with a softmax attention",
    "  explain, evidence, knockout,  of models whose layers can run again by themselves",
    "  run --effect",
    "  verify                        how exact all of it is on your checkpoint, and why something is not to be had",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact models`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a hub id, a folder, a .gguf file, demo or smollm2")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model of the hub")
    options.add_talk(options.Groups(parser))


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Lists the families, or describes one checkpoint; the exit code is 1 where that one is not supported."""
    from mask_impact.models.families import describe_model, families

    found = families() if args.model is None else describe_model(args.model, args.revision)
    if args.json:
        say(to_text([asdict(one) for one in found] if args.model is None else asdict(found)))
    elif not args.quiet:
        show("\n".join(_listed(found) if args.model is None else _described(found)))
    return 1 if args.model is not None and found.problem else 0


def _listed(known) -> list[str]:
    lines = [f"  {one.model_type:<14}{one.kind:<6}{one.examples}" for one in known]
    return [
        "Architectures that everything is tested on (model_type, kind, examples):",
        *lines,
        *OTHERS,
    ]


def _described(found) -> list[str]:
    if found.problem:
        return [f"{escape(found.name)}: not supported", f"  {escape(found.problem)}"]
    return [
        f"{escape(found.name)}: "
        + ("supported" if found.listed else "measured, where it proves sound when it first runs"),
        f"  architecture {found.model_type}, {found.n_layers} layers, {found.n_heads} heads, hidden size {found.hidden_size}, "
        f"{found.dtype or 'dtype unknown'},",
        f"  context of {found.context} tokens" if found.context else "  context without a limit in its configuration",
        *(f"  {escape(with_flags(line))}" for line in found.how),
    ]
