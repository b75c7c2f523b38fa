"""What each part of an image's features does to an answer, as text for a terminal. Writes no files."""

from collections.abc import Iterable, Iterator
from os import PathLike

from mask_impact.findings.looked import strongest_pair, strongest_part
from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget
from mask_impact.views.text import escape, fitted, model_lines, padded, percent, quoted, saved_lines, wrapped

PART, SAID = 36, 30  # columns of a part, and of an answer
BASELINES = {
    "blank": "the same picture with the region blanked",
    "picture": "another picture",
    "mean": "the mean over the image's tokens",
    "zero": "zero, which the model has never seen: read these numbers with care",
}


def render_deepstack(found: DeepstackEffects, paths: Iterable[str | PathLike] = (), verbose: bool = False) -> str:
    """The page of text: what each part adds, which two stand in for each other, and what is said with some parts kept.

    verbose: every set of parts; paths: the files that were written."""
    n = len(found.positions)
    tokens = f"{n} image token{'s' * (n != 1)}"
    lines = [*model_lines(found.meta), *wrapped(f"Generated text: {escape(found.generated_text)}", "", "  "), ""]
    lines += wrapped(f"Region: {escape(found.region)} ({tokens})", "", "  ")
    lines += [*wrapped(f"What is taken away is replaced by {BASELINES[found.baseline]}.", "", "  "), ""]
    for target in found.targets:
        lines += [*fitted(_of_target(found, target, verbose)), ""]
    if found.answers:
        lines += [*_answers(found), ""]
    lines.append(f"Measured in {found.forwards:.1f} forward passes of the prompt, beside the answers.")
    return "\n".join([*lines, "", *saved_lines(paths)]).rstrip()


def _of_target(found: DeepstackEffects, target: DeepstackTarget, verbose: bool) -> Iterator[str]:
    nothing, everything = float(target.logprob_change[0]), len(target.top1) - 1
    strongest = strongest_part(target)
    share = percent(target.probability)
    yield f"{quoted(target.text, 24)} ({share}): with no part kept {nothing + 0.0:.3g} nats{_then(target, 0)}."
    yield f"{found.parts[strongest].name.capitalize()} adds most."
    yield ""
    yield f"  {padded('part', PART)} {'adds':>9} {'without':>9} {'alone':>9}  norm"
    for place, part in enumerate(found.parts):
        numbers = (
            target.shapley[place],
            target.logprob_change[everything - (1 << place)],
            target.logprob_change[1 << place],
        )
        cells = " ".join(f"{float(one) + 0.0:>9.3g}" for one in numbers)
        yield f"  {padded(_named(part), PART)} {cells}  {percent(float(found.norm_share[place]))}"
    yield "  (nats; adds: Shapley value; without, alone: the change without it, with it"
    yield "  alone; norm: its share of the features' norms)"
    if pair := strongest_pair(target):
        yield _pair(found, *pair)
    if verbose:
        yield ""
        yield "  Parts kept, and the change in nats:"
        for number in range(len(target.top1)):
            change = float(target.logprob_change[number]) + 0.0
            yield f"  {padded(found.kept(number), PART)} {change:>9.3g}{_then(target, number)}"


def _then(target: DeepstackTarget, number: int) -> str:
    return f", {quoted(target.top1_texts[int(target.top1[number])], 16)} comes first" if target.differs[number] else ""


def _named(part) -> str:
    if part.decoder_layer is None:
        return "main (in the place of embeddings)"
    return f"{part.name} (layer {part.vision_layer} to decoder {part.decoder_layer})"


def _pair(found: DeepstackEffects, one: int, other: int, value: float) -> str:
    """The two parts whose interaction is largest."""
    what = "need each other" if value > 0 else "stand in for each other"
    return f"Most of all, {found.parts[one].name} and {found.parts[other].name} {what} (interaction {value + 0.0:.3g} nats)."


def _answers(found: DeepstackEffects) -> Iterator[str]:
    yield "Answers with parts kept:"
    for number, text in found.answers.items():
        same = "  (as with all)" if text == found.generated_text else ""
        yield f"  {padded(found.kept(number), PART)} {quoted(text, SAID)}{same}"
