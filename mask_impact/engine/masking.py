"""The engine: a context manager that measures while the model's own `generate()` runs.

    with MaskingEngine(model) as engine:
        model.generate(...)
    engine.steps                # of the only sequence; engine.sequences[b] of sequence b of a batch

Nothing of the model is re-implemented: a function in the place of its attention sees q, k and v as the model uses
them, and hooks let the differences of all masked tokens ride through the model's own linear maps as extra rows, those
of all sequences of a batch together. Before the block ends, by whatever way, everything is as it was. Knows no files and
prints nothing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import nn

from mask_impact.engine.attention import arithmetic_dtype, attention_received, query_attention
from mask_impact.engine.choices import VARIANT_GROUPS
from mask_impact.engine.keeper import Keeper
from mask_impact.engine.measurement import LayerMeasurement, LayerRecord, check_reproduced
from mask_impact.engine.ownership import Block, refuse_hooks
from mask_impact.engine.plans import SequencePlan, check_batch, measured_at
from mask_impact.engine.recording import LayerInputs, RawStep, gather
from mask_impact.engine.riders import Rider, propagate_afterwards
from mask_impact.engine.states import LayerState
from mask_impact.engine.tail import Tail, tail_of
from mask_impact.engine.taps import (
    each_visible_key,
    n_held,
    scaling_of,
    tapped,
    visible_keys,
    windowed_kernel,
    within_sight,
)
from mask_impact.errors import ExactnessError, UsageError
from mask_impact.models.architectures import Decoder, DecoderLayer, GatedMlp, locate


class MaskingEngine:
    """Measures every layer at every forward pass of `model` while the `with` block is open.

    groups: which of full, attn, heads to measure. ablation: what hiding means, see attention.query_attention. plans: one for
    each sequence of the batch that the model will be given. max_rows: how many masked tokens ride at once (None: all);
    results do not depend on it. on_layer(step, layer) is called when a layer is done. record_layers: layers whose inputs are
    kept in `layer_inputs`, for a single sequence. keep_states: whether `states` has a LayerState of each layer after a step,
    for a single sequence: of the `last` position or of `all`. A sequence whose number is put into `finished` is measured no
    more. Errors: UnsupportedArchitecture, UsageError for a batch of another size, ExactnessError where the model's arithmetic
    could not be reproduced or is not finite, ModelError for a model with somebody else's hooks. Only what the thread that opens
    the block does is measured; see `ownership`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: tuple[str, ...] = VARIANT_GROUPS,
        ablation: str = "mask",
        plans: Sequence[SequencePlan] = (SequencePlan(),),
        max_rows: int | None = None,
        on_layer: Callable[[int, int], None] | None = None,
        record_layers: frozenset[int] = frozenset(),
        keep_states: str | None = None,
    ) -> None:
        self.model = model
        self.decoder: Decoder = locate(model)
        self.groups = tuple(group for group in VARIANT_GROUPS if group in groups)
        self.ablation = ablation
        self.plans = tuple(plans)
        self.max_rows = max_rows
        self.on_layer = on_layer
        self.sequences: tuple[list[RawStep], ...] = tuple([] for _ in self.plans)
        self.finished: set[int] = set()
        if (record_layers or keep_states) and len(self.plans) > 1:
            raise UsageError("what layers are given can be kept for a single sequence only")
        self._keeper = None if keep_states is None else Keeper(keep_states == "all")
        self.layer_inputs = {layer: LayerInputs() for layer in record_layers}
        self._n_positions = 0  # padding included
        self._step = -1
        self._anew = True  # whether the step's pass is given the sequence from its beginning
        self.fed_again = False  # whether a later one was: models do this where their positions' frequencies change
        self._positions: dict[int, torch.Tensor] = {}  # by sequence that is measured at this step: those to mask
        self._records: dict[int, list[LayerRecord]] = {}
        self._received: dict[int, list[torch.Tensor]] = {}
        self._dtype: torch.dtype | None = None
        self._started = 0.0
        self._layer: DecoderLayer | None = None
        self._riders: dict[int, Rider] = {}
        # Input of the linear maps on the way: as the model gave it, and with what rides along.
        self._embarked: tuple[torch.Tensor, torch.Tensor] | None = None
        self._n_mapped = 0
        self.block: Block | None = None  # while it is open
        self._stack = ExitStack()

    @property
    def steps(self) -> list[RawStep]:
        """The measurements of the first sequence, which mostly is the only one."""
        return self.sequences[0]

    @property
    def n_positions(self) -> int:
        """Length of the sequence at the step that was measured last, padding included."""
        return self._n_positions

    @property
    def keeps(self) -> bool:
        """Whether states are kept."""
        return self._keeper is not None

    @property
    def states(self) -> list[LayerState]:
        """Of each layer, where they are kept."""
        return [] if self._keeper is None else self._keeper.states

    @property
    def final(self) -> torch.Tensor:
        """[1, S, hidden], the last layer's output, where states of all positions are kept."""
        return self._keeper.final

    @property
    def tail(self) -> Tail:
        """What stands between the last layer and the logits."""
        return tail_of(self.model, self.decoder.final_norm)

    def substituted(self, attention: Callable) -> AbstractContextManager[Block]:
        """A block in which nothing is measured, and whoever runs the model's layers gets `attention` in the place of its own; see
        taps.tapped."""
        return tapped(self.decoder, attention)

    # --- attaching and restoring -----------------------------------------------------------------------------------------

    def __enter__(self) -> "MaskingEngine":
        with ExitStack() as stack:
            self.block = stack.enter_context(tapped(self.decoder, self._on_tap))
            # Where states are kept, differences will ride on to the logits.
            behind = {"norm": self.decoder.final_norm, "lm_head": self.model.get_output_embeddings()}
            refuse_hooks(self.decoder, {} if self._keeper is None else behind)
            for layer in self.decoder.layers:
                self._hook_layer(stack, layer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        # A generator that is never finished must not keep tensors alive.
        self.block, self._layer, self._embarked, self._n_mapped = None, None, None, 0
        self._riders, self._records, self._received, self._keeper = {}, {}, {}, None

    def _on_tap(self, own, module, query, key, value, attention_mask, *args, **kwargs):
        output = own(query, key, value, attention_mask, *args, **kwargs)
        if self._layer is not None and module is self._layer.attention:
            window = windowed_kernel(self.decoder, kwargs)
            self._on_attention(query, key, value, attention_mask, scaling_of(query, kwargs), window)
        return output

    def _hook_layer(self, stack: ExitStack, layer: DecoderLayer) -> None:
        def before_layer(module, args, kwargs):
            self._on_layer_input(layer, args[0] if args else kwargs["hidden_states"], kwargs)

        def after_layer(module, args, output):
            self._on_layer_output(layer, output)

        stack.enter_context(self.block.before(layer.module, before_layer))
        stack.enter_context(self.block.after(layer.module, after_layer))
        mlp = layer.mlp
        modules = [mlp.gate, mlp.up, mlp.down] if isinstance(mlp, GatedMlp) else [mlp.block]
        for module in [layer.o_proj, *modules]:
            if module is not None:
                stack.enter_context(self.block.before(module, self._before_linear))
                stack.enter_context(self.block.after(module, self._after_linear))

    # --- what happens in the model's forward, in this order ----------------------------------------------------------------

    def _on_layer_input(self, layer: DecoderLayer, hidden_states: torch.Tensor, kwargs: dict) -> None:
        n_sequences, n_new, _ = hidden_states.shape
        check_batch(self.plans, n_sequences)
        if layer.index == 0:
            self._started = time.perf_counter()
            self._step += 1
            before = n_held(kwargs)
            self._anew, self._n_positions = before == 0, before + n_new
            if self._anew:
                self.fed_again = self._step > 0
            if self._keeper is not None:
                self._keeper.begin(self._anew)
            self._dtype = hidden_states.dtype
            self._positions = {
                number: self.plans[number].positions(self._n_positions - self.plans[number].padding)
                for number in measured_at(self._step, self.plans, self.finished)
            }
            self._records = {number: [] for number in self._positions}
            self._received = {number: [] for number in self._positions}
        if layer.index in self.layer_inputs:
            self.layer_inputs[layer.index].enter(hidden_states, kwargs["position_embeddings"], self._anew)
        if self._keeper is not None:
            self._keeper.enter(layer.index, hidden_states, kwargs)
        rows = hidden_states[:, -1].to(arithmetic_dtype(hidden_states.dtype))
        self._layer = layer
        self._riders = {
            number: Rider(
                LayerMeasurement(
                    layer,
                    rows[number],
                    hidden_states.dtype,
                    self._n_positions - self.plans[number].padding,
                    len(positions),
                    self.groups,
                )
            )
            for number, positions in self._positions.items()
        }

    def _on_attention(self, query, key, value, mask, scaling, window) -> None:
        if self._keeper is not None:
            self._keeper.attend(self._layer.index, query, key, value, mask, window, scaling)
        for number, rider in self._riders.items():
            if self._step == 0:
                self._note_received(number, query[number], key[number], mask, scaling, window)
            self._attend(
                number, rider.measurement, query[number, :, -1], key[number], value[number], mask, scaling, window
            )
            rider.propagation = rider.measurement.propagate(0, self._chunk(rider.measurement))
            rider.advance(None)

    def _note_received(self, number, query, key, mask, scaling, window) -> None:
        first = self.plans[number].padding
        n_rows, n_keys = query.shape[1], key.shape[1]
        visible = each_visible_key(mask, number, n_rows, n_keys, window, key.device)
        received = attention_received(query[:, first:], key[:, first:], scaling, visible[first:, first:])
        self._received[number].append(received)

    def _attend(self, number, measurement, query, key, value, mask, scaling, window) -> None:
        visible = visible_keys(mask, number, 1, key.shape[1], window, key.device)
        key, value, visible = within_sight(key, value, visible)
        attention = query_attention(query, key, value, scaling, visible, ablation=self.ablation)
        first = (
            measurement.n_positions - attention.n_keys
        )  # sliding windows and their caches hold the last positions only
        keys = None
        if self.plans[number].masked is not None:
            positions = self._positions[number]
            keys = (positions[positions >= first] - first).to(key.device)
        measurement.observe_attention(attention, keys)
        if measurement.layer.index in self.layer_inputs:
            seen = torch.ones(measurement.n_positions, dtype=torch.bool)
            seen[:first] = False
            if visible is not None:
                seen[first:] = visible.cpu()
            self.layer_inputs[measurement.layer.index].visible.append(seen)

    def _chunk(self, measurement: LayerMeasurement) -> int:
        """How many masked tokens of one sequence ride at once."""
        n_keys = measurement.masked.n_keys
        return n_keys if self.max_rows is None else min(max(1, self.max_rows // len(self._riders)), n_keys)

    def _before_linear(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple | None:
        if self._layer is None:
            return None
        states = args[0]  # [sequences, n, in]
        if self._embarked is None or self._embarked[0] is not states:  # gate and up are given the same tensor
            passengers = []
            for number, rider in self._riders.items():
                rider.measurement.observe_input(module, states[number, -1])
                passengers += rider.board(module, states[number, -1])
            if not passengers:
                return None
            self._embarked = states, torch.cat([states.flatten(0, 1), *passengers]).unsqueeze(0)
        return (self._embarked[1], *args[1:]), kwargs

    def _after_linear(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self._layer is None:
            return None
        if self._embarked is None:
            for number, rider in self._riders.items():
                rider.measurement.observe_output(module, output[number, -1])
            return None
        n_sequences, n_new, _ = self._embarked[0].shape
        own = output[:, : n_sequences * n_new].view(n_sequences, n_new, -1)
        first = n_sequences * n_new
        for number, rider in self._riders.items():
            first = rider.alight(module, output[0], first, own[number, -1])
        self._n_mapped += 1
        if self._n_mapped == max(len(rider.modules) for rider in self._riders.values()):
            self._embarked, self._n_mapped = None, 0
            for rider in self._riders.values():
                rider.advance_if_mapped()
        return own

    def _on_layer_output(self, layer: DecoderLayer, output: torch.Tensor | tuple) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if self._keeper is not None:
            self._keeper.leave(layer.index, output)
            if layer is self.decoder.layers[-1]:
                self._keeper.finish()
        for number, rider in self._riders.items():
            measurement = rider.measurement
            measurement.observe_layer_output(output[number, -1])
            n_keys, n_chunk = measurement.masked.n_keys, self._chunk(measurement)
            for start in range(n_chunk, n_keys, max(1, n_chunk)):
                propagate_afterwards(measurement, start, min(start + n_chunk, n_keys))
            self._records[number].append(measurement.finish())
        self._layer, self._riders = None, {}
        if self.on_layer is not None:
            self.on_layer(self._step, layer.index)
        if layer.index == len(self.decoder.layers) - 1:
            self._finish_step()

    # --- results ----------------------------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        seconds = time.perf_counter() - self._started
        for number, records in self._records.items():
            step = gather(records, self._positions[number], seconds, self._received[number])
            self._check_step(step)
            self.sequences[number].append(step)
        self._records, self._received = {}, {}

    def _check_step(self, step: RawStep) -> None:
        for layer, error in enumerate(step.self_check.tolist()):
            where = f"layer {layer} of {self.decoder.model_type} at step {self._step}"
            check_reproduced(where, error, self._dtype, "; the layer is not built as the table says")
        if not bool(torch.isfinite(step.l2).all()):
            layer = int((~torch.isfinite(step.l2)).flatten(1).any(1).int().argmax())
            raise ExactnessError(f"distances of layer {layer} at step {self._step} are not finite: try `dtype` float32")
