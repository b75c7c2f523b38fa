"""Where differences get on and off: a layer's attention output, and what the layer makes of it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from mask_impact.engine.attention import (
    Lengths,
    QueryAttention,
    attention_received,
    blocks,
    joined,
    lengths,
    masking_differences,
    query_attention,
)
from mask_impact.engine.recording import LayerRecord
from mask_impact.engine.riding.layers import Layer
from mask_impact.engine.riding.tensor import Ride, Riding, riding_in
from mask_impact.engine.taps import each_visible_key, visible_keys, within_sight
from mask_impact.errors import ExactnessError, UnsupportedArchitecture


@dataclass(frozen=True)
class Call:
    """One call of a model's attention: query [B, H, n, D], key [B, K, N, D], value [B, K, N, E], mask as the model has it.
    scaling: of the logits; softcap, sinks: see taps.attention_options; window: how many keys a kernel looks back on, where masks
    don't say it."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None

    def of_last(self, number: int, ablation: str) -> QueryAttention:
        """The last query's attention of one sequence, over the keys from the first that it sees."""
        visible = visible_keys(self.mask, number, 1, self.key.shape[2], self.window, self.key.device)
        key, value, visible = within_sight(self.key[number], self.value[number], visible)
        return query_attention(
            self.query[number, :, -1],
            key,
            value,
            self.scaling,
            visible,
            ablation,
            softcap=self.softcap,
            sinks=self.sinks,
        )

    def received(self, number: int, padding: int) -> torch.Tensor:
        """float32 [N], see attention.attention_received, of one sequence without its padding."""
        query, key = self.query[number], self.key[number]
        n_rows, n_keys = query.shape[1], key.shape[1]
        visible = each_visible_key(self.mask, number, n_rows, n_keys, self.window, key.device)
        padded = max(0, padding - (n_keys - n_rows))  # rows; a layer may be fed the last ones alone
        return attention_received(query[:, padded:], key[:, padding:], self.scaling, visible[padded:, padding:])


def board(output: torch.Tensor, ride: Ride, rows: torch.Tensor, differences: torch.Tensor) -> Riding:
    """The model's own attention output [B, S, H, E], which carries the exact last rows [B, H, E] and differences [n, H, E]."""
    return Riding.make(output, rows, differences, 2, output.shape[1], ride)


