"""Which patches the layers of the vision tower read, and whether hiding them there changes the answer."""

import argparse

from mask_impact.analyses.settings import ANSWER_TOKENS, TOWER
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.commands.pixels import add_regions
from mask_impact.engine.choices import UNITS
from mask_impact.errors import UsageError
from mask_impact.results.names import TOWER as FILES
from mask_impact.results.tower_files import DEFAULT_FORMATS, save_tower
from mask_impact.views.tower import render_tower, tower_entry
from mask_impact.views.tower_plot import picture_of

EPILOG = """\
Two questions. What a layer reads: by how much its attention output changes where a patch is
hidden from all other patches, exact, for each layer and patch. What matters: the answer again,
with patches hidden in the tower's layers. A layer can read much of a patch that the answer does
not need: a map alone is no explanation. For models of Qwen3-VL's kind.

examples:
  mask-impact tower "What color is the star?" -i examples/shapes.png -m demo
  mask-impact tower "What color is the star?" -i examples/shapes.png \\
      --by tokens --layers 2-3 --unit token --plots
  mask-impact tower "What color is it?" -i photo.jpg --box 0,0,64,64 --windows 3
  mask-impact tower "What moves?" --video film.mp4 --where "video 0 frames 2-3"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact tower`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    add = groups["what the layers read"]
    add(
        "--unit",
        choices=UNITS,
        default=UNITS[0],
        help="what is hidden together: a patch (16x16 pixels of the image as the model sees it) or an image token (2x2 "
        "patches) (default: patch)",
    )
    add(
        "--probes",
        metavar="N",
        type=options.count,
        default=0,
        help="also a layer's whole update, through its MLP, to first order, from N random probes (default: 0)",
    )
    add = groups["what matters to the answer"]
    add_regions(add)
    add(
        "--where",
        metavar="CELLS",
        help="in which images or frames, in group words: video 0 frames 2-3, video 0 seconds 1.5-3, image 1; without a box, "
        "a mask and --by these cells are the region",
    )
    add("--layers", metavar="LIST", help="the tower's layers to hide patches in, such as 0-11 or 3,5-9 (default: all)")
    add(
        "--windows",
        metavar="K",
        type=options.whole_number,
        help="hide what is found in K layers around each layer, too",
    )
    add("--no-effects", action="store_true", help="only what the layers read; ask nothing of the answer")
    options.add_settings(groups, [TOWER], num_tokens=str(ANSWER_TOKENS))
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_plots(groups, "draw NAME.tower.png, the images under what the layers read and what matters")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Measures, writes NAME.tower.* and NAME.tower_effects.*, and prints what is read and what matters."""
    if not args.image and not args.video:
        raise UsageError("the vision tower sees images: give --image FILE or --video FILE")
    layers = options.layer_list(args.layers)
    request = single.prepare(args, caller, command, lambda settings: [FILES], "tower", num_tokens=ANSWER_TOKENS)
    question = _question(args, layers)

    def check(reader) -> None:
        from mask_impact.analyses.tower import plan

        plan(reader, request.prepared(reader), question)

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import tower

        found = tower.run(
            loaded, request.prompt, question, request.settings, request.pictures, observer=request.observer
        )
        formats = request.place.formats or DEFAULT_FORMATS
        picture = picture_of(found) if args.plots else None
        paths = save_tower(found, request.path, formats, command, picture, request.note_removed)
    request.answer(lambda: render_tower(found, paths, args.verbose), lambda: tower_entry(found, paths))
    return 0


def _question(args: argparse.Namespace, layers: tuple[int, ...] | None):
    """What is asked."""
    from mask_impact.analyses.tower import Question
    from mask_impact.commands.pixels import regions_of

    return Question(
        regions_of(args, where=args.where), not args.no_effects, args.unit, args.probes, layers, args.windows
    )
