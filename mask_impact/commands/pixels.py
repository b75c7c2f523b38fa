"""Replace the pixels of a region of the image or the video, and see what becomes of the answer and which way it goes."""

import argparse
from collections.abc import Callable
from typing import Any

from mask_impact.analyses.settings import ANSWER_TOKENS, PIXELS
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.engine.choices import FILLS, REGIONS
from mask_impact.errors import UsageError
from mask_impact.results.names import PATCHES
from mask_impact.results.patch_files import DEFAULT_FORMATS, save_patches
from mask_impact.views.summary_json import patches_entry

EPILOG = """\
Without a region, quarters of the image are asked about first (of a video its pairs of frames),
then the quarters of the one that matters most which an estimate calls the strongest, down to
image tokens (32x32 pixels of the image as the model sees it) and patches (16x16). Of a region
that is given, and with --split of the token that is found, the effect is split: what goes by the
region's own tokens, what the vision tower has carried to others, and what hiding the region's
tokens in the decoder does.

examples:
  mask-impact pixels "What color is the star?" -i examples/shapes.png -m demo
  mask-impact pixels "What color is the star?" -i examples/shapes.png \\
      --by tokens --fills border,blur
  mask-impact pixels "What color is the star?" -i photo.jpg --box 96,0,128,32
  mask-impact pixels "What is this?" -i photo.jpg --regions segments:40
  mask-impact pixels "What is it?" --video a.mp4 --where "video 0 frames 2-5"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact pixels`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    add = groups["which pixels"]
    add_regions(add)
    add(
        "--regions",
        metavar="WHAT",
        help="in place of tokens: segments (of the picture, by its colours; segments:N for about N of them, default 32; needs "
        "the extra segments), or an image of the same size in which each grey value or colour but black is a region",
    )
    add(
        "--where",
        metavar="CELLS",
        help="in which images or frames, in group words: video 0 frames 2-3, video 0 seconds 1.5-3, image 1; without a box, "
        "a mask and --by these cells are the region (video 0 frames 2-3 rows 1 columns 0-1)",
    )
    add(
        "--fills",
        metavar="LIST",
        type=fills,
        help="what replaces the pixels, some of border (the median colour around the region), mean (of the image), blur, grey; a "
        "search goes by the first (default: border,mean)",
    )
    add("--split", action="store_true", help="split the effect of the token that is found, too")
    options.add_settings(groups, [PIXELS], num_tokens=str(ANSWER_TOKENS))
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_talk(groups, loads=True)


def add_regions(add: Callable[..., Any]) -> None:
    """Arguments that say which regions are asked about. add: to a group."""
    add(
        "--box",
        metavar="X0,Y0,X1,Y1",
        action="append",
        type=box,
        help="left, top, right, bottom in pixels of the image; repeatable",
    )
    add("--mask", metavar="FILE", help="an image of the same size, white where the region is")
    add(
        "--by",
        metavar="HOW",
        choices=REGIONS,
        help="search (coarse to fine), tokens (each image token) or patches (each of them) (default: search, where no "
        "region is given)",
    )
    add(
        "--beam",
        metavar="N",
        type=options.whole_number,
        help="go on from N rectangles at each level of a search (default: 1)",
    )
    add(
        "--image-number", metavar="N", type=options.count, help="in which image, from 0 (default: all, or the only one)"
    )


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Replaces the pixels, writes NAME.patches.* and NAME.pixels.png and prints what became of the answer."""
    if not args.image and not args.video:
        raise UsageError("pixels are those of an image or a video: give --image FILE or --video FILE")
    request = single.prepare(args, caller, command, lambda settings: [PATCHES], "pixels", num_tokens=ANSWER_TOKENS)
    question = regions_of(args, fills=args.fills, split=args.split, where=args.where, regions=shaped(args.regions))

    def check(reader) -> None:
        from mask_impact.analyses.pixels import plan

        plan(reader, request.prepared(reader), question)

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import pixels
        from mask_impact.views.pixels import picture_of, render_patches

        found = pixels.run(
            loaded, request.prompt, question, request.settings, request.pictures, observer=request.observer
        )
        formats = request.place.formats or DEFAULT_FORMATS
        paths = save_patches(found, request.path, formats, command, picture_of(found), request.note_removed)
    request.answer(lambda: render_patches(found, paths, args.verbose), lambda: patches_entry(found, paths))
    return 0


def regions_of(args: argparse.Namespace, **others: Any):
    """Which regions are asked about. others: what else a question has; None is not given."""
    from mask_impact.analyses.pixels import Question
    from mask_impact.prompts.images import read_picture

    given = {"by": args.by, "beam": args.beam, "image": args.image_number} | others
    mask = None if args.mask is None else read_picture(args.mask)
    given = {name: value for name, value in given.items() if value is not None}
    return Question(boxes=tuple(args.box or ()), mask=mask, **given)


def shaped(text: str | None) -> Any:
    """What `--regions` names, None where it is not given."""
    if text is None:
        return None
    from mask_impact.analyses.shaped_regions import parsed
    from mask_impact.prompts.label_images import read_labels

    return parsed(text) or read_labels(text)


def box(text: str) -> tuple[float, ...]:
    """left,top,right,bottom."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be four numbers such as 96,0,128,32, not '{text}'") from None
    return left, top, right, bottom


def fills(text: str) -> tuple[str, ...]:
    """Names of fills, in the order given."""
    names = tuple(part.strip().lower() for part in text.split(","))
    if wrong := [name for name in names if name not in FILLS]:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(FILLS)}, not '{wrong[0]}'")
    return tuple(dict.fromkeys(names))
