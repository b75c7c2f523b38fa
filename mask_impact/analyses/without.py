"""What the model would have said with some tokens hidden: the answer generated again, beside the one with nothing hidden.

Tokens are hidden from every query, in the layers that are asked for and have a softmax attention, while the model's own
`generate()` runs; positions stay as they are. A query that has nothing left to see (a hidden token at the beginning) attends
to nothing: its heads give 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from mask_impact.analyses.generation import produce
from mask_impact.analyses.greedy import greedy_config
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, describe_run, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.masked_attention import softmax_beside
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding.layers import Layer, Layers, decoder_of, no_attention
from mask_impact.engine.self_check import SELF_CHECK_TOLERANCE
from mask_impact.engine.taps import attention_options, each_visible_key, n_held, scaling_of, tapped, windowed_kernel
from mask_impact.errors import DeviceError, ExactnessError, InputError, UsageError, is_out_of_memory, ranges
from mask_impact.models.layer_kinds import BETWEEN, reading_others, without_attention
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.encoding import layout_of, token_texts
from mask_impact.results.answers import Answer, WhatIf


def hidden_by(reader: Reader, prepared: Prepared, specs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The positions that each spec stands for; works without the model's weights. InputError for one that can't be hidden."""
    layout = layout_of(reader, prepared.encoded)
    hidden = {spec: layout.resolve(spec) for spec in specs}
    for spec, positions in hidden.items():
        if len(positions) == prepared.encoded.n_tokens:
            raise InputError(f"'{spec}' is the whole prompt: nothing would be left to answer to; hide less")
    return hidden


