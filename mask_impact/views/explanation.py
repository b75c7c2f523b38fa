"""What an answer used, as text for a terminal. Writes no files."""

from collections.abc import Iterable, Iterator
from math import ceil
from os import PathLike

from mask_impact.results.explanations import ExplainedStep, Explanation
from mask_impact.views.text import cut, escape, fitted, model_lines, padded, percent, quoted, saved_lines, wrapped

NAME = 22  # columns
TOP = 5


def render_explanation(found: Explanation, paths: Iterable[str | PathLike] = (), top: int = TOP) -> str:
    """The page of text: the answer, and for each produced token what it used, the strongest first. paths: the files written."""
    lines = [*model_lines(found.meta), "Generated text:", *wrapped(quoted(found.generated_text))]
    for step in found.steps:
        lines += ["", *fitted(_step(found, step, top))]
    paths = list(paths)
    return "\n".join([*lines, *(["", *saved_lines(paths)] if paths else [])])


def _step(found: Explanation, step: ExplainedStep, top: int) -> Iterator[str]:
    n, n_measured = len(step.names), int(step.measured.sum())
    yield f"Used for {quoted(step.token_text, 16)} ({percent(step.probability)}): the change of its log-probability, in nats,"
    yield "if all of the model can't see the token:"
    yield f"  rank    pos  {padded('token', NAME)}  estimated  measured  becomes"
    for rank, place in enumerate(step.ranked(top), start=1):
        first, last = step.positions[place][0], step.positions[place][-1]
        where = f"{first}" if first == last else f"{first}-{last}"
        name = _name(found, step, place)
        measured = f"{step.logprob_change[place]:.3g}" if step.measured[place] else "-"
        changed = step.measured[place] and int(step.top1[place]) != step.token_id
        becomes = quoted(step.top1_texts[int(step.top1[place])], 16) if changed else ""
        yield (
            f"  {rank:>4}  {where:>5}  {padded(name, NAME)}  {step.contribution[place]:>9.3g}  {measured:>8}  {becomes}".rstrip()
        )
    yield f"  {n_measured} of {n} were really hidden, which took {step.forwards:.1f} forward passes."
    if step.reliable is None:
        yield "  All were measured: nothing here is estimated only."
        return
    agreement = step.agreement
    told = f"rank correlation {agreement.rho:.2f}, the strongest of those drawn at random {agreement.strongest_control:.3g}"
    if step.reliable:
        yield f"  The estimates agree with what was measured: {told}."
    else:
        yield f"  NOT RELIABLE here: the estimates do not agree with what was measured ({told})."
        whole = sum(1 - positions[0] / (found.n_prompt + step.step) for positions in step.positions)
        yield f"  --budget {ceil(whole)} measures all."


def _name(found: Explanation, step: ExplainedStep, place: int) -> str:
    positions = step.positions[place]
    if len(positions) == 1 and found.tokens.image[positions[0]] >= 0:
        return cut(escape(step.names[place]), NAME)
    return quoted(step.names[place], NAME)
