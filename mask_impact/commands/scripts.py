"""The two scripts, `mask_impact_vl.py` and `mask_impact_analysis.py`: one set of flags, turned into the same commands.

--knockout, --without, --config and --dataset choose the command; all else is as in `mask-impact`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import mask_impact
from mask_impact.analyses.settings import KNOCKOUT, RUN, SETTINGS, STUDY, WITHOUT
from mask_impact.commands import knockout, options, run, study, without
from mask_impact.commands.caller import TEXT, VL, Caller
from mask_impact.commands.console import Parser, command_line, guarded
from mask_impact.errors import UsageError

DESCRIPTION = "Which token does a {kind} model use, at which layer, to produce each token of its answer?"
EPILOG = f"""\
{run.MEASURED}
examples:
  python {{program}} --model demo --prompt "2+2?" --num-tokens 3
  python {{program}} --prompt "What is 2+2?" --effect --window 9
  python {{program}} --prompt question.txt --output q --formats csv
  python {{program}} --config {{config}} --resume
  python {{program}} --dataset data.jsonl --reduce summary --resume
"""
IMAGE_EXAMPLES = """\
  python {program} --image photo.jpg --prompt "What is this?" --plots
  python {program} --image a.png --image b.png --mask-mode vision \\
      --prompt "<image> Is it the same as in <image>?"
"""
CONFIGS = {"vl": "prompts_config_vl.yaml", "text": "prompts_config.yaml"}
COMMANDS = {RUN: run, KNOCKOUT: knockout, WITHOUT: without, STUDY: study}


class _NoImages(argparse.Action):
    """Says which script takes images."""

    def __call__(self, *args: Any) -> NoReturn:
        raise UsageError(f"a text model takes no image; {VL.program} does")


def main_vl(argv: Sequence[str] | None = None) -> int:
    """mask_impact_vl.py"""
    return _main(VL, argv)


def main_text(argv: Sequence[str] | None = None) -> int:
    """mask_impact_analysis.py"""
    return _main(TEXT, argv)


def _main(caller: Caller, argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)

    def action() -> int:
        args = build_parser(caller).parse_args(argv)
        name = _command(args)
        _check(args, name)
        return COMMANDS[name].run(_as_command(args, name, caller), caller, command_line(caller.program, argv))

    return guarded(caller.program, argv, action)


def build_parser(caller: Caller) -> argparse.ArgumentParser:
    """The flags of one script; its help is generated from here and nowhere else."""
    is_vl = caller.kind == "vl"
    parser = Parser(
        prog=caller.program,
        description=DESCRIPTION.format(kind="vision-language" if is_vl else "language"),
        epilog=(EPILOG + IMAGE_EXAMPLES * is_vl).format(program=caller.program, config=CONFIGS[caller.kind]),
    )
    groups = options.Groups(parser)
    add = groups["what to analyse"]
    add(
        "--prompt",
        metavar="TEXT",
        help="the prompt, a ChatML conversation, or a path ending in .txt (default: prompt.txt if it exists)",
    )
    add("--config", metavar="FILE", help="a YAML file of many prompts, each with files of its own ({name}_results)")
    add("--dataset", metavar="FILE", help="a .jsonl, .csv or .parquet file of many prompts, one for each row")
    study.add_sharing(groups)
    if is_vl:
        options.add_images(groups)
        options.add_videos(groups)
    else:
        add("--image", action=_NoImages, help=argparse.SUPPRESS)
    options.add_settings(
        groups, COMMANDS, short=False, images=is_vl, num_tokens="1; 16 with --without", window="1; 9 with --knockout",
        model=f"{caller.default_model}, or the demo if that is not available",
    )  # fmt: skip
    _add_other_answers(groups)
    options.add_output_name(groups, None, f"{caller.output}; the dataset's name with --dataset")
    options.add_pages(groups)
    options.add_talk(groups, loads=True)
    parser.add_argument("--version", action="version", version=f"mask-impact {mask_impact.__version__}")
    return parser


def _add_other_answers(groups: options.Groups) -> None:
    add = groups["effect on the answer"]
    add(
        "--knockout",
        metavar="FLOWS",
        help="in place of the maps: cut flows from some tokens to others, in windows of layers; a YAML file with flows, or "
        "default for image -> question, image -> last, question -> last",
    )
    add(
        "--without",
        metavar="SPEC",
        action="append",
        default=[],
        help='in place of the maps: generate the answer again with these tokens hidden, such as "image 0" or a word of the '
        "prompt; repeatable",
    )
    add(
        "--layers",
        metavar="LIST",
        help="with --without: the layers to hide them in, such as 0-35 or 3,5-9 (default: all)",
    )


def _command(args: argparse.Namespace) -> str:
    if args.config is not None or args.dataset is not None:
        return STUDY
    return KNOCKOUT if args.knockout is not None else WITHOUT if args.without else RUN


OF_STUDIES = ("reduce", "resume", "retry_failed", "limit", "shard", "dry_run", "workers", "address", "timeout")
# The flags that are no settings, and that only some of the commands take.
OWN = {
    RUN: ("prompt", "image", "video", "plots", "report", "output"),
    KNOCKOUT: ("prompt", "image", "video", "knockout", "output"),
    WITHOUT: ("prompt", "image", "video", "without", "layers", "output"),
    STUDY: ("config", "dataset", *OF_STUDIES, "plots", "report", "output"),
}


def _check(args: argparse.Namespace, name: str) -> None:
    """UsageError for flags that belong to another command."""
    if name == STUDY and None not in (args.config, args.dataset):
        raise UsageError("--dataset does not go with --config (--help says what it is for)")
    taken = {*OWN[name], *(key for key, one in SETTINGS.items() if name in one.commands)}
    known = {key for keys in OWN.values() for key in keys} | {*SETTINGS}
    for key, value in vars(args).items():
        if value not in (None, False, []) and key in known - taken:
            raise UsageError(_misplaced(key, name, args))


def _misplaced(key: str, name: str, args: argparse.Namespace) -> str:
    flag = f"--{key.replace('_', '-')}"
    if key == "resume":
        return "--resume goes with --config or --dataset; a single prompt is always run"
    if key in OF_STUDIES and key != "reduce":
        return f"{flag} goes with --config or --dataset"
    if key in ("reduce", "layers"):
        return f"{flag} goes with {'--dataset' if key == 'reduce' else '--without'}"
    if name == STUDY:
        source = "--config" if args.config is not None else "--dataset"
        return f"{flag} does not go with {source} (--help says what it is for)"
    return f"{flag} does not go with --{name}, which stands in place of the maps (--help says what it is for)"


def _as_command(args: argparse.Namespace, name: str, caller: Caller) -> argparse.Namespace:
    """The arguments as the command of `mask-impact` calls them."""
    if name == STUDY:
        args.separate = args.config is not None
        args.file = args.config if args.separate else args.dataset
    else:
        args.output = caller.output if args.output is None else args.output
    args.flow, args.flows = [], None if args.knockout == "default" else args.knockout
    args.spec = args.without
    return args
