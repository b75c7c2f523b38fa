"""The plain way to measure what another picture, or other features of it, do to an answer: the model run again as a whole.

Each answer is one forward without a cache over the prompt and what was produced. A changed picture goes through the model's own
processor; changed features get in by a forward hook on the vision tower, one layer's addition by a hook behind that layer. No
code of the package is used.
"""

from contextlib import ExitStack

import numpy as np
import torch
from PIL import Image


def processed(loaded, text, pictures):
    """Inputs of the model by its own processor. text: as templated; pictures: uint8 arrays [H, W, 3]."""
    images = [Image.fromarray(picture) for picture in pictures]
    return dict(loaded.processor(text=[text], images=images, return_tensors="pt"))


@torch.no_grad()
def logits(model, inputs, produced, hooks=(), before=()):
    """[T, vocabulary] float64, of each produced token. hooks: (module, forward hook) pairs that are on meanwhile; before: the
    same of hooks before a module."""
    behind = torch.tensor([list(produced[:-1])], dtype=torch.long)
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], behind], dim=1)
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(behind)], dim=1)
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        return model(**longer, use_cache=False).logits[0, -len(produced) :].double()


def effect(before, after, produced, steps):
    """(change of the log-probability, KL divergence), both added over the steps, and the most probable token at the first step
    where that is another one, None where there is none."""
    log_p, log_q = (torch.log_softmax(one, dim=-1) for one in (before, after))
    change = sum(float(log_q[step, produced[step]] - log_p[step, produced[step]]) for step in steps)
    kl = sum(float((log_p[step].exp() * (log_p[step] - log_q[step])).sum()) for step in steps)
    others = [int(log_q[step].argmax()) for step in steps if log_q[step].argmax() != log_p[step].argmax()]
    return change, kl, others[0] if others else None


def tower_parts(model, inputs):
    """What the tower gives for one picture: main features, then each level, [M, hidden]."""
    found = {}

    def keep(module, args, output):
        found["parts"] = [output.pooler_output.clone(), *(level.clone() for level in output.deepstack_features)]

    logits(model, inputs, [0], [(model.model.visual, keep)])
    return found["parts"]


def giving(model, parts):
    """The hook by which the tower gives these features, whatever it sees."""

    def replace(module, args, output):
        output.pooler_output, output.deepstack_features = parts[0], list(parts[1:])
        return output

    return model.model.visual, replace


def differing(model, own, others, positions, tokens, taken):
    """Hooks before decoder layers, by which the parts that are `taken` (by number: 0 the main features, k + 1 level k) are the
    others' at some positions: what stands before layer k + 1 has level k in it. tokens: the same positions among the image's."""

    def shifted(difference):
        def hook(module, args):
            hidden = args[0].clone()
            hidden[0, positions] += difference
            return (hidden, *args[1:])

        return hook

    layers = model.model.language_model.layers
    return [(layers[part], shifted(others[part][tokens] - own[part][tokens])) for part in taken]


def filled(picture, box, fill):
    """The picture with the pixels of a box (left, top, right, bottom) replaced; by loops where that is simplest."""
    left, top, right, bottom = box
    changed = picture.copy()
    if fill == "blur":
        from PIL import ImageFilter

        radius = min(right - left, bottom - top) / 2
        blurred = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))
        changed[top:bottom, left:right] = blurred[top:bottom, left:right]
        return changed
    if fill == "grey":
        colour = np.full(3, 128)
    elif fill == "mean":
        colour = picture.reshape(-1, 3).mean(axis=0)
    else:
        high, wide = picture.shape[:2]
        ring = [
            picture[y, x]
            for y in range(max(0, top - 8), min(high, bottom + 8))
            for x in range(max(0, left - 8), min(wide, right + 8))
            if not (left <= x < right and top <= y < bottom)
        ]
        ring = ring or list(picture.reshape(-1, 3))  # around a whole frame there is nothing
        colour = np.sort(np.array(ring), axis=0)[(len(ring) - 1) // 2]
    changed[top:bottom, left:right] = np.round(colour).astype(np.uint8)
    return changed
