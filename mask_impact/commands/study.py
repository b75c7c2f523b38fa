"""Many prompts: a YAML configuration or a dataset, with --resume, by one process or by many workers.

`mask-impact study` writes tables of all prompts, whatever they are read from. --config of the two scripts writes files of each
prompt.
"""

import argparse
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from mask_impact.analyses.settings import OF_ANSWERS, OF_EFFECTS, OF_PICTURES, PICTURES, STUDY, Place, RunSettings
from mask_impact.commands import options
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import launched, remark, say
from mask_impact.commands.narration import StudyProgress, forecast_lines, silence
from mask_impact.commands.run import beside, kinds
from mask_impact.commands.single import load_from, load_model, read_without_weights
from mask_impact.errors import OutputError, UsageError, WorkerError
from mask_impact.results.files import check_output
from mask_impact.results.names import suffixes
from mask_impact.results.remote import is_address, place_of
from mask_impact.studies.jobs import differing, result_name
from mask_impact.studies.parts import check_parts, folder_of
from mask_impact.studies.writer import ALL, Shard, jobs_of, rows_of, writing
from mask_impact.views.summary_json import tally_entry, to_text

EPILOG = """\
FILE is a YAML configuration, or a dataset: a .jsonl, .csv or .parquet file with a column prompt.
Results go to NAME/TABLE/part-*.parquet, with --answer and --effect also tables of these; DIR may be
the address of a store, as s3://BUCKET/FOLDER. `mask-impact report DIR/NAME` shows them,
`mask-impact study report DIR/NAME` says what holds over the prompts. Files of each prompt:
mask_impact_vl.py --config.

examples:
  mask-impact study prompts_config_vl.yaml --resume
  mask-impact study questions.jsonl --reduce summary --resume
"""
CONFIGS = (".yaml", ".yml")
DATASETS = (".jsonl", ".csv", ".parquet")
REDUCE = ("summary", "none")
MOST_WORKERS = 10_000


class _OfEachPrompt(argparse.Action):
    """Says who writes files of each prompt."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise UsageError(
            f"{option_string} is about files of each prompt, and a study writes tables: mask_impact_vl.py --config writes those"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact study`."""
    groups = options.Groups(parser)
    groups["what to analyse"](
        "file", metavar="FILE", help="a .yaml configuration, or a .jsonl, .csv or .parquet dataset"
    )
    add_sharing(groups)
    options.add_settings(groups, [STUDY], leave_out=["formats"], answer="off")
    options.add_output_name(groups, None, "the file's name", "-o")
    for flag in ("--plots", "--report", "--formats"):
        groups["output"](flag, action=_OfEachPrompt, nargs="?", help=argparse.SUPPRESS)
    options.add_talk(groups, loads=True)


def add_sharing(groups: options.Groups) -> None:
    """What is about many prompts: which of them, what is kept, and who measures them."""
    add = groups["what to analyse"]
    add(
        "--reduce",
        choices=REDUCE,
        help="what is kept of each token and layer in the tables: summary (Full, Attn and the strongest head; the default) or "
        "none reduced, that is all",
    )
    add("--resume", action="store_true", help="leave out what is complete, with the same settings")
    add("--retry-failed", action="store_true", help="with --resume: run again what failed for good, too")
    add("--limit", metavar="N", type=options.whole_number, help="only the first N prompts of the file")
    add(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="only the I-th of N shares of the prompts, 1/N to N/N; runs of several shares may go on at once",
    )
    add(
        "--dry-run",
        action="store_true",
        help="measure nothing: check all prompts, and say how many there are, what they take in forward passes, and on disk",
    )
    add = groups["workers"]
    add(
        "--workers",
        metavar="N",
        type=_workers,
        help="share the prompts among N processes with a model each, or auto: one for each GPU (needs Ray: "
        "pip install 'mask-impact[ray]')",
    )
    add(
        "--address",
        metavar="WHERE",
        help="with --workers: take a Ray cluster that this machine is part of, by auto or HOST:PORT",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=options.above_zero,
        help="with --workers: end a worker that does no layer and no forward pass for so long (default: 1800)",
    )


def _workers(text: str) -> int | str:
    return text if text == "auto" else options.at_most(MOST_WORKERS)(text)


