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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.masking import MaskingEngine, SequencePlan
from mask_impact.engine.replay import capped
from mask_impact.engine.taps import tapped, up_to_own, visible_keys, windowed_kernel
from mask_impact.engine.targets import Target, value_of
from mask_impact.errors import UsageError
from mask_impact.models.architectures import Decoder

RULES = ("frozen", "gradient")
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
    attention: float32 [L, N], the weights of the targets' rows, mean over them and over heads. maps: by layer that was asked
    for, float32 [H, n, N], of each query and key.
    """

    values: tuple[float, ...]
    last: torch.Tensor
    every: torch.Tensor
    flows: torch.Tensor
    attention: torch.Tensor
    maps: dict[int, torch.Tensor]


@dataclass
class Forward:
    """A forward pass that was kept. entered: [1, N, hidden], what each layer was given; arguments: what else; final: [1, N,
    hidden], what stands before the final norm; attending: (attention) -> a block in which layers have that attention, see
    taps.tapped."""

    model: nn.Module
    decoder: Decoder
    entered: list[torch.Tensor]
    arguments: list[dict[str, Any]]
    final: torch.Tensor
    attending: Callable[[Callable], AbstractContextManager]

    @classmethod
    def of(cls, engine: MaskingEngine) -> "Forward":
        """The pass that an engine has kept all states of, while its block is open."""
        return cls(
            engine.model,
            engine.decoder,
            [state.entered.unsqueeze(0) for state in engine.states],
            [state.arguments | {"attention_mask": state.mask, "past_key_values": None} for state in engine.states],
            torch.cat(engine.final).unsqueeze(0),
            engine.substituted,
        )

    @property
    def n_positions(self) -> int:
        """N, the length of the sequence."""
        return self.entered[0].shape[1]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[T, vocabulary] of states before the final norm, [1, T, hidden]."""
        return capped(self.model, self.model.get_output_embeddings()(self.decoder.final_norm(states))[0])


@torch.no_grad()
def keep_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Forward:
    """Run the model on one whole sequence (prompt and what was produced so far) and keep what the backward passes need."""
    with MaskingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="all") as engine:
        model(**inputs, use_cache=False, logits_to_keep=1)
        return replace(Forward.of(engine), attending=lambda attend: tapped(engine.decoder, attend))


def estimate(
    forward: Forward,
    targets: Sequence[Target],
    rule: str = "frozen",
    flows: Sequence[Flow] = (),
    *,
    measure: str = "log-odds",
    layers: Iterable[int] = (),
) -> Estimates:
    """Estimates for the sum of the targets. rule: one of RULES; measure: one of choices.MEASURES; layers: those whose whole map
    is kept. The model is as it was afterwards."""
    if rule not in RULES:
        raise UsageError(f"a rule is one of {', '.join(RULES)}, not {rule!r}")
    decoder, frozen = forward.decoder, rule == "frozen"
    n_layers, n_heads, n_positions = len(decoder.layers), decoder.n_heads, forward.n_positions
    last, every = (torch.zeros(n_layers, n_heads, n_positions) for _ in range(2))
    of_flows, attention = torch.zeros(len(flows), n_layers, n_heads), torch.zeros(n_layers, n_positions)
    asked = torch.zeros(n_positions, dtype=torch.bool)
    asked[[one.row for one in targets]] = True
    maps = {layer: torch.zeros(n_heads, n_positions, n_positions) for layer in layers}
    held: list[_Attention] = []

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        held.append(_Attention.of(decoder, query, key, value, mask, kwargs))
        output = held[-1].frozen_output(value) if frozen else own(query, key, value, mask, *args, **kwargs)[0]
        output.retain_grad()
        held[-1].output = output
        return output, None

    with _differentiable(forward.model, frozen), forward.attending(attend):
        values, gradient = _at_targets(forward, targets, measure)
        for index in reversed(range(n_layers)):
            gradient = _through_layer(forward, index, gradient)
            found = held.pop()
            sums = found.sums(asked, [(flow.source, flow.target) for flow in flows], maps.get(index))
            last[index], every[index], of_flows[:, index], attention[index] = (part.float().cpu() for part in sums)
    return Estimates(tuple(values.tolist()), last, every, of_flows, attention, maps)


