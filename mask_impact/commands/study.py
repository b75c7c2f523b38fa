"""Many prompts: a YAML configuration or a dataset, with --resume, on one process or several."""

import argparse
from pathlib import Path
from typing import Any

from mask_impact.analyses.settings import OF_ANSWERS, OF_EFFECTS, STUDY, Place, RunSettings
from mask_impact.commands import options
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import remark, say
from mask_impact.commands.narration import StudyProgress, silence
from mask_impact.commands.run import beside, kinds
from mask_impact.commands.single import load_model
from mask_impact.errors import OutputError, UsageError
from mask_impact.results.files import check_output
from mask_impact.results.names import suffixes
from mask_impact.studies.jobs import result_name
from mask_impact.studies.parts import check_parts
from mask_impact.studies.sharing import ERRORS, gather, launched
from mask_impact.views.summary_json import tally_entry, to_text

EPILOG = """\
FILE is a YAML configuration (each prompt gets files of its own, {name}_results), or a dataset: a
.jsonl, .csv or .parquet file with a column prompt (results go to NAME/part-*.parquet; with --answer and
--effect also to NAME.answer, NAME.card and NAME.effect). `mask-impact report output/NAME` shows them,
`mask-impact study report DIR` says what holds over the prompts of one.

examples:
  mask-impact study prompts_config_vl.yaml --resume
  mask-impact study questions.jsonl --reduce summary --resume
"""
CONFIGS = (".yaml", ".yml")
DATASETS = (".jsonl", ".csv", ".parquet")
REDUCE = ("summary", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact study`."""
    groups = options.Groups(parser)
    groups["what to analyse"](
        "file", metavar="FILE", help="a .yaml configuration, or a .jsonl, .csv or .parquet dataset"
    )
    add_sharing(groups)
    options.add_settings(groups, [STUDY], answer="off")
    options.add_output_name(groups, None, "the dataset's name", "-o")
    options.add_pages(groups)
    options.add_talk(groups, loads=True)


def add_sharing(groups: options.Groups) -> None:
    """--reduce and --resume"""
    groups["what to analyse"](
        "--reduce",
        choices=REDUCE,
        help="what is kept of each token and layer of a dataset: summary (Full, Attn and the strongest head; the default) or "
        "none reduced, that is all (always so with a configuration)",
    )
    groups["what to analyse"](
        "--resume", action="store_true", help="leave out what is complete, with the same settings"
    )


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Runs the prompts of the file; the exit code is 3 where some failed, 130 where it was stopped."""
    is_dataset = getattr(args, "is_dataset", None)  # the scripts have a flag for each
    if is_dataset is None:
        is_dataset = _is_dataset(args.file)
    flags = options.given(args, RunSettings) | options.given(args, Place)
    _check(args, flags, is_dataset)
    rank, n_processes = launched()
    if n_processes > 1 and "device_map" in flags:
        raise UsageError("--device-map spreads a model over all GPUs of one process; start one process for it")
    quiet = args.quiet or rank > 0  # the first process speaks for all
    observer = StudyProgress(quiet, silence if quiet or args.json else say, speaks=rank == 0, verbose=args.verbose)
    with observer:
        try:
            tally = (_run_dataset if is_dataset else _run_config)(args, caller, flags, command, observer)
        except KeyboardInterrupt:  # the second one
            tally = None
        except OutputError as error:
            if not observer.has_begun:
                raise
            again = "the same command" + (" with --resume added" if not args.resume else "")
            raise OutputError(f"{error}; what is written is complete, and {again} goes on from there") from error
    if tally is not None:
        observer.study_ends(tally)
        if args.json and rank == 0:
            say(to_text(tally_entry(tally)))
    if tally is None or tally.stopped:
        if rank == 0:
            again = "" if args.resume else " with --resume added"
            remark(f"{caller.program}: stopped; the same command{again} goes on from here")
        return 130
    return 3 if tally.failed and rank == 0 else 0


def _is_dataset(file: str) -> bool:
    """What the file is, by its suffix."""
    suffix = Path(file).suffix.lower()
    if suffix not in (*CONFIGS, *DATASETS):
        raise UsageError(
            f"'{file}' is neither a configuration ({' or '.join(CONFIGS)}) nor a dataset ({', '.join(DATASETS)}), by its suffix"
        )
    return suffix in DATASETS


def _check(args: argparse.Namespace, flags: dict[str, Any], is_dataset: bool) -> None:
    """UsageError for flags that do not go with the kind of file."""
    source = "a dataset" if is_dataset else "a configuration"
    if not is_dataset and args.reduce == "summary":
        raise UsageError(
            f"--reduce summary does not go with {source}: a result's files are whole; --variants makes them fewer"
        )
    pages = [name for name in ("plots", "report") if getattr(args, name)]
    wrong = [*pages, *(name for name in ("formats",) if name in flags)] if is_dataset else []
    if not is_dataset and args.output is not None:
        wrong = ["output"]
    if is_dataset and not flags.get("effect") and (idle := [name for name in OF_EFFECTS if name in flags]):
        raise UsageError(f"--{idle[0]} says how the effect is measured: give --effect too")
    if is_dataset and not flags.get("answer") and (idle := [name for name in OF_ANSWERS if name in flags]):
        raise UsageError(f"--{idle[0].replace('_', '-')} is about what the answer used: give --answer too")
    if wrong:
        raise UsageError(f"--{wrong[0].replace('_', '-')} does not go with {source} (--help says what it is for)")


def _run_config(args: argparse.Namespace, caller: Caller, flags: dict, command: str, observer: StudyProgress):
    from mask_impact.studies.config import load_config

    config = load_config(args.file, kind=caller.kind, overrides=flags)
    results = {result_name(job) for job in config.jobs}
    for job in config.jobs:
        written = suffixes(kinds(job.settings), config.formats, args.plots, args.report)
        check_output(config.output_dir, result_name(job), written)
    observer.title(caller.titles["many"])
    with gather(config.output_dir, Path(args.file).stem, config.device, results) as team:
        place = Place(
            model=config.model, revision=config.revision, device=team.device or config.device, dtype=config.dtype,
            device_map=flags.get("device_map"),
        )  # fmt: skip
        loaded = load_model(caller, place, observer, observer.say)

        from mask_impact.studies.study import run_study

        return run_study(
            loaded,
            config.jobs,
            team,
            formats=config.formats,
            resume=args.resume,
            beside=beside(args),
            command=command,
            observer=observer,
        )


def _run_dataset(args: argparse.Namespace, caller: Caller, flags: dict, command: str, observer: StudyProgress):
    from mask_impact.studies.dataset import count_rows, read_dataset

    settings = {name: value for name, value in flags.items() if name in RunSettings.__dataclass_fields__}
    place = Place(**{name: value for name, value in flags.items() if name not in settings})
    rows = read_dataset(args.file, kind=caller.kind, defaults=settings)
    name = args.output or Path(args.file).stem
    check_parts(check_output(place.output_dir, name, [ERRORS]))
    observer.title(caller.titles["many"])
    with gather(place.output_dir, name, place.device, fresh=not args.resume) as team:
        loaded = load_model(
            caller, Place(**vars(place) | {"device": team.device or place.device}), observer, observer.say
        )

        from mask_impact.studies.dataset_study import run_dataset

        return run_dataset(
            loaded,
            rows,
            team,
            n_rows=count_rows(args.file),
            reduce=args.reduce or REDUCE[0],
            resume=args.resume,
            observer=observer,
        )
