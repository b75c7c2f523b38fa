"""A prompt's row among many: what was asked and said, what it used in words, and how that is known.

Knows cards; draws nothing.
"""

from mask_impact.results.explanations import ExplainedTarget
from mask_impact.results.stored import Stored
from mask_impact.views.card import Card, question_of
from mask_impact.views.deepstack_html import parts_said
from mask_impact.views.patches_html import regions_said
from mask_impact.views.text import percent
from mask_impact.views.tower_html import tower_said

LONGEST = 160  # characters of a cell
NOT_KEPT = "not kept: it was run without --answer, or by an earlier version"


def overview_row(name: str, stored: Stored) -> dict[str, str]:
    """name, question, answer, chance, used, how: texts, unescaped."""
    row = {"name": name, "question": str(stored.meta.get("prompt") or ""), "answer": _said(stored), "chance": ""}
    if stored.answer is None or not stored.answer.targets:
        used, how = _looked(stored)
        return _short(row | {"used": used, "how": how})
    card = Card(stored.answer)
    return _short(
        row
        | {"question": question_of(stored.answer), "chance": percent(card.target.probability)}
        | {"used": card.reason, "how": _how(card.target)}
    )


def _how(target: ExplainedTarget) -> str:
    """Whether what matters most was measured, and whether the rest may be trusted."""
    strongest = target.used(1)
    if len(strongest) and not target.measured[strongest[0]]:
        return "estimated, not reliable" if target.reliable is False else "estimated"
    return "measured, the rest not reliable" if target.reliable is False else "measured"


def _looked(stored: Stored) -> tuple[str, str]:
    """The same of a prompt of which no answer was explained: the region or the part of features that matters most,
    or whether what the tower reads does."""
    if stored.patches is not None:
        return regions_said(stored.patches, stored.patches.targets[0]), "measured"
    if stored.deepstack is not None:
        return parts_said(stored.deepstack, stored.deepstack.targets[0]), "measured"
    if stored.tower is not None:
        return tower_said(stored.tower, stored.tower.targets[0]), "measured"
    return NOT_KEPT, ""


def _said(stored: Stored) -> str:
    for one in (stored.answer, stored.result):
        if one is not None:
            return one.generated_text
    if stored.flows is not None:
        return "".join(step.token_text for step in stored.flows.steps)
    if stored.whatif is not None:
        return "".join(stored.whatif.answer.token_texts)
    return stored.looked[0].generated_text if stored.looked else ""


def _short(row: dict[str, str]) -> dict[str, str]:
    """In one line each, what is long cut at its end."""
    lines = {key: " ".join(text.split()) for key, text in row.items()}
    return {key: line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for key, line in lines.items()}
