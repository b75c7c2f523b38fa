"""The slow, obvious way to measure what hiding attention edges does to the produced token.

Every answer is one full forward of a copy of the model over the prompt and the produced tokens, without a KV cache.
The layers whose edges are cut get a mask of their own; positions, image features, DeepStack, windows and all arithmetic
are the model's. Nothing is shared between forwards, nothing is derived, and no code of the package is used.

An edge is a query position that attends to a key position in one layer and one attention head. It is cut in one of
three ways (`ablation`):

- "mask": the edge's logit is -inf, so that the other keys share its weight. A query with no key left attends to
  nothing: the head's output is 0 there, before `o_proj`.
- "zero-value": the edge keeps its weight, but the value it brings is 0.
- "mean-value": the edge keeps its weight, but the value it brings is the mean of the values of all keys that the query
  sees in that layer with nothing cut (the cut ones among them).

What this module knows about architectures, beyond `oracle`, is where an attention's values come from. The arithmetic is
float64 unless told otherwise; a copy costs as much memory as the model does in that dtype.
"""

import copy
import dataclasses

import numpy as np
import torch
from oracle import decoder_layers, float32_becomes

ABLATIONS = ("mask", "zero-value", "mean-value")


@dataclasses.dataclass(frozen=True)
class Edges:
    """The edges that are cut: all of queries x keys, in each of the heads of each of the layers."""

    layers: tuple  # indices of decoder layers
    queries: tuple  # absolute positions
    keys: tuple  # absolute positions
    heads: tuple | None = None  # indices of attention (query) heads; None for all
    ablation: str = "mask"  # one of ABLATIONS


NO_EDGES = Edges((), (), ())


def masked_logits(model, inputs, token_ids, *, layers, queries, keys, heads=None, ablation="mask", dtype=torch.float64):
    """Logits for the token after prompt + token_ids when edges are cut: float64 [vocabulary].

    model: a Hugging Face causal or vision-language model on CPU, in evaluation mode; it is copied, never changed.
    inputs: what `generate` takes, batch of one, no padding.
    token_ids: the produced tokens that the model sees after the prompt, possibly none.
    layers, queries, keys, heads: sequences of indices, see `Edges`. If one is empty, nothing is cut.
    dtype: dtype of the copy's parameters and arithmetic. What comes out is float64 whatever it is.
    """
    edges = Edges(tuple(layers), tuple(queries), tuple(keys), None if heads is None else tuple(heads), ablation)
    return all_logits(computing_copy(model, dtype), inputs, token_ids, edges)[-1]


def effects(
    model,
    inputs,
    token_ids,
    step,
    *,
    window=1,
    queries="last",
    positions=None,
    heads=None,
    ablation="mask",
    dtype=torch.float64,
):
    """What cutting each position, in a window of layers around each layer, does to the token produced at `step`.

    token_ids: what greedy generation of the untouched model produced, at least step + 1 tokens.
    window: layers in which a position is cut together, see `window_layers`.
    queries: "last" cuts the position from the query of the last position alone; "all" from every query, also from the
        position's own, which then sees only what came before it (nothing, at position 0).
    positions: positions that are cut, one at a time; None for all S = n_prompt + step of them.
    The rest as in `masked_logits`.

    Returns arrays [layer, position], a row for each centre layer and a column for each of `positions`:

    - logit_change, logprob_change: of token_ids[step], cut minus uncut; logprob_change in nats.
    - kl_divergence: KL(uncut || cut) over the vocabulary, in nats.
    - top1: the most likely token id when cut; top1_changed: whether it is another one than uncut.
    """
    seen, produced = list(token_ids[:step]), token_ids[step]
    length = inputs["input_ids"].shape[1] + step
    if queries not in ("last", "all"):
        raise ValueError(f"queries must be 'last' or 'all', not {queries!r}")
    cut_queries = (length - 1,) if queries == "last" else tuple(range(length))
    positions = range(length) if positions is None else positions
    heads = None if heads is None else tuple(heads)
    duplicate = computing_copy(model, dtype)
    n_layers = len(decoder_layers(duplicate))
    uncut = all_logits(duplicate, inputs, seen, NO_EDGES)[-1]

    rows = []
    for centre in range(n_layers):
        layers = window_layers(centre, window, n_layers)
        row = []
        for position in positions:
            edges = Edges(layers, cut_queries, (position,), heads, ablation)
            row.append(effect(uncut, all_logits(duplicate, inputs, seen, edges)[-1], produced))
        rows.append(row)
    names = ("logit_change", "logprob_change", "kl_divergence", "top1", "top1_changed")
    return {name: np.array([[cell[name] for cell in row] for row in rows]) for name in names}


