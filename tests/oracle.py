"""The slow, obvious way to measure what hiding one token changes; every fast measurement is held against it.

`measure` lets the plain model generate, records what enters each decoder layer, and then runs a float64 copy of the
model's own layer once per hidden token, with that token's column of an explicit attention mask set to -inf. Nothing is
derived, nothing is shared between masked runs, and no code of the package is used.

What the oracle knows about architectures is three facts: where the decoder layers hang, that `self_attn.o_proj` ends
the attention, and which layers put a norm between `o_proj` and the residual stream. The layers' arithmetic is theirs.

The model's layers cast to float32 in places (norms, softmax, router) whatever dtype they hold. `float32_becomes` turns
these casts into casts to float64 while a copy runs; a test proves that no other dtype appears.
"""

import copy
import dataclasses
from contextlib import contextmanager

import numpy as np
import torch

ATTN, FULL = "Attn", "Full"


@dataclasses.dataclass(frozen=True)
class OracleResult:
    """Distances for every hidden token; a list entry per generation step, because a step adds a position.

    S_t = n_prompt + t is the sequence length at step t; position S_t - 1 is the query, and positions 0 .. S_t - 1 are
    hidden in turn.
    """

    l2: list  # per step: float64 [layer, position, variant], ||y - y'||
    cosine: list  # per step: float64 [layer, position, variant], 1 - cos(y, y'), in [0, 2]
    visible: list  # per step: bool [layer, position], whether the query sees the position with nothing hidden
    token_ids: list  # the generated tokens, one per step
    n_prompt: int  # tokens of the prompt
    variants: tuple  # ("Full", "Attn", "Head_0", ..)


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """What went through one decoder layer while the model generated; S = positions that were run."""

    inputs: torch.Tensor  # [1, S, hidden], the layer's input hidden states, in the model's dtype
    outputs: torch.Tensor  # [1, S, hidden], what the layer returned
    cos: torch.Tensor  # [1, S, rotary], the position embedding the model handed to this layer
    sin: torch.Tensor  # [1, S, rotary]


@dataclasses.dataclass(frozen=True)
class LastPosition:
    """What a layer copy computes at the last position of its input, as float64 numpy vectors."""

    full: np.ndarray  # [hidden], the layer's whole update of the residual stream
    attn: np.ndarray  # [hidden], what the attention branch adds to the residual stream
    heads: np.ndarray  # [heads, head_dim], each head's output, before the output projection

    def vectors(self):
        """The measured quantities in the order of the variants."""
        return [self.full, self.attn, *self.heads]


def measure(model, inputs, num_tokens, *, arithmetic=torch.float64, queries="last"):
    """Hide every position in every layer at every step, one at a time, and measure what changes: an `OracleResult`.

    model: a Hugging Face causal or vision-language model on CPU, in evaluation mode.
    inputs: what `generate` takes, batch of one, no padding.
    num_tokens: tokens to generate (greedily); fewer steps result if the model ends earlier.
    arithmetic: dtype of the layer copies. The layer inputs and position embeddings are always those of the model in its
        own dtype. With float32 the update's last digits drown in the residual stream (a difference of two streams).
    queries: "last" hides the token from the last query alone, "all" from every query that keeps another key to see.
    """
    token_ids, traces = generate_and_trace(model, inputs, num_tokens)
    layers = [layer_copy(layer, arithmetic) for layer in decoder_layers(model)]
    n_prompt = inputs["input_ids"].shape[1]
    l2, cosine, visible = [], [], []
    for step in range(len(token_ids)):
        length = n_prompt + step
        measured = [
            measure_layer(layer, trace, length, queries) for layer, trace in zip(layers, traces, strict=True)
        ]  # a pair of [position, variant] per layer
        l2.append(np.stack([layer_l2 for layer_l2, _ in measured]))
        cosine.append(np.stack([layer_cosine for _, layer_cosine in measured]))
        visible.append(np.stack([visible_keys(length, window_of(layer))[-1].numpy() for layer in layers]))
    n_heads = l2[0].shape[2] - 2
    variants = (FULL, ATTN, *(f"Head_{head}" for head in range(n_heads)))
    return OracleResult(l2, cosine, visible, token_ids, n_prompt, variants)


def measure_layer(layer, trace, length, queries="last"):
    """Hide each of the first `length` positions from the query at position length - 1, in one layer copy.

    Returns l2 and cosine distances, each [position, variant].
    """
    baseline = run_layer(layer, trace, length).vectors()
    l2 = np.zeros((length, len(baseline)))
    cosine = np.zeros((length, len(baseline)))
    for position in range(length):
        hidden = run_layer(layer, trace, length, hide=position, queries=queries).vectors()
        for variant, (before, after) in enumerate(zip(baseline, hidden, strict=True)):
            l2[position, variant] = np.linalg.norm(before - after)
            cosine[position, variant] = cosine_distance(before, after)
    return l2, cosine


