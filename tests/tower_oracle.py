"""The plain way to hide patches in a vision tower: an attention of its own with a 4D mask, and the whole model run again.

One key at a time, no closed form, no product of heads. The attention is formed in the dtype of its inputs: in float64 that is
exact, where the library's own takes its softmax in float32. No code of the package is used.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface

NAME = "tower_oracle"


@contextmanager
def masked(model, hidden=None, layers=(), image=0, *more):
    """While the block is open, the tower's attention is plain, and in some layers adds a mask for an image, and for `more` of
    them: hidden, bool [P, P] (query, key). A pair of a video's frames is an image. Yields what is kept of each layer's calls:
    {layer: [q, k, v, output] of each image}."""
    visual = model.model.visual
    number_of = {id(block.attn): number for number, block in enumerate(visual.blocks)}
    kept = {}

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        layer = number_of[id(module)]
        calls = kept.setdefault(layer, [])
        logits = query @ key.transpose(2, 3) * scaling
        if hidden is not None and layer in layers and len(calls) in (image, *more):
            logits = logits + torch.zeros(hidden.shape, dtype=logits.dtype).masked_fill(hidden, -torch.inf)[None, None]
        output = torch.softmax(logits, dim=-1) @ value
        calls.append((query[0], key[0], value[0], output[0]))
        return output.transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    configs = [visual.config, *(block.attn.config for block in visual.blocks)]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield kept
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation = own
        AttentionInterface._global_mapping.pop(NAME, None)


def hiding(keys):
    """bool [P, P]: some patches, bool [P], hidden from all others."""
    hidden = keys[None, :] & ~keys[:, None]
    assert not hidden.all(dim=-1).any()
    return hidden


@torch.no_grad()
def local_map(model, values, grids, image, units):
    """float64 [L, M], of each layer and unit (bool [M, P] patches of the image): the norm of the change of the attention of all
    other patches where the unit is hidden in this layer, relative to the attention's norm. Each layer gets what it got."""
    calls = []
    blocks = model.model.visual.blocks
    handles = [
        block.attn.register_forward_pre_hook(lambda module, *given: calls.append(given), with_kwargs=True)
        for block in blocks
    ]
    with masked(model):
        model.model.visual(values, grid_thw=grids)
    for handle in handles:
        handle.remove()
    each = torch.repeat_interleave(grids[:, 1:].prod(-1), grids[:, 0])  # a video's pairs of frames see themselves alone
    edges = [0, *each.cumsum(0).tolist()]
    rows = slice(edges[image], edges[image + 1])

    def attended(layer, hidden=None):
        args, kwargs = calls[layer]
        with masked(model, hidden, (layer,), image):
            return blocks[layer].attn(*args, **kwargs)[rows].double()

    found = torch.zeros(len(blocks), len(units), dtype=torch.float64)
    for layer in range(len(blocks)):
        before = attended(layer)
        for number, keys in enumerate(units):
            found[layer, number] = (attended(layer, hiding(keys)) - before)[~keys].norm() / before.norm()
    return found


@torch.no_grad()
def first_order_map(model, values, grids, units, step=1e-6):
    """float64 [L, M] of one image: the norm of the change of the layer's whole update to first order, relative to the update's
    norm: the attention's change, made `step` times as large, through the rest of the layer."""
    inputs = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        for block in model.model.visual.blocks
    ]
    with masked(model) as kept:
        model.model.visual(values, grid_thw=grids)
    for handle in handles:
        handle.remove()
    found = torch.zeros(len(inputs), len(units), dtype=torch.float64)
    for layer, (block, entered) in enumerate(zip(model.model.visual.blocks, inputs, strict=True)):
        ((query, key, value, output),) = kept[layer]

        def update(heads, block=block, entered=entered):
            middle = entered + block.attn.proj(heads.transpose(0, 1).flatten(1))
            return middle + block.mlp(block.norm2(middle)) - entered

        logits = query @ key.transpose(1, 2) * block.attn.scaling
        for number, keys in enumerate(units):
            others = torch.softmax(logits.masked_fill(hiding(keys), -torch.inf), dim=-1) @ value
            change = (update(output + step * (others - output)) - update(output))[~keys] / step
            found[layer, number] = change.norm() / update(output).norm()
    return found
