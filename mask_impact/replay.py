"""What the model's output would have been with some attention edges hidden: later layers, from the state of a step.

Only the last position's query is masked, so only its row differs from the model's own run: every variant is one row, which
enters where its first masked layer begins, goes through the model's own layer modules beside the other variants' rows, and
attends to the keys and values that the model's own run has left, which no variant copies. What is added between layers
(features of images) is added to every row alike.

The first row hides nothing. States are float32, and of every other row only the difference from the first one goes through
a linear map in the weights' dtype: in bfloat16 a state has three digits, and the difference of two states, which is all that
an effect is, would have none.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mask_impact.architectures import OpaqueMlp
from mask_impact.engine import LayerState, MaskingEngine, arithmetic_dtype
from mask_impact.settings import ABLATIONS

ROWS_OF_LOGITS = 64  # variants whose logits are formed at once
ATTENTION_BYTES = 2**27  # of the weights of all rows' attention at once


@dataclass(frozen=True)
class Variants:
    """What is hidden from the last query: of n variants each some keys, in some layers.

    hidden: bool [n, S]; first, last: int64 [n], the first and the last layer. heads: bool [H], the heads it is hidden from
    (None: all). ablation: `mask` (the logit is -inf), `zero-value` (the weight stays, the value is 0) or `mean-value` (the
    weight stays, the value is the mean over the visible keys).
    """

    hidden: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    heads: torch.Tensor | None = None
    ablation: str = "mask"

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            raise ValueError(f"ablation {self.ablation!r} is not one of {', '.join(ABLATIONS)}")

    def __len__(self) -> int:
        return len(self.hidden)


def replay(engine: MaskingEngine, variants: Variants) -> Iterator[tuple[slice, torch.Tensor]]:
    """(which variants, how much their logits differ from those of the row that hides nothing: [k, vocabulary]) at the step
    that the engine measured last, in float32 (float64 for a float64 model).

    Needs an engine with `keep_states`, whose block is still open, and is to be called when the model's own forward is done.
    """
    n_keys = max(state.keys.shape[1] for state in engine.states)
    n_rows = max(ROWS_OF_LOGITS, ATTENTION_BYTES // (8 * engine.decoder.n_heads * n_keys))
    for start in range(0, len(variants), n_rows):
        rows = slice(start, min(start + n_rows, len(variants)))
        outputs = _through_layers(engine, variants, rows)
        for first in range(1, len(outputs), ROWS_OF_LOGITS):
            part = torch.cat([outputs[:1], outputs[first : first + ROWS_OF_LOGITS]])
            logits = logits_of(engine, part)
            yield slice(start + first - 1, start + first - 1 + len(part) - 1), logits[1:] - logits[:1]


def unmasked_logits(engine: MaskingEngine) -> torch.Tensor:
    """Logits [vocabulary] of the row that hides nothing: the model's own, but for rounding."""
    nothing = torch.zeros(0, engine.n_positions, dtype=torch.bool)
    none = torch.zeros(0, dtype=torch.int64)
    return logits_of(engine, _through_layers(engine, Variants(nothing, none, none), slice(0, 0)))[0]


def _through_layers(engine: MaskingEngine, variants: Variants, rows: slice) -> torch.Tensor:
    """Outputs of the last layer, [1 + k, hidden]: of the row that hides nothing, and of each variant."""
    hidden, first, last = variants.hidden[rows], variants.first[rows], variants.last[rows]
    order = torch.argsort(first, stable=True)
    hidden, first, last = hidden[order], first[order], last[order]
    hidden = torch.cat([torch.zeros(1, hidden.shape[1], dtype=torch.bool), hidden])
    states = engine.states
    running = states[0].entered.to(arithmetic_dtype(states[0].entered.dtype)).unsqueeze(0)
    for index, (layer, state) in enumerate(zip(engine.decoder.layers, states, strict=True)):
        running = running.to(state.entered.device)
        running = torch.cat([running, running[:1].expand(int((first == index).sum()), -1)])
        masked = hidden[: len(running)].clone()
        masked[1:] &= (last[: len(running) - 1] >= index).unsqueeze(1)

        def attention(module, query, key, value, state=state, masked=masked):
            return _attend(query, key, value, state, masked, variants)

        with ExitStack() as stack:
            stack.enter_context(engine.substituted(attention))
            stack.enter_context(_ByDifferences())
            if isinstance(layer.mlp, OpaqueMlp):
                _in_own_dtype(layer.mlp.block, state.entered.dtype, stack)
            output = layer.module(running.unsqueeze(0), **_arguments(state, len(running)))
        running = (output[0] if isinstance(output, tuple) else output)[0]
        if index + 1 < len(states):
            following = states[index + 1].entered
            running = running.to(following.device) + (
                following.to(running.dtype) - state.left.to(following.device, running.dtype)
            )
    result = torch.empty_like(running)
    result[0] = running[0]
    result[1 + order.to(running.device)] = running[1:]
    return result


