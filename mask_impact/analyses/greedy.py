"""By which rules a token is taken from the model's logits: greedy, one pass for each, and what a checkpoint's own generation
settings may add to that.

A checkpoint may ask for sampling, beams, another model's help, chunks or a cache of its own kind. What it says about which token
follows one set of logits is honoured (ends, penalties, suppressed tokens); all else is not, since each token is to come from one
pass with the plain cache.
"""

from collections.abc import Callable
from numbers import Real
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from mask_impact.errors import InputError


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any, n_tokens: int) -> bool:
    return _is_whole(value) and value >= 0


def _is_penalty(value: Any, n_tokens: int) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_id(value: Any, n_tokens: int) -> bool:
    return _is_whole(value) and 0 <= value < n_tokens


def _is_id_or_ids(value: Any, n_tokens: int) -> bool:
    ids = value if isinstance(value, list | tuple) else [value]
    return bool(ids) and all(_is_id(one, n_tokens) for one in ids)


def _are_numbers(value: Any, n_tokens: int) -> bool:
    """An id that the model cannot produce does no harm where it ends or is suppressed, and checkpoints have some."""
    ids = value if isinstance(value, list | tuple) else [value]
    return all(_is_whole(one) for one in ids)


def _is_list(value: Any, n_tokens: int) -> bool:
    return isinstance(value, list | tuple) and _are_numbers(value, n_tokens)


def _are_words(value: Any, n_tokens: int) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(one, list | tuple) and _is_id_or_ids(one, n_tokens) for one in value
    )


def _is_bias(value: Any, n_tokens: int) -> bool:
    if not isinstance(value, dict | list | tuple) or not value:
        return False
    pairs = list(value.items()) if isinstance(value, dict) else value
    return all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and isinstance(pair[1], float)
        and _are_words([pair[0]], n_tokens)
        for pair in pairs
    )


def _is_decay(value: Any, n_tokens: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and _is_size(value[0], n_tokens)
        and _is_penalty(value[1], n_tokens)
    )


def _is_watermark(value: Any, n_tokens: int) -> bool:
    return hasattr(value, "construct_processor")


def _is_flag(value: Any, n_tokens: int) -> bool:
    return isinstance(value, bool)


_PENALTY = (_is_penalty, "a number above 0")
_SIZE = (_is_size, "a whole number from 0 on")
_FLAG = (_is_flag, "true or false")

# What is taken from a checkpoint's settings, and what its values are.
HONOURED: dict[str, tuple[Callable[[Any, int], bool], str]] = {
    "eos_token_id": (_are_numbers, "a token's id, or a list of ids"),
    "repetition_penalty": _PENALTY,
    "encoder_repetition_penalty": _PENALTY,
    "no_repeat_ngram_size": _SIZE,
    "encoder_no_repeat_ngram_size": _SIZE,
    "min_length": _SIZE,
    "min_new_tokens": _SIZE,
    "bad_words_ids": (_are_words, "a list of lists of ids below the size of the vocabulary"),
    "sequence_bias": (_is_bias, "a list of pairs of a list of ids and a number with a decimal point"),
    "forced_bos_token_id": (_is_id, "a token's id below the size of the vocabulary"),
    "forced_eos_token_id": (_is_id_or_ids, "a token's id, or a list of ids, below the size of the vocabulary"),
    "suppress_tokens": (_is_list, "a list of ids"),
    "begin_suppress_tokens": (_is_list, "a list of ids"),
    "exponential_decay_length_penalty": (_is_decay, "a whole number from 0 on and a number above 0"),
    "watermarking_config": (_is_watermark, "what transformers takes for a watermark"),
    "remove_invalid_values": _FLAG,
    "renormalize_logits": _FLAG,
}


class Greedy(GenerationConfig):
    """A config that stays as it is: generate() fills what is None from the model's own config, here from transformers' defaults
    alone."""

    def update(self, defaults_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """As of GenerationConfig; with defaults_only the values given count for nothing."""
        if defaults_only:
            kwargs = self._get_default_generation_params()
        return super().update(defaults_only=defaults_only, **kwargs)


def greedy_config(model: PreTrainedModel, num_tokens: int) -> GenerationConfig:
    """Greedy, one pass for each token, with the plain dynamic cache, and what of the model's own settings is HONOURED.
    InputError where one of these makes no sense."""
    n_tokens = model.config.get_text_config().vocab_size
    honoured = {}
    for name, (is_valid, accepted) in HONOURED.items():
        value = getattr(model.generation_config, name, None)
        if value is None or value in ([], ()):
            continue
        if not is_valid(value, n_tokens):
            raise InputError(f"the model's generation_config.json: `{name}` is {accepted}, not {str(value)[:60]!r}")
        honoured[name] = float(value) if is_valid is _is_penalty else value  # transformers takes no whole number there
    if "eos_token_id" not in honoured:
        honoured.pop("exponential_decay_length_penalty", None)  # is about the end tokens' logits
    config = Greedy(
        **honoured, max_new_tokens=num_tokens, do_sample=False, num_beams=1, num_return_sequences=1, use_cache=True,
        disable_compile=True, return_dict_in_generate=False,
    )  # fmt: skip
    ends = [one for one in sorted(ends_of(config)) if _is_id(one, n_tokens)]
    pad = getattr(model.generation_config, "pad_token_id", None)
    # Fills up what ends early in a batch; never measured.
    config.pad_token_id = pad if _is_id(pad, n_tokens) else ends[0] if ends else None
    return config


def ends_of(config: GenerationConfig) -> set[int]:
    """The ids that end an answer."""
    ends = config.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends or ())
