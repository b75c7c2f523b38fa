"""The slow, obvious way to measure what hiding a token from the last query changes, in any decoder of transformers.

A float64 copy of the model runs once, with the attention function of this module in the place of its own; what went into
each decoder layer is kept. Then the layer runs again from the same input, once for each key, with that key's logit -inf
at the last query. Nothing is derived, nothing is shared between runs, and no code of the package is used.

What is known about families is two things: how a model's decoder layers are found (the list whose layers call
transformers' attention interface), and which row is first added to the residual stream (`ADDED`).

Layers cast to float32 in places (norms, softmax, router). `in_float64` turns these casts into casts to float64 while a
copy runs. Rotary frequencies stay the float32 numbers that the model has, in float64.
"""

import copy
import dataclasses
from contextlib import contextmanager

import numpy as np
import torch
from oracle import float32_becomes
from transformers import AttentionInterface, Cache

# The attention's name while an oracle runs: modules look it up before they take their own. With another name models of
# sparse attention would leave their mask to the function.
NAME = "eager"

# Which row is first added to the residual stream, by the `model_type` of the decoder, as its modeling file has it.
# None: what the module returns that calls the attention interface (`residual + self_attn(..)`, and in parallel blocks
# `residual + attention + mlp`). A name: what the norm of this name returns, or the attention's row times the layer's
# number of this name. A family that is not here has no `attn`.
_ITSELF = """
    qwen3 qwen2 llama mistral phi3 qwen2_moe qwen3_moe mixtral olmoe olmo gemma glm glm4_moe smollm3 seed_oss ernie4_5
    helium ministral cohere cohere2 gpt2 gpt_neox phi opt starcoder2 stablelm nemotron arcee apertus gpt_oss llama4_text
    deepseek_v3 qwen3_next qwen3_5_text lfm2 nemotron_h qwen3_vl_text qwen3_vl_moe_text qwen2_vl_text qwen2_5_vl_text
"""
_NORMED = "gemma2 gemma3_text gemma4_text olmo2 olmo3 exaone4"
ADDED = (
    dict.fromkeys(_ITSELF.split())
    | dict.fromkeys(_NORMED.split(), "post_attention_layernorm")
    | dict.fromkeys(("glm4", "glm4v_text"), "post_self_attn_layernorm")
    | dict.fromkeys(("granite", "granitemoe", "granitemoehybrid"), "residual_multiplier")
    | {"minicpm3": "residual_scale"}
)
# Inputs with a number for each position, and what a produced token has there: 1 in PaliGemma's types, for causal.
PER_POSITION = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
PER_POSITION_OF = {"paligemma": {"token_type_ids": 1}}


@dataclasses.dataclass(frozen=True)
class Distances:
    """What hiding each position changes in one layer: L2 distances in float64. P = positions, H = heads."""

    full: np.ndarray  # [P], of the layer's output row
    attn: np.ndarray | None  # [P], of the row that is first added to the residual stream; None if not known (`ADDED`)
    heads: np.ndarray  # [H, P], of each head's output, before the output projection


@dataclasses.dataclass(frozen=True)
class Row:
    """What a layer computes at the last position, in float64."""

    full: torch.Tensor  # [hidden], the layer's output; all streams, where there are several
    attn: torch.Tensor | None  # [hidden], what is first added to the residual stream
    heads: torch.Tensor  # [H, value width], the attention's output


def measure(model, inputs, produced=(), *, layer_inputs=None):
    """Hide each position from the last query in each layer, one at a time: per layer `Distances`, or None.

    model: a Hugging Face causal or vision-language model on CPU; it is copied, never changed.
    inputs: what the model takes, batch of one, no padding. produced: ids that follow the prompt.
    layer_inputs: per layer [1, P, hidden], what went into it, P or more; None for what the float64 copy itself computes.
    A layer without softmax attention is None.
    """
    return Oracle(model).measure(inputs, produced, layer_inputs=layer_inputs)


