"""What the model's output would have been with some attention edges hidden: later layers, from the states of a step.

A variant hides keys from queries in some layers. Only what stands behind the first such query can change, so a variant is
the rows from there to the last position. It enters where its first masked layer begins, goes through the model's own layer
modules behind the other variants, whose rows may be more or fewer, and attends to the keys and values of earlier
positions with nothing hidden, which no variant copies. What is added between layers (features of images) is added to every
variant alike.

The first of the variants that go together hides nothing. States are float32, and of every other variant only the difference
from the first one goes through a linear map in the weights' dtype: in bfloat16 a state has three digits, and the difference
of two states, which is all that an effect is, would have none.

Dimensions: n variants, V of them at once, S positions, of which the last R are rows of a variant; P rows of all that go
together, those of what hides nothing first; H heads in K key/value groups.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.choices import ABLATIONS
from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.packing import ByDifferences, Packed, Run, unit_of
from mask_impact.engine.states import LayerState
from mask_impact.errors import DeviceError, is_out_of_memory
from mask_impact.models.architectures import OpaqueMlp, parameter

ROWS_OF_LOGITS = 64  # variants whose logits are formed at once
PROBABLE = 512  # tokens whose differences of logits are not rounded to the weights' dtype
MOST_ROWS = 2048  # at once: what hides nothing goes with them each time, and is to be a small part
MOST_TOGETHER = 512  # variants, however short
FEWEST_TOGETHER = 3  # variants, however long
ATTENTION_BYTES = 2**27  # of the logits and weights of all rows' attention at once


@dataclass(frozen=True)
class Masks:
    """m masks, each of which hides some keys from some queries.

    keys: bool [m, S]. queries: bool [m, S] (None: the last position alone). heads: bool [m, H], in which heads (None: in
    all), or [m, L, H], in which heads of which layer. ablation: `mask` (the logit is -inf), `zero-value` (the weight stays, the
    value is 0) or `mean-value` (the weight stays, the value is the mean over the keys that the query sees).
    """

    keys: torch.Tensor
    queries: torch.Tensor | None = None
    heads: torch.Tensor | None = None
    ablation: str = "mask"

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            raise ValueError(f"ablation {self.ablation!r} is not one of {', '.join(ABLATIONS)}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_positions(self) -> int:
        """S, the length of the sequence."""
        return self.keys.shape[1]

    @property
    def starts(self) -> torch.Tensor:
        """int64 [m], the first position that a mask can change; S where it changes none."""
        nowhere = self.n_positions
        if self.queries is None:
            return torch.where(self.keys.any(dim=1), nowhere - 1, nowhere)
        reached = self.queries & (self.keys.cumsum(dim=1) > 0)  # some hidden key is not behind the query
        return torch.where(reached.any(dim=1), reached.int().argmax(dim=1), nowhere)


@dataclass(frozen=True)
class Variants:
    """n variants of the model: mask `mask` (int64 [n], which of the masks) in the layers `first` to `last` (int64 [n])."""

    masks: Masks
    mask: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, which: torch.Tensor) -> "Variants":
        """Those of the variants; which: an index, bool [n] or int64 [k]."""
        return Variants(self.masks, self.mask[which], self.first[which], self.last[which])

    @property
    def starts(self) -> torch.Tensor:
        """int64 [n], the first position that a variant can change; S where it changes none."""
        return self.masks.starts[self.mask]

    def row_layers(self, n_layers: int) -> int:
        """How many rows go through how many layers, as a sum over the variants."""
        return int(((self.masks.n_positions - self.starts) * (n_layers - self.first)).sum())


def replay(
    engine: MaskingEngine, variants: Variants, start: int | None = None, scale: float = 1.0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(which variants int64 [k], how much their logits differ from those of the variant that hides nothing: [k, vocabulary])
    at the step that the engine measured last, in float32 (float64 for a float64 model). The arguments are those of `outputs`.
    """
    for which, states in outputs(engine, variants, start, scale):
        yield which, logit_differences(engine, states[:, 0], scale)