def effect(uncut, cut, token):
    """What `effects` reports, for one pair of logits [vocabulary] and the id of the produced token."""
    log_p, log_q = torch.log_softmax(uncut, dim=-1), torch.log_softmax(cut, dim=-1)
    return {
        "logit_change": float(cut[token] - uncut[token]),
        "logprob_change": float(log_q[token] - log_p[token]),
        "kl_divergence": float((log_p.exp() * (log_p - log_q)).sum()),
        "top1": int(cut.argmax()),
        "top1_changed": bool(cut.argmax() != uncut.argmax()),
    }


def window_layers(centre, window, n_layers):
    """The layers of a window around a layer; an even window reaches one layer further up; cut off at both ends."""
    first = max(0, centre - (window - 1) // 2)
    last = min(n_layers - 1, centre + window // 2)
    return tuple(range(first, last + 1))


@torch.no_grad()
def all_logits(duplicate, inputs, token_ids, edges):
    """Logits at every position of prompt + token_ids with `edges` cut: float64 [S, vocabulary].

    duplicate: a `computing_copy`. No hook is left on it, whatever happens.
    """
    arguments, seen_ids = full_inputs(duplicate, inputs, token_ids)
    check(duplicate, edges, seen_ids.shape[1])
    layers = decoder_layers(duplicate)
    handles = [duplicate.get_input_embeddings().register_forward_pre_hook(lambda module, args: (seen_ids,))]
    try:
        for index in sorted(set(edges.layers)):
            cut = cut_by_mask if edges.ablation == "mask" else cut_by_value
            handles += cut(layers[index], edges)
        dtype = next(duplicate.parameters()).dtype
        with float32_becomes(dtype if dtype == torch.float64 else torch.float32):
            logits = duplicate(**arguments, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits[0].double()


def computing_copy(model, dtype=torch.float64):
    """A copy of the model in `dtype`, with plain (eager) attention, whose masks can be anything, and plain experts."""
    duplicate = copy.deepcopy(model).eval()
    for parameter in duplicate.parameters():
        parameter.data = parameter.data.to(dtype)
    for buffer in duplicate.buffers():
        if buffer.is_floating_point():  # rotary frequencies, float32 in every model, never become less
            buffer.data = buffer.data.to(torch.promote_types(buffer.dtype, dtype))
    for module in duplicate.modules():
        config = getattr(module, "config", None)
        if config is not None:  # copied along with the model: the model's own config stays as it is
            config._attn_implementation = "eager"
            config._experts_implementation = "eager"
    return duplicate


def full_inputs(model, inputs, token_ids):
    """Arguments of a forward over prompt + token_ids, and the ids [1, S] that the embedding is to look up.

    Both hold the same ids, with one exception. A model may produce the id that stands for an image feature, and means
    text by it; given among `input_ids` it would ask for one more feature than the images have. There the arguments hold
    another id, which no one looks at.
    """
    known = {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}
    known |= {"pixel_values_videos", "video_grid_thw"}
    if unknown := set(inputs) - known:
        raise ValueError(f"the oracle does not know what to do with {', '.join(sorted(unknown))}")
    if inputs["input_ids"].shape[0] != 1:
        raise ValueError("the oracle measures a batch of one")
    if "attention_mask" in inputs and not inputs["attention_mask"].all():
        raise ValueError("the oracle does not know padding")
    produced = torch.tensor([list(token_ids)], dtype=torch.long)
    seen_ids = torch.cat([inputs["input_ids"], produced], dim=1)
    as_text = produced.masked_fill(produced == getattr(model.config, "image_token_id", -1), 0)
    arguments = dict(inputs)
    arguments["input_ids"] = torch.cat([inputs["input_ids"], as_text], dim=1)
    arguments["attention_mask"] = torch.ones_like(seen_ids)
    if "mm_token_type_ids" in inputs:
        arguments["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(produced)], dim=1)
    return arguments, seen_ids


def check(model, edges, length):
    """Refuse indices that are not there: a negative one would count from the end unnoticed."""
    layers = decoder_layers(model)
    n_heads = layers[0].self_attn.config.num_attention_heads
    for name, indices, limit in (
        ("layer", edges.layers, len(layers)),
        ("query", edges.queries, length),
        ("key", edges.keys, length),
        ("head", edges.heads or (), n_heads),
    ):
        for index in indices:
            if not 0 <= index < limit:
                raise ValueError(f"{name} {index} is not there: it must be 0 .. {limit - 1}")
    if edges.ablation not in ABLATIONS:
        raise ValueError(f"ablation must be one of {', '.join(ABLATIONS)}, not {edges.ablation!r}")


# Hooks on one decoder layer.


def cut_by_mask(layer, edges):
    """Hand the layer its own mask with -inf at the edges, and zero the heads of queries with no key left."""
    kept = {}

    def change_mask(module, args, kwargs):
        visible = visible_in(kwargs["attention_mask"]) & ~cut_edges(layer, edges, kwargs["attention_mask"])
        mask = torch.zeros(visible.shape, dtype=kwargs["attention_mask"].dtype).masked_fill(~visible, -torch.inf)
        kept["blind"] = ~visible.any(dim=-1)  # [1, heads, S]
        return args, kwargs | {"attention_mask": mask}

    def silence_blind_queries(module, args):
        attended = args[0].unflatten(-1, (kept["blind"].shape[1], -1))  # [1, S, heads, head_dim]
        blind = kept["blind"].transpose(1, 2)[..., None]
        # What stands there is NaN, from a softmax over nothing.
        return (attended.masked_fill(blind, 0).flatten(-2), *args[1:])

    return [
        layer.register_forward_pre_hook(change_mask, with_kwargs=True),
        layer.self_attn.o_proj.register_forward_pre_hook(silence_blind_queries),
    ]


def cut_by_value(layer, edges):
    """Compute the layer's attention output again, from its own weights, with other values on the edges."""
    attention = layer.self_attn
    config = attention.config
    # Phi-3 has one projection for queries, keys and values, in this order.
    projection = attention.qkv_proj if hasattr(attention, "qkv_proj") else attention.v_proj
    kept = {}

    def keep_values(module, args, output):
        n_values = config.num_key_value_heads * attention.head_dim
        values = output[..., -n_values:].unflatten(-1, (config.num_key_value_heads, -1)).transpose(1, 2)
        group = config.num_attention_heads // config.num_key_value_heads
        kept["values"] = values.repeat_interleave(group, dim=1)  # [1, heads, S, head_dim]: head h uses group h // group

    def attend_again(module, args, kwargs, output):
        _, weights = output  # [1, heads, S, S]
        values = kept["values"]
        cut = cut_edges(layer, edges, kwargs["attention_mask"])
        attended = weights.masked_fill(cut, 0) @ values
        if edges.ablation == "mean-value":
            visible = visible_in(kwargs["attention_mask"]).to(values.dtype)  # [1, 1, S, S]
            mean = (visible @ values) / visible.sum(dim=-1, keepdim=True)  # [1, heads, S, head_dim]
            attended = attended + weights.masked_fill(~cut, 0).sum(dim=-1, keepdim=True) * mean
        return attention.o_proj(attended.transpose(1, 2).flatten(-2)), weights

    return [
        projection.register_forward_hook(keep_values),
        attention.register_forward_hook(attend_again, with_kwargs=True),
    ]


def visible_in(mask):
    """Which edges an additive mask [1, 1, S, S] (query, key) leaves: bool [1, 1, S, S].

    An eager model's mask is 0 where a query sees a key and the dtype's lowest number elsewhere.
    """
    if not ((mask == 0) | (mask == torch.finfo(mask.dtype).min)).all():
        raise ValueError("the layer's mask is not a mask of visible keys")
    return mask == 0


def cut_edges(layer, edges, mask):
    """The edges to cut in a layer whose own mask is [1, 1, S, S]: bool [1, heads, S, S]."""
    n_heads, length = layer.self_attn.config.num_attention_heads, mask.shape[-1]
    cut = torch.zeros(1, n_heads, length, length, dtype=torch.bool)
    for head in range(n_heads) if edges.heads is None else edges.heads:
        for query in edges.queries:
            for key in edges.keys:
                cut[0, head, query, key] = True
    return cut