def effects(model, inputs, produced, token):
    """The change of `token`'s log-probability behind prompt + produced when a position is hidden from the last query.

    Per layer float64 [P], or None: the position is hidden in that layer alone, and the whole model runs.
    """
    return Oracle(model).effects(inputs, produced, token)


@torch.no_grad()
def generate_and_trace(model, inputs, num_tokens):
    """Greedy generation as a user would run it: the new token ids, and `layer_inputs` for `measure`, in the model's dtype.

    A layer's entry has all positions but that of the last token, [1, P + num_tokens - 1, hidden]. It is None where the
    model gave the layer fewer: Gemma 4 runs the layers that share keys and values for the last position alone.
    """
    copied = Oracle(model)
    copied.logits(inputs)
    names = {module: name for name, module in copied.model.named_modules()}
    pieces = [[] for _ in copied.layers]

    def keep(index):
        return lambda module, args, kwargs: pieces[index].append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [
        model.get_submodule(names[layer]).register_forward_pre_hook(keep(index), with_kwargs=True)
        for index, layer in enumerate(copied.layers)
    ]
    try:
        sequence = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    finally:
        for handle in handles:
            handle.remove()
    token_ids = sequence[0, inputs["input_ids"].shape[1] :].tolist()
    n_positions = sequence.shape[1] - 1
    joined = [torch.cat(piece, dim=1) for piece in pieces]
    return token_ids, [one if one.shape[1] == n_positions else None for one in joined]