def run_layer(layer, trace, length, *, hide=None, queries="last"):
    """Run a layer copy on the first `length` positions, with one position hidden or none: a `LastPosition`."""
    visible = visible_keys(length, window_of(layer))
    if hide is not None:
        visible = without_key(visible, hide, queries)
    query_is_blind = not visible[-1].any()
    seen = {}

    def keep_heads(module, args):
        attended = args[0].clone()  # [1, length, heads * head_dim]
        if query_is_blind:
            attended[:, -1] = 0  # it is NaN, from a softmax over nothing
        seen["heads"] = attended[0, -1]
        return (attended, *args[1:])

    def keep_attn(module, args, output):
        seen["attn"] = output[0, -1]

    attention = layer.self_attn
    handles = [
        attention.o_proj.register_forward_pre_hook(keep_heads),
        end_of_attention_branch(layer).register_forward_hook(keep_attn),
    ]
    try:
        x, output = forward_layer(layer, trace, visible)
    finally:
        for handle in handles:
            handle.remove()
    update = output.double()[0, -1] - x.double()[0, -1]
    heads = seen["heads"].double().reshape(-1, attention.head_dim)
    return LastPosition(update.numpy(), seen["attn"].double().numpy(), heads.numpy())


@torch.no_grad()
def forward_layer(layer, trace, visible):
    """A layer copy's input and output [1, length, hidden] under the mask `visible` [length, length] (query, key)."""
    length = visible.shape[0]
    arithmetic = next(layer.parameters()).dtype
    x, cos, sin = (tensor[:, :length].to(arithmetic) for tensor in (trace.inputs, trace.cos, trace.sin))
    mask = torch.zeros(length, length, dtype=arithmetic).masked_fill(~visible, -torch.inf)[None, None]
    with float32_becomes(arithmetic):
        return x, layer(x, position_embeddings=(cos, sin), attention_mask=mask, past_key_values=None)


def visible_keys(length, window):
    """Causal visibility [query, key]: query i sees keys 0 .. i, or the `window` last of them (its own included)."""
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < (length if window is None else window))


def without_key(visible, key, queries):
    """The visibility with one key's column cleared, for the last query or for all that keep another key to see."""
    visible = visible.clone()
    if queries == "all":
        others = visible.clone()
        others[:, key] = False
        visible[others.any(dim=1), key] = False
    elif queries != "last":
        raise ValueError(f"queries must be 'last' or 'all', not {queries!r}")
    visible[-1, key] = False
    return visible


def cosine_distance(a, b):
    """1 - cos(a, b) for float64 vectors, as half the squared distance of the unit vectors, which keeps small digits.

    1 if one of the vectors is zero, 0 if both are.
    """
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if norm_a == 0 or norm_b == 0:
        return float(norm_a != norm_b)
    return float(np.sum((a / norm_a - b / norm_b) ** 2) / 2)


# The model: where its layers are, what goes through them, and copies that compute in another dtype.


def decoder_layers(model):
    """The decoder's layers, first to last."""
    return getattr(model.model, "language_model", model.model).layers


def end_of_attention_branch(layer):
    """The module whose output is added to the residual stream: `o_proj`, or the norm behind it (Gemma 3, OLMo 2).

    Everywhere else `post_attention_layernorm` sits behind the addition and belongs to the MLP branch.
    """
    norm_before_addition = hasattr(layer, "post_feedforward_layernorm")
    return layer.post_attention_layernorm if norm_before_addition else layer.self_attn.o_proj


def window_of(layer):
    """How many keys a query of this layer sees, its own included; None for all of them.

    Where layers differ, the attention module holds its own window; in Mistral and Phi-3 the config holds one for all.
    """
    attention = layer.self_attn
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    return getattr(holder, "sliding_window", None)


@torch.no_grad()
def generate_and_trace(model, inputs, num_tokens):
    """Greedy generation as a user would run it: the new token ids, and a `LayerTrace` per decoder layer.

    A trace joins the prefill's and the decoding steps' pieces: n_prompt + steps - 1 positions.
    """
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError("the oracle measures a batch of one")
    if not inputs.get("attention_mask", torch.ones(1)).all():
        raise ValueError("the oracle does not know padding")
    layers = decoder_layers(model)
    pieces = [[] for _ in layers]  # per layer, per forward: (inputs, outputs, cos, sin)

    def recorder(layer_pieces):
        def record(module, args, kwargs, output):
            hidden_states = args[0] if args else kwargs["hidden_states"]
            tensors = (hidden_states, output, *kwargs["position_embeddings"])
            layer_pieces.append([tensor.clone() for tensor in tensors])

        return record

    handles = [
        layer.register_forward_hook(recorder(layer_pieces), with_kwargs=True)
        for layer, layer_pieces in zip(layers, pieces, strict=True)
    ]
    try:
        sequence = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    traces = [LayerTrace(*(torch.cat(parts, dim=1) for parts in zip(*piece, strict=True))) for piece in pieces]
    return sequence[0, inputs["input_ids"].shape[1] :].tolist(), traces


