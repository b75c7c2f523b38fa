"""The schemas of the meta files of what pixels do, and parts of an image's features: see `schema` for those of all others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mask_impact.results.deepstack import WITH
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL
from mask_impact.results.schema_parts import (
    MOST,
    Checksum,
    Count,
    Exact,
    Formats,
    Id,
    Part,
    Picture,
    Pixels,
    Probability,
    Run,
    Size,
    Texts,
    Token,
    check_below,
    check_length,
    check_tokens,
)

MOST_PARTS = 12  # of an image's features: there are 2^n sets of them
Place = Annotated[int, Field(ge=-1, le=MOST)]  # in a grid; -1: in none
Edge = Annotated[float, Field(ge=-(2.0**31), le=2.0**31)]
Finite = Annotated[list[float], Field(min_length=1, max_length=MOST_PARTS)]


class LookedEntry(Part):
    """Produced tokens that were asked about together."""

    steps: Annotated[list[Count], Field(min_length=1)]
    text: str
    probability: Probability
    top1_texts: Texts
    top1: list[Id]
    differs: list[bool]

    def check(self, field: str, n_prompt: int, n_tokens: int, n: int, of: str) -> None:
        """ValueError where the lists are not of n measurements, a token has no text or a step is not there."""
        check_below(f"{field}.steps", self.steps, n_tokens - n_prompt, ascending=True)
        for name in ("top1", "differs"):
            check_length(f"{field}.{name}", getattr(self, name), n, of)
        for place, token in enumerate(self.top1):
            if str(token) not in self.top1_texts:
                raise ValueError(f"{field}.top1_texts has no text of token {token}, which is top1.{place}")


class LookedMeta(Part):
    """What both have in common."""

    run: Run
    generated_text: str
    n_prompt: Annotated[Count, Field(ge=1)]
    formats: Formats
    crc32: Checksum
    floor: Size
    forwards: Size
    images: Annotated[list[Picture], Field(min_length=1)]
    tokens: list[Token]

    def check(self) -> None:
        """ValueError where the tokens are not those of the prompt, its images and what was produced."""
        if self.n_prompt >= len(self.tokens):
            raise ValueError(f"n_prompt is {self.n_prompt:,}, and tokens has {len(self.tokens):,} entries")
        check_tokens(self.tokens, self.images)


# --- NAME.patches.meta.json ---------------------------------------------------------------------------------------------------


class RegionEntry(Exact):
    """Pixels of one image."""

    level: Literal["region", "frames", "block", "token", "patch"]
    name: str
    image: Count
    row: Place
    column: Place
    box: Annotated[list[Edge], Field(min_length=4, max_length=4)]
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    positions: list[Count]
    images: list[Count] | None = None

    def check(self, field: str, n_images: int, n_prompt: int) -> None:
        """ValueError where it is of an image or a token that is not there, or its box has no inside."""
        check_below(f"{field}.image", [self.image], n_images)
        check_below(f"{field}.images", self.images or [], n_images, ascending=True)
        if self.images is not None and self.image not in self.images[:1]:
            raise ValueError(f"{field}.images does not begin with its image, which is {self.image}")
        check_below(f"{field}.positions", self.positions, n_prompt)
        left, top, right, bottom = self.box
        if left >= right or top >= bottom:
            raise ValueError(f"{field}.box is not left, top, right, bottom")


class PatchTargetEntry(LookedEntry):
    """A target: place, fill and route of each of its measurements."""

    found: Count
    place: Annotated[list[Count], Field(min_length=1)]
    fill: list[str]
    route: list[Literal[TOTAL, OWN, OTHERS, HIDDEN]]


class PatchesMeta(LookedMeta):
    """`NAME.patches.meta.json`"""

    fills: Annotated[list[str], Field(min_length=1, max_length=16)]
    regions: Annotated[list[RegionEntry], Field(min_length=1)]
    targets: Annotated[list[PatchTargetEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def fits(self) -> "PatchesMeta":
        """Lists of the same things have the same lengths, and what they name is there."""
        self.check()
        for place, region in enumerate(self.regions):
            region.check(f"regions.{place}", len(self.images), self.n_prompt)
        for number, target in enumerate(self.targets):
            field = f"targets.{number}"
            target.check(field, self.n_prompt, len(self.tokens), len(target.place), "place")
            for name in ("fill", "route"):
                check_length(f"{field}.{name}", getattr(target, name), len(target.place), "place")
            check_below(f"{field}.place", target.place, len(self.regions))
            check_below(f"{field}.found", [target.found], len(self.regions))
            keys = list(zip(target.place, target.fill, target.route, strict=True))
            if len(set(keys)) < len(keys):
                raise ValueError(f"{field} has a region, fill and route twice")
            if (target.found, self.fills[0], TOTAL) not in keys:
                raise ValueError(f"{field}.found is region {target.found}, which was not measured")
            for row, (_, fill, route) in enumerate(keys):
                if (fill not in self.fills) if route != HIDDEN else fill:
                    raise ValueError(f"{field}.fill.{row} is none of fills")
        return self


# --- NAME.deepstack.meta.json -------------------------------------------------------------------------------------------------


class FeaturePartEntry(Exact):
    """A part of the features."""

    name: Annotated[str, Field(min_length=1)]
    vision_layer: Count | None
    decoder_layer: Count | None


class DeepstackTargetEntry(LookedEntry):
    """A target, by the sets of parts that were kept."""

    shapley: Finite
    interaction: Annotated[list[Finite], Field(min_length=1, max_length=MOST_PARTS)]


class KeptEntry(Exact):
    """What is said where a set of parts is kept."""

    set: Count
    parts_kept: str
    text: str


class DeepstackMeta(LookedMeta):
    """`NAME.deepstack.meta.json`"""

    region: str
    positions: Annotated[list[Count], Field(min_length=1)]
    baseline: Literal["blank", "mean", "zero", "picture"]
    parts: Annotated[list[FeaturePartEntry], Field(min_length=1, max_length=MOST_PARTS)]
    norm_share: Annotated[list[Probability], Field(max_length=MOST_PARTS)]
    targets: Annotated[list[DeepstackTargetEntry], Field(min_length=1)]
    answers: list[KeptEntry]

    @model_validator(mode="after")
    def fits(self) -> "DeepstackMeta":
        """Lists of the same things have the same lengths, and what they name is there."""
        self.check()
        n = len(self.parts)
        names = [part.name for part in self.parts]
        if len(set(names)) < n or any(WITH in name for name in names):
            raise ValueError(f"parts: names are there once each, without {WITH!r} in them")
        check_length("norm_share", self.norm_share, n, "parts")
        check_below("positions", self.positions, self.n_prompt, ascending=True)
        for number, target in enumerate(self.targets):
            field = f"targets.{number}"
            target.check(field, self.n_prompt, len(self.tokens), 2**n, "parts")
            check_length(f"{field}.shapley", target.shapley, n, "parts")
            check_length(f"{field}.interaction", target.interaction, n, "parts")
            for place, numbers in enumerate(target.interaction):
                check_length(f"{field}.interaction.{place}", numbers, n, "parts")
        check_below("answers", [one.set for one in self.answers], 2**n)
        if len({one.set for one in self.answers}) < len(self.answers):
            raise ValueError("answers has a set of parts twice")
        return self
