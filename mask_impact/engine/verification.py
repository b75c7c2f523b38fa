"""Verification: measure some (step, layer, token) triples again by really masking the token, in the model's own layer.

A copy of the layer in float32 runs on the layer inputs that the model had: once as it is, and once with the token hidden, by
a 4D mask whose column is -inf or by another value in its place. Of the engine only the record of these inputs is used, none
of its arithmetic.
"""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn

from mask_impact.engine.attention import arithmetic_dtype
from mask_impact.engine.masking import MaskingEngine
from mask_impact.engine.recording import LayerInputs, RawStep
from mask_impact.errors import UsageError
from mask_impact.models.architectures import DecoderLayer, GatedMlp, parameter


@dataclass(frozen=True)
class Verification:
    """triples: the (step, layer, position) re-measured; errors: of each the largest relative difference of an L2 distance over
    its variants; error: the largest of them, NaN where nothing could be measured.

    An error is relative to the re-measured distance, or to a thousandth of the largest distance of that variant in that layer
    and step where the re-measured one is smaller: below, the subtraction of two float32 outputs has no digits to compare. A
    distance of Full below its layer's noise floor counts as much as the floor, at most as a tenth of the largest.
    """

    triples: tuple[tuple[int, int, int], ...]
    errors: tuple[float, ...]
    error: float

    @classmethod
    def of(cls, found: Sequence[tuple[tuple[int, int, int], float]]) -> "Verification":
        """Of triples with their errors."""
        errors = tuple(error for _, error in found)
        largest = max(errors, key=lambda error: (math.isnan(error), error), default=math.nan)
        return cls(tuple(triple for triple, _ in found), errors, largest)


def choose_layers(n_layers: int, n_triples: int, seed: int = 0, without: Sequence[int] = ()) -> list[int]:
    """The layers of the triples, chosen before the run so that their inputs can be kept: each layer once before one has its
    turn again. without: those in which nothing can be measured."""
    layers = [layer for layer in range(n_layers) if layer not in without]
    random.Random(seed).shuffle(layers)
    return [layers[number % len(layers)] for number in range(n_triples if layers else 0)]


def error_of(step: RawStep, place: int, position: int, expected: torch.Tensor, groups: Sequence[str]) -> float:
    """See Verification; place: of the layer among those of the step; expected: [V], of one of its positions."""
    measured = step.l2[place]  # [P_t, V]
    row, expected = step.positions.tolist().index(position), expected.to(measured)
    largest = measured.amax(dim=0)
    smallest = 1e-3 * largest
    if "full" in groups and bool(torch.isfinite(step.noise_floor[place])):  # the first of the variants
        smallest[0] = torch.maximum(smallest[0], step.noise_floor[place].to(largest).minimum(largest[0] / 10))
    scale = torch.maximum(expected, smallest).clamp_min(torch.finfo(measured.dtype).tiny)
    return float(((measured[row] - expected).abs() / scale).max())


def verify(engine: MaskingEngine, layers: Sequence[int], seed: int = 0) -> Verification:
    """Re-measure one random (step, token) for each entry of `layers`, after the engine's block has ended.

    Compares every variant that the engine measured. Raises UsageError for a quantised model, whose layers have no float32
    copy.
    """
    chooser = random.Random(seed + 1)
    found = []
    for index in sorted(layers):
        step = chooser.randrange(len(engine.steps))
        positions = engine.steps[step].positions
        position = int(positions[chooser.randrange(len(positions))])
        expected = _remeasure(engine, engine.decoder.layers[index], step, position)
        error = error_of(engine.steps[step], index, position, expected, engine.groups)
        found.append(((step, index, position), error))
    return Verification.of(found)


def _remeasure(engine: MaskingEngine, layer: DecoderLayer, step: int, position: int) -> torch.Tensor:
    """L2 distances [V] of one triple, by two runs of a float32 copy of the layer."""
    inputs = engine.layer_inputs[layer.index]
    visible = inputs.visible[step]
    twin = _copy_layer(layer)
    before = _run(twin, layer, inputs, step, visible)
    if engine.ablation == "mask":
        masked = visible.clone()
        masked[position] = False
        after = _run(twin, layer, inputs, step, masked)
    else:
        with _other_value(twin, position, visible if engine.ablation == "mean-value" else None):
            after = _run(twin, layer, inputs, step, visible)
    heads, attention, mlp = (b - a for a, b in zip(before, after, strict=True))
    n_heads = engine.decoder.n_heads
    distances = {
        "full": torch.linalg.vector_norm(attention + mlp).reshape(1),
        "attn": torch.linalg.vector_norm(attention).reshape(1),
        "heads": torch.linalg.vector_norm(heads.view(n_heads, -1), dim=-1),
    }
    return torch.cat([distances[group] for group in engine.groups])


