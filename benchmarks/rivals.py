"""Other ways to say which cell of a picture an answer used, each a small reference written from its paper.

Each function takes (loaded, case) of `bench_truth` and gives a score for each cell, [V]; the larger, the more it speaks for the
model's own next token. Sequences are short here, so nothing is saved: no chunks, no caches. L layers, H heads, N positions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import bench_truth as truth
import numpy as np
import torch
from PIL import ImageFilter
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mask_impact.engine.backward import estimate
from mask_impact.engine.kept import keep
from mask_impact.engine.riding.layers import Layers, decoder_of
from mask_impact.engine.taps import tapped
from mask_impact.engine.targets import Target
from mask_impact.models.loading import LoadedModel

POINTS = 32  # of integrated gradients
Scores = np.ndarray


# --- attention alone ----------------------------------------------------------------------------------------------------------


def attention(loaded: LoadedModel, case: truth.Case) -> Scores:
    """The weight at the last position, mean over layers and heads."""
    with truth.eager(loaded):
        return truth.head_weights(loaded, case)[..., -1, case.vision].mean(axis=(0, 1))


def rollout(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Abnar and Zuidema 2020: the product over layers of half the mean attention and half the residual."""
    with truth.eager(loaded):
        weights = truth.head_weights(loaded, case).mean(axis=0)  # [L, N, N]
    rolled = np.eye(weights.shape[1])
    for layer in weights:
        rolled = (0.5 * layer + 0.5 * np.eye(len(layer))) @ rolled
    return rolled[-1, case.vision]


# --- gradients ----------------------------------------------------------------------------------------------------------------


class _Lrp(TorchFunctionMode):
    """Norms' scale and act(x)/x are constants in the backward pass (AttnLRP's identity and normalisation rules)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.rsqrt, torch.Tensor.rsqrt):
            return function(*args, **kwargs).detach()
        if function in (functional.silu, functional.gelu):
            return args[0] * (function(args[0].detach(), **kwargs) / args[0].detach()).nan_to_num(0.5)
        return function(*args, **kwargs)


def _half(x: torch.Tensor) -> torch.Tensor:
    """x, with half of its gradient: what each factor of a product gets by the uniform rule."""
    return 0.5 * x + (0.5 * x).detach()


@contextmanager
def _graph(loaded: LoadedModel) -> Iterator[Layers]:
    """While the block is open gradients are formed of states, not of weights."""
    wanted = [(one, one.requires_grad) for one in loaded.model.parameters()]
    try:
        for one, _ in wanted:
            one.requires_grad_(False)
        with torch.enable_grad():
            yield decoder_of(loaded.model)
    finally:
        for one, before in wanted:
            one.requires_grad_(before)


Leaves = list[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def _token(loaded: LoadedModel, case: truth.Case) -> int:
    """The model's own next token."""
    return int(loaded.model(**truth.inputs_of(loaded, case), use_cache=False, logits_to_keep=1).logits[0, -1].argmax())


def _leaves(
    loaded: LoadedModel, case: truth.Case, token: int | None = None, share: float = 1.0, lrp: bool = False
) -> Leaves:
    """(what enters, gradient of the token's logit there) [N, hidden] each: of the embeddings, and of what DeepStack adds behind
    each layer. token: None for the most probable one; share: of both at the cells that goes in."""
    entered: dict[int, torch.Tensor] = {}
    left: dict[int, torch.Tensor] = {}
    added: dict[int, torch.Tensor] = {}
    cells = case.vision

    def before(index: int) -> Callable:
        def hook(module, args, kwargs):
            states = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                states = states.detach().clone()
                added[0] = states.clone()
                states[:, cells] *= share
                states.requires_grad_(True)
            elif (states - left[index - 1]).abs().max() > 0:
                added[index] = (states - left[index - 1]).detach()
                states = left[index - 1] + share * added[index]
            if not states.is_leaf:
                states.retain_grad()
            entered[index] = states
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        return hook

    def after(index: int) -> Callable:
        def hook(module, args, output):
            left[index] = output[0] if isinstance(output, tuple) else output

        return hook

    with _graph(loaded) as decoder, ExitStack() as stack:
        for layer in decoder.layers:
            stack.callback(layer.module.register_forward_pre_hook(before(layer.index), with_kwargs=True).remove)
            stack.callback(layer.module.register_forward_hook(after(layer.index)).remove)
            if lrp:
                half = layer.module.mlp.down_proj.register_forward_pre_hook(lambda module, args: (_half(args[0]),))
                stack.callback(half.remove)
        if lrp:
            stack.enter_context(_Lrp())
            stack.enter_context(tapped(decoder, _attend_lrp))
        logits = loaded.model(**truth.inputs_of(loaded, case), use_cache=False, logits_to_keep=1).logits[0, -1].float()
        logits[int(logits.argmax()) if token is None else token].backward()
    return [(added[index][0].float(), entered[index].grad[0].float()) for index in added]


