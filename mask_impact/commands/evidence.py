"""The smallest sets of words and of cells that decide the answer, searched for longer than `explain` does."""

import argparse

from mask_impact.analyses.settings import ANSWER_TOKENS, EXPLAIN
from mask_impact.commands import explain, options
from mask_impact.commands.caller import MASK_IMPACT, Caller

BUDGET = 60
EPILOG = """\
Looks for the smallest set of words (and of cells of an image) without which the model says
something else, and for the smallest that alone keeps the answer while all others of the kind are
hidden. Each set is confirmed by the model's own generate(). Small sets of the strongest tokens are
tried, too, which finds pairs that say the same.

examples:
  mask-impact evidence "What color is the star?" -i examples/shapes.png -m demo
  mask-impact evidence question.txt --budget 200
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact evidence`."""
    groups = options.Groups(parser)
    options.add_prompt(groups)
    options.add_settings(groups, [EXPLAIN], num_tokens=str(ANSWER_TOKENS), budget=str(BUDGET))
    options.add_output_name(groups, MASK_IMPACT.output, MASK_IMPACT.output, "-o")
    options.add_talk(groups, loads=True)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Explains the answer with a larger budget, writes NAME.answer.* and prints it."""
    return explain.explained(args, caller, command, num_tokens=ANSWER_TOKENS, budget=BUDGET)
