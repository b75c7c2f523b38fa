"""The model's own `generate()`, greedy: its inputs, one forward pass for each token, and running out of memory."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel

from mask_impact.analyses.greedy import ends_of
from mask_impact.analyses.observer import Observer
from mask_impact.engine.ownership import joined
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.taps import n_held
from mask_impact.errors import DeviceError, ExactnessError, is_out_of_memory

N_CANDIDATES = 5
SMALLER = "shorten the prompt, take a smaller model or `dtype` bfloat16, or a device with more memory"
Candidates = list[tuple[list[int], list[float]]]  # of one step, by sequence: ids and their probabilities


def default_rows(model: PreTrainedModel) -> int:
    """How many masked tokens may ride at once: what a quarter of the free memory, and at most 256 MB on a CPU, holds."""
    config = model.config.get_text_config()
    n_heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim, between = (
        _largest(config, "head_dim", hidden // n_heads),
        _largest(config, "intermediate_size", 4 * hidden),
    )
    # Of each row: head differences and two updates in float32, and gate, up, their product and its copy in the model's dtype.
    row = 4 * (2 * n_heads * head_dim + 3 * hidden)
    row += next(model.parameters()).element_size() * (4 * between + 2 * hidden)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(1, int(free / 4 / row))
    return max(64, int(2**28 / row))


def _largest(config: PreTrainedConfig, name: str, usual: int) -> int:
    """A size of a configuration, the largest where each layer has its own; `usual` where it does not say."""
    try:
        said = getattr(config, name)
    except (AttributeError, ValueError, RuntimeError):  # not there, or another in each layer
        return usual
    sizes = said if isinstance(said, list | tuple) else [said]
    return max((size for size in sizes if size), default=usual)


def smaller_chunk(error: RuntimeError, max_rows: int, n_tokens: int, observer: Observer) -> int:
    """Half the chunk after running out of memory; any other error goes on its way."""
    if not is_out_of_memory(error):
        raise error
    if max_rows <= 1:
        raise DeviceError(
            f"out of memory with a single masked token riding along ({n_tokens} prompt tokens): {SMALLER}"
        ) from error
    smaller = max(1, min(max_rows, n_tokens) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    observer.note(f"Out of memory: going on with `batch_size` {smaller}")
    return smaller


def on_input_device(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs where the model takes them, pixels in its dtype: not every vision tower converts them itself."""
    device = _input_device(model)

    def moved(value: torch.Tensor) -> torch.Tensor:
        return value.to(device, model.dtype if value.is_floating_point() else value.dtype)

    return {name: moved(value) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs belong; one whose first weights lie on a disk computes on its first real device."""
    if model.device.type != "meta":
        return model.device
    real = [device for device in getattr(model, "hf_device_map", {}).values() if device not in ("disk", "meta")]
    return torch.device(real[0] if real else "cpu")


def produce(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    config: GenerationConfig,
    processors: Sequence[LogitsProcessor] = (),
    on_logits: Callable[[torch.Tensor], None] = lambda logits: None,
) -> list[list[int]]:
    """The ids that the model's own generate() produces, of each sequence up to its end, an end token included.

    on_logits: told the last position's logits [sequences, vocabulary] of each forward pass of this call. ExactnessError where
    passes and produced tokens are not one for one, or a pass does not see all that stands before it.
    """
    n_passes = 0
    n_prompt = inputs["input_ids"].shape[1]

    def check(module, args, kwargs) -> None:
        n_seen = n_held(kwargs) + (args[0] if args else kwargs["input_ids"]).shape[1]
        if n_seen != n_prompt + n_passes:
            raise ExactnessError(
                f"forward pass {n_passes} saw {n_seen} positions of {n_prompt + n_passes}: no numbers are given; the "
                f"model's generate() dropped what it held without the sequence being fed again (transformers before "
                f"5.20 do so with some models), or something else ran the model in between"
            )

    def count(module, args, output) -> None:
        nonlocal n_passes
        n_passes += 1
        on_logits(output.logits[:, -1])

    with (
        joined(decoder_of(model)) as block,
        block.before(model, check),
        block.after(model, count),
        _quiet(model),
    ):
        sequences = model.generate(
            **on_input_device(model, inputs),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
        )
    produced = sequences[:, n_prompt:]
    check_steps([n_passes], [produced.shape[1]])
    ends = ends_of(config)
    return [_up_to_end(ids, ends) for ids in produced.tolist()]


@contextmanager
def _quiet(model: PreTrainedModel) -> Iterator[None]:
    """Of a model whose first weights lie on a disk some versions hold the inputs' device against "meta"."""
    if model.device.type != "meta":  # filters are of all threads: left alone where they can be
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*on a device type different than your model's device", UserWarning)
        yield


def _up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


def check_steps(n_steps: Sequence[int], n_produced: Sequence[int]) -> None:
    """ExactnessError where not every produced token has its own step, and every step its token; counts by sequence."""
    for steps, produced in zip(n_steps, n_produced, strict=True):
        if steps != produced:
            raise ExactnessError(
                f"{steps} forward passes were seen for {produced} produced tokens: no numbers are given; the model's "
                f"generate() does not give one token for each pass, or something else ran the model in between"
            )


@contextmanager
def leave_out_finished(model: PreTrainedModel, engine: RidingEngine, config: GenerationConfig) -> Iterator[None]:
    """While the block is open, inside the engine's, a sequence of a batch that has ended, and is only filled up, is not measured
    any more."""
    ends = ends_of(config)

    def look(module, args, kwargs) -> None:
        if engine.steps:  # the tokens just produced are what goes in
            fed = kwargs["input_ids"][:, -1].tolist()
            engine.finished.update(number for number, token in enumerate(fed) if token in ends)

    if len(engine.plans) == 1:  # ends with its sequence
        yield
        return
    with joined(decoder_of(model)) as block, block.before(model, look):
        yield


def most_probable(logits: torch.Tensor) -> Candidates:
    """The most probable next tokens by sequence; logits: [sequences, vocabulary]."""
    probabilities = torch.softmax(logits.float(), dim=-1)
    top = probabilities.topk(min(N_CANDIDATES, probabilities.shape[-1]))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