def _weights(query, key, mask, scaling, half: bool) -> torch.Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    n = query.shape[2]
    logits = query.float() @ key.float().transpose(2, 3)
    logits = (_half(logits) if half else logits) * scaling
    return torch.softmax(logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf), -1)


def _attend_lrp(own, module, query, key, value, mask, *args, **kwargs):
    """Attention by AttnLRP's rules: both products by halves, the softmax by its derivative."""
    weights = _weights(query, key, mask, kwargs["scaling"], True)
    wide = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
    return _half(weights @ wide).transpose(1, 2).to(query.dtype).contiguous(), None


def attnlrp(loaded: LoadedModel, case: truth.Case, deepstack: bool = True) -> Scores:
    """AttnLRP (Achtibat and others 2024): input times its modified gradient. deepstack: with what DeepStack adds as leaves."""
    leaves = _leaves(loaded, case, lrp=True)
    return sum((x * g).sum(-1)[case.vision] for x, g in leaves[: None if deepstack else 1]).numpy()


def gradient_times_input(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Input times gradient, DeepStack's additions among the inputs."""
    return sum((x * g).sum(-1)[case.vision] for x, g in _leaves(loaded, case)).numpy()


def integrated_gradients(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Sundararajan and others 2017: from cells of zeros (and no DeepStack) to the picture, the mean of POINTS midpoints."""
    total, token = torch.zeros(len(case.figures)), _token(loaded, case)
    for point in range(POINTS):
        for x, g in _leaves(loaded, case, token, (point + 0.5) / POINTS):
            total += (x * g).sum(-1)[case.vision] / POINTS
    return total.numpy()


def gradient_times_attention(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Chefer and others 2021: of each layer the mean over heads of the positive part of attention times its gradient, rolled."""
    held: list[torch.Tensor] = []

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        weights = _weights(query, key, mask, kwargs["scaling"], False)
        weights.retain_grad()
        held.append(weights)
        wide = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).float()
        return (weights @ wide).transpose(1, 2).to(query.dtype).contiguous(), None

    with _graph(loaded) as decoder, ExitStack() as stack:
        first = decoder.layers[0].module

        def leaf(module, args, kwargs):
            states = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_(True)
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        stack.callback(first.register_forward_pre_hook(leaf, with_kwargs=True).remove)
        stack.enter_context(tapped(decoder, attend))
        logits = loaded.model(**truth.inputs_of(loaded, case), use_cache=False, logits_to_keep=1).logits[0, -1]
        logits.float().max().backward()
    relevance = torch.eye(held[0].shape[-1])
    for weights in held:
        relevance = relevance + (weights * weights.grad).clamp_min(0).mean(1)[0].detach() @ relevance
    return relevance[-1, case.vision].numpy()


# --- flows and forwards -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def information_flow_routes(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Ferrando and Voita 2024: an edge matters by how near the vector it brings is to the sum, ||sum|| - ||sum - vector|| in L1;
    importance goes back from the last position along the edges."""
    entered, brought = [], []
    decoder = decoder_of(loaded.model)
    by_attention = {id(layer.module.self_attn): layer.module for layer in decoder.layers}

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        weights = _weights(query, key, mask, kwargs["scaling"], False)[0]  # [H, N, N]
        wide = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)[0].float()  # [H, N, D]
        mapped = by_attention[id(module)].self_attn.o_proj.weight.float().view(-1, len(wide), wide.shape[-1])
        brought.append(torch.einsum("hij,hjd,ohd->ijo", weights, wide, mapped))
        return own(query, key, value, mask, *args, **kwargs)

    def before(module, args, kwargs) -> None:
        entered.append((args[0] if args else kwargs["hidden_states"])[0].float())

    with ExitStack() as stack:
        for layer in decoder.layers:
            stack.callback(layer.module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.enter_context(tapped(decoder, attend))
        loaded.model(**truth.inputs_of(loaded, case), use_cache=False, logits_to_keep=1)
    importance = torch.zeros(len(entered[0]))
    importance[-1] = 1.0
    for states, vectors in zip(reversed(entered), reversed(brought), strict=True):
        total = states + vectors.sum(1)
        size = total.abs().sum(-1)
        kept = (size - (total - states).abs().sum(-1)).clamp_min(0)
        edges = (size[:, None] - (total[:, None] - vectors).abs().sum(-1)).clamp_min(0)  # [N, N]
        whole = (kept + edges.sum(1)).clamp_min(1e-12)
        importance = importance * kept / whole + (importance / whole) @ edges
    return importance[case.vision].numpy()


@torch.no_grad()
def blurred(loaded: LoadedModel, case: truth.Case) -> Scores:
    """Leave one out: the cell blurred beyond recognition, the picture read again, what the answer loses (log-probability)."""
    image, (rows, columns) = case.sample.image, case.sample.scene.grid
    soft = image.filter(ImageFilter.GaussianBlur(24))
    width, height = image.width // columns, image.height // rows

    def logprobs(picture) -> torch.Tensor:
        changed = truth.prepare(loaded, replace(case.sample, image=picture))
        inputs = truth.inputs_of(loaded, changed)
        return torch.log_softmax(loaded.model(**inputs, logits_to_keep=1).logits[0, -1].float(), -1)

    own = logprobs(image)
    token = int(own.argmax())
    lost = []
    for row in range(rows):
        for column in range(columns):
            box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            picture = image.copy()
            picture.paste(soft.crop(box), box[:2])
            lost.append(float(own[token] - logprobs(picture)[token]))
    return np.array(lost)


# --- this project's -----------------------------------------------------------------------------------------------------------


def contribution(loaded: LoadedModel, case: truth.Case) -> Scores:
    """This project's estimate of hiding each cell, by one backward pass with frozen rules."""
    forward = keep(loaded.model, truth.inputs_of(loaded, case))
    token = int(forward.logits[-1].argmax())
    target = Target(forward.n_positions - 1, token)
    return -estimate(forward, [target]).every.sum(dim=(0, 1))[case.vision].numpy()


def hidden(loaded: LoadedModel, case: truth.Case) -> Scores:
    """This project's exact effect: each cell really hidden from every query in all layers."""
    cells = [[cell] for cell in range(case.vision.start, case.vision.stop)]
    return -truth.effects_of(loaded, truth.inputs_of(loaded, case), cells).logprob_change


METHODS: dict[str, Callable[[LoadedModel, truth.Case], Scores]] = {
    "contribution (this project)": contribution,
    "AttnLRP with DeepStack's leaves": attnlrp,
    "AttnLRP, embeddings alone": lambda loaded, case: attnlrp(loaded, case, deepstack=False),
    f"integrated gradients, {POINTS} points": integrated_gradients,
    "gradient x input": gradient_times_input,
    "gradient x attention, rolled": gradient_times_attention,
    "information-flow routes": information_flow_routes,
    "attention rollout": rollout,
    "attention, last position": attention,
    "leave one out, blurred": blurred,
    "hidden, all layers (this project)": hidden,
}
