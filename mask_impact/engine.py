"""The engine: a context manager that measures while the model's own `generate()` runs.

    with MaskingEngine(model) as engine:
        model.generate(...)
    engine.steps

Nothing of the model is re-implemented: an attention function registered with transformers sees q, k and v as the model
uses them, and hooks let the differences of all masked tokens ride through the model's own linear maps as extra rows. Before
the block ends, by whatever way, everything is as it was. Knows no files and prints nothing.
"""

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mask_impact.architectures import Decoder, DecoderLayer, GatedMlp, locate
from mask_impact.attention import Lengths, cosine_distance, query_attention
from mask_impact.errors import ExactnessError, ModelError, UsageError
from mask_impact.measurement import SELF_CHECK_TOLERANCE, LayerMeasurement, LayerRecord, Passengers, Propagation, Ride
from mask_impact.settings import VARIANT_GROUPS

BACKENDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")

_serial = itertools.count()


@dataclass(frozen=True)
class RawStep:
    """The measurements of one forward pass, on the CPU; see records.StepRecord for the meaning of the fields."""

    positions: torch.Tensor  # int64 [P_t]
    l2: torch.Tensor  # [L, P_t, V]
    cosine: torch.Tensor  # [L, P_t, V]
    attention: torch.Tensor  # [L, S_t]
    baseline_norm: torch.Tensor  # [L, V]
    self_check: torch.Tensor  # [L]
    noise_floor: torch.Tensor  # [L]
    seconds: float


@dataclass(frozen=True)
class Masked:
    """Which positions are masked, one after the other. prompt: bool [prompt length]; produced: those behind it."""

    prompt: torch.Tensor
    produced: bool

    def positions(self, n_positions: int) -> torch.Tensor:
        """int64 [P_t], ascending, of a sequence of n_positions."""
        flags = torch.full((n_positions,), self.produced)
        flags[: len(self.prompt)] = self.prompt
        return flags.nonzero().flatten()


@dataclass
class LayerInputs:
    """What entered one decoder layer over all steps, for re-measuring it afterwards.

    hidden_states: one [1, n, hidden] for the prompt and one for each further step; position_embeddings likewise;
    visible: for each step bool [S_t], the positions that the last query sees.
    """

    hidden_states: list[torch.Tensor] = field(default_factory=list)
    position_embeddings: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    visible: list[torch.Tensor] = field(default_factory=list)


