"""By which flows an answer came about, and what cutting flows did, as HTML without a script. Knows explanations and knockouts."""

from mask_impact.results.explanations import ExplainedTarget, Explanation, Route
from mask_impact.results.flows import FlowStep, Knockouts
from mask_impact.views.layer_bars import LayerBars, Line, nats
from mask_impact.views.page import rendered, shown
from mask_impact.views.text import percent

STRONGEST = 3  # layers that are named


def routes_html(found: Explanation) -> list[str]:
    """Of each target its drawing and table, empty where it has no routes. Bars are contributions: estimates with norms, gates and
    attention weights held constant."""
    return [rendered("routes.html", {"view": RoutesView(one)}) if one.routes else "" for one in found.targets]


def knockouts_html(found: Knockouts) -> list[str]:
    """Of each produced token its drawing and table."""
    return [rendered("knockouts.html", {"view": KnockoutsView(found, one)}) for one in found.steps]


class RoutesView:
    """A target's routes as the template takes them."""

    def __init__(self, target: ExplainedTarget) -> None:
        self.target, self.routes = target, target.routes
        self.drawing = LayerBars(
            [
                Line(one.name, one.contribution.sum(axis=1), one.whole_change is not None, one.layers, self.part(one))
                for one in target.routes
            ]
        )

    def strongest(self, number: int) -> str:
        """The layers in which a route carries most."""
        order = (-abs(self.drawing.rows[number].changes)).argsort(kind="stable")[:STRONGEST].tolist()
        return ", ".join(map(str, sorted(order)))

    def whole(self, route: Route) -> str:
        """What cutting a route in all layers did."""
        return "estimated" if route.whole_change is None else nats(route.whole_change, True)

    def part(self, route: Route) -> str:
        """What cutting it in few layers did."""
        if route.layers is None or route.logprob_change is None:
            return ""
        return f"layers {route.layers[0]}–{route.layers[1]}: {nats(route.logprob_change, True)}"

    @property
    def heads(self) -> str:
        """What became of the target without the heads that carry most; empty where they were not cut."""
        cut = self.target.heads
        if cut is None:
            return ""
        names = ", ".join(f"{layer}.{head}" for layer, head in cut.heads)
        return (
            f"The {len(cut.heads)} heads that carry most (layer.head): {names}. Without them: {nats(cut.logprob_change, True)} "
            f"nats, then “{shown(cut.top1_text).strip()}”; without as many at random: {nats(cut.random_change, True)}."
        )


class KnockoutsView:
    """A produced token's cut flows as the template takes them."""

    def __init__(self, found: Knockouts, step: FlowStep) -> None:
        self.found, self.step = found, step
        names = [one.flow.name for one in found.flows]
        self.drawing = LayerBars([Line(name, row, True) for name, row in zip(names, step.logprob_change, strict=True)])

    @property
    def about(self) -> str:
        """What was cut, and where."""
        window = self.found.meta.get("window")
        layers = "a layer" if window == 1 else f"the {window} layers around a layer"
        return (
            f"Each flow was really cut in {layers}; the bars say how the log-probability of the token changed, in nats."
        )

    @property
    def rows(self) -> list[tuple[str, int, str, str, str]]:
        """Of each flow (name, layer, change, probability then, token then) where cutting it costs most."""
        rows = []
        for number, one in enumerate(self.found.flows):
            layer = int(self.step.logprob_change[number].argmin())
            change = float(self.step.logprob_change[number, layer])
            then = (
                self.step.top1_texts[int(self.step.top1[number, layer])]
                if self.step.top1_changed[number, layer]
                else ""
            )
            probability = percent(
                min(1.0, self.step.probability * (1 + float(self.step.relative_change[number, layer])))
            )
            rows.append((one.flow.name, layer, nats(change, True), probability, then))
        return rows