def _copy_layer(layer: DecoderLayer) -> nn.Module:
    if any(not weight.is_floating_point() for weight in layer.module.parameters()):
        raise UsageError("`verify` needs the layer's own weights, and this model is quantised; leave `verify` out")
    twin = remove_hook_from_module(copy.deepcopy(layer.module), recurse=True)
    for name, module in layer.module.named_modules():
        for part, weight in module.named_parameters(recurse=False):
            if weight.is_meta:  # on a disk until the module runs
                setattr(twin.get_submodule(name), part, nn.Parameter(parameter(module, part), requires_grad=False))
    twin = twin.to(arithmetic_dtype(next(layer.module.parameters()).dtype))
    twin.self_attn.config._attn_implementation = "eager"
    return twin


@contextmanager
def _other_value(twin: nn.Module, position: int, mean_over: torch.Tensor | None) -> Iterator[None]:
    """While the block is open the value at a position is 0, or the mean over some (bool [S_t]). What other queries than the
    last one make of it is not looked at."""
    attention = twin.self_attn
    # Phi-3 has one projection for queries, keys and values, in this order.
    fused = hasattr(attention, "qkv_proj")
    n_values = attention.config.num_key_value_heads * attention.head_dim

    def change(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        values = output[0, :, -n_values:]
        values[position] = 0 if mean_over is None else values[mean_over.to(values.device)].mean(dim=0)
        return output

    handle = (attention.qkv_proj if fused else attention.v_proj).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _run(
    twin: nn.Module, layer: DecoderLayer, inputs: LayerInputs, step: int, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Head outputs [H * D], attention update [hidden] and MLP update [hidden] of the last position at `step`.

    visible: bool [S_t]. Only the last query is masked: the keys and values of all positions do not depend on any mask.
    """
    weight = next(twin.parameters())

    def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts[inputs.begun[step] : step + 1]), dim=1).to(weight)

    hidden_states = joined(inputs.hidden_states)
    position_embeddings = tuple(joined([pair[part] for pair in inputs.position_embeddings]) for part in range(2))
    n = hidden_states.shape[1]
    allowed = torch.ones(n, n, dtype=torch.bool).tril()
    allowed[-1] = visible
    mask = torch.zeros(1, 1, n, n, dtype=weight.dtype).masked_fill(~allowed, torch.finfo(weight.dtype).min)

    names = {module: name for name, module in layer.module.named_modules()}
    attention_end = layer.after_attention.module if layer.after_attention else layer.o_proj
    mlp_own = layer.mlp.down if isinstance(layer.mlp, GatedMlp) else layer.mlp.block
    mlp_end = layer.after_mlp.module if layer.after_mlp else mlp_own
    seen: dict[str, torch.Tensor] = {}

    def keep_heads(module: nn.Module, args: tuple) -> tuple | None:
        states = args[0]
        if not visible.any():
            # Nothing to attend to: the output is zero by definition, where a softmax over nothing has none.
            states = torch.cat([states[:, :-1], torch.zeros_like(states[:, -1:])], dim=1)
        seen["heads"] = states[0, -1]
        return (states,)

    handles = [
        twin.get_submodule(names[layer.o_proj]).register_forward_pre_hook(keep_heads),
        twin.get_submodule(names[attention_end]).register_forward_hook(
            lambda module, args, output: seen.update(attention=output[0, -1])
        ),
        twin.get_submodule(names[mlp_end]).register_forward_hook(
            lambda module, args, output: seen.update(mlp=output[0, -1])
        ),
    ]
    try:
        with torch.no_grad():
            twin(hidden_states, attention_mask=mask.to(weight.device), position_embeddings=position_embeddings)
    finally:
        for handle in handles:
            handle.remove()
    return seen["heads"], seen["attention"], seen["mlp"]