class Oracle:
    """A float64 copy of a model that runs with keys hidden from the last query, in layers of your choice."""

    def __init__(self, model):
        self.model = float64_copy(model)
        kind = self.model.config.get_text_config().model_type
        self.knows_attn, self.added = kind in ADDED, ADDED.get(kind)
        self.features = set()  # which of softcap, sinks, position_bias an attention of the decoder was given
        self.calls = {}  # per layer index: (args, kwargs) of the last run
        self.layers, self.attentions = (
            None,
            None,
        )  # found by the first run; attentions: per layer, who calls the interface

    @torch.no_grad()
    def logits(self, inputs, produced=(), hide=None):
        """Logits behind prompt + produced: float64 [vocabulary]. hide: per layer index, the positions hidden there from the last
        query, or (queries, position) with queries a slice."""
        arguments = full_inputs(inputs, produced, self.model.config.model_type)
        if self.layers is None:
            with running({}) as run, in_float64():
                self.model(**arguments, use_cache=False)
            self.layers, self.attentions = decoder_layers(self.model, run.callers)
            self.features = {name for modules in self.attentions for one in modules for name in run.features[one]}
        handles = [
            layer.register_forward_pre_hook(self._keep_call(index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]
        try:
            with running(self._by_module(hide or {})), in_float64():
                return self.model(**arguments, use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    def measure(self, inputs, produced=(), *, layer_inputs=None):
        """See the function of this name."""
        self.logits(inputs, produced)
        n_positions = inputs["input_ids"].shape[1] + len(produced)
        return [
            self._measure_layer(index, n_positions, layer_inputs and layer_inputs[index]) if attentions else None
            for index, attentions in enumerate(self.attentions)
        ]

    def _measure_layer(self, index, n_positions, entering):
        entering = None if entering is None else entering[:, :n_positions]
        before = self.row(index, (), entering)
        after = [self.row(index, (position,), entering) for position in range(n_positions)]

        def distance(name):
            return torch.stack([(getattr(row, name) - getattr(before, name)).norm(dim=-1) for row in after]).numpy()

        return Distances(distance("full"), None if before.attn is None else distance("attn"), distance("heads").T)

    def effects(self, inputs, produced, token, positions=None):
        """See the function of this name; positions: those that are hidden, by default all."""
        before = torch.log_softmax(self.logits(inputs, produced), dim=-1)[token]
        if positions is None:
            positions = range(inputs["input_ids"].shape[1] + len(produced))

        def change(index, position):
            hidden = self.logits(inputs, produced, {index: (position,)})
            return float(torch.log_softmax(hidden, dim=-1)[token] - before)

        return [
            np.array([change(index, position) for position in positions]) if attentions else None
            for index, attentions in enumerate(self.attentions)
        ]

    @torch.no_grad()
    def row(self, index, hide=(), entering=None):
        """Run layer `index` again on what it was given last, with the positions `hide` hidden in it: a `Row`.

        entering: [1, P, hidden], in the place of the layer's input.
        """
        args, kwargs = cloned(self.calls[index])
        if entering is not None and args:
            args = (entering.double(), *args[1:])
        elif entering is not None:
            kwargs["hidden_states"] = entering.double()
        layer, (*_, attention) = self.layers[index], self.attentions[index]
        is_number = self.added is not None and self.added in vars(layer)
        end = attention if self.added is None or is_number else layer.get_submodule(self.added)
        seen = []
        handle = end.register_forward_hook(lambda module, args, output: seen.append(first_of(output)[0, -1].clone()))
        try:
            with running(self._by_module({index: hide})) as run, in_float64():
                full = first_of(layer(*args, **kwargs))[0, -1].flatten()
        finally:
            handle.remove()
        attn = seen[-1] * getattr(layer, self.added) if is_number else seen[-1]
        return Row(full, attn if self.knows_attn else None, run.heads[attention])

    def _by_module(self, hide):
        return {attention: positions for index, positions in hide.items() for attention in self.attentions[index]}

    def _keep_call(self, index):
        def keep(module, args, kwargs):
            if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
                raise ValueError(f"layer {index} was given a cache: it cannot run twice")
            self.calls[index] = cloned((args, kwargs))

        return keep


# The attention function: what a model calls while an oracle runs.


@dataclasses.dataclass
class Run:
    """One run: what is hidden in it, and what was seen."""

    hide: dict  # per attention module: positions whose logit is -inf at the last query, or (queries, position)
    callers: list = dataclasses.field(default_factory=list)  # attention modules, in the order of their calls
    heads: dict = dataclasses.field(default_factory=dict)  # per attention module: [H, value width], the last query's
    features: dict = dataclasses.field(default_factory=dict)  # per attention module: see `Oracle.features`


_runs = []  # those that are open, the innermost last


@contextmanager
def running(hide):
    """While open, `attend` is the models' attention, hides these keys and keeps what it sees in the `Run`."""
    _runs.append(Run(hide))
    AttentionInterface.register(NAME, attend)
    try:
        yield _runs[-1]
    finally:
        _runs.pop()
        if not _runs:
            del AttentionInterface._global_mapping[NAME]


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    softcap=None,
    s_aux=None,
    sinks=None,
    position_bias=None,
    is_causal=None,
    **kwargs,
):
    """Softmax attention in float64: [1, P, H, value width]. query [1, H, P, width], key and value [1, groups, P, ..].

    Other arguments that transformers gives (dropout, the window, lengths) say nothing that the mask does not say.
    """
    run = _runs[-1]
    run.callers.append(module)
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1)  # one for each head; others are [1, H, P, 1], one for each query
    features = {"softcap": softcap, "sinks": sinks, "position_bias": position_bias}
    run.features[module] = [name for name, there in features.items() if there is not None]
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(group, dim=1) for tensor in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query.double() @ key.transpose(2, 3) * scaling  # [1, H, P, P]
    if attention_mask is None and (module.is_causal if is_causal is None else is_causal) and query.shape[2] > 1:
        attention_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
    visible, bias = read_mask(attention_mask, logits)
    if position_bias is not None:
        bias = bias + position_bias.double()
    for edge in run.hide.get(module, ()):
        queries, position = edge if isinstance(edge, tuple) else (-1, edge)
        if key.shape[2] != query.shape[2]:
            raise ValueError(f"{key.shape[2]} keys for {query.shape[2]} positions: a key is not a position")
        visible = visible.clone()
        visible[..., queries, position] = False
    attended = (probabilities(logits, visible, bias, softcap, sinks) @ value).transpose(1, 2).contiguous()
    run.heads[module] = attended[0, -1]
    return attended.to(query.dtype), None


def probabilities(logits, visible, bias, softcap, sinks):
    """Weights [1, H, P, P] of the keys: the cap stands before bias and mask, a sink takes its share and brings no value.

    Those of a query without a visible key are 0.
    """
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = (logits + bias).masked_fill(~visible, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.double().expand(*logits.shape[:-1], 1)], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : visible.shape[-1]]
    return weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)


