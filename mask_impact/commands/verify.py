"""Measure how exact the numbers are on your model, against really masking."""

import argparse
from dataclasses import asdict

from mask_impact.analyses.settings import MOST_CHECKS, Place
from mask_impact.commands import options
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import say, show
from mask_impact.commands.narration import Progress, silence
from mask_impact.commands.single import load_model
from mask_impact.errors import ranges
from mask_impact.views.summary_json import to_text
from mask_impact.views.text import escape, quoted

EACH_LINE = 4  # layers
EPILOG = """\
Some random (step, layer, token) of two short prompts, and of one with an image, are measured
again by running a float32 copy of the layer with the token really masked. The largest
relative difference must be within the bound: 1e-3 in float32 (the default here), 0.1 in
bfloat16, 0.02 in float16. In float32 some tokens are also hidden in the whole model, which
is what effects on the answer are held against. This works for every model whose local impact
can be measured; quantised weights are written out, and may need --dtype auto. It says which
layers have no attention, and why a model has no effects.
Paste the output into a bug report.

examples:
  mask-impact verify demo
  mask-impact verify Qwen/Qwen3-VL-4B-Instruct --dtype bfloat16 --device cuda
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact verify`."""
    parser.add_argument("model", metavar="MODEL", help="a hub id, a folder, a .gguf file, demo or smollm2")
    parser.add_argument(
        "-k",
        metavar="N",
        type=options.at_most(MOST_CHECKS),
        default=12,
        help="how many of each prompt, of each layer one at least (default: %(default)s)",
    )
    groups = options.Groups(parser)
    for name in ("device", "device_map", "dtype", "revision"):
        options.add_setting(groups, options.SETTINGS[name], default="float32" if name == "dtype" else None)
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Prints what was measured and the verdict; the exit code is 1 where the bound does not hold."""
    place = Place(**{"dtype": "float32"} | options.given(args, Place))
    observer = Progress(quiet=args.quiet, verbose=args.verbose)
    loaded = load_model(caller, place, observer, silence)

    from mask_impact.analyses.exactness import measure

    with observer:
        found = measure(loaded, args.k, observer=observer)
    if args.json:
        say(to_text(asdict(found) | {"passed": found.passed, "versions": _versions()}))
    elif not args.quiet:
        show("\n".join(_lines(found, type(loaded.model).__name__)))
    return 0 if found.passed else 1


def _lines(found, class_name: str) -> list[str]:
    """What a bug report needs."""
    lines = [f"Model: {escape(found.model)} ({class_name}, {found.dtype}, on {found.device})"]
    lines.append(", ".join(f"{name} {version}" for name, version in _versions().items()))
    for check in found.checks:
        lines.append(f"  {quoted(check.prompt, 60)}")
        lines.append(
            f"    {check.n_tokens} tokens; own rows reproduced within {check.self_check:.1e}; {check.n_triples} really masked, "
            f"error {check.error:.1e}, median {check.median:.1e}"
        )
        if check.effect_error is not None:
            lines.append(
                f"    {check.n_effects} tokens really hidden in the whole model: error of their effects "
                f"{check.effect_error:.1e}"
            )
    lines.append("  By layer, largest error (median):")
    each = [f"{of.layer}: {of.error:.1e} ({of.median:.1e})" for of in found.layers]
    lines += [f"    {', '.join(each[at : at + EACH_LINE])}" for at in range(0, len(each), EACH_LINE)]
    if found.others:
        lines.append(f"  Layers without a softmax attention, in which nothing can be hidden: {ranges(found.others)}")
    if found.no_effects:
        lines.append(f"  No effects, no answer's use of tokens: {escape(found.no_effects)}")
    n, worst = sum(of.n_triples for of in found.layers), max(found.layers, key=lambda of: of.error)
    effects = [check.effect_error for check in found.checks if check.effect_error is not None]
    of_effects = f", that of effects {max(effects):.1e}" if effects else ""
    return [
        *lines,
        f"{'PASS' if found.passed else 'FAIL'}: {n} places were really masked, the largest relative error is {worst.error:.1e} "
        f"(layer {worst.layer}){of_effects}; the bound for {found.dtype} is {found.bound:g}",
    ]


def _versions() -> dict[str, str]:
    import torch
    import transformers

    import mask_impact

    return {
        "mask-impact": mask_impact.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