def checked_layers(reader: Reader, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers in ascending order (None: all); UsageError for one that the model does not have."""
    n_layers = reader.config.get_text_config().num_hidden_layers
    layers = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    if outside := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise UsageError(f"layer {outside[0]} is not there: the model has layers 0 to {n_layers - 1}")
    return layers


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    specs: Sequence[str],
    settings: RunSettings,
    layers: Sequence[int] | None = None,
    pictures: Sequence[Any] = (),
    *,
    observer: Observer | None = None,
) -> WhatIf:
    """The answer with nothing hidden, and without each of the specs; the images are already read."""
    observer = observer or Observer()
    prepared = prepare(loaded, prompt, settings, pictures)
    encoded = prepared.encoded
    n_layers = loaded.config.get_text_config().num_hidden_layers
    layers = checked_layers(loaded, layers)
    hidden = hidden_by(loaded, prepared, specs)
    decoder = decoder_of(loaded.model)
    observer.answers_begin(1 + len(hidden))
    with owned(decoder):
        with _noting_attentions(decoder) as found:
            own = _scored(loaded, encoded.inputs, (), layers, settings.num_tokens)
        layers, others = _with_attention(loaded, found, layers)
        answers = [_answer(loaded, None, (), own, own)]
        observer.answer_done()
        for spec, positions in hidden.items():
            produced = _scored(loaded, encoded.inputs, positions, layers, settings.num_tokens)
            answers.append(_answer(loaded, spec, positions, produced, own))
            observer.answer_done()
    meta = describe_run(loaded, prepared)
    meta |= {"images": [image.source for image in encoded.images]}
    meta["notices"] += others
    return WhatIf(answers[0], tuple(answers[1:]), layers, encoded.tokens, n_layers, meta)


@contextmanager
def _noting_attentions(decoder: Layers) -> Iterator[dict[Layer, None]]:
    """While the block is open, the layers in which an attention is called."""
    found: dict[Layer, None] = {}

    def attend(own: Callable, module, *args, **kwargs):
        if module in decoder.around:
            found[decoder.around[module]] = None
        return own(*args, **kwargs)

    with tapped(decoder, attend):
        yield found


def _with_attention(
    loaded: LoadedModel, found: Iterable[Layer], asked: Sequence[int]
) -> tuple[tuple[int, ...], list[str]]:
    """Those of the layers that were asked for that have a softmax attention, and what is said of all that have none. found: those
    in which an attention was called. UsageError where no layer is left, UnsupportedArchitecture where there is none."""
    decoder = decoder_of(loaded.model)
    attending = decoder.with_attention(list(found))
    if not attending.numbers:
        raise no_attention(loaded.model)
    if not attending.others:
        return tuple(asked), []
    config, others = loaded.config.get_text_config(), attending.other_numbers
    said = without_attention(config, others)
    if not (left := tuple(layer for layer in asked if layer in attending.numbers)):
        raise UsageError(f"{said}; layers that have one: {ranges(sorted(attending.numbers), BETWEEN)}")
    through = reading_others(config, others)
    plural = "s" * (len(through) > 1)
    more = (
        [f"What a hidden token says can still get through layer{plural} {ranges(through, BETWEEN)}"] if through else []
    )
    return left, [said, *more]


def generate(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    positions: Sequence[int],
    layers: Sequence[int],
    num_tokens: int,
    on_logits: Callable[[torch.Tensor], None] = lambda logits: None,
) -> list[int]:
    """The ids that the model's own generate() produces, greedy, with positions hidden in layers. on_logits: told the logits
    [1, vocabulary] of each step. DeviceError without memory."""
    model = loaded.model
    try:
        with torch.no_grad(), hiding(model, positions, layers):
            ids = produce(model, inputs, greedy_config(model, num_tokens), on_logits=on_logits)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            "out of memory: shorten the prompt, take a smaller model or `dtype` bfloat16, or a device with more memory"
        ) from error
    return ids[0]


def _scored(
    loaded: LoadedModel, inputs: Mapping[str, Any], positions: Sequence[int], layers: Sequence[int], num_tokens: int
) -> tuple[list[int], torch.Tensor]:
    """The produced ids, and log-probabilities [n, vocabulary] of what the model gives at each of these steps."""
    logits: list[torch.Tensor] = []
    produced = generate(loaded, inputs, positions, layers, num_tokens, lambda one: logits.append(one[0].double()))
    return produced, torch.log_softmax(torch.stack(logits), dim=-1).cpu()


def _answer(loaded, spec, positions, produced, own) -> Answer:
    (ids, scores), (own_ids, _) = produced, own
    texts, _ = token_texts(loaded.tokenizer, ids)
    pairs = list(zip(ids, own_ids, strict=False))
    differs = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
    if differs is None and len(ids) != len(own_ids):
        differs = len(pairs)
    return Answer(
        spec=spec,
        positions=tuple(positions),
        token_ids=tuple(ids),
        token_texts=tuple(texts),
        probabilities=tuple(scores[range(len(ids)), ids].exp().tolist()),
        text=loaded.tokenizer.decode(ids, skip_special_tokens=True),
        probability=float(scores[0, own_ids[0]].exp()),
        differs_at=differs,
    )


@contextmanager
def hiding(model: PreTrainedModel, positions: Sequence[int], layers: Sequence[int]) -> Iterator[None]:
    """While the block is open, a `generate()` of a single sequence runs with `positions` hidden from every query in `layers`.

    ModelError for an attention backend that can't be followed.
    """
    if not len(positions) or not len(layers):
        yield
        return
    decoder = decoder_of(model)
    hidden = torch.tensor(sorted(positions))
    n_positions = 0  # of the sequence, at the step of the moment
    called: set[int | None] = set()  # layers

    def attend(own: Callable, module, query, key, value, attention_mask, *args, **kwargs):
        place = decoder.place_of(module)
        if place not in layers:
            return own(query, key, value, attention_mask, *args, **kwargs)
        n_rows, n_keys = query.shape[2], key.shape[2]
        window = windowed_kernel(decoder, kwargs)
        visible = each_visible_key(attention_mask, 0, n_rows, n_keys, window, key.device).clone()
        if place not in called:
            _prove(
                own(query, key, value, attention_mask, *args, **kwargs)[0],
                _seen(decoder, query, key, value, visible, kwargs),
            )
        called.add(place)
        places = hidden - (n_positions - n_keys)  # a sliding window's cache holds the last positions only
        visible[:, places[(places >= 0) & (places < n_keys)].to(key.device)] = False
        return _seen(decoder, query, key, value, visible, kwargs), None

    def count(module, args, kwargs) -> None:
        nonlocal n_positions
        n_positions = n_held(kwargs) + (args[0] if args else kwargs["input_ids"]).shape[1]

    with tapped(decoder, attend) as block, block.before(model, count):
        yield


def _seen(decoder: Layers, query, key, value, visible: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """[1, n, H, E], the attention of a single sequence's queries over the keys that each of them sees; visible: bool [n, N]."""
    softcap, sinks = attention_options(decoder, options)
    if softcap is None and sinks is None:
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[None, None], scale=options.get("scaling"), enable_gqa=True
        )
    else:
        grouped = query.unflatten(1, (key.shape[1], -1)).float()
        logits = grouped @ key.float().unsqueeze(2).transpose(-1, -2) * scaling_of(query, options)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = logits.masked_fill(~visible, -torch.inf)
        weights = softmax_beside(logits, sinks)
        output = (weights.to(value.dtype) @ value.unsqueeze(2)).flatten(1, 2)
    blind = ~visible.any(dim=-1)
    return output.masked_fill(blind[:, None], 0.0).transpose(1, 2).contiguous()


def _prove(own: torch.Tensor, found: torch.Tensor) -> None:
    """ExactnessError where an attention does more than what is known of it."""
    error = (own[:, -1] - found[:, -1]).float().norm() / own[:, -1].float().norm().clamp_min(1e-30)
    tolerance = SELF_CHECK_TOLERANCE[own.dtype]
    if not error <= tolerance:
        raise ExactnessError(
            f"the model's own attention differs from the recomputed one by {float(error):.1e} (relative, {tolerance:.0e} "
            f"allowed): no answers are given"
        )