def layer_copy(layer, arithmetic=torch.float64):
    """A copy of a decoder layer whose weights are in `arithmetic`, with plain (eager) attention and experts."""
    duplicate = copy.deepcopy(layer).to(arithmetic).eval()
    for module in duplicate.modules():
        config = getattr(module, "config", None)
        if config is not None:  # copied along with the layer: the model's own config stays as it is
            config._attn_implementation = "eager"
            config._experts_implementation = "eager"
    return duplicate


@contextmanager
def float32_becomes(dtype):
    """While open, a request for float32 (`.float()`, `.to(torch.float32)`, `dtype=torch.float32`) means `dtype`."""
    named, as_float = torch.float32, torch.Tensor.float
    torch.float32 = torch.float = dtype
    torch.Tensor.float = lambda tensor: tensor.to(dtype)
    try:
        yield
    finally:
        torch.float32 = torch.float = named
        torch.Tensor.float = as_float


# Comparing a measurement with the oracle.


def prompt_of(result):
    """What the model was given for a stored result's prompt."""
    ids = torch.tensor([result.tokens.ids[: result.n_prompt].tolist()])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def largest_error(result, expected):
    """Of a result's L2 distances, relative to those of an `OracleResult`; values below a millionth of their step's largest
    count as that much."""
    return max(
        float((np.abs(step.l2 - wanted) / np.maximum(wanted, 1e-6 * wanted.max())).max())
        for step, wanted in zip(result.steps, expected.l2, strict=True)
    )


def assert_l2_close(actual, expected, *, visible=None, rtol=1e-4, small=1e-6, floor=1e-9):
    """Hold L2 distances against the oracle's, value by value.

    actual, expected: per step an array [layer, position, variant]; `expected` may be an `OracleResult`, which brings
    `visible` along. "Largest" is the largest expected value over the positions of the same step and layer: of Full, of
    Attn, or of all heads. (A single head can have no effect at all: where it attends to two keys with the same value,
    hiding one of them changes nothing but rounding errors, in the oracle too.)

    - Every value is within `rtol` of the expected value.
    - A value expected below `small` of its largest is within `floor` of that largest instead: what is a millionth of
      what matters is the difference of much larger numbers, also in the oracle.
    - A position that the query does not see (`visible` [layer, position] per step) is exactly 0.
    """
    if isinstance(expected, OracleResult):
        expected, visible = expected.l2, expected.visible
    _assert_close("l2", actual, expected, visible, rtol, small, floor)


def assert_cosine_close(actual, expected, *, visible=None, rtol=1e-3, small=1e-12, floor=1e-12):
    """Hold cosine distances against the oracle's; as `assert_l2_close`, with other tolerances.

    A cosine distance is half a squared (relative) L2 distance, so relative errors double, and what `small` = 1e-6 is to
    the L2 distance is its square here. Below it the squares of rounding errors begin: a value there has to be equally
    negligible (`floor` = `small`), no more.
    """
    if isinstance(expected, OracleResult):
        expected, visible = expected.cosine, expected.visible
    _assert_close("cosine", actual, expected, visible, rtol, small, floor)


def _assert_close(measure_name, actual, expected, visible, rtol, small, floor):
    assert len(actual) == len(expected), f"{measure_name}: {len(actual)} steps, expected {len(expected)}"
    n_wrong, worst, message = 0, 0.0, ""
    for step, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
        assert got.shape == wanted.shape, f"{measure_name}, step {step}: shape {got.shape}, expected {wanted.shape}"
        largest = wanted.max(axis=1, keepdims=True)  # over positions: [layer, 1, variant]
        largest[..., 2:] = largest[..., 2:].max(axis=2, keepdims=True)  # and, for heads, over the layer's heads
        tolerance = np.where(wanted < small * largest, floor * largest, rtol * wanted)
        if visible is not None:
            tolerance = np.where(visible[step][:, :, None], tolerance, 0.0)
        error = np.abs(got - wanted)
        wrong = ~(error <= tolerance)  # so that NaN is wrong
        n_wrong += wrong.sum()
        severity = np.where(wrong, np.nan_to_num(error / np.maximum(tolerance, 1e-250), nan=np.inf), 0.0)
        if severity.max() > worst:
            worst = severity.max()
            layer, position, variant = where = np.unravel_index(severity.argmax(), severity.shape)
            message = (
                f"step {step}, layer {layer}, position {position}, variant {variant}: "
                f"{got[where]:.9g}, expected {wanted[where]:.9g} within {tolerance[where]:.3g}"
            )
    if n_wrong:
        raise AssertionError(f"{measure_name}: {n_wrong} values differ from the oracle; worst at {message}")
