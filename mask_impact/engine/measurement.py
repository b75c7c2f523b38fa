"""One decoder layer in one forward pass: from masked attention to distances, and the layer's self-check.

`LayerMeasurement.propagate` is the chain from attention to the layer's update, top to bottom, as a generator: where a
linear map of the model is due it yields a `Ride` and is sent the mapped rows. It does not know who does the mapping: the
engine lets the rows ride along in the model's own forward, or calls the module for them afterwards. Knows no hooks, no
generation, no files.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional

from mask_impact.engine.attention import Lengths, QueryAttention, lengths, masking_differences
from mask_impact.engine.propagation import ACTIVATIONS, gated_difference, rms_norm, rms_norm_difference, scale_of_rows
from mask_impact.errors import ExactnessError
from mask_impact.models.architectures import DecoderLayer, GatedMlp, Norm, OpaqueMlp, parameter

# Largest relative difference that rounding may make between the model's own row and its recomputation in float32. RMSNorm
# works in float32 also in a float64 model, so there it is the limit.
SELF_CHECK_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def check_reproduced(where: str, error: float, dtype: torch.dtype, why: str = "") -> None:
    """ExactnessError where the model's own arithmetic in a layer was not reproduced. error: relative, NaN or infinite where
    something is not finite; dtype: the model's; why: ends the message."""
    tolerance = SELF_CHECK_TOLERANCE[dtype]
    if not error < float("inf"):
        raise ExactnessError(
            f"activations of {where} are not finite (NaN or inf): no numbers can be given; "
            f"the model's weights may be damaged, or {dtype} too narrow: try `dtype` float32"
        )
    if error > tolerance:
        raise ExactnessError(
            f"self-check failed in {where}: the model's own arithmetic differs from the recomputed one by {error:.1e} "
            f"(relative, {tolerance:.0e} allowed): no numbers are given{why}"
        )


# Rows beside the masked states where full states ride: the baseline, and the baseline with rounding noise.
N_REFERENCE_ROWS = 2