def outputs(
    engine: MaskingEngine,
    variants: Variants,
    start: int | None = None,
    scale: float = 1.0,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(which variants int64 [k], the last layer's outputs at `rows` of what hides nothing and of each of them: [1 + k, R,
    hidden]). rows: positions (None: the last one).

    Needs an engine that keeps states (of all positions, where queries or rows are given), whose block is still open, and is to
    be called when the model's own forward is done. Variants that reach much the same rows and layers go together. start: where
    the rows of all begin (None: where each variant's must). scale: of the differences that go through linear maps, which
    changes nothing but how they are rounded.
    """
    rows = (engine.n_positions - 1,) if rows is None else tuple(rows)
    starts = variants.starts.clamp_max(min(rows))
    if start is not None:
        starts = torch.full_like(starts, start)
    order = torch.argsort(starts * len(engine.states) + variants.first, stable=True)
    most = ATTENTION_BYTES // (8 * engine.decoder.n_heads * engine.n_positions)
    most, fewest, n_rows = max(ROWS_OF_LOGITS, min(MOST_TOGETHER, most)), FEWEST_TOGETHER, MOST_ROWS
    lengths = engine.n_positions - starts[order]
    done = 0
    while done < len(order):
        rows_so_far = lengths[done] + lengths[done : done + most].cumsum(0)
        n_together = max(fewest, int((rows_so_far <= n_rows).sum()))
        together = order[done : done + n_together]
        own = starts[together]
        try:
            found = _through_layers(engine, variants[together], torch.cat([own[:1], own]), scale, rows=rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(together) == 1:
                raise DeviceError(
                    "out of memory with a single variant of the model: shorten the prompt, take `queries` last, a smaller "
                    "model or `dtype` bfloat16, or a device with more memory"
                ) from error
            most, fewest = max(1, len(together) // 2), 1
            continue
        for first in range(1, len(found), ROWS_OF_LOGITS):
            part = torch.cat([found[:1], found[first : first + ROWS_OF_LOGITS]])
            yield together[first - 1 : first - 1 + len(part) - 1], part
        done += len(together)


def unmasked_logits(engine: MaskingEngine, start: int | None = None, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Logits [R, vocabulary] of what hides nothing, from the first layer on, in rows from `start` (None: the last row alone):
    the model's own, but for rounding. rows: positions (None: the last one)."""
    none = torch.zeros(0, dtype=torch.int64)
    nothing = Variants(Masks(torch.zeros(0, engine.n_positions, dtype=torch.bool)), none, none, none)
    rows = (engine.n_positions - 1,) if rows is None else tuple(rows)
    start = min(rows) if start is None else min(start, *rows)
    return logits_of(engine, _through_layers(engine, nothing, torch.tensor([start]), rows=rows)[0])


def _through_layers(
    engine: MaskingEngine, variants: Variants, starts: torch.Tensor, scale: float = 1.0, rows: Sequence[int] = (-1,)
) -> torch.Tensor:
    """Outputs of the last layer at `rows`, [1 + V, R, hidden]: of what hides nothing, and of each variant. starts: int64
    [1 + V], the position that the rows of each begin at; what hides nothing begins first."""
    states = engine.states
    order = torch.argsort(variants.first, stable=True)
    ordered = variants[order]
    packed = Packed.of(torch.cat([starts[:1], starts[1:][order]]), engine.n_positions)
    begin = int(ordered.first[0]) if len(ordered) else 0
    running = states[begin].entered[int(starts[0]) - engine.n_positions :]
    running = running.to(arithmetic_dtype(running.dtype)).unsqueeze(0)
    n_in = 1
    for index in range(begin, len(states)):
        layer, state = engine.decoder.layers[index], states[index]
        running = running.to(state.entered.device)
        n_before, n_in = n_in, 1 + int((ordered.first <= index).sum())
        running = torch.cat([running, running[:, packed.own(n_before, n_in).to(running.device)]], dim=1)
        runs = [(run, _Edges(ordered, index, run)) for run in packed.runs(n_in)]

        def attention(module, query, key, value, state=state, runs=runs):
            return _attend_packed(query, key, value, state, runs)

        with ExitStack() as stack:
            stack.enter_context(engine.substituted(attention))
            stack.enter_context(ByDifferences(packed.own(0, n_in), scale))
            if isinstance(layer.mlp, OpaqueMlp):
                _in_own_dtype(layer.mlp.block, state.entered.dtype, stack)
            output = layer.module(running, **_arguments(state, packed.positions(n_in)))
        running = output[0] if isinstance(output, tuple) else output
        if state.added is not None:
            running = running + state.added[packed.positions(n_in).to(state.added.device)].to(running)
    result = running.new_empty(len(starts), len(rows), running.shape[-1])
    places = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + order]).to(running.device)
    result[places] = running[0, packed.places([row % engine.n_positions for row in rows]).to(running.device)]
    return result