def _at_targets(forward: Forward, targets: Sequence[Target], measure: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets' values [T], and the gradient of their sum at the last layer's output."""
    rows = [one.row for one in targets]
    states = forward.final[:, rows].clone().requires_grad_(True)
    values = value_of(forward.logits(states), targets, measure)
    values.sum().backward()
    gradient = torch.zeros_like(forward.entered[-1])
    gradient[:, rows] = states.grad.to(gradient)
    return values.detach(), gradient


def _through_layer(forward: Forward, index: int, gradient: torch.Tensor) -> torch.Tensor:
    """From the gradient at a layer's output to that at its input."""
    layer = forward.decoder.layers[index]
    states = forward.entered[index].clone().requires_grad_(True)
    output = layer.module(states, **forward.arguments[index])
    output = output[0] if isinstance(output, tuple) else output
    output.backward(gradient.to(output.device, output.dtype))
    return states.grad


@dataclass
class _Attention:
    """One layer's attention of one sequence. query: [H, n, D]; keys, values: [K, N, D]; visible: bool [n, N]; output: what the
    layer got, [1, n, H, D], whose gradient is wanted."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    visible: torch.Tensor
    scaling: float
    output: torch.Tensor | None = None

    @classmethod
    def of(cls, decoder: Decoder, query, key, value, mask, kwargs: Mapping[str, Any]) -> "_Attention":
        n_rows, n_keys = query.shape[2], key.shape[2]
        seen = visible_keys(mask, 0, n_rows, n_keys, windowed_kernel(decoder, kwargs), key.device)
        seen = up_to_own(n_rows, n_keys, key.device) if seen is None else seen
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return cls(query.detach()[0], key.detach()[0], value.detach()[0], seen, scaling)

    def chunks(self) -> Iterator[slice]:
        """Queries that are looked at together."""
        n_heads, n_rows, _ = self.query.shape
        n = max(1, BYTES_AT_ONCE // (8 * n_heads * self.keys.shape[1]))
        return (slice(first, min(first + n, n_rows)) for first in range(0, n_rows, n))

    def weights(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """[H, r, N], 0 for a query that sees nothing."""
        n_groups, n_keys, head_dim = self.keys.shape
        grouped = self.query[:, rows].reshape(n_groups, -1, head_dim).to(dtype)
        logits = grouped @ self.keys.to(dtype).transpose(1, 2) * self.scaling
        logits = logits.view(len(self.query), -1, n_keys).masked_fill(~self.visible[rows], float("-inf"))
        return torch.softmax(logits, dim=-1).nan_to_num(0.0)

    def frozen_output(self, value: torch.Tensor) -> torch.Tensor:
        """[1, n, H, D]: the attention with its weights as constants."""
        n_heads, n_groups = len(self.query), len(self.keys)
        dtype = arithmetic_dtype(value.dtype)
        wide = value[0].to(dtype)
        parts = []
        for rows in self.chunks():
            weights = self.weights(rows, dtype).view(n_groups, -1, self.keys.shape[1])
            parts.append((weights @ wide).view(n_heads, -1, value.shape[-1]))
        return torch.cat(parts, dim=1).transpose(0, 1).unsqueeze(0).to(value.dtype)

    def sums(
        self, asked: torch.Tensor, flows: Sequence[tuple[torch.Tensor, torch.Tensor]], whole: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The sums of Estimates of this layer: [H, N], [H, N], [F, H], [N]. asked: bool [n], the targets' rows; whole: [H, n, N],
        filled in where it is given."""
        dtype = arithmetic_dtype(self.values.dtype)
        n_heads, n_groups, n_keys = len(self.query), *self.keys.shape[:2]
        gradient = self.output.grad[0].transpose(0, 1).to(dtype)  # [H, n, D]
        values = self.values.to(dtype)
        every, last = (gradient.new_zeros(n_heads, n_keys) for _ in range(2))
        attention = gradient.new_zeros(n_keys)
        of_flows = gradient.new_zeros(len(flows), n_heads)
        asked = asked.to(gradient.device)
        for rows in self.chunks():
            weights = self.weights(rows, dtype)
            grouped = gradient[:, rows].reshape(n_groups, -1, gradient.shape[-1])
            along = (grouped @ values.transpose(1, 2)).view(n_heads, -1, n_keys)  # v_j . g_i
            effects = hiding_effects(weights, along)
            every += effects.sum(dim=1)
            last += effects[:, asked[rows]].sum(dim=1)
            attention += weights[:, asked[rows]].mean(dim=0).sum(dim=0)
            for place, (source, target) in enumerate(flows):
                part = effects[:, target[rows].to(effects.device)][..., source.to(effects.device)]
                of_flows[place] += part.sum(dim=(1, 2))
            if whole is not None:
                whole[:, rows] = effects.float().cpu()
        return last, every, of_flows, attention / asked.sum()


def hiding_effects(weights: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """(o' - o) . g of hiding each key, [..., N], for weights p and along = v . g, both [..., N].

    p_j / (1 - p_j) (o.g - v_j.g), and for a key with more than half of the weight p_j (sum of the others' p v.g / sum of the
    others' p - v_j.g), where 1 - p_j would have no digits. A query that sees one key only loses all of it.
    """
    mean = (weights * along).sum(-1, keepdim=True)
    effects = weights / (1 - weights).clamp_min(0.25) * (mean - along)
    largest, dominant = weights.max(-1, keepdim=True)
    others = weights.scatter(-1, dominant, 0.0)
    rest = others.sum(-1, keepdim=True)
    tiny = torch.finfo(weights.dtype).tiny
    of_others = torch.where(
        rest > 0, (others * along).sum(-1, keepdim=True) / rest.clamp_min(tiny), torch.zeros_like(rest)
    )
    recomputed = largest * (of_others - along.gather(-1, dominant))
    return torch.where(largest > 0.5, effects.scatter(-1, dominant, recomputed), effects)


@contextmanager
def _differentiable(model: nn.Module, frozen: bool) -> Iterator[None]:
    """While the block is open gradients are formed, of states alone; with the frozen rules where asked for."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad(), _Frozen() if frozen else ExitStack():
            yield
    finally:
        for parameter, before in wanted:
            parameter.requires_grad_(before)


class _Frozen(TorchFunctionMode):
    """While it is open, the operations that norms, gates and routers are made of have constants in the backward pass."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.rsqrt, torch.Tensor.rsqrt, torch.softmax, torch.Tensor.softmax, functional.softmax):
            return function(*args, **kwargs).detach()
        if function in (functional.silu, functional.gelu):
            x = args[0]
            ratio = function(x.detach(), *args[1:], **kwargs) / x.detach()
            return x * torch.where(x == 0, torch.full_like(ratio, 0.5), ratio)
        return function(*args, **kwargs)
