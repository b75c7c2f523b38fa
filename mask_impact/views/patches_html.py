"""What replacing pixels does, as HTML without a script: each image under its regions, and the strongest of them.

Knows what was measured and the card's classes. The page's script shows one fill and one route at a time.
"""

from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL, PatchEffects, PatchTarget
from mask_impact.views.card_html import MOST_TARGETS
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import rendered, shown
from mask_impact.views.regions_html import RegionsView, becomes

ROUTES = {
    TOTAL: "In total",
    OWN: "By its own tokens",
    OTHERS: "By other tokens",
    HIDDEN: "Keys hidden in the decoder",
}
ABOUT = {
    TOTAL: "the pixels are replaced, and the vision tower sees the new ones",
    OWN: "only the region's own image tokens are those of the replaced pixels",
    OTHERS: "only all other image tokens are those of the replaced pixels",
    HIDDEN: "the pixels stay, and the decoder can't read the region's tokens",
}


def patches_html(found: PatchEffects) -> list[str]:
    """Of each target (the first MOST_TARGETS) its pictures and lists."""
    return [
        rendered("patches.html", {"looked": PatchesView(found, target), "routes": ROUTES, "about": ABOUT})
        for target in found.targets[:MOST_TARGETS]
    ]


def regions_said(found: PatchEffects, target: PatchTarget) -> str:
    """What matters most, in a sentence or two."""
    best, asked = found.regions[target.found], len({*target.place.tolist()})
    rows = [row for row in target.rows(target.found, route=TOTAL) if target.differs[row]]
    then = f"the answer becomes “{becomes(target, rows[0])}”" if rows else "the answer stays"
    if asked > 1:
        return f"Of {asked:,} regions, {best.called} matters most. With its pixels replaced, {then}."
    return f"With {best.called} replaced, {then}."


class PatchesView:
    """A target's regions as the template takes them."""

    def __init__(self, found: PatchEffects, target: PatchTarget) -> None:
        self.found, self.target = found, target
        self.largest = float(abs(target.logprob_change).max()) or 1.0
        views = dict.fromkeys((route, fill) for route in ROUTES for fill in (*found.fills, ""))
        self.views = [MeasuredView(self, *one) for one in views if target.rows(fill=one[1], route=one[0])]

    @property
    def sentence(self) -> str:
        """What matters most."""
        return shown(regions_said(self.found, self.target))

    @property
    def ways(self) -> list[tuple[str, list[str]]]:
        """(region, nats by route) of each whose effect was split, by the first fill."""
        split = dict.fromkeys(self.target.place[self.target.rows(route=OWN)].tolist())
        return [(self.found.regions[place].called, [self._way(place, route) for route in ROUTES]) for place in split]

    def _way(self, place: int, route: str) -> str:
        rows = self.target.rows(place, None if route == HIDDEN else self.found.fills[0], route)
        return nats(float(self.target.logprob_change[rows[0]]), True) if rows else ""

    @property
    def note(self) -> str:
        """How it is known."""
        return (
            f"Measured in {self.found.forwards:.1f} forward passes of the prompt. Where nothing is replaced, log-probabilities "
            f"differ by {self.found.floor:.1g} nats at most."
        )


class MeasuredView(RegionsView):
    """What one fill and route did."""

    def __init__(self, of: PatchesView, route: str, fill: str) -> None:
        found, target = of.found, of.target
        super().__init__(found, target, target.rows(fill=fill, route=route), of.largest, target.found)
        self.route, self.fill = route, fill

    def around(self, place: int) -> str:
        mask = self.found.shapes.get(place)
        return "" if mask is None else self.path_around(place, mask)
