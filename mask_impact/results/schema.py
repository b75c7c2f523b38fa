"""The schema of each kind of meta file: types, ranges, and that what belongs together fits. `meta.read_meta` applies it.

Knows pydantic and the parts; reads no files. A fault is a ValueError whose text begins with the field.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mask_impact.results.schema_parts import (
    AgreementEntry,
    Checksum,
    Count,
    Exact,
    Floor,
    Formats,
    Id,
    Norm,
    Part,
    Picture,
    Probability,
    Run,
    RunOfFlows,
    Single,
    Size,
    Texts,
    Token,
    check_below,
    check_length,
    check_tokens,
)
from mask_impact.results.schema_tower import TowerMeta
from mask_impact.results.schema_vision import DeepstackMeta, PatchesMeta

# --- NAME.meta.json -----------------------------------------------------------------------------------------------------------


class CandidateEntry(Exact):
    """A candidate for the next token."""

    id: Id
    text: str
    probability: Probability


class EstimatedEntry(Exact):
    """Where only some effects were measured."""

    agreement: AgreementEntry
    reliable: bool
    forwards: Size
    all_forwards: Size


class EffectEntry(Part):
    """What is said of a step's effects besides their table."""

    floor: Floor
    top1_texts: Texts
    groups: Annotated[list[Annotated[list[Any], Field(min_length=2, max_length=2)]], Field(min_length=1)] | None = None
    likeliest: Id | None = None
    rounding: Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    estimated: EstimatedEntry | None = None
    crc32: Checksum | None = None
    rest_crc32: Checksum | None = None

    def check(self, field: str, n_positions: int) -> None:
        """ValueError where groups are not (name, positions) in a sequence of so many positions."""
        for place, (name, positions) in enumerate(self.groups or ()):
            where = f"{field}.groups.{place}"
            if not isinstance(name, str):
                raise ValueError(f"{where}.0 is not a name")
            if not isinstance(positions, list) or not positions or any(type(one) is not int for one in positions):
                raise ValueError(f"{where}.1 is not a list of positions")
            check_below(f"{where}.1", positions, n_positions)


class StepEntry(Part):
    """One produced token."""

    step: int
    token_id: Id
    token_text: str
    candidates: list[CandidateEntry]
    seconds: Size
    self_check: list[Size | None]
    noise_floor: list[Size | None]
    positions: list[Count] | None
    attention: list[Probability]
    baseline_norm: list[list[Norm | None]]
    distances_crc32: Checksum
    effect: EffectEntry | None = None

    def n_rows(self, n_layers: int, layers: Sequence[int], n_positions: int, n_variants: int) -> int:
        """How many rows the step has in the table; ValueError where its lists have other lengths. layers: of n_layers those that
        were measured; others have no norms."""
        field = f"steps.{self.step}"
        for name in ("self_check", "noise_floor", "baseline_norm"):
            check_length(f"{field}.{name}", getattr(self, name), n_layers, "n_layers")
        for layer, norms in enumerate(self.baseline_norm):
            check_length(f"{field}.baseline_norm.{layer}", norms, n_variants, "variants")
            if layer not in layers and any(norm is not None for norm in norms):
                raise ValueError(f"{field}.baseline_norm.{layer} has numbers, and the layer is not among layers")
        check_length(f"{field}.attention", self.attention, n_positions, "n_prompt")
        check_below(f"{field}.positions", self.positions or (), n_positions, ascending=True)
        if self.effect is not None:
            self.effect.check(f"{field}.effect", n_positions)
        return len(layers) * n_variants * (n_positions if self.positions is None else len(self.positions))


class ResultMeta(Part):
    """`NAME.meta.json`"""

    run: Run
    generated_text: str
    n_prompt: Annotated[Count, Field(ge=1)]
    n_layers: Annotated[Count, Field(ge=1)]
    layers: Annotated[list[Count], Field(min_length=1)] | None = None
    n_rows: Annotated[int, Field(ge=0)]
    variants: Annotated[list[str], Field(min_length=1)]
    formats: Formats
    distance_dtype: Literal["float32", "float64"]
    sinks: list[Count]
    answer_crc32: Checksum | None = None
    patches_crc32: Checksum | None = None
    steps: Annotated[list[StepEntry], Field(min_length=1)]
    images: list[Picture]
    tokens: list[Token]

    @model_validator(mode="after")
    def fits(self) -> "ResultMeta":
        """Lists of the same things have the same lengths, and positions are within the sequence."""
        n_steps, n_variants = len(self.steps), len(self.variants)
        if len(self.tokens) != self.n_prompt + n_steps:
            raise ValueError(
                f"n_prompt is {self.n_prompt:,}, and with {n_steps:,} steps tokens has {len(self.tokens):,} entries"
            )
        if len(set(self.variants)) != n_variants:
            raise ValueError("variants has a name twice")
        check_below("sinks", self.sinks, len(self.tokens), ascending=True)
        check_tokens(self.tokens, self.images)
        check_below("layers", self.layers or (), self.n_layers, ascending=True)
        layers = range(self.n_layers) if self.layers is None else self.layers
        n_rows = 0
        for place, step in enumerate(self.steps):
            if step.step != place:
                raise ValueError(f"steps.{place}.step is {step.step}, expected {place}")
            n_rows += step.n_rows(self.n_layers, layers, self.n_prompt + place, n_variants)
            if (step.effect is None) != (self.steps[0].effect is None):
                raise ValueError(f"steps.{place}.effect: all steps have effects, or none")
            if step.effect and (step.effect.estimated is None) != (self.steps[0].effect.estimated is None):
                raise ValueError(f"steps.{place}.effect.estimated: all steps have it, or none")
        if self.n_rows != n_rows:
            raise ValueError(f"n_rows is {self.n_rows:,}, and the lists of steps have {n_rows:,}")
        return self