def _arguments(state: LayerState, positions: torch.Tensor) -> dict:
    """What a layer is called with for rows at the positions, counted from the end."""
    arguments = state.arguments | {"attention_mask": None, "past_key_values": None}
    arguments["position_embeddings"] = tuple(
        part[:, positions.to(part.device)] for part in arguments["position_embeddings"]
    )
    if arguments.get("position_ids") is not None:
        arguments["position_ids"] = arguments["position_ids"][..., positions.to(arguments["position_ids"].device)]
    return arguments


def _in_own_dtype(block: nn.Module, dtype: torch.dtype, stack: ExitStack) -> None:
    """An MLP that is not a chain of linear maps (mixture of experts) takes whole states in the model's dtype."""

    def before(module, args):
        return (args[0].to(dtype), *args[1:])

    def after(module, args, output):
        wide = arithmetic_dtype(dtype)
        return (output[0].to(wide), *output[1:]) if isinstance(output, tuple) else output.to(wide)

    stack.callback(block.register_forward_pre_hook(before, prepend=True).remove)
    stack.callback(block.register_forward_hook(after).remove)


class _Edges:
    """What the V sequences of a run hide in one layer; the first of all sequences hides nothing, the others are the variants."""

    def __init__(self, variants: Variants, layer: int, run: Run) -> None:
        masks = variants.masks
        self.ablation = masks.ablation
        some = variants[torch.arange(max(0, run.which.start - 1), run.which.stop - 1)]
        open_here = (some.last >= layer).unsqueeze(1)

        def of_run(flags: torch.Tensor | None) -> torch.Tensor | None:
            if flags is None:
                return None
            hidden = flags[some.mask] & open_here
            return hidden if run.which.start else torch.cat([flags.new_zeros(1, flags.shape[1]), hidden])

        heads = masks.heads if masks.heads is None or masks.heads.dim() == 2 else masks.heads[:, layer]
        self.keys = of_run(masks.keys)  # [V, S]
        self.heads = of_run(heads)  # [V, H] or None
        self.queries = of_run(masks.queries)  # [V, R] or None
        if self.queries is not None:
            self.queries = self.queries[:, masks.n_positions - run.n_rows :]

    def hidden(self, rows: slice, n_keys: int, n_rows: int, device: torch.device) -> torch.Tensor:
        """bool [V, r, N], the edges from some of the rows to the last N positions."""
        keys = self.keys[:, self.keys.shape[1] - n_keys :].to(device).unsqueeze(1)
        if self.queries is not None:
            return keys & self.queries[:, rows].to(device).unsqueeze(2)
        is_last = torch.arange(n_rows, device=device)[rows] == n_rows - 1
        return keys & is_last.view(1, -1, 1)