def _shard(text: str) -> Shard:
    """I/N."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be a share such as 1/4 (the first of four), not {text!r}")
    return Shard(int(found[1]) - 1, int(found[2]))


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Runs the prompts of the file; the exit code is 3 where some failed, 130 where it was stopped."""
    separate = getattr(args, "separate", False)  # --config of the scripts: each prompt has files of its own
    flags = options.given(args, RunSettings) | options.given(args, Place)
    _check(args, flags, separate)
    observer = StudyProgress(args.quiet, silence if args.quiet or args.json else say, verbose=args.verbose)
    with observer:
        try:
            if args.dry_run:
                return _forecast(args, caller, flags, separate)
            tally = (_run_separate if separate else _run_study)(args, caller, flags, command, observer)
        except KeyboardInterrupt:  # the second one
            tally = None
        except (OutputError, WorkerError) as error:
            if not observer.has_begun:
                raise
            again = "the same command" + (" with --resume added" if not args.resume else "")
            raise type(error)(f"{error}; what is written is complete, and {again} goes on from there") from error
    if tally is not None:
        observer.study_ends(tally)
        if args.json:
            say(to_text(tally_entry(tally)))
    if tally is None or tally.stopped:
        again = "" if args.resume else " with --resume added"
        remark(f"{caller.program}: stopped; the same command{again} goes on from here")
        return 130
    return 3 if tally.failed else 0


@contextmanager
def _crew(args: argparse.Namespace, caller: Caller, place: Place, observer: StudyProgress) -> Iterator[Any]:
    """Who measures: this process, or the workers that are asked for."""
    if args.workers is None:
        from mask_impact.studies.crew import ThisProcess

        yield ThisProcess(load_model(caller, place, observer, observer.say), observer)
        return
    from mask_impact.studies.ray_crew import TIMEOUT, Wish, ray_crew

    n = None if args.workers == "auto" else args.workers
    wish = Wish(n, args.address, args.timeout or TIMEOUT, args.verbose)
    observer.note(f"Starting workers for model {place.model or caller.default_model} ...")
    gpus, whole = place.device in ("auto", "cuda"), place.device_map is not None
    with ray_crew(wish, partial(load_from, place, caller.kind), observer, gpus, whole) as crew:
        observer.say("Model loaded successfully!")
        yield crew


def _is_config(file: str) -> bool:
    """Whether it is a configuration and no dataset, by its suffix."""
    suffix = Path(file).suffix.lower()
    if suffix not in (*CONFIGS, *DATASETS):
        raise UsageError(
            f"'{file}' is neither a configuration ({' or '.join(CONFIGS)}) nor a dataset ({', '.join(DATASETS)}), by its suffix"
        )
    return suffix in CONFIGS


def _check(args: argparse.Namespace, flags: dict[str, Any], separate: bool) -> None:
    """UsageError for flags that do not go with what is read or written, or with each other."""
    if launched()[1] > 1:
        raise UsageError(
            "a study needs no launcher: start it once, with --workers N (or auto) to share it among processes"
        )
    for flag in ("address", "timeout"):
        if args.workers is None and getattr(args, flag) is not None:
            raise UsageError(f"--{flag} goes with --workers")
    if (args.address or "").startswith("ray://"):
        raise UsageError("--address takes auto or HOST:PORT of a Ray cluster that this machine is part of, not ray://")
    if args.retry_failed and not args.resume:
        raise UsageError("--retry-failed goes with --resume; without it everything is run")
    if separate:
        if args.reduce == "summary":
            raise UsageError(
                "--reduce summary does not go with --config: a result's files are whole; --variants makes them fewer"
            )
        if args.output is not None:
            raise UsageError("--output does not go with --config (--help says what it is for)")
        return
    for name in ("plots", "report", "formats"):
        if getattr(args, name, None):
            raise UsageError(f"--{name} does not go with --dataset (--help says what it is for)")
    if not _is_config(args.file):  # a configuration may have said of what they are
        _check_idle(flags)


def _check_idle(flags: dict[str, Any]) -> None:
    """UsageError for flags that say how something is measured that is not measured."""
    if not flags.get("effect") and (idle := [name for name in OF_EFFECTS if name in flags]):
        raise UsageError(f"--{idle[0]} says how the effect is measured: give --effect too")
    for name, of in OF_PICTURES.items():
        if name in flags and not any(flags.get(one) for one in of):
            raise UsageError(
                f"--{name} goes with {' or '.join(f'--{one}' for one in of)}: give {'one' if of[1:] else 'it'} too"
            )
    about_answers = {*OF_ANSWERS} - ({"target"} if any(flags.get(one) for one in PICTURES) else set())
    if not flags.get("answer") and (idle := [name for name in flags if name in about_answers]):
        raise UsageError(f"--{idle[0].replace('_', '-')} is about what the answer used: give --answer too")


@dataclass(frozen=True)
class _Source:
    """A file of prompts. place: where its model is and its results go; rows: jobs, or problems of rows that are none, as many as
    are asked for; n_rows: about how many; own: settings that may differ from row to row; formats: of files of each prompt."""

    place: Place
    rows: Iterator[Any]
    n_rows: int
    own: Collection[str] = ()
    formats: tuple[str, ...] | None = None