# --- NAME.answer.meta.json ----------------------------------------------------------------------------------------------------


class TokenSetEntry(Exact):
    """Units that decide the answer."""

    places: Annotated[list[Count], Field(min_length=1)]
    minimal: bool
    text: str
    confirmed: bool


class EvidenceEntry(Exact):
    """The smallest sets of one kind of tokens."""

    kind: Literal["image", "text", "all"]
    matters: bool
    necessary: TokenSetEntry | None
    sufficient: TokenSetEntry | None
    exhausted: bool
    forwards: Size
    each: list[Count] = Field(default=[])

    def check(self, field: str, n_units: int) -> None:
        """ValueError where a place is none of a unit."""
        for name in ("necessary", "sufficient"):
            if (chosen := getattr(self, name)) is not None:
                check_below(f"{field}.{name}.places", chosen.places, n_units)
        check_below(f"{field}.each", self.each, n_units)


class RouteEntry(Exact):
    """A flow, by layer and head."""

    name: str
    source: str
    target: str
    whole_change: Single | None
    layers: Annotated[list[Count], Field(min_length=2, max_length=2)] | None
    logprob_change: Single | None
    estimate: Annotated[list[Annotated[list[Single | None], Field(min_length=1)]], Field(min_length=1)]
    contribution: list[list[Single | None]]

    def check(self, field: str, n_layers: int, n_heads: int) -> None:
        """ValueError where the numbers are not of so many layers and heads."""
        for name in ("estimate", "contribution"):
            check_length(f"{field}.{name}", getattr(self, name), n_layers, "routes.0.estimate")
            for layer, numbers in enumerate(getattr(self, name)):
                check_length(f"{field}.{name}.{layer}", numbers, n_heads, "routes.0.estimate.0")
        check_below(f"{field}.layers", self.layers or (), n_layers)
        if self.layers and (self.layers[0] > self.layers[1] or self.logprob_change is None):
            raise ValueError(f"{field}.layers is not first and last of layers with a logprob_change")


class HeadsEntry(Exact):
    """What becomes of the target without what some heads read."""

    heads: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    logprob_change: Single
    top1_text: str
    random_change: Single


class TargetEntry(Part):
    """Produced tokens that were asked about together."""

    steps: Annotated[list[Count], Field(min_length=1)]
    token_ids: list[Id]
    text: str
    probability: Probability
    instead: Annotated[list[Any], Field(min_length=2, max_length=2)] | None
    measure: str
    units: Count
    measured: Count | None = None
    forwards: Size
    agreement: AgreementEntry
    reliable: bool | None
    top1_texts: Texts
    names: list[str]
    positions: list[Annotated[list[Count], Field(min_length=1)]]
    kinds: list[str]
    top1: list[Id]
    differs: list[bool]
    control: list[bool]
    content: list[bool]
    evidence: list[EvidenceEntry]
    routes: list[RouteEntry]
    heads: HeadsEntry | None

    def check(self, field: str, n_prompt: int, n_tokens: int) -> None:
        """ValueError where lists of units have other lengths, or positions are not before the target in the sequence."""
        check_below(f"{field}.steps", self.steps, n_tokens - n_prompt, ascending=True)
        check_length(f"{field}.token_ids", self.token_ids, len(self.steps), "steps")
        if self.instead is not None and [type(one) for one in self.instead] != [int, str]:
            raise ValueError(f"{field}.instead is not the id and the text of a token")
        for name in ("names", "positions", "kinds", "top1", "differs", "control", "content"):
            check_length(f"{field}.{name}", getattr(self, name), self.units, "units")
        for place, positions in enumerate(self.positions):
            check_below(f"{field}.positions.{place}", positions, n_tokens)
        for place, token in enumerate(self.top1):
            if token >= 0 and str(token) not in self.top1_texts:
                raise ValueError(f"{field}.top1_texts has no text of token {token}, which is top1.{place}")
        for place, one in enumerate(self.evidence):
            one.check(f"{field}.evidence.{place}", self.units)
        for place, one in enumerate(self.routes):
            n_layers, n_heads = len(self.routes[0].estimate), len(self.routes[0].estimate[0])
            one.check(f"{field}.routes.{place}", n_layers, n_heads)
            for number, (layer, head) in enumerate(self.heads.heads if self.heads else ()):
                check_below(f"{field}.heads.heads.{number}", [layer], n_layers)
                check_below(f"{field}.heads.heads.{number}", [head], n_heads)


