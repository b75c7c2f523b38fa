"""A context manager that measures local impact while the model's own `generate()` runs, whatever decoder it is.

    with RidingEngine(model) as engine:
        model.generate(...)
    engine.steps

A layer's attention output carries the differences that hiding each key makes to it, and the layer's own code carries them on.
Layers are found by who calls the attention; those without one are passed through, and named in `unmapped`. Before the block
ends, by whatever way, everything is as it was. Knows no files and prints nothing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from threading import get_ident
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.choices import VARIANT_GROUPS
from mask_impact.engine.ownership import Block, is_changed
from mask_impact.engine.plans import SequencePlan, check_batch, measured_at
from mask_impact.engine.recording import LayerRecord, RawStep, gather
from mask_impact.engine.riding import arithmetic, functions, linear, structure
from mask_impact.engine.riding.boarding import Boarded, Call, Measuring, let_on
from mask_impact.engine.riding.keeping import FoundDecoder, StatesKeeping
from mask_impact.engine.riding.layers import Attending, Layer, Layers, decoder_of, no_attention
from mask_impact.engine.riding.probe import prove, snapshot
from mask_impact.engine.riding.remeasuring import Remeasuring, Verification
from mask_impact.engine.riding.room import check_room
from mask_impact.engine.riding.tensor import Riding, replaced, states_in
from mask_impact.engine.self_check import check_reproduced
from mask_impact.engine.states import LayerState
from mask_impact.engine.tail import Tail
from mask_impact.engine.taps import attention_options, scaling_of, tapped, windowed_kernel
from mask_impact.errors import UnsupportedArchitecture, UsageError

RULES_FROM = (arithmetic, functions, linear, structure)  # what importing them puts into the table of rules


class RidingEngine:
    """Measures every layer with a softmax attention at every forward pass of `model` while the `with` block is open.

    groups: which of full, attn, heads to measure. ablation: what hiding means, see attention.query_attention. plans: one for each
    sequence of the batch that the model will be given; one whose number is put into `finished` is measured no more.
    max_rows: how many hidden tokens may be between two linear maps at once (None: all); results do not depend on it.
    on_layer(step, layer) is called when a layer is done; layer: its number in its list. probe: whether each kind of layer is
    proven the first time, and each layer with hooks or forwards of others in each block. keep_states: whether `states` has a
    LayerState of each layer after a step, for a single sequence: of the `last` position or of `all`; then hooks of others are
    refused; or, unless it must_keep, no states are kept where they can't be. verify: layers of which something is measured again
    by really masking, see remeasuring; for a single sequence. After a step `mapped` has the names of the layers in the order of
    the step's rows, `unmapped` of the others beside them, `attending` their numbers. UnsupportedArchitecture (NoRule names
    the operation), UsageError for a batch of another size, ExactnessError where the arithmetic could not be reproduced, where the
    probe fails, or where something is not finite. Only what the thread that opens the block does is measured; see `ownership`.
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
        probe: bool = True,
        keep_states: str | None = None,
        must_keep: bool = True,
        verify: Sequence[int] = (),
    ) -> None:
        self.model, self.layers = model, decoder_of(model)
        self.groups = tuple(group for group in VARIANT_GROUPS if group in groups)
        self.ablation, self.plans, self.on_layer = ablation, tuple(plans), on_layer
        self.max_rows, self.probe = max_rows or None, probe
        self._remeasuring = Remeasuring(verify, self.groups, ablation) if verify else None
        if (keep_states or verify) and len(self.plans) > 1:
            raise UsageError("what layers are given can be kept for a single sequence only")
        self._keeping = StatesKeeping(model, self.layers, keep_states == "all", must_keep) if keep_states else None
        self.fed_again = False  # whether a later pass was given the sequence from its beginning
        self.n_positions = 0  # length of the sequence at the step that was measured last
        self.block: Block | None = None  # while it is open
        self.sequences: tuple[list[RawStep], ...] = tuple([] for _ in self.plans)
        self.finished: set[int] = set()
        self.mapped: tuple[str, ...] = ()
        self.attending = Attending((), 0, ())
        self._step, self._thread = -1, None
        self._changed: set[Layer] = set()  # those with hooks or forwards of others, not proven with them yet
        self._clear()
        self._stack = ExitStack()

    @property
    def steps(self) -> list[RawStep]:
        """The measurements of the first sequence, which mostly is the only one."""
        return self.sequences[0]

    @property
    def keeps(self) -> bool:
        """Whether states are kept: not where they can't be, and need not."""
        return self._keeping is not None and self._keeping.problem is None

    @property
    def decoder(self) -> Layers | FoundDecoder:
        """As far as it is known: before the first pass its lists, then, where states are kept, its layers in their order."""
        return self.layers if self._keeping is None or self._keeping.decoder is None else self._keeping.decoder

    @property
    def states(self) -> list[LayerState]:
        """Of each layer, where they are kept."""
        return [] if self._keeping is None else self._keeping.keeper.states

    @property
    def final(self) -> torch.Tensor:
        """[1, S, hidden], the last layer's output; [1, 1, hidden] where states of the last position are kept."""
        return self._keeping.keeper.final

    @property
    def tail(self) -> Tail:
        """What stands between the last layer and the logits, where states are kept."""
        return self._keeping.tail

    def substituted(self, attention: Callable) -> AbstractContextManager[Block]:
        """A block in which nothing is measured, and whoever runs the model's layers gets `attention` in the place of its own; see
        taps.tapped."""
        return tapped(self.layers, attention)

    def verification(self) -> Verification | None:
        """What was measured again; None where nothing was to be."""
        return self._remeasuring and self._remeasuring.compared(self.steps, self.mapped, self.attending)

    @property
    def unmapped(self) -> tuple[str, ...]:
        """The names of the layers without an attention beside those that have one."""
        return self.attending.others

    def _clear(self) -> None:
        """Between two forward passes."""
        self._active: list[int] = []  # the sequences that are measured in this one
        self._held, self._fed, self._started = 0, 0, 0.0
        self._entered: dict[Layer, tuple[tuple, dict]] = {}  # what layers that are running were given
        self._boarded: dict[Layer, Boarded] = {}  # those whose attention has run
        self._records: dict[Layer, dict[int, LayerRecord]] = {}
        self._positions: dict[int, torch.Tensor] = {}  # by sequence, those to hide
        self._received: dict[int, list[torch.Tensor]] = {}

    # --- attaching and restoring -----------------------------------------------------------------------------------------

    def __enter__(self) -> "RidingEngine":
        layers, self._thread = self.layers, get_ident()
        self._changed = {one for one in layers.layers if is_changed(one.module)}
        with ExitStack() as stack:
            self.block = block = stack.enter_context(tapped(layers, self._on_tap))
            if self._keeping is not None:
                stack.enter_context(self._keeping.attached(block))
            inner = [module for module, layer in layers.around.items() if module is not layer.module]
            stack.enter_context(layers.known.opaque.caught(inner, self._after_attention))
            stack.enter_context(block.before(layers.decoder, self._before_pass))
            stack.enter_context(block.after(layers.decoder, self._after_pass))
            for layer in layers.layers:
                self._hook_layer(stack, block, layer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        for boarded in self._boarded.values():
            boarded.ride.open = False
        self._clear()
        self._keeping = self.block = None

    def _hook_layer(self, stack: ExitStack, block, layer: Layer) -> None:
        def before(module, args, kwargs):
            if self._keeping is not None:
                self._keeping.enter(layer, args, kwargs)
            if self._active:
                again = self.probe and self._to_prove(layer)
                again |= self._remeasuring is not None and self._remeasuring.wants(len(self.steps), layer)
                self._entered[layer] = snapshot(args, kwargs) if again else (args, kwargs)

        def after(module, args, output):
            given = self._entered.pop(layer, None)
            replacement = None if given is None else self._after_layer(layer, given, output)
            if self._keeping is not None:
                self._keeping.leave(layer, output if replacement is None else replacement)
            return replacement

        stack.enter_context(block.before(layer.module, before))
        # Before hooks of others, which get the layer's plain tensor.
        stack.enter_context(block.after(layer.module, after, prepend=True))

    # --- what happens in the model's forward, in this order ----------------------------------------------------------------

    def _before_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        self._clear()
        caches = [value for value in (*args, *kwargs.values()) if isinstance(value, Cache)]
        self._held = int(caches[0].get_seq_length()) if caches else 0
        self._step += 1
        if self._held == 0:
            self.fed_again = self._step > 0
        if self._keeping is not None:
            self._keeping.begin(self._held == 0, kwargs)
        self._started = time.perf_counter()
        self._active = measured_at(self._step, self.plans, self.finished)
        return args, kwargs if self._keeping is None else self._keeping.with_all_rows(kwargs)

    def _to_prove(self, layer: Layer) -> bool:
        """Whether nothing is known of such layers yet, or of what somebody else put into this one."""
        return layer in self._changed or self.layers.known.to_prove(layer)

    def _on_tap(self, own, module, query, key, value, attention_mask, *args, **kwargs):
        known, layer = self.layers.known, self.layers.around.get(module)
        known.opaque.attentions.add(module)
        output = own(query, key, value, attention_mask, *args, **kwargs)
        if layer in self._entered:
            check_batch(self.plans, len(query))
        if layer is not None and self._keeping is not None:
            self.n_positions = self._held + query.shape[2]
            self._keeping.attend(layer, module, query, key, value, attention_mask, kwargs)
        if layer not in self._entered:
            return output
        if layer in self._boarded or layer in self._records:
            raise UnsupportedArchitecture(f"{layer.name} calls an attention twice in one pass: that can't be measured")
        if output[0].requires_grad:
            raise UsageError("differences can't be measured while gradients are recorded: use torch.no_grad()")
        entered = _entering(layer.name, self._entered[layer])
        window = windowed_kernel(self.layers, kwargs)
        softcap, sinks = attention_options(self.layers, kwargs)
        call = Call(query, key, value, attention_mask, scaling_of(query, kwargs), softcap, sinks, window)
        measuring = [self._measured(number, call) for number in self._active]
        n_variants = sum(len(one.positions) for one in measuring)
        check_room(layer.name, layer.module, n_variants, self.max_rows, arithmetic_dtype(entered.dtype), entered.device)
        with_noise = layer.kind not in known.quiet
        self._boarded[layer], x = let_on(layer, entered, output[0], measuring, with_noise, self.max_rows)
        return output if self.groups == ("heads",) else (x, *output[1:])

    def _measured(self, number: int, call: Call) -> Measuring:
        plan = self.plans[number]
        # The last layers of Gemma 4, which read keys of others, may be fed the last position alone.
        self._fed = max(self._fed, call.query.shape[2])
        n_positions = self._held + self._fed - plan.padding
        self._positions[number] = positions = plan.positions(n_positions)
        if self._step == 0:
            self._received.setdefault(number, []).append(call.received(number, plan.padding))
        return Measuring(number, call.of_last(number, self.ablation), positions, n_positions, self.groups)

    def _after_attention(self, module: nn.Module) -> None:
        """What called the attention is done: from here on sums may be those with the residual stream."""
        boarded = self._boarded.get(self.layers.around.get(module))
        if boarded is not None and self._thread == get_ident():
            boarded.ride.in_attention = False

    def _after_layer(self, layer: Layer, given: tuple[tuple, dict], output: Any) -> Any:
        boarded, known = self._boarded.pop(layer, None), self.layers.known
        if boarded is None:
            known.without.add(layer.kind)
            if self._remeasuring is not None and not self._entered:  # within no other one
                self._remeasuring.pass_on(layer, len(self.layers.siblings(layer)))
            return None
        try:
            self._records[layer] = boarded.get_off(output)
        finally:
            boarded.ride.open = False
        (known.quiet.discard if boarded.ride.noisy else known.quiet.add)(layer.kind)
        if self.probe and self.groups != ("heads",) and self._to_prove(layer):
            prove(self.layers, layer, *given)
            if layer in self._changed:
                self._changed.remove(layer)
            else:
                known.proven.add(layer.kind)
        known.without.discard(layer.kind)
        if self._remeasuring is not None:
            positions = self._positions[0].tolist()
            n_positions = self._held + self._fed
            self._remeasuring.measure(self.layers, layer, given, len(self.steps), positions, n_positions)
        if self.on_layer is not None:
            self.on_layer(self._step, self.layers.place_of(layer.module))
        return replaced(output, lambda x: x.plain, Riding)

    def _after_pass(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._active:
            self._finish_step()
        self._clear()
        if self._keeping is not None:
            self._keeping.finish()

    # --- results ----------------------------------------------------------------------------------------------------------------

    def _finish_step(self) -> None:
        if not self._records:
            raise no_attention(self.model)
        mapped, before = list(self._records), self.mapped
        self.mapped, self.attending = tuple(layer.name for layer in mapped), self.layers.with_attention(mapped)
        if before and self.mapped != before:
            raise UnsupportedArchitecture(
                f"other layers of {type(self.model).__name__} call an attention at step {self._step} than before: "
                "that can't be measured"
            )
        seconds = time.perf_counter() - self._started
        for number in self._active:
            records = {layer: of_all[number] for layer, of_all in self._records.items()}
            if len({record.l2.shape for record in records.values()}) > 1:
                raise UnsupportedArchitecture("layers have different numbers of heads: leave out `heads`")
            received = self._received.get(number, [])
            step = gather(list(records.values()), self._positions[number], seconds, received)
            finite = torch.isfinite(step.l2).flatten(1).all(1).tolist()
            for layer, error, sound in zip(records, step.self_check.tolist(), finite, strict=True):
                where = f"{layer.name} at step {self._step}"
                check_reproduced(where, error if sound else float("nan"), self.model.dtype)
            self.sequences[number].append(step)


def _entering(name: str, given: tuple[tuple, dict]) -> torch.Tensor:
    """[B, S, hidden], the states that a layer is given; UnsupportedArchitecture for several streams of them, or none. given: its
    arguments, of which the states are the first."""
    arguments = [value for part in (given[0], given[1].values()) for value in part if isinstance(value, torch.Tensor)]
    first = next((value for value in arguments if value.is_floating_point()), None)
    if first is not None and first.dim() == 4:
        raise UnsupportedArchitecture(
            f"{name} is given several streams of states {tuple(first.shape)} and mixes them: what it adds to one of them is not "
            "its attention's and its MLP's output alone, so it can't be measured"
        )
    entered = next(states_in(given), None)
    if entered is None:
        raise UnsupportedArchitecture(f"{name} is given no states [sequences, positions, hidden]: it can't be measured")
    return entered