def _arguments(state: LayerState, n: int) -> dict:
    """What a layer is called with for n rows that all stand at the last position."""
    arguments = state.arguments | {"attention_mask": None, "past_key_values": None}
    arguments["position_embeddings"] = tuple(part.expand(-1, n, -1) for part in arguments["position_embeddings"])
    if arguments.get("position_ids") is not None:
        arguments["position_ids"] = arguments["position_ids"].expand(*arguments["position_ids"].shape[:-1], n)
    return arguments


class _ByDifferences(TorchFunctionMode):
    """While it is open, a linear map takes the first row as it is and of the others their difference from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.nn.functional.linear:
            return function(*args, **(kwargs or {}))
        rows, weight, bias = _linear_arguments(*args, **(kwargs or {}))
        first = rows[..., :1, :]
        own = function(first.to(weight.dtype), weight, bias).to(rows.dtype)
        differences = rows[..., 1:, :] - first
        # In float16 small differences would vanish; a power of two changes no digit.
        scale = differences.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny).log2().ceil().exp2()
        mapped = function((differences / scale).to(weight.dtype), weight).to(rows.dtype) * scale
        return torch.cat([own, own + mapped], dim=-2)


def _linear_arguments(input, weight, bias=None):
    return input, weight, bias


def _in_own_dtype(block: nn.Module, dtype: torch.dtype, stack: ExitStack) -> None:
    """An MLP that is not a chain of linear maps (mixture of experts) takes whole states in the model's dtype."""

    def before(module, args):
        return (args[0].to(dtype), *args[1:])

    def after(module, args, output):
        wide = arithmetic_dtype(dtype)
        return (output[0].to(wide), *output[1:]) if isinstance(output, tuple) else output.to(wide)

    stack.callback(block.register_forward_pre_hook(before, prepend=True).remove)
    stack.callback(block.register_forward_hook(after).remove)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    state: LayerState,
    masked: torch.Tensor,
    variants: Variants,
) -> torch.Tensor:
    """[1, n, H, D] for n rows with a query, key and value each, over the keys of the earlier positions and their own.

    query: [1, H, n, D]; key, value: [1, K, n, D]; masked: bool [n, S], by position.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    _, n_heads, n, head_dim = query.shape
    n_groups, n_keys, _ = state.keys.shape
    query = query[0].to(dtype).view(n_groups, n_heads // n_groups, n, head_dim)
    key, value = key[0].to(dtype).unsqueeze(1), value[0].to(dtype).unsqueeze(1)  # [K, 1, n, D]
    earlier_keys, earlier_values = (part[:, :-1].to(dtype).unsqueeze(1) for part in (state.keys, state.values))
    own = (query * key).sum(-1, keepdim=True)
    logits = torch.cat([query @ earlier_keys.transpose(2, 3), own], dim=-1) * state.scaling  # [K, H/K, n, N]
    if state.visible is not None:
        logits = logits.masked_fill(~state.visible, float("-inf"))
    hidden = masked[:, masked.shape[1] - n_keys :].to(logits.device)  # [n, N]
    hidden = hidden.expand(n_groups, n_heads // n_groups, n, n_keys)
    if variants.heads is not None:
        hidden = hidden & variants.heads.to(logits.device).view(n_groups, -1, 1, 1)
    if variants.ablation == "mask":
        logits = logits.masked_fill(hidden, float("-inf"))
    weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)  # where nothing is left to see, nothing is attended to
    kept = weights if variants.ablation == "mask" else weights.masked_fill(hidden, 0.0)
    output = kept[..., :-1] @ earlier_values + kept[..., -1:] * value
    if variants.ablation == "mean-value":
        seen = earlier_values if state.visible is None else earlier_values[:, :, state.visible[:-1]]
        own_seen = state.visible is None or bool(state.visible[-1])
        mean = (seen.sum(2, keepdim=True) + value * own_seen) / (seen.shape[2] + own_seen)
        output = output + (weights - kept).sum(-1, keepdim=True) * mean
    return output.reshape(1, n_heads, n, head_dim).transpose(1, 2)


def logits_of(engine: MaskingEngine, outputs: torch.Tensor) -> torch.Tensor:
    """Logits [k, vocabulary] of last layers' outputs [k, hidden], by the model's own norm and head."""
    model = engine.model
    with _ByDifferences():
        logits = model.get_output_embeddings()(engine.decoder.final_norm(outputs.unsqueeze(0)))[0]
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
