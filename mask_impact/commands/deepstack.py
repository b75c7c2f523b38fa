"""Keep some of an image's features (main ones, DeepStack's levels), and see what becomes of the answer."""

import argparse

from mask_impact.analyses.settings import ANSWER_TOKENS, DEEPSTACK
from mask_impact.commands import options, single
from mask_impact.commands.caller import MASK_IMPACT, Caller
from mask_impact.engine.choices import BASELINES
from mask_impact.errors import UsageError
from mask_impact.results.deepstack_files import DEFAULT_FORMATS, save_deepstack
from mask_impact.results.names import DEEPSTACK as FILES
from mask_impact.views.summary_json import deepstack_entry

EPILOG = """\
Qwen3-VL's decoder gets several features of each image token: the main ones in the place of its
embedding, and DeepStack's levels, from earlier layers of the vision tower, each added behind one
of the first decoder layers. Each set of these parts is kept while the rest comes from a baseline.

examples:
  mask-impact deepstack "What color is the star?" -i examples/shapes.png -m demo
  mask-impact deepstack "What color is the star?" -i examples/shapes.png \\
      --region "image 0 rows 0 columns 3"
  mask-impact deepstack "What color is it?" -i one.png --from other.png
  mask-impact deepstack "What is it?" --video a.mp4 --region "video 0 frames 2"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact deepstack`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    add = groups["which features"]
    add(
        "--region",
        metavar="SPEC",
        default="image",
        help="image tokens, such as image 0 rows 1-2 columns 3, video 0 frames 2-3, video 0 seconds 1-2 rows 0 (default: image, "
        "all of them; video, where the prompt has no image)",
    )
    add(
        "--baseline",
        metavar="WHAT",
        choices=BASELINES,
        default=BASELINES[0],
        help="what stands in for what is taken away: blank (the same picture, the region blanked), mean (over the image's "
        "tokens) or zero (which the model has never seen) (default: blank)",
    )
    add("--from", metavar="FILE", dest="other", help="another picture as the baseline")
    add("--no-answers", action="store_true", help="generate no answers with each part alone and without each")
    options.add_settings(groups, [DEEPSTACK], num_tokens=str(ANSWER_TOKENS))
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Keeps each set of parts, writes NAME.deepstack.* and prints what became of the answer."""
    if not args.image and not args.video:
        raise UsageError("features are those of an image or a video: give --image FILE or --video FILE")
    request = single.prepare(args, caller, command, lambda settings: [FILES], "deepstack", num_tokens=ANSWER_TOKENS)
    question = _question(args)

    def check(reader) -> None:
        from mask_impact.analyses.deepstack import plan

        plan(reader, request.prepared(reader), question)

    with single.opened(request, check) as loaded:
        from mask_impact.analyses import deepstack
        from mask_impact.views.deepstack import render_deepstack

        found = deepstack.run(
            loaded, request.prompt, question, request.settings, request.pictures, observer=request.observer
        )
        formats = request.place.formats or DEFAULT_FORMATS
        paths = save_deepstack(found, request.path, formats, command, request.note_removed)
    request.answer(lambda: render_deepstack(found, paths, args.verbose), lambda: deepstack_entry(found, paths))
    return 0


def _question(args: argparse.Namespace):
    """What is asked."""
    from mask_impact.analyses.deepstack import Question
    from mask_impact.prompts.images import read_picture

    other = None if args.other is None else read_picture(args.other)
    return Question(args.region, args.baseline, other, not args.no_answers)
