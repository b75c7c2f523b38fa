"""What each part of an image's features does to an answer, as HTML without a script: each alone and taken away, what it adds,
and which two need each other. Knows what was measured and the card's classes."""

from mask_impact.findings.looked import strongest_pair, strongest_part
from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget
from mask_impact.views.card_html import MOST_TARGETS
from mask_impact.views.deepstack import BASELINES
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import rendered, shown
from mask_impact.views.text import percent, percent_after


def deepstack_html(found: DeepstackEffects) -> list[str]:
    """Of each target (the first MOST_TARGETS) its tables."""
    return [rendered("deepstack.html", {"looked": DeepstackView(found, one)}) for one in found.targets[:MOST_TARGETS]]


def parts_said(found: DeepstackEffects, target: DeepstackTarget) -> str:
    """What matters most, in a sentence or two."""
    then = f", and the answer becomes “{target.top1_texts[int(target.top1[0])].strip()}”" if target.differs[0] else ""
    adds = found.parts[strongest_part(target)].name
    return f"{adds[:1].upper()}{adds[1:]} adds most. With no part kept: {nats(float(target.logprob_change[0]), True)} nats{then}."


class DeepstackView:
    """A target's numbers as the template takes them."""

    def __init__(self, found: DeepstackEffects, target: DeepstackTarget) -> None:
        self.found, self.target, self.n = found, target, len(found.parts)
        self.all = 2**self.n - 1
        self._most_added = float(abs(target.shapley).max()) or 1.0
        self._most_together = float(abs(target.interaction).max()) or 1.0

    @property
    def sentence(self) -> str:
        """What matters most."""
        return shown(parts_said(self.found, self.target))

    @property
    def about(self) -> str:
        """The region and the baseline."""
        n = len(self.found.positions)
        region = f"Region: {shown(self.found.region)} ({n:,} image token{'s' * (n != 1)})."
        return f"{region} What is taken away is replaced by {BASELINES[self.found.baseline]}."

    @property
    def pair(self) -> str:
        """The two parts whose interaction is largest."""
        pair = strongest_pair(self.target)
        if pair is None:
            return ""
        one, other, value = pair
        what = "need each other" if value > 0 else "stand in for each other"
        names = f"{shown(self.found.parts[one].name)} and {shown(self.found.parts[other].name)}"
        return f"Most of all, {names} {what}: {nats(value, True)} nats."

    def where(self, place: int) -> str:
        """Where a part comes from and where it goes."""
        part = self.found.parts[place]
        origin = "the tower's end" if part.vision_layer is None else f"vision layer {part.vision_layer}"
        goes = (
            "in the place of embeddings" if part.decoder_layer is None else f"behind decoder layer {part.decoder_layer}"
        )
        return f"{origin}, {goes}"

    def added(self, place: int) -> str:
        """A part's Shapley value."""
        return nats(float(self.target.shapley[place]), True)

    def adds(self, place: int) -> tuple[str, float]:
        """(tone, 0 to 1) of the bar of a part's Shapley value."""
        value = float(self.target.shapley[place])
        return "for" if value >= 0 else "against", round(min(abs(value) / self._most_added, 1.0), 4)

    def alone(self, place: int) -> int:
        """The set of one part."""
        return 1 << place

    def without(self, place: int) -> int:
        """The set of all others."""
        return self.all - (1 << place)

    def change(self, number: int) -> str:
        """Of a set, nats."""
        return nats(float(self.target.logprob_change[number]), True)

    def divergence(self, number: int) -> str:
        """Of a set, nats."""
        return nats(float(self.target.kl_divergence[number]), True)

    def left(self, number: int) -> str:
        """The probability where a set is kept."""
        before = self.target.probability
        if before <= 0:
            return ""
        return percent_after(before, float(self.target.logprob_change[number]))

    def says(self, number: int) -> str:
        """What becomes of the answer: all of it where it was generated, else the first token."""
        if number in self.found.answers:
            text = self.found.answers[number]
            said = f"“{shown(text).strip()}”" if text.strip() else "nothing"
            return f"{said} (as with all)" if text == self.found.generated_text else said
        if self.target.differs[number]:
            return f"first “{shown(self.target.top1_texts[int(self.target.top1[number])]).strip()}”"
        return "the answer stays"

    def together(self, one: int, other: int) -> tuple[str, float, str]:
        """(tone, 0 to 1, nats) of how much more two parts add together."""
        value = float(self.target.interaction[one, other])
        return "for" if value >= 0 else "against", round(abs(value) / self._most_together, 4), nats(value, True)

    def share(self, place: int) -> str:
        """A part's share of the features' norms."""
        return percent(float(self.found.norm_share[place]))

    @property
    def note(self) -> str:
        """How it is known."""
        return (
            f"Every one of the {self.all + 1:,} sets of parts was measured, in {self.found.forwards:.1f} forward passes of the "
            "prompt. Adds: Shapley value, nats; alone, without it: change of the log-probability, nats."
        )
