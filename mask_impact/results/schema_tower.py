"""The schema of the meta file of what a vision tower reads: see `schema` for those of all others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mask_impact.results.schema_parts import Checksum, Count, Exact, check_below, check_length
from mask_impact.results.schema_vision import LookedEntry, LookedMeta, RegionEntry

MOST_LAYERS, MOST_SIDE, MOST_PROBES = 512, 4096, 1024
Layers = Annotated[list[Count], Field(min_length=1, max_length=MOST_LAYERS)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


class ReadingEntry(Exact):
    """An image whose units were hidden, and the grid of these."""

    image: Count
    grid: Annotated[list[Side], Field(min_length=2, max_length=2)]


class PatchesEntry(Exact):
    """A region of any shape, and which patches of the grid it has, in reading order."""

    region: Count
    grid: Annotated[list[Side], Field(min_length=2, max_length=2)]
    places: Annotated[list[Count], Field(min_length=1)]


class TowerTargetEntry(LookedEntry):
    """A target: of each of its measurements the region and the set of layers in which it was hidden, by their places."""

    found: Count | None
    place: list[Count]
    layer_set: list[Count]


class TowerMeta(LookedMeta):
    """`NAME.tower.meta.json`"""

    crc32_effects: Checksum
    unit: Literal["patch", "token"]
    probes: Annotated[Count, Field(le=MOST_PROBES)]
    n_layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    layers: Layers
    layer_sets: list[Layers]
    readings: Annotated[list[ReadingEntry], Field(min_length=1)]
    most_read: Count | None
    regions: list[RegionEntry]
    patches: Annotated[list[PatchesEntry], Field(default_factory=list)]
    targets: Annotated[list[TowerTargetEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def fits(self) -> "TowerMeta":
        """Lists of the same things have the same lengths, and what they name is there."""
        self.check()
        check_below("layers", self.layers, self.n_layers, ascending=True)
        for place, layers in enumerate(self.layer_sets):
            check_below(f"layer_sets.{place}", layers, self.n_layers, ascending=True)
        if len({*map(tuple, self.layer_sets)}) < len(self.layer_sets):
            raise ValueError("layer_sets has the same layers twice")
        self._check_readings()
        for place, region in enumerate(self.regions):
            region.check(f"regions.{place}", len(self.images), self.n_prompt)
        check_below("patches", [one.region for one in self.patches], len(self.regions), ascending=True)
        for place, one in enumerate(self.patches):
            self._check_patches(f"patches.{place}", one)
        if (self.most_read is None) == bool(self.regions):
            raise ValueError("most_read is one of regions where there are any, else null")
        for number, target in enumerate(self.targets):
            self._check_target(f"targets.{number}", target)
        return self

    def _check_readings(self) -> None:
        check_below("readings", [one.image for one in self.readings], len(self.images), ascending=True)
        for place, one in enumerate(self.readings):
            cells = self.images[one.image].grid
            each = 1 if self.unit == "token" else one.grid[0] // cells[0]
            if one.grid != [each * cell for cell in cells]:
                raise ValueError(
                    f"readings.{place}.grid is not of the {self.unit} grid of {cells[0]} x {cells[1]} image tokens"
                )

    def _check_patches(self, field: str, one: PatchesEntry) -> None:
        cells = self.images[self.regions[one.region].image].grid
        each = one.grid[0] // cells[0]
        if one.grid != [each * cell for cell in cells]:
            raise ValueError(f"{field}.grid is not of the patch grid of {cells[0]} x {cells[1]} image tokens")
        check_below(f"{field}.places", one.places, one.grid[0] * one.grid[1], ascending=True)

    def _check_target(self, field: str, target: TowerTargetEntry) -> None:
        target.check(field, self.n_prompt, len(self.tokens), len(target.place), "place")
        check_length(f"{field}.layer_set", target.layer_set, len(target.place), "place")
        check_below(f"{field}.place", target.place, len(self.regions))
        check_below(f"{field}.layer_set", target.layer_set, len(self.layer_sets))
        keys = {(place, tuple(self.layer_sets[one])) for place, one in zip(target.place, target.layer_set, strict=True)}
        if len(keys) < len(target.place):
            raise ValueError(f"{field} has a region in the same layers twice")
        if (target.found is None) == bool(self.regions):
            raise ValueError(f"{field}.found is one of regions where there are any, else null")
        for name, place in (("found", target.found), ("most_read", self.most_read)):
            if place is not None and (place, tuple(self.layers)) not in keys:
                raise ValueError(f"{field}: {name} is region {place}, which was not hidden in layers")