@dataclass
class Measuring:
    """What is measured of one sequence in one layer at one step.

    number: of the sequence; positions: int64 [P], those to hide; n_positions: S, the sequence's length; groups: of full, attn,
    heads, in that order.
    """

    number: int
    attention: QueryAttention
    positions: torch.Tensor
    n_positions: int
    groups: tuple[str, ...]
    kept: dict[str, Lengths] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first position in sight: sliding windows and their caches hold the last ones only."""
        return self.n_positions - self.attention.n_keys

    @cached_property
    def keys(self) -> torch.Tensor:
        """int64 [n], those in sight that are to be hidden."""
        return self.positions[self.positions >= self.first] - self.first if self.first else self.positions

    def differences(self, noise_row: bool) -> torch.Tensor:
        """[n, H, E], of the attention output for each key in sight that is to be hidden; noise_row: and none at the end."""
        keys, output, seen = self.keys, self.attention.output, self.attention
        n = keys.shape[0]
        if n < seen.n_keys:
            seen = seen.of_keys(keys.to(seen.values.device))
        moved = output.new_empty(n + noise_row, *output.shape)
        moved[n:] = 0
        found = []
        for rows in blocks(moved[:n]):
            stop = min(rows.stop, n)
            block = masking_differences(seen, rows.start, stop, out=moved[rows.start : stop])
            if "heads" in self.groups:
                found.append(lengths(output, block))
        if "heads" in self.groups:
            self.kept["heads"] = joined(found) if found else lengths(output, moved[:0])
        return moved

    def record(self, ride: Ride) -> LayerRecord:
        """All that was kept, when the layer is done."""
        checks = [one if one.device.type == "cpu" else one.cpu() for one in ride.checks]
        errors, sizes = torch.stack(checks)[..., self.number].unbind(1)
        return LayerRecord(
            l2=self._gathered("l2"),
            along=self._gathered("along"),
            across=self._gathered("across"),
            attention=functional.pad(self.attention.weights.mean(0), (self.first, 0)),
            baseline_norm=torch.cat([self.kept[group].norm.reshape(-1) for group in self.groups]),
            self_check=(errors / sizes.clamp_min(1e-30)).max(),  # NaN if one of them is
            noise_floor=self._noise(ride),
        )

    def _noise(self, ride: Ride) -> torch.Tensor:
        if ride.noisy and "full" in self.kept:
            return self.kept["full"].l2[-1] if ride.noise_row else ride.noise[self.number]
        return self.attention.output.new_full((), float("nan"))

    def _gathered(self, name: str) -> torch.Tensor:
        """One of the lengths of all positions and variants, [P, V]; zero for positions out of sight."""
        n, n_all = self.keys.shape[0], self.positions.shape[0]
        columns = [getattr(self.kept[group], name)[:n] for group in self.groups]
        values = torch.cat([column if column.dim() == 2 else column.unsqueeze(1) for column in columns], dim=1)
        return functional.pad(values, (0, 0, n_all - n, 0)) if n < n_all else values


@dataclass
class Boarded:
    """A layer whose attention has run: the sequences that are measured in it, and the ride of their differences. own, rows:
    [B, H, E], the attention's last rows as the model has them and before rounding."""

    layer: Layer
    ride: Ride
    measuring: list[Measuring]
    own: torch.Tensor
    rows: torch.Tensor

    def get_off(self, output: Any) -> dict[int, LayerRecord]:
        """What comes off at the layer's end, by sequence. output: of the layer; ExactnessError where it carries nothing,
        UnsupportedArchitecture where nothing of the attention met the residual stream."""
        groups = self.measuring[0].groups
        if groups == ("heads",):
            self.ride.check(self.own, self.rows)
        else:
            x = next(iter(riding_in(output)), None)
            if x is None:
                raise ExactnessError(
                    f"{self.layer.name} gives a plain tensor: its code drops what rides along: no numbers can be given"
                )
            self.ride.check(x.last, x.z)
            if "attn" in groups and self.ride.attn is None:
                raise UnsupportedArchitecture(
                    f"{self.layer.name} adds its attention to nothing of the size of its input: attn can't be measured"
                )
            update = x.z - self.ride.entered[:, -1].to(x.z) if x.update is None else x.update
            full = self.ride.lengths(update, x.d)
            for one in self.measuring:
                one.kept["full"] = full[one.number]
                if "attn" in groups:
                    one.kept["attn"] = self.ride.attn[one.number]
        return {one.number: one.record(self.ride) for one in self.measuring}


def let_on(
    layer: Layer,
    entered: torch.Tensor,
    output: torch.Tensor,
    measuring: list[Measuring],
    noise_row: bool,
    max_rows: int | None,
) -> tuple[Boarded, Riding]:
    """The differences of all sequences that are measured get on at the model's own attention output [B, S, H, E]. entered: [B, S,
    hidden], what the layer is given; noise_row, max_rows: see Ride."""
    differences = [one.differences(noise_row) for one in measuring]
    rows = torch.empty_like(output[:, -1], dtype=differences[0].dtype).copy_(output[:, -1])
    for one in measuring:
        rows[one.number] = one.attention.output
    owner = None
    if len(output) > 1:
        counts = [len(moved) for moved in differences]
        owner = torch.tensor([one.number for one in measuring]).repeat_interleave(torch.tensor(counts))
    ride = Ride(layer.name, entered, owner, noise_row=noise_row)
    moved = differences[0] if len(differences) == 1 else torch.cat(differences)
    ride.max_rows, ride.n_variants = max_rows, moved.shape[0]
    return Boarded(layer, ride, measuring, output[:, -1], rows), board(output, ride, rows, moved)