class AnswerMeta(Part):
    """`NAME.answer.meta.json`"""

    run: Run
    generated_text: str
    n_prompt: Annotated[Count, Field(ge=1)]
    formats: Formats
    crc32: Checksum
    has_matrix: bool
    estimates_crc32: Checksum | None = None
    matrix_crc32: Checksum | None = None
    targets: Annotated[list[TargetEntry], Field(min_length=1)]
    images: list[Picture]
    tokens: list[Token]

    @model_validator(mode="after")
    def fits(self) -> "AnswerMeta":
        """Lists of the same things have the same lengths, and positions are within the sequence."""
        if self.n_prompt > len(self.tokens):
            raise ValueError(f"n_prompt is {self.n_prompt:,}, and tokens has {len(self.tokens):,} entries")
        check_tokens(self.tokens, self.images)
        for place, target in enumerate(self.targets):
            target.check(f"targets.{place}", self.n_prompt, len(self.tokens))
        return self


# --- NAME.flows.meta.json, NAME.whatif.json -----------------------------------------------------------------------------------


class FlowEntry(Part):
    """A flow that was cut."""

    name: str
    source: str
    target: str
    heads: list[Count] | None
    source_positions: list[Count]
    target_positions: list[Count] | None


class FlowStepEntry(Part):
    """A produced token."""

    step: int
    token_id: Id
    token: str
    probability: Probability
    floor: Floor
    likeliest: Id
    top1_texts: Texts


class FlowsMeta(Part):
    """`NAME.flows.meta.json`"""

    run: RunOfFlows
    generated_text: str
    flows: Annotated[list[FlowEntry], Field(min_length=1)]
    steps: Annotated[list[FlowStepEntry], Field(min_length=1)]
    formats: Formats
    crc32: Checksum
    top1_crc32: Checksum | None = None
    tokens: list[Token]

    @model_validator(mode="after")
    def fits(self) -> "FlowsMeta":
        """Steps are in their order, and positions within the prompt."""
        check_tokens(self.tokens)
        for place, step in enumerate(self.steps):
            if step.step != place:
                raise ValueError(f"steps.{place}.step is {step.step}, expected {place}")
        for place, flow in enumerate(self.flows):
            for name in ("source_positions", "target_positions"):
                check_below(f"flows.{place}.{name}", getattr(flow, name) or (), len(self.tokens), ascending=True)
        return self


class SaidToken(Part):
    """A produced token."""

    id: Id
    text: str
    probability: Probability


class AnswerEntry(Part):
    """An answer, with something hidden or not."""

    without: str | None
    positions: list[Count]
    text: str
    probability_of_first_token: Probability
    differs_at: Count | None
    tokens: Annotated[list[SaidToken], Field(min_length=1)]


class WhatIfMeta(Part):
    """`NAME.whatif.json`"""

    run: Run
    layers: Annotated[list[Count], Field(min_length=1)]
    n_layers: Count
    answer: AnswerEntry
    others: list[AnswerEntry]
    tokens: list[Token]

    @model_validator(mode="after")
    def fits(self) -> "WhatIfMeta":
        """Positions are within the prompt, and layers within the model."""
        check_tokens(self.tokens)
        check_below("layers", self.layers, self.n_layers, ascending=True)
        fields = {"answer": self.answer} | {f"others.{place}": one for place, one in enumerate(self.others)}
        for field, one in fields.items():
            check_below(f"{field}.positions", one.positions, len(self.tokens))
            longest = max(len(self.answer.tokens), len(one.tokens))
            if one.differs_at is not None and one.differs_at >= longest:
                raise ValueError(f"{field}.differs_at is {one.differs_at}, and there are {longest} tokens")
        return self


SCHEMAS: dict[str, type[Part]] = {
    "result": ResultMeta,
    "answer": AnswerMeta,
    "flows": FlowsMeta,
    "whatif": WhatIfMeta,
    "patches": PatchesMeta,
    "deepstack": DeepstackMeta,
    "tower": TowerMeta,
}
