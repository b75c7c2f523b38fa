"""What the answer used, and what hiding each token changes in each layer, for one prompt."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mask_impact.analyses.settings import OF_EFFECTS, PICTURES, RUN, RunSettings
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.errors import UsageError
from mask_impact.results.names import ANSWER, DEEPSTACK, PAGE, PATCHES, RESULT, TOWER, Kind
from mask_impact.results.records import Result
from mask_impact.results.store import save
from mask_impact.views.summary import render_summary
from mask_impact.views.summary_json import result_entry

MEASURED = """\
First comes what the answer used: every word and every cell of an image is estimated at
once, the strongest are really hidden from the whole model, and the smallest sets that
decide the answer are looked for (--no-answer leaves it out). Then where each layer reads:

Each token is hidden from one decoder layer's attention at a time (its logit becomes
-inf), and the change of that layer's update of the residual stream is measured where
the next token is produced: Full (the whole layer), Attn (its attention branch),
Head_0, Head_1, ... (each head), as L2 and cosine distance.
"""
EPILOG = f"""\
{MEASURED}
examples:
  mask-impact run "What is 2+2?" -m demo -n 3
  mask-impact run "What is this?" -i photo.jpg --pixels --plots --report
  mask-impact run "What is 2+2?" -m demo --effect --window 9
  mask-impact run question.txt -n 5 -o my_question --formats csv,parquet
"""
Writer = Callable[[Result, Path], tuple[Path, ...]]
LOOKED = dict(zip(PICTURES, (PATCHES, DEEPSTACK, TOWER), strict=True))  # what is asked about images besides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact run`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    options.add_settings(groups, [RUN], answer="on")
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_pages(groups)
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Measures, writes NAME.* and prints the summary."""
    if not args.effect and (idle := [name for name in OF_EFFECTS if getattr(args, name) is not None]):
        raise UsageError(f"--{idle[0]} says how the effect is measured: give --effect too")
    if getattr(args, "pixels", False) and not args.image and not args.video:  # the text script has none
        raise UsageError("--pixels replaces those of an image or a video: give --image FILE or --video FILE")
    request = single.prepare(args, caller, command, kinds, answer=True)

    def check(reader) -> None:
        from mask_impact.analyses import explain, pixels
        from mask_impact.analyses.units import effect_groups

        prepared = request.prepared(reader)
        effect_groups(reader, prepared)
        if request.settings.answer:
            explain.check(reader, prepared)
        if request.settings.pixels:
            pixels.plan(reader, prepared, pixels.Question())

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import impact

        result = impact.run(loaded, request.prompt, request.settings, request.pictures, observer=request.observer)
        result = replace(result, meta=result.meta | {"command": command})
        saved = save(result, request.path, request.place.formats)
    others = [written for write in beside(args).values() for written in write(result, request.path)]
    for note in saved.notes:
        request.observer.note(note)
    paths = [*saved.paths, *others]
    request.answer(
        lambda: render_summary(result, paths, verbose=args.verbose or None), lambda: result_entry(result, paths)
    )
    return 0


def kinds(settings: RunSettings) -> tuple[Kind, ...]:
    """What is written of a run, or of a prompt of a study."""
    looked = (kind for name, kind in LOOKED.items() if getattr(settings, name))
    return (RESULT, *[ANSWER] * settings.answer, *looked)


def beside(args: argparse.Namespace) -> dict[str, Writer]:
    """What is written of a result beside its own files, by the suffix of a file that is always among it: functions of the
    result and its path without suffix."""
    writers: dict[str, Writer] = {}
    if args.plots:
        from mask_impact.views.pictures import save_plots

        writers[RESULT.pictures[0]] = save_plots
    if args.report:
        from mask_impact.views.report import default_path, write_report

        writers[PAGE] = lambda result, path: (write_report(result, default_path(path)),)
    return writers
