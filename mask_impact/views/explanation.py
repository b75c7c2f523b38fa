"""What an answer used, as text for a terminal: the first lines of every run. Writes no files."""

from collections.abc import Iterable, Iterator
from math import ceil
from os import PathLike

from mask_impact.analyses.candidates import EVERYTHING, costs
from mask_impact.analyses.settings import SETTINGS
from mask_impact.results.explanations import Agreement, Evidence, ExplainedTarget, Explanation, TokenSet
from mask_impact.results.tokens import counted, original_box_of
from mask_impact.views.card import SEVERAL, doubt
from mask_impact.views.text import (
    columns,
    cut,
    escape,
    fitted,
    model_lines,
    padded,
    percent,
    quoted,
    saved_lines,
    wrapped,
)

NAME = 22  # columns
BECOMES = 14
TOP = 5
NAMED = 6  # units of a set that are named


def render_explanation(
    found: Explanation, paths: Iterable[str | PathLike] = (), top: int = TOP, verbose: bool = False
) -> str:
    """The page of text: the answer, and for each target what it used, the strongest first. paths: the files written."""
    sections = [model_lines(found.meta), *answer_sections(found, top, verbose), saved_lines(list(paths))]
    return "\n\n".join("\n".join(section) for section in sections if section)


def answer_sections(found: Explanation, top: int = TOP, verbose: bool = False) -> list[list[str]]:
    """Question and answer; then for each target what it used, its evidence, and by which routes it came."""
    sections = [list(_heading(found))]
    for target in found.targets:
        sections += [
            fitted(_used(found, target, top)),
            fitted(_evidence(found, target)),
            fitted(_routes(target)) if verbose or target.heads is not None else [],
            fitted(_agreement(found, target)) if verbose else [],
        ]
    return sections


def _heading(found: Explanation) -> Iterator[str]:
    prompt = found.meta.get("prompt")
    images = f" ({counted(found.images)})" if found.images else ""
    if isinstance(prompt, str):
        yield from wrapped(f"{quoted(prompt, 150)}{images}", "Question:  ", " " * 11)
    single = len(found.targets) == 1 and found.is_all(found.targets[0])
    chance = f" ({percent(found.targets[0].probability)})" if single else ""
    yield from wrapped(f"{quoted(found.generated_text)}{chance}", "Answer:    ", " " * 11)


def _used(found: Explanation, target: ExplainedTarget, top: int) -> Iterator[str]:
    whole = len(found.targets) == 1 and found.is_all(target)
    what = "this answer" if whole else f"{quoted(target.text, 24)} ({percent(target.probability)})"
    than = f" rather than {quoted(target.instead[1], 16)}" if target.instead else ""
    yield f"Used for {what}{than}, by the change of its log-probability (nats) where hidden:"
    used = target.used(top)
    if not used:
        yield "  nothing: there is no token but the template's"
    for place in used:
        measured = target.measured[place]
        change = f"{target.logprob_change[place]:>9.3g}" if measured else f"{f'~{target.contribution[place]:.2g}':>9}"
        becomes = ""
        if measured and target.differs[place]:
            becomes = f"-> {quoted(target.top1_texts[int(target.top1[place])], BECOMES)}"
        at = target.positions[place][0]
        line = f"  {at:>5}  {padded(_label(found, target, place), NAME)} {change}  {padded(becomes, BECOMES + 3)}"
        box = original_box_of(found.tokens, found.images, target.positions[place])
        yield (line + ("" if box is None else f" box {','.join(f'{edge:.0f}' for edge in box)}")).rstrip()
    n, n_measured = len(target.names), int(target.measured.sum())
    if target.reliable is None:
        every = f"All {n}" if n == n_measured else f"{n_measured} of {n}, all but the template's,"
        yield f"  {every} were really hidden ({target.forwards:.1f} forward passes)."
        return
    estimated = "; ~ is an estimate" if any(not target.measured[place] for place in used) else ""
    yield f"  {n_measured} of {n} were really hidden ({target.forwards:.1f} forward passes), the others estimated{estimated}."
    if not target.reliable:
        yield (
            f"  NOT RELIABLE here: the estimates do not agree with what was measured (see -v). "
            f"--budget {_for_all(found, target)} measures all."
        )


def _for_all(found: Explanation, target: ExplainedTarget) -> int:
    """The budget that measures all units."""
    n_positions = found.n_prompt + target.steps[-1]
    return ceil(costs(target.positions, n_positions).sum() / EVERYTHING)