def read_mask(mask, logits):
    """Which keys a mask leaves, as bool of the shape of `logits`, and what it adds to their logits.

    mask: [.., P, P], bool (True: visible) or a number that is added, the dtype's lowest where a key is not visible.
    """
    if mask is None:
        mask = torch.ones_like(logits, dtype=torch.bool)
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    bias = torch.zeros_like(logits) if mask.dtype == torch.bool else mask.double().masked_fill(~visible, 0.0)
    return visible.expand(logits.shape), bias


# The model: a copy in float64, and where its layers are.


def float64_copy(model):
    """A copy of the model in float64 that calls `attend`, with plain experts."""
    duplicate = copy.deepcopy(model).eval()
    for tensor in (*duplicate.parameters(), *duplicate.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.double()
    configs = {id(config): config for module in duplicate.modules() if (config := getattr(module, "config", None))}
    for config in configs.values():  # copied along with the model: the model's own stay as they are
        config._attn_implementation = NAME
        config._experts_implementation = "eager"
        config.dtype = torch.float64
    return duplicate


@contextmanager
def in_float64():
    """While open, float32 means float64, and a new tensor is of float64."""
    before = torch.get_default_dtype()
    with float32_becomes(torch.float64):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def decoder_layers(model, callers):
    """The layers of the decoder, and for each the modules in it that call the attention interface.

    callers: these modules, as they were called. The decoder runs last: its list of layers is the outermost one that
    holds the last caller.
    """
    if not callers:
        raise ValueError("no module calls transformers' attention interface")
    names = {module: name for name, module in model.named_modules()}
    parts = names[callers[-1]].split(".")
    (where, *_) = (place for place, part in enumerate(parts) if part.isdigit())
    layers = list(model.get_submodule(".".join(parts[:where])))
    return layers, [[module for module in layer.modules() if module in set(callers)] for layer in layers]


def full_inputs(inputs, produced, kind):
    """What a model of this `model_type` is given for prompt + produced ids, with floating-point numbers in float64."""
    arguments = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    more = torch.tensor([list(produced)], dtype=torch.long)
    arguments["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    for name, filling in (PER_POSITION | PER_POSITION_OF.get(kind, {})).items():
        if name in inputs:
            arguments[name] = torch.cat([inputs[name], torch.full_like(more, filling)], dim=1)
    return arguments


def first_of(output):
    """A module's tensor, where it may return a tuple."""
    return output[0] if isinstance(output, tuple) else output


def cloned(value):
    """The same tuples, lists and dicts with copies of their tensors, so that nobody changes what is kept."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return type(value)(cloned(one) for one in value)
    return {name: cloned(one) for name, one in value.items()} if type(value) is dict else value


# Comparing with the oracle.


def largest_error(actual, expected, small=1e-6):
    """The largest error of a list as `measure` returns it, relative to the expected value, all kinds together.

    Values below `small` of their layer's largest count as that much: they are the difference of much larger numbers, also
    in the oracle. Infinite where one of the two has a layer that the other has not.
    """
    if [one is None for one in actual] != [one is None for one in expected]:
        return np.inf
    worst = 0.0
    for got, wanted in zip(actual, expected, strict=True):
        for name in ("full", "attn", "heads") if wanted is not None else ():
            ours, theirs = getattr(wanted, name), getattr(got, name)
            if ours is not None and theirs is not None:
                error = np.abs(theirs - ours) / np.maximum(ours, max(small * ours.max(), 1e-300))
                worst = max(worst, np.inf if np.isnan(error).any() else error.max())
    return float(worst)
