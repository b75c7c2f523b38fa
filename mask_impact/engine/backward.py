"""Estimates of the effects of hiding keys from attention: one forward and one backward pass for all layers, heads, queries, keys.

With g the gradient of a target at head h's output of query i in layer l, and p, o, v the attention's weights, output and values,

    E[l, h, i, j] = p_j / (1 - p_j) (o - v_j) . g

is what hiding key j does to the target: exact in the attention, renormalised as hiding is, and of first order behind it. Rules:

    gradient   the true gradient: what hiding in a single layer does (estimate)
    frozen     norms' 1/rms, act(x)/x and softmax weights are constants in the backward pass: what the answer used (contribution)

Layer by layer: a forward pass keeps the layers' inputs, then each layer runs once more with a graph of its own, from the last to
the first. So memory holds the inputs and one layer's graph. Knows no prompts. Shapes: L layers, H heads in K groups, n queries =
N keys (no cache), D head dimension; one sequence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from mask_impact.engine.attention import arithmetic_dtype, attention_received
from mask_impact.engine.hiding_effects import Factored, hiding_effects, values_along
from mask_impact.engine.kept import Kept, KeptPass
from mask_impact.engine.ownership import Block
from mask_impact.engine.replay import prove
from mask_impact.engine.riding.keeping import FoundDecoder
from mask_impact.engine.rules import RULES, Attended, ConstantWeights, Rules
from mask_impact.engine.shared import ForGradients
from mask_impact.engine.sight import looks_ahead_at_the_last
from mask_impact.engine.states import LayerState
from mask_impact.engine.tail import check_logits
from mask_impact.engine.taps import attention_options, each_visible_key, scaling_of, windowed_kernel
from mask_impact.engine.targets import Target, value_of
from mask_impact.errors import ExactnessError, UsageError

BYTES_AT_ONCE = 2**27  # of the weights of some queries, all heads and keys


@dataclass(frozen=True)
class Flow:
    """What is summed beside the sums by key. source: bool [N] keys; target: bool [n] queries."""

    source: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Estimates:
    """What hiding each key does to the targets, to first order; negative: hiding it takes from them.

    values: of each target, see targets.value_of. last: float32 [L, H, N], hidden from the targets' rows; every: float32 [L, H,
    N], hidden from every query, each by itself, summed. flows: float32 [F, L, H], the sums over each flow's keys and queries.
    received: float32 [L, N], see attention.attention_received. maps: by layer that was asked for, float32 [H, n, N], of each
    query and key.
    """

    values: tuple[float, ...]
    last: torch.Tensor
    every: torch.Tensor
    flows: torch.Tensor
    received: torch.Tensor
    maps: dict[int, torch.Tensor]


def estimate(
    kept: Kept,
    targets: Sequence[Target],
    rule: str = "frozen",
    flows: Sequence[Flow] = (),
    *,
    measure: str = "log-odds",
    layers: Iterable[int] = (),
) -> Estimates:
    """By one rule; see `estimates`."""
    return estimates(kept, targets, (rule,), flows, measure=measure, layers=layers)[rule]


def estimates(
    kept: Kept,
    targets: Sequence[Target],
    rules: Sequence[str] = RULES,
    flows: Sequence[Flow] = (),
    *,
    measure: str = "log-odds",
    layers: Iterable[int] = (),
) -> dict[str, Estimates]:
    """Estimates for the sum of the targets, by rule. kept: with states of all positions; rules: of RULES; measure: one of
    choices.MEASURES; layers: those whose whole map is kept. The model is as it was afterwards."""
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise UsageError(f"a rule is one of {', '.join(RULES)}, not {unknown[0]!r}")
    prove(kept)
    decoder, n_positions, layers = kept.decoder, kept.n_positions, tuple(layers)
    n_layers, n_heads = len(decoder.layers), decoder.n_heads
    asked = torch.zeros(n_positions, dtype=torch.bool)
    asked[[one.row for one in targets]] = True
    sums = [(flow.source, flow.target) for flow in flows]
    ruled = Rules(tuple(rules))
    held, shared = [], ForGradients()

    def attend(own, module, query, key, value, attention_mask, *args, **kwargs):
        one = _Attention.of(decoder, query, key, value, attention_mask, kwargs)
        one.output = Attended.apply(
            query, key, value, lambda *parts: own(*parts, attention_mask, *args, **kwargs)[0], one, ruled
        )
        held.append(one)
        return one.output, None

    with torch.enable_grad(), ruled, kept.substituted(attend) as block:
        values, gradients = _at_targets(kept, targets, measure, ruled)
        found = {
            rule: Estimates(
                values,
                *(torch.zeros(n_layers, n_heads, n_positions) for _ in range(2)),
                torch.zeros(len(flows), n_layers, n_heads),
                torch.full((n_layers, n_positions), float("nan")),
                {layer: torch.zeros(n_heads, n_positions, n_positions) for layer in layers},
            )
            for rule in rules
        }
        for index in reversed(range(n_layers)):
            gradients, of_attention = _through_layer(kept, index, gradients, ruled, held, shared, block)
            if of_attention is None:
                continue
            maps = [found[rule].maps.get(index) for rule in rules]
            attention = held.pop()
            received = attention.received()
            of_layer = attention.sums([of_attention[rule] for rule in rules], asked, sums, maps)
            for one, (last, every, of_flows) in zip(found.values(), of_layer, strict=True):
                one.last[index], one.every[index], one.flows[:, index], one.received[index] = (
                    part.float().cpu() for part in (last, every, of_flows, received)
                )
    if not all(one.every.isfinite().all() for one in found.values()):
        raise ExactnessError(
            "gradients are not finite (NaN or inf): no estimates can be given; try another attention backend or `dtype` float32"
        )
    return found


def _at_targets(
    kept: Kept, targets: Sequence[Target], measure: str, ruled: Rules
) -> tuple[tuple[float, ...], dict[str, torch.Tensor]]:
    """The targets' values, and by rule the gradient of their sum at the last layer's output."""
    rows, final = [one.row for one in targets], kept.final
    states = final[:, rows].clone().requires_grad_(True)
    logits = kept.tail.logits(states)[0]
    if isinstance(kept, KeptPass):  # an engine's step is measured then, and held against the model
        there = [at for at, row in enumerate(rows) if row >= kept.n_positions - len(kept.logits)]
        check_logits(logits[there], kept.logits[[rows[at] - kept.n_positions for at in there]])
    values = value_of(logits, targets, measure)
    gradients = {}
    for rule, (found,) in ruled.gradients(values.sum(), (states,), {}).items():
        gradients[rule] = torch.zeros_like(final)
        gradients[rule][:, rows] = found.to(final)
    return tuple(values.tolist()), gradients


def _through_layer(
    kept: Kept,
    index: int,
    gradients: Mapping[str, torch.Tensor],
    ruled: Rules,
    held: "list[_Attention]",
    shared: ForGradients,
    block: Block,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """From the gradients at a layer's output to those at its input, by rule; and those at its attention's output, which is the
    last of `held` then; None for a layer without one. shared: takes what goes to keys that it reads of other layers, and has what
    comes from later ones to its own."""
    layer, state = kept.decoder.layers[index], kept.states[index]
    states = state.entered.unsqueeze(0).clone().requires_grad_(True)
    with ruled.of_modules(block, layer.module, kept.decoder.readers(index)):
        output = layer.module(states, **state.arguments_of_all() | shared.of(state, len(state.entered)))
    output = output[0] if isinstance(output, tuple) else output
    made, of_made = shared.outputs(ruled.rules)
    here = {rule: (one.to(output.device, output.dtype), *of_made[rule]) for rule, one in gradients.items()}
    inputs = (states, *(one.output for one in held), *shared.leaves)
    found = ruled.gradients((output, *made), inputs, here, may_be_unused=bool(shared.leaves))
    shared.receive({rule: parts[1 + len(held) :] for rule, parts in found.items()})
    of_attention = {rule: parts[1] for rule, parts in found.items()} if held else None
    return {rule: parts[0] for rule, parts in found.items()}, of_attention


def estimate_last(kept: Kept, target: Target, measure: str = "log-odds") -> torch.Tensor:
    """float32 [L, H, N], by the true gradient: what hiding each key from the last query alone does to a target at its position.

    No other query's output depends on the last one, so its row alone goes back, beside the keys and values of the others; in a
    layer that runs whole, beside the others' states. kept: states of the last position are enough for all other layers.
    """
    prove(kept)
    decoder, n_positions = kept.decoder, kept.n_positions
    if target.row != n_positions - 1:
        raise UsageError(f"the last of {n_positions} positions is followed, not {target.row}")
    if looks_ahead_at_the_last(kept):
        return estimate(kept, [target], "gradient", measure=measure).last
    found = torch.zeros(len(decoder.layers), decoder.n_heads, n_positions)
    gradient, shared = None, ForGradients()
    with torch.enable_grad(), ConstantWeights():
        for index in reversed(range(len(decoder.layers))):
            states = kept.states[index].entered[-1:].unsqueeze(0).clone().requires_grad_(True)
            output, held = _last_row(kept, index, states, shared)
            if gradient is None:
                output = value_of(kept.tail.logits(output)[0], [target], measure).sum()
            else:
                gradient = gradient.to(output.device, output.dtype)
            made, of_made = shared.outputs(("gradient",))
            inputs = (states, *(one.output for one in held), *shared.leaves)
            gradients = (gradient, *of_made["gradient"])
            gradient, *found_here = torch.autograd.grad((output, *made), inputs, gradients)
            of_attention = found_here[: len(held)]
            shared.receive({"gradient": found_here[len(held) :]})
            if not held:
                continue
            asked = torch.ones(1, dtype=torch.bool)
            ((of_layer, *_),) = held[-1].sums(of_attention, asked, (), [None])
            found[index, :, n_positions - of_layer.shape[1] :] = of_layer.float().cpu()
    return found


def _last_row(
    kept: Kept, index: int, states: torch.Tensor, shared: ForGradients
) -> tuple[torch.Tensor, "list[_Attention]"]:
    """[1, 1, hidden], what a layer makes of its last row, [1, 1, hidden], over which gradients go back; and its attention."""
    state, held, whole = kept.states[index], [], kept.decoder.runs_whole(index)

    def attend(own, module, query, key, value, *rest, **kwargs):
        query, key, value = (part[:, :, -1:] for part in (query, key, value))
        held.append(_Attention.of_last(state, query, key, value))
        others = held[0].output.new_zeros(1, states.shape[1] - 1, *held[0].output.shape[2:])
        return torch.cat([others, held[0].output], dim=1), None

    arguments = state.arguments_of_sequences() if whole else state.arguments_at(torch.tensor([-1]))
    if whole:
        states = torch.cat([state.entered[:-1].unsqueeze(0), states], dim=1)
    with kept.substituted(attend):
        output = kept.decoder.layers[index].module(states, **arguments | shared.of(state, states.shape[1]))
    output = output[0] if isinstance(output, tuple) else output
    return output[:, -1:], held


@dataclass
class _Attention:
    """One layer's attention of one sequence. query: [H, n, D]; keys: [K, N, D]; values: [K, N, E]; visible: bool [n, N]; softcap,
    sinks: see taps.attention_options; output: what the layer got, [1, n, H, E], whose gradient is wanted."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    visible: torch.Tensor
    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    output: torch.Tensor | None = None

    @classmethod
    def of(cls, decoder: FoundDecoder, query, key, value, mask, kwargs: Mapping[str, Any]) -> "_Attention":
        n_rows, n_keys = query.shape[2], key.shape[2]
        seen = each_visible_key(mask, 0, n_rows, n_keys, windowed_kernel(decoder, kwargs), key.device)
        options = attention_options(decoder, kwargs)
        return cls(query.detach()[0], key.detach()[0], value.detach()[0], seen, scaling_of(query, kwargs), *options)

    @classmethod
    def of_last(cls, state: LayerState, query, key, value) -> "_Attention":
        """Of the last row, with its output; query: [1, H, 1, D]; key, value: [1, K, 1, D], its own."""
        keys, values = (
            torch.cat([before[:, :-1], own[0]], dim=1)
            for before, own in zip((state.keys, state.values), (key, value), strict=True)
        )
        n_keys = keys.shape[1]
        seen = state.seen_by(1)
        seen = torch.ones(1, n_keys, dtype=torch.bool, device=keys.device) if seen is None else seen
        own = cls(query[0], keys, values, seen, state.scaling, state.softcap, state.sinks)
        output = own.attended().contiguous().unsqueeze(0)
        return replace(own, query=query.detach()[0], keys=keys.detach(), values=values.detach(), output=output)

    def attended(self) -> torch.Tensor:
        """[n, H, E], over which gradients go back; in the values' dtype."""
        if self.softcap is None and self.sinks is None:
            parts = (part.unsqueeze(0) for part in (self.query, self.keys, self.values))
            output = functional.scaled_dot_product_attention(
                *parts, attn_mask=self.visible, scale=self.scaling, enable_gqa=True
            )
            return output[0].transpose(0, 1)
        weights = self.weights(slice(None), arithmetic_dtype(self.values.dtype))
        grouped = weights.reshape(len(self.values), -1, weights.shape[-1]) @ self.beside(self.values).to(weights)
        return grouped.view(*weights.shape[:2], -1).transpose(0, 1).to(self.values.dtype)

    def beside(self, part: torch.Tensor) -> torch.Tensor:
        """Values [K, N, E], or flags [N], with nothing for the sink behind them, where there is one."""
        if self.sinks is None:
            return part
        return functional.pad(part, (0, 1) if part.dim() == 1 else (0, 0, 0, 1))

    def chunks(self) -> Iterator[slice]:
        """Queries that are looked at together."""
        n_heads, n_rows, _ = self.query.shape
        n = max(1, BYTES_AT_ONCE // (8 * n_heads * self.keys.shape[1]))
        return (slice(first, min(first + n, n_rows)) for first in range(0, n_rows, n))

    def weights(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """[H, r, N], 0 for a query that sees nothing; a sink's weight behind those of the keys, [H, r, N + 1]."""
        n_groups, n_keys, head_dim = self.keys.shape
        grouped = (self.query[:, rows].to(dtype) * self.scaling).reshape(n_groups, -1, head_dim)
        logits = (grouped @ self.keys.to(dtype).transpose(1, 2)).view(len(self.query), -1, n_keys)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        visible = self.visible[rows]
        logits = logits.masked_fill(~visible, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.detach().to(logits).view(-1, 1, 1).expand(*logits.shape[:-1], 1)
            return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)
        weights = torch.softmax(logits, dim=-1)
        return weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)

    def gradient_of_values(self, gradient: torch.Tensor) -> torch.Tensor:
        """[K, N, E], with the weights as constants; gradient: at the output, [1, n, H, E]."""
        dtype = arithmetic_dtype(self.values.dtype)
        n_groups, n_keys, value_dim = self.values.shape
        gradient = gradient[0].transpose(0, 1).to(dtype)
        found = gradient.new_zeros(n_groups, n_keys, value_dim)
        for rows in self.chunks():
            weights = self.weights(rows, dtype)[..., :n_keys].reshape(n_groups, -1, n_keys)
            found += weights.transpose(1, 2) @ gradient[:, rows].reshape(n_groups, -1, value_dim)
        return found.to(self.values.dtype)

    def received(self) -> torch.Tensor:
        """[N], see attention.attention_received."""
        return attention_received(self.query, self.keys, self.scaling, self.visible)

    def sums(
        self,
        gradients: Sequence[torch.Tensor],
        asked: torch.Tensor,
        flows: Sequence[tuple[torch.Tensor, torch.Tensor]],
        maps: Sequence[torch.Tensor | None],
    ) -> list[tuple[torch.Tensor, ...]]:
        """For each of the gradients at the output, [1, n, H, E], the sums of Estimates of this layer: [H, N], [H, N], [F, H].
        asked: bool [n], the targets' rows; maps: of each gradient [H, n, N], filled in where it is given. A sink is a key with a
        value of 0 here, so that what hiding another key leaves has it too; its own sums are left out."""
        dtype, device = arithmetic_dtype(self.values.dtype), self.values.device
        values = self.beside(self.values.to(dtype))
        wide = [one[0].transpose(0, 1).to(dtype) for one in gradients]  # [H, n, E]
        asked = asked.to(device)
        flows = [(self.beside(source.to(device)), target.to(device)) for source, target in flows]
        n_heads, n_keys, n_own = len(self.query), values.shape[1], self.values.shape[1]
        found = [
            (
                values.new_zeros(n_heads, n_keys),
                values.new_zeros(n_heads, n_keys),
                values.new_zeros(len(flows), n_heads),
            )
            for _ in gradients
        ]
        for rows in self.chunks():
            weights = self.weights(rows, dtype)
            here = asked[rows]
            for gradient, whole, (last, *_) in zip(wide, maps, found, strict=True):
                along = values_along(gradient[:, rows][:, here], values)
                last += hiding_effects(weights[:, here], along).sum(dim=1)
                if whole is not None:
                    of_keys = hiding_effects(weights, values_along(gradient[:, rows], values))[..., :n_own]
                    whole[:, rows] = of_keys.float().cpu()
            factored = Factored.of(weights, values)
            sources = [factored.of_keys(source) for source, _ in flows]
            for gradient, (_, every, of_flows) in zip(wide, found, strict=True):
                effects = factored.along(gradient[:, rows])
                every += effects.by_key()
                for place, (source, (_, target)) in enumerate(zip(sources, flows, strict=True)):
                    of_flows[place] += effects.by_query(source)[:, target[rows]].sum(dim=1)
        return [(last[:, :n_own], every[:, :n_own], of_flows) for last, every, of_flows in found]