@dataclass(frozen=True)
class Ride:
    """Rows [n, width] to be mapped by each of `modules` (which share their input).

    is_difference: the rows are differences of states, so a module's bias must not count; otherwise they are full states.
    baseline: [width], the exact value of the model's own input row: what half precision took from that row rides along
    as one more difference, and comes back as a correction of the model's own output row.
    """

    modules: tuple[nn.Module, ...]
    rows: torch.Tensor
    is_difference: bool = True
    baseline: torch.Tensor | None = None

    def board(self, dtype: torch.dtype, own: torch.Tensor | None = None) -> "Passengers":
        """The rows as they enter a linear map in the model's dtype; own: [width], the model's own input row."""
        groups = [self.rows]
        if self.baseline is not None and own is not None and dtype != self.baseline.dtype:
            groups.append((self.baseline - own.to(self.baseline)).unsqueeze(0))
        scales = [self._scale(rows, dtype) for rows in groups]
        return Passengers(
            tuple(
                (rows if scale is None else rows * scale).to(dtype) for rows, scale in zip(groups, scales, strict=True)
            ),
            None if scales[0] is None else torch.cat(scales),
        )

    def _scale(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """A power of two for each row [n, 1], or None where none is needed."""
        has_bias = any(getattr(module, "bias", None) is not None for module in self.modules)
        return scale_of_rows(rows, dtype, has_bias) if self.is_difference else None


@dataclass(frozen=True)
class Passengers:
    """Rows on their way through a linear map, in the model's dtype.

    groups: the ride's rows [n, width] and, where there is something to correct, what the own row lost [1, width].
    scale: [all rows, 1] or None.
    """

    groups: tuple[torch.Tensor, ...]
    scale: torch.Tensor | None

    @property
    def n_rows(self) -> int:
        """Rows of all groups."""
        return sum(len(rows) for rows in self.groups)

    def alight(self, module: nn.Module, mapped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the map made of the rows [n, out], without bias and scale; and the correction [out] of the own row."""
        if self.scale is not None:
            mapped = mapped.to(self.scale.dtype)
            bias = parameter(module, "bias")
            mapped = (mapped if bias is None else mapped - bias.to(mapped)) / self.scale.to(mapped.device)
        return (mapped, None) if len(self.groups) == 1 else (mapped[:-1], mapped[-1])


Propagation = Generator[Ride, list[torch.Tensor], None]


@dataclass(frozen=True)
class LayerRecord:
    """One layer at one step, on the layer's device; the fields are rows of engine.RawStep's.

    l2, along, across: [P, V], see attention.Lengths; attention: [S], mean over heads; both zero for positions out of sight;
    baseline_norm: [V]; self_check, noise_floor: scalars.
    """

    l2: torch.Tensor
    along: torch.Tensor
    across: torch.Tensor
    attention: torch.Tensor
    baseline_norm: torch.Tensor
    self_check: torch.Tensor
    noise_floor: torch.Tensor


class LayerMeasurement:
    """What is measured of one layer at one step, filled as the model's forward passes through the layer.

    layer_input: [hidden], the layer's input x at the query position, in the arithmetic's dtype (float32 or float64).
    n_positions: S_t, the sequence's length. n_masked: P_t, how many of its positions are to be masked.
    groups: in the order full, attn, heads, as far as they are asked for.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        layer_input: torch.Tensor,
        dtype: torch.dtype,
        n_positions: int,
        n_masked: int,
        groups: tuple[str, ...],
    ) -> None:
        self.layer = layer
        self.dtype = dtype
        self.n_positions = n_positions
        self.n_masked = n_masked
        self.groups = groups
        self.layer_input = layer_input
        self.attention: QueryAttention | None = None
        self.masked: QueryAttention | None = None
        self.own: dict[nn.Module, torch.Tensor] = {}  # the model's own output row of each linear map, [out]
        self.noise_floor = layer_input.new_full((), float("nan"))
        self._checks: list[tuple[torch.Tensor, torch.Tensor]] = []  # |own - recomputed| and |own|
        self._kept: dict[str, list[Lengths]] = {group: [] for group in groups}  # of the masked keys so far

    # --- what the model did -------------------------------------------------------------------------------------------

    def observe_attention(self, attention: QueryAttention, keys: torch.Tensor | None = None) -> None:
        """Take the query's attention; its keys end at the query's own position. keys: int64 [n], which to mask (None: all)."""
        self.attention = attention
        self.masked = attention if keys is None else attention.of_keys(keys)

    def observe_input(self, module: nn.Module, row: torch.Tensor) -> None:
        """Check the model's own input row [in] of a linear map against its recomputation."""
        layer = self.layer
        if module is layer.o_proj:
            self._check(row, self.attention.output.flatten())
        elif isinstance(layer.mlp, GatedMlp) and module is layer.mlp.down:
            self._check(row, self.mlp_product)
        else:
            self._check(row, self.mlp_input)

    def observe_output(self, module: nn.Module, row: torch.Tensor, correction: torch.Tensor | None = None) -> None:
        """Keep the model's own output row [out] of a linear map, with what its input row had lost by rounding."""
        row = row.to(self.layer_input.dtype)
        self.own[module] = row if correction is None else row + correction.to(row)

    def observe_layer_output(self, row: torch.Tensor) -> None:
        """Check the layer's output [hidden] against x + a + m."""
        self._check(row, self.state + self.mlp_update)

    def _check(self, own: torch.Tensor, recomputed: torch.Tensor) -> None:
        own = own.to(recomputed.dtype)
        self._checks.append((torch.dist(own, recomputed), torch.linalg.vector_norm(own)))

    # --- the model's own quantities, at the query position ----------------------------------------------------------------

    @cached_property
    def attention_update(self) -> torch.Tensor:
        """a [hidden]: what the attention branch adds to the residual stream."""
        own = self.own[self.layer.o_proj]
        return rms_norm(own, self.layer.after_attention) if self.layer.after_attention else own

    @cached_property
    def state(self) -> torch.Tensor:
        """x + a [hidden]."""
        return self.layer_input + self.attention_update

    @cached_property
    def mlp_input(self) -> torch.Tensor:
        """[hidden]: what the MLP is given, before rounding."""
        return rms_norm(self.state, self.layer.before_mlp) if self.layer.before_mlp else self.state

    @cached_property
    def gate_and_up(self) -> tuple[torch.Tensor, torch.Tensor]:
        """g and u [intermediate] of a gated MLP."""
        mlp = self.layer.mlp
        if mlp.up is None:
            return self.own[mlp.gate].chunk(2, dim=-1)
        return self.own[mlp.gate], self.own[mlp.up]

    @cached_property
    def mlp_product(self) -> torch.Tensor:
        """act(g) u [intermediate]."""
        gate, up = self.gate_and_up
        return ACTIVATIONS[self.layer.mlp.activation].value(gate) * up

    @cached_property
    def mlp_update(self) -> torch.Tensor:
        """m [hidden]: what the MLP branch adds to the residual stream."""
        mlp = self.layer.mlp
        own = self.own[mlp.down if isinstance(mlp, GatedMlp) else mlp.block]
        return rms_norm(own, self.layer.after_mlp) if self.layer.after_mlp else own

    def finish(self) -> "LayerRecord":
        """What is kept of the layer; everything else of it may be freed."""
        errors, sizes = (torch.stack(values) for values in zip(*self._checks, strict=True))
        return LayerRecord(
            l2=self._gather("l2"),
            along=self._gather("along"),
            across=self._gather("across"),
            attention=functional.pad(self.attention.weights.mean(0), (self.n_positions - self.attention.n_keys, 0)),
            baseline_norm=torch.cat([self._kept[group][0].norm.reshape(-1) for group in self.groups]),
            self_check=(errors / sizes.clamp_min(1e-30)).max(),  # NaN if one of them is
            noise_floor=self.noise_floor,
        )

    def _gather(self, name: str) -> torch.Tensor:
        """One of the lengths for all masked positions and variants, [n_masked, V]."""
        columns = []
        for group in self.groups:
            chunks = [getattr(kept, name) for kept in self._kept[group]]
            column = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
            columns.append(column if column.dim() == 2 else column.unsqueeze(1))
        values = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
        n_out_of_sight = self.n_masked - len(values)
        return functional.pad(values, (0, 0, n_out_of_sight, 0)) if n_out_of_sight else values

    # --- the chain ------------------------------------------------------------------------------------------------------

    def propagate(self, start: int, stop: int) -> Propagation:
        """Carry the differences of masked keys start..stop-1, the next ones, through the layer and keep their lengths."""
        layer = self.layer
        head_differences = masking_differences(self.masked, start, stop)
        if "heads" in self.groups:
            self._keep("heads", self.attention.output, head_differences)
        if self.groups == ("heads",):
            return

        (rows,) = yield Ride((layer.o_proj,), head_differences.flatten(1), baseline=self.attention.output.flatten())
        del head_differences
        attention_update = self.attention_update
        if self.attention.n_keys == 1:
            # Nothing is left to attend to: the branch gives o_proj(0), exactly, and not what rounding leaves of it.
            bias = parameter(layer.o_proj, "bias")
            nothing = torch.zeros_like(attention_update) if bias is None else bias.to(attention_update)
            nothing = rms_norm(nothing, layer.after_attention) if layer.after_attention else nothing
            attention_differences = (nothing - attention_update).expand(len(rows), -1)
        else:
            attention_differences = self._through_norm(layer.after_attention, self.own[layer.o_proj], rows)
        if "attn" in self.groups:
            self._keep("attn", attention_update, attention_differences)
        if "full" not in self.groups:
            return

        input_differences = self._through_norm(layer.before_mlp, self.state, attention_differences)
        if isinstance(layer.mlp, OpaqueMlp):
            rows = yield from self._through_experts(layer.mlp, input_differences)
            own = self.own[layer.mlp.block]
        else:
            rows = yield from self._through_gated_mlp(layer.mlp, input_differences)
            own = self.own[layer.mlp.down]
        differences = self._through_norm(layer.after_mlp, own, rows) + attention_differences
        self._keep("full", attention_update + self.mlp_update, differences)

    def _through_norm(self, norm: Norm | None, state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.to(state.dtype)
        return rms_norm_difference(state, rows, norm) if norm else rows

    def _through_gated_mlp(
        self, mlp: GatedMlp, rows: torch.Tensor
    ) -> Generator[Ride, list[torch.Tensor], torch.Tensor]:
        baseline = self.mlp_input
        if mlp.up is None:
            (both,) = yield Ride((mlp.gate,), rows, baseline=baseline)
            gate_rows, up_rows = both.chunk(2, dim=-1)
        else:
            gate_rows, up_rows = yield Ride((mlp.gate, mlp.up), rows, baseline=baseline)
        # In the model's dtype at once: the rows are about to enter its linear map.
        product = torch.empty(gate_rows.shape, dtype=gate_rows.dtype, device=gate_rows.device)
        gated_difference(ACTIVATIONS[mlp.activation], *self.gate_and_up, gate_rows, up_rows, out=product)
        (down_rows,) = yield Ride((mlp.down,), product, baseline=self.mlp_product)
        return down_rows

    def _through_experts(self, mlp: OpaqueMlp, rows: torch.Tensor) -> Generator[Ride, list[torch.Tensor], torch.Tensor]:
        baseline = self.mlp_input
        noise = torch.rand(baseline.shape, generator=torch.Generator().manual_seed(self.layer.index))
        noise = (noise.to(baseline) - 0.5) * torch.finfo(self.dtype).eps
        states = torch.cat([baseline.unsqueeze(0), (baseline * (1 + noise)).unsqueeze(0), baseline + rows])
        (out,) = yield Ride((mlp.block,), states, is_difference=False)
        out = out.to(baseline.dtype)
        own, noisy, masked = out[:1], out[1:2], out[N_REFERENCE_ROWS:]
        self.noise_floor = torch.linalg.vector_norm(noisy - own)
        return masked - own

    def _keep(self, group: str, baseline: torch.Tensor, differences: torch.Tensor) -> None:
        self._kept[group].append(lengths(baseline, differences))