def _label(found: Explanation, target: ExplainedTarget, place: int) -> str:
    """A unit's name: quoted, where it is text."""
    in_image = found.tokens.image[target.positions[place][0]] >= 0
    if target.kinds[place] == "group" or in_image:
        return cut(escape(target.names[place]), NAME)
    return quoted(target.names[place], NAME)


# --- evidence ---------------------------------------------------------------------------------------------------------------


def _evidence(found: Explanation, target: ExplainedTarget) -> Iterator[str]:
    if not target.evidence:
        return
    yield "Evidence (the smallest sets that were found):"
    for one in target.evidence:
        yield from _of_kind(found, target, one)


def _of_kind(found: Explanation, target: ExplainedTarget, one: Evidence) -> Iterator[str]:
    has_videos = one.kind == "image" and any(image.moment is not None for image in found.images)
    several = "cells" if has_videos else SEVERAL[one.kind]
    if one.necessary is not None:
        unsure = doubt(target, one.necessary.confirmed)
        yield f"  Without {_names(found, target, one.necessary)} it is {quoted(one.necessary.text, 40)}.{unsure}"
    if others := [place for place in one.each if one.necessary is None or place not in one.necessary.places]:
        them = _named(found, target, others, " or ")
        yield f"  It is another, too, without {them}{', each by itself' if len(others) > 1 else ' alone'}."
    if one.sufficient is not None:
        yield (
            f"  With {_names(found, target, one.sufficient)} alone, all other {several} hidden, it is "
            f"{quoted(one.sufficient.text, 40)}.{doubt(target, one.sufficient.confirmed)}"
        )
    if not one.matters:
        yield f"  With all {several} hidden it still is {quoted(target.text, 40)}."
    if one.exhausted:
        budget = found.meta.get("budget", SETTINGS["budget"].default)
        yield f"  The budget ended the search among {several}: --budget {2 * budget} goes on."


def _names(found: Explanation, target: ExplainedTarget, chosen: TokenSet) -> str:
    return _named(found, target, chosen.places, " and ")


def _named(found: Explanation, target: ExplainedTarget, places: Iterable[int], between: str) -> str:
    places = sorted(places, key=lambda place: target.positions[place])
    names = [_told_apart(found, target, place) for place in places[:NAMED]]
    more = len(places) - NAMED
    return between.join([*names, f"{more} more"] if more > 0 else names)


def _told_apart(found: Explanation, target: ExplainedTarget, place: int) -> str:
    """A unit's name, with its position where another has the same name."""
    name = _label(found, target, place)
    same = sum(other.strip() == target.names[place].strip() for other in target.names) > 1
    return f"{name} (token {target.positions[place][0]})" if same else name


# --- routes and agreement ---------------------------------------------------------------------------------------------------


def _routes(target: ExplainedTarget) -> Iterator[str]:
    if not target.routes:
        return
    cut_at_all = any(one.whole_change is not None for one in target.routes)
    yield f"Routes ({'change of the log-probability, nats, where a flow is cut' if cut_at_all else 'estimated'}):"
    width = max(columns(escape(one.name)) for one in target.routes)
    for one in target.routes:
        by_layer = one.contribution.sum(axis=1)
        strongest = ", ".join(map(str, sorted(by_layer.argsort(kind="stable")[:3].tolist())))
        line = f"  {padded(escape(one.name), width)}  "
        if one.whole_change is None:
            line += f"carries most in layers {strongest}"
        else:
            line += f"in all layers {one.whole_change:.3g}"
            line += (
                "" if one.layers is None else f", in layers {one.layers[0]}-{one.layers[1]} {one.logprob_change:.3g}"
            )
        yield line
    if target.heads is not None:
        cut_heads = target.heads
        names = ", ".join(f"{layer}.{head}" for layer, head in cut_heads.heads)
        yield f"  The {len(cut_heads.heads)} heads that carry most (layer.head): {names}"
        yield (
            f"  Without them: {cut_heads.logprob_change:.3g}, then {quoted(cut_heads.top1_text, 16)}; without as many at random: "
            f"{cut_heads.random_change:.3g}"
        )


def _agreement(found: Explanation, target: ExplainedTarget) -> Iterator[str]:
    yield f"Estimates against what was measured ({target.agreement.n} of {len(target.names)}):"
    yield from agreement_lines(target.agreement, int(target.control.sum()))


def agreement_lines(one: Agreement, n_controls: int) -> Iterator[str]:
    """How far estimates agree with what was measured."""
    yield (
        f"  rank correlation {one.rho:.2f}, same sign {percent(one.same_sign)}, estimated is {one.ratio:.2f} of measured (median)"
    )
    if n_controls:
        yield f"  the largest change among {n_controls} drawn at random: {one.strongest_control:.3g}"