def _read(args: argparse.Namespace, caller: Caller, flags: dict[str, Any], separate: bool = False) -> _Source:
    """What the file has."""
    if separate or _is_config(args.file):
        from mask_impact.studies.config import load_config

        config = load_config(args.file, kind=caller.kind, overrides=flags)
        place = Place(
            model=config.model, revision=config.revision, device=config.device, dtype=config.dtype,
            device_map=flags.get("device_map"), output_dir=str(config.output_dir),
        )  # fmt: skip
        jobs = config.jobs[: args.limit]
        return _Source(place, iter(jobs), len(jobs), differing(config.jobs), config.formats)
    from mask_impact.studies.dataset import count_rows, read_dataset

    settings = {name: value for name, value in flags.items() if name in RunSettings.__dataclass_fields__}
    place = Place(**{name: value for name, value in flags.items() if name not in settings})
    rows = islice(read_dataset(args.file, kind=caller.kind, defaults=settings), args.limit)
    n_rows = count_rows(args.file)
    return _Source(place, rows, n_rows if args.limit is None else min(n_rows, args.limit))


def _run_separate(args: argparse.Namespace, caller: Caller, flags: dict, command: str, observer: StudyProgress):
    """A configuration whose prompts have files each."""
    source = _read(args, caller, flags, separate=True)
    if is_address(source.place.output_dir):
        raise UsageError(
            f"the files of each prompt go to a folder of this machine, and {source.place.output_dir} is none; the tables of "
            "`mask-impact study` may go there"
        )
    folder, jobs, shard = Path(source.place.output_dir), [*source.rows], args.shard or ALL
    for job in jobs:
        written = suffixes(kinds(job.settings), source.formats, args.plots, args.report)
        check_output(folder, result_name(job), written)
    _check_device(args, source.place.device)
    observer.title(caller.titles["many"])
    results = {result_name(job) for job in jobs_of(jobs, shard)}
    with (
        writing(folder, Path(args.file).stem, results, shard=shard) as writer,
        _crew(args, caller, source.place, observer) as crew,
    ):
        from mask_impact.studies.study import run_study

        return run_study(
            crew,
            jobs,
            writer,
            formats=source.formats,
            resume=args.resume,
            retry_failed=args.retry_failed,
            beside=beside(args),
            command=command,
            observer=observer,
        )


def _run_study(args: argparse.Namespace, caller: Caller, flags: dict, command: str, observer: StudyProgress):
    """Tables of all prompts."""
    source, name, shard = _read(args, caller, flags), _name(args), args.shard or ALL
    _check_device(args, source.place.device)
    output_dir = place_of(source.place.output_dir)
    check_parts(folder_of(output_dir, name), args.resume)
    observer.title(caller.titles["many"])
    with (
        writing(output_dir, name, fresh=not args.resume, shard=shard) as writer,
        _crew(args, caller, source.place, observer) as crew,
    ):
        from mask_impact.studies.dataset_study import run_dataset

        return run_dataset(
            crew,
            source.rows,
            writer,
            n_rows=shard.share(source.n_rows),
            own=source.own,
            reduce=args.reduce or REDUCE[0],
            resume=args.resume,
            retry_failed=args.retry_failed,
            keep_others=args.limit is not None,
            observer=observer,
        )


def _name(args: argparse.Namespace) -> str:
    """What the results are called."""
    return args.output or Path(args.file).stem


def _forecast(args: argparse.Namespace, caller: Caller, flags: dict, separate: bool) -> int:
    """What the study is going to take; the exit code is that of a run."""
    source, shard = _read(args, caller, flags, separate), args.shard or ALL
    if separate:
        rows, formats, n_variants = jobs_of([*source.rows], shard), source.formats or ("csv", "json"), None
        folder = check_output(source.place.output_dir, Path(args.file).stem, ()).parent
    else:
        rows, formats, n_variants = rows_of(source.rows, shard), ("parquet",), None if args.reduce == "none" else 3
        folder = folder_of(place_of(source.place.output_dir), _name(args)).parent
    reader = read_without_weights(caller, source.place)

    from mask_impact.studies.forecast import forecast

    found = forecast(reader, rows, folder, formats, n_variants)
    if args.json:
        say(to_text(found.entry()))
    elif not args.quiet:
        for line in forecast_lines(found):
            say(line)
    return 3 if found.n_wrong else 0


def _check_device(args: argparse.Namespace, device: str) -> None:
    if args.workers is not None and ":" in device:
        raise UsageError(f"--workers gives each worker a GPU of its own: give --device cuda, cpu or auto, not {device}")