def _attend_packed(query, key, value, state: LayerState, runs: Sequence[tuple[Run, _Edges]]) -> torch.Tensor:
    """[1, P, H, D] of all rows; query: [1, H, P, D]; key, value: [1, K, P, D].

    Where a variant begins later than what hides nothing, it sees before it the keys and values of that, as it ran here: the
    model's own are rounded to its dtype, and the difference of both would count as an effect.
    """
    n_own = runs[0][0].n_rows
    wide = torch.promote_types(query.dtype, torch.float32)
    own = replace(
        state,
        keys=torch.cat([state.keys[:, :-n_own].to(wide), key[0, :, :n_own].to(wide)], dim=1),
        values=torch.cat([state.values[:, :-n_own].to(wide), value[0, :, :n_own].to(wide)], dim=1),
    )
    parts = [_attend(run.of(query), run.of(key), run.of(value), own, edges).flatten(0, 1) for run, edges in runs]
    return torch.cat(parts).unsqueeze(0)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, state: LayerState, edges: _Edges
) -> torch.Tensor:
    """[V, R, H, D] for V variants of R rows, over the keys of the positions before the rows and the variant's own.

    query: [V, H, R, D]; key, value: [V, K, R, D].
    """
    n_variants, n_heads, n_rows, _ = query.shape
    n_keys = state.keys.shape[1]
    at_once = max(1, ATTENTION_BYTES // (8 * n_variants * n_heads * n_keys))
    visible = state.seen_by(n_rows)
    wide = torch.promote_types(query.dtype, torch.float32)
    key, value = key.to(wide), value.to(wide)
    earlier = tuple(part[:, : n_keys - n_rows].to(wide) for part in (state.keys, state.values))
    parts = [
        _attend_rows(
            query[:, :, first : first + at_once].to(wide), key, value, earlier, visible, first, edges, state.scaling
        )
        for first in range(0, n_rows, at_once)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_rows(query, key, value, earlier, visible, first, edges, scaling) -> torch.Tensor:
    """[V, r, H, D] for the rows from `first` on; earlier: keys and values [K, E, D] of the positions before all rows;
    visible: bool [R, N] or None for all."""
    n_variants, n_heads, r, head_dim = query.shape
    n_groups, n_rows = key.shape[1], key.shape[2]
    n_earlier = earlier[0].shape[1]
    rows = slice(first, first + r)
    shape = (n_variants, n_groups, n_heads // n_groups, r)

    def over_earlier(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """[V, K, H/K, r, a] x [K, a, b]: one product for all variants."""
        flat = left.transpose(0, 1).flatten(1, 3)
        return (flat @ right).view(n_groups, n_variants, *shape[2:], right.shape[-1]).transpose(0, 1)

    def over_own(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """[V, K, H/K, r, a] x [V, K, a, b]"""
        return (left.flatten(2, 3) @ right).view(*shape, right.shape[-1])

    grouped = query.reshape(*shape, head_dim)
    logits = torch.cat(
        [over_earlier(grouped, earlier[0].transpose(1, 2)), over_own(grouped, key.transpose(2, 3))], dim=-1
    )
    logits *= scaling
    if visible is not None:
        logits.masked_fill_(~visible[rows], float("-inf"))
    hidden = edges.hidden(rows, n_earlier + n_rows, n_rows, query.device)[:, None, None]  # [V, 1, 1, r, N]
    if edges.heads is not None:
        hidden = hidden & edges.heads.to(query.device).view(*shape[:3], 1, 1)
    if edges.ablation == "mask":
        logits.masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(logits, dim=-1).nan_to_num_(0.0)  # where nothing is left to see, nothing is attended to
    kept = weights if edges.ablation == "mask" else weights.masked_fill(hidden, 0.0)
    output = over_earlier(kept[..., :n_earlier], earlier[1]) + over_own(kept[..., n_earlier:], value)
    if edges.ablation == "mean-value":
        seen = (
            torch.ones(r, n_earlier + n_rows, dtype=query.dtype, device=query.device)
            if visible is None
            else visible[rows].to(query.dtype)
        )
        total = (seen[:, :n_earlier] @ earlier[1]) + (seen[:, n_earlier:] @ value)  # [V, K, r, D]
        mean = total / seen.sum(dim=-1, keepdim=True)
        output = output + (weights - kept).sum(-1, keepdim=True) * mean.unsqueeze(2)
    return output.reshape(n_variants, n_heads, r, head_dim).transpose(1, 2)


def logits_of(engine: MaskingEngine, outputs: torch.Tensor) -> torch.Tensor:
    """Logits [k, vocabulary] of last layers' outputs [k, hidden], by the model's own norm and head."""
    model = engine.model
    with ByDifferences(torch.zeros(len(outputs), dtype=torch.int64)):
        logits = model.get_output_embeddings()(engine.decoder.final_norm(outputs).unsqueeze(1))[:, 0]
    return capped(model, logits)


def capped(model: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """The logits as the model gives them, where it caps them."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def logit_differences(engine: MaskingEngine, outputs: torch.Tensor, scale: float) -> torch.Tensor:
    """[k, vocabulary], how far the logits of the outputs behind the first one are from its.

    What leaves a bfloat16 head has three digits, and these differences are what effects are: for the tokens that are
    probable, which effects hang on, they are formed in the rows' own dtype.
    """
    head = engine.model.get_output_embeddings()
    weight = parameter(head, "weight")
    plain = type(head) is nn.Linear and head.bias is None and weight.is_floating_point()
    if not plain or getattr(engine.model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        logits = logits_of(engine, outputs)
        return logits[1:] - logits[:1]
    states = engine.decoder.final_norm(outputs)
    differences = states[1:] - states[:1]
    unit = unit_of(differences) * scale
    mapped = head(torch.cat([states[:1], differences / unit]).to(weight.dtype))
    found = mapped[1:].to(states.dtype).mul_(unit.to(mapped.device))
    if weight.dtype != states.dtype:
        probable = mapped[0].topk(min(PROBABLE, mapped.shape[1])).indices
        rows = weight[probable.to(weight.device)].to(states)
        found[:, probable] = (differences @ rows.t()).to(found.device)
    return found