class MaskingEngine:
    """Measures every layer at every forward pass of `model` while the `with` block is open.

    groups: which of full, attn, heads to measure. masked: which positions to mask (None: all). max_rows: how many masked
    tokens ride at once (None: all); results do not depend on it. on_layer(step, layer) is called when a layer is done.
    record_layers: layers whose inputs are kept in `layer_inputs`. Errors: UnsupportedArchitecture, UsageError for more than
    one sequence, ExactnessError where the model's arithmetic could not be reproduced or is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: tuple[str, ...] = VARIANT_GROUPS,
        masked: Masked | None = None,
        max_rows: int | None = None,
        on_layer: Callable[[int, int], None] | None = None,
        record_layers: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model
        self.decoder: Decoder = locate(model)
        self.groups = tuple(group for group in VARIANT_GROUPS if group in groups)
        self.masked = masked
        self.max_rows = max_rows
        self.on_layer = on_layer
        self.steps: list[RawStep] = []
        self.layer_inputs = {layer: LayerInputs() for layer in record_layers}
        self._n_positions = 0
        self._positions = torch.arange(0)  # those to mask at this step
        self._records: list[LayerRecord] = []
        self._dtype: torch.dtype | None = None
        self._started = 0.0
        self._current: LayerMeasurement | None = None
        self._propagation: Propagation | None = None
        self._ride: Ride | None = None
        # Input of the linear maps on the way: as the model gave it, what rides along, and both joined.
        self._embarked: tuple[torch.Tensor, Passengers, torch.Tensor] | None = None
        self._mapped: list[torch.Tensor] = []
        self._stack = ExitStack()

    # --- attaching and restoring -----------------------------------------------------------------------------------------

    def __enter__(self) -> "MaskingEngine":
        with ExitStack() as stack:
            self._tap_attention(stack)
            for layer in self.decoder.layers:
                self._hook_layer(stack, layer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        # A generator that is never finished must not keep tensors alive.
        self._propagation = self._ride = self._current = None
        self._embarked = None
        self._mapped, self._records = [], []

    def _tap_attention(self, stack: ExitStack) -> None:
        configs = {id(config): config for config in self.decoder.configs}.values()
        backend = self.decoder.configs[0]._attn_implementation
        if backend not in BACKENDS:
            raise ModelError(
                f"attention backend '{backend}' is not supported; load the model with one of {', '.join(BACKENDS)}"
            )
        # The backend's name stays part of ours: transformers looks for "flash" in it.
        name = f"{backend}_mask_impact_{next(_serial)}"
        AttentionInterface.register(name, self._make_tap(backend, tuple(configs)))
        stack.callback(AttentionInterface._global_mapping.pop, name, None)
        # Without a mask function of its own a custom attention name gets no mask at all and turns bidirectional.
        AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[backend])
        stack.callback(AttentionMaskInterface._global_mapping.pop, name, None)
        for config in configs:
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = name

    def _make_tap(self, backend: str, configs: tuple[object, ...]) -> Callable:
        def tap(module, query, key, value, attention_mask, *args, **kwargs):
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            inner = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)
            tapped = [config._attn_implementation for config in configs]
            # Flash attention reads the config for its own name.
            for config in configs:
                config._attn_implementation = backend
            try:
                output = inner(module, query, key, value, attention_mask, *args, **kwargs)
            finally:
                for config, name in zip(configs, tapped, strict=True):
                    config._attn_implementation = name
            if self._current is not None and module is self._current.layer.attention:
                scaling = kwargs.get("scaling")
                window = kwargs.get("sliding_window") if "flash" in backend else None
                self._on_attention(query, key, value, attention_mask, scaling, window)
            return output

        return tap

    def _hook_layer(self, stack: ExitStack, layer: DecoderLayer) -> None:
        def before_layer(module, args, kwargs):
            self._on_layer_input(layer, args[0] if args else kwargs["hidden_states"], kwargs)

        def after_layer(module, args, output):
            self._on_layer_output(layer, output)

        def add(handle) -> None:
            stack.callback(handle.remove)

        add(layer.module.register_forward_pre_hook(before_layer, with_kwargs=True))
        add(layer.module.register_forward_hook(after_layer))
        mlp = layer.mlp
        modules = [mlp.gate, mlp.up, mlp.down] if isinstance(mlp, GatedMlp) else [mlp.block]
        for module in [layer.o_proj, *modules]:
            if module is not None:
                add(module.register_forward_pre_hook(self._before_linear))
                add(module.register_forward_hook(self._after_linear))

    # --- what happens in the model's forward, in this order ----------------------------------------------------------------

    def _on_layer_input(self, layer: DecoderLayer, hidden_states: torch.Tensor, kwargs: dict) -> None:
        if hidden_states.shape[0] != 1:
            raise UsageError(f"one sequence at a time can be analysed; the model was given {hidden_states.shape[0]}")
        if layer.index == 0:
            self._started = time.perf_counter()
            self._n_positions += hidden_states.shape[1]
            n = self._n_positions
            self._positions = torch.arange(n) if self.masked is None else self.masked.positions(n)
            self._records = []
            self._dtype = hidden_states.dtype
        if layer.index in self.layer_inputs:
            inputs = self.layer_inputs[layer.index]
            inputs.hidden_states.append(hidden_states.detach().cpu())
            inputs.position_embeddings.append(tuple(part.detach().cpu() for part in kwargs["position_embeddings"]))
        dtype = hidden_states.dtype
        self._current = LayerMeasurement(
            layer,
            hidden_states[0, -1].to(arithmetic_dtype(dtype)),
            dtype,
            self._n_positions,
            len(self._positions),
            self.groups,
        )

    def _on_attention(self, query, key, value, mask, scaling, window) -> None:
        visible = _visible_keys(mask, key.shape[2], window, key.device)
        if visible is not None:
            seen_from = int(visible.int().argmax())
            key, value, visible = key[:, :, seen_from:], value[:, :, seen_from:], visible[seen_from:]
        scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
        attention = query_attention(query[0, :, -1], key[0], value[0], scaling, visible)
        current = self._current
        first = current.n_positions - attention.n_keys  # sliding windows and their caches hold the last positions only
        keys = None
        if self.masked is not None:
            keys = (self._positions[self._positions >= first] - first).to(key.device)
        current.observe_attention(attention, keys)
        if current.layer.index in self.layer_inputs:
            seen = torch.ones(current.n_positions, dtype=torch.bool)
            seen[:first] = False
            if visible is not None:
                seen[first:] = visible.cpu()
            self.layer_inputs[current.layer.index].visible.append(seen)
        n_keys = current.masked.n_keys
        stop = n_keys if self.max_rows is None else min(self.max_rows, n_keys)
        self._propagation = current.propagate(0, stop)
        self._advance(None)

    def _before_linear(self, module: nn.Module, args: tuple) -> tuple | None:
        current = self._current
        if current is None:
            return None
        states = args[0]  # [1, n, in]
        if self._embarked is None or self._embarked[0] is not states:  # gate and up are given the same tensor
            current.observe_input(module, states[0, -1])
        if self._ride is None or module not in self._ride.modules:
            return None
        if self._embarked is None or self._embarked[0] is not states:
            passengers = self._ride.board(states.dtype, own=states[0, -1])
            joined = torch.cat([states[0], *(rows.to(states.device) for rows in passengers.groups)])
            self._embarked = states, passengers, joined.unsqueeze(0)
        return (self._embarked[2], *args[1:])

    def _after_linear(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        current = self._current
        if current is None:
            return None
        ride = self._ride
        if ride is None or module not in ride.modules:
            current.observe_output(module, output[0, -1])
            return None
        passengers = self._embarked[1]
        n_own = output.shape[1] - passengers.n_rows
        mapped, correction = passengers.alight(module, output[0, n_own:])
        current.observe_output(module, output[0, n_own - 1], correction)
        self._mapped.append(mapped)
        if len(self._mapped) == len(ride.modules):
            mapped, self._mapped, self._embarked = self._mapped, [], None
            self._advance(mapped)
        return output[:, :n_own]

    def _on_layer_output(self, layer: DecoderLayer, output: torch.Tensor | tuple) -> None:
        current = self._current
        current.observe_layer_output((output[0] if isinstance(output, tuple) else output)[0, -1])
        n_keys = current.masked.n_keys
        for start in range(self.max_rows or n_keys, n_keys, self.max_rows or n_keys):
            self._propagate_afterwards(current, start, min(start + self.max_rows, n_keys))
        self._records.append(current.finish())
        self._current = None
        if self.on_layer is not None:
            self.on_layer(len(self.steps), layer.index)
        if layer.index == len(self.decoder.layers) - 1:
            self._finish_step()

    # --- driving a propagation -----------------------------------------------------------------------------------------------

    def _advance(self, mapped: list[torch.Tensor] | None) -> None:
        try:
            self._ride = next(self._propagation) if mapped is None else self._propagation.send(mapped)
        except StopIteration:
            self._ride = None

    def _propagate_afterwards(self, measurement: LayerMeasurement, start: int, stop: int) -> None:
        """Carry further masked tokens through the layer's modules once its own forward is done."""
        propagation = measurement.propagate(start, stop)
        try:
            ride = next(propagation)
            while True:
                ride = propagation.send([self._map(module, ride, measurement.dtype) for module in ride.modules])
        except StopIteration:
            pass

    def _map(self, module: nn.Module, ride: Ride, dtype: torch.dtype) -> torch.Tensor:
        passengers = ride.board(dtype)
        # `forward` and not the module itself: that would call the hooks, which wait for the model's own forward.
        return passengers.alight(module, module.forward(passengers.groups[0].unsqueeze(0))[0])[0]

    # --- results ----------------------------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        records, self._records = self._records, []

        def gather(name: str) -> torch.Tensor:
            values = [getattr(record, name) for record in records]
            on_one_device = len({value.device for value in values}) == 1
            return torch.stack(values).cpu() if on_one_device else torch.stack([value.cpu() for value in values])

        l2, baseline_norm = gather("l2"), gather("baseline_norm")
        step = RawStep(
            positions=self._positions,
            l2=l2,
            cosine=cosine_distance(Lengths(l2, gather("along"), gather("across"), baseline_norm.unsqueeze(1))),
            attention=gather("attention"),
            baseline_norm=baseline_norm,
            self_check=gather("self_check").double(),
            noise_floor=gather("noise_floor").double(),
            seconds=time.perf_counter() - self._started,
        )
        self._check_step(step)
        self.steps.append(step)

    def _check_step(self, step: RawStep) -> None:
        tolerance = SELF_CHECK_TOLERANCE[self._dtype]
        for layer, error in enumerate(step.self_check.tolist()):
            if error <= tolerance:
                continue
            where = f"layer {layer} of {self.decoder.model_type} at step {len(self.steps)}"
            if error != error or error == float("inf"):
                raise ExactnessError(
                    f"activations of {where} are not finite (NaN or inf): no numbers can be given; "
                    f"the model's weights may be damaged, or {self._dtype} too narrow: try --dtype float32"
                )
            raise ExactnessError(
                f"self-check failed in {where}: the model's own arithmetic differs from the recomputed one by {error:.1e} "
                f"(relative, {tolerance:.0e} allowed): no numbers are given; the layer is not built as the table says"
            )
        if not bool(torch.isfinite(step.l2).all()):
            layer = int((~torch.isfinite(step.l2)).flatten(1).any(1).int().argmax())
            raise ExactnessError(
                f"distances of layer {layer} at step {len(self.steps)} are not finite: try --dtype float32"
            )


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which differences and distances are formed: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _visible_keys(
    mask: torch.Tensor | None, n_keys: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """bool [n_keys], which keys the last query sees; None for all of them.

    window: how many keys a windowed kernel looks back on, where no 4D mask says it.
    """
    visible = None
    if mask is not None and mask.dim() == 4:
        row = mask[0, 0, -1, :n_keys]
        visible = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2
    elif mask is not None:
        visible = mask[0, -n_keys:].to(torch.bool)
    if window is not None and window < n_keys:
        inside = torch.arange(n_keys, device=device) >= n_keys - window
        visible = inside if visible is None else visible & inside
    return visible
