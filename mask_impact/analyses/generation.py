"""The model's own `generate()`, greedy: its settings, its inputs, what is kept of each step, and running out of memory."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from mask_impact.analyses.observer import Observer
from mask_impact.engine.masking import MaskingEngine
from mask_impact.errors import DeviceError, is_out_of_memory
from mask_impact.models.architectures import locate

N_CANDIDATES = 5


def default_rows(model: PreTrainedModel) -> int:
    """How many masked tokens may ride at once: what a quarter of the free memory, and at most 256 MB on a CPU, holds."""
    decoder = locate(model)
    # Of each row: head differences and two updates in float32, and gate, up, their product and its copy in the model's dtype.
    row = 4 * (2 * decoder.n_heads * decoder.head_dim + 3 * decoder.hidden_size)
    row += next(model.parameters()).element_size() * (4 * decoder.intermediate_size + 2 * decoder.hidden_size)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(1, int(free / 4 / row))
    return max(64, int(2**28 / row))


def smaller_chunk(error: RuntimeError, max_rows: int, n_tokens: int, observer: Observer) -> int:
    """Half the chunk after running out of memory; any other error goes on its way."""
    if not is_out_of_memory(error):
        raise error
    if max_rows <= 1:
        raise DeviceError(
            f"out of memory with a single masked token riding along ({n_tokens} prompt tokens): shorten the prompt, take a "
            f"smaller model or `dtype` bfloat16, or a device with more memory"
        ) from error
    smaller = max(1, min(max_rows, n_tokens) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    observer.note(f"Out of memory: going on with `batch_size` {smaller}")
    return smaller


def on_input_device(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs where the model takes them."""
    device = _input_device(model)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs belong; one whose first weights lie on a disk computes on its first real device."""
    if model.device.type != "meta":
        return model.device
    real = [device for device in getattr(model, "hf_device_map", {}).values() if device not in ("disk", "meta")]
    return torch.device(real[0] if real else "cpu")


@contextmanager
def leave_out_finished(model: PreTrainedModel, engine: MaskingEngine, config: GenerationConfig) -> Iterator[None]:
    """While the block is open, a sequence of a batch that has ended, and is only filled up, is not measured any more."""
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())

    def look(module, args, kwargs) -> None:
        if engine.steps:  # the tokens just produced are what goes in
            fed = kwargs["input_ids"][:, -1].tolist()
            engine.finished.update(number for number, token in enumerate(fed) if token in ends)

    if len(engine.plans) == 1:  # ends with its sequence
        yield
        return
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def greedy_config(model: PreTrainedModel, num_tokens: int) -> GenerationConfig:
    """The model's own generation config (end tokens, penalties), greedy, with the plain dynamic cache."""
    config = copy.deepcopy(model.generation_config)
    config.update(
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, min_p=None, use_cache=True,
        cache_implementation=None, prefill_chunk_size=None, disable_compile=True, max_new_tokens=num_tokens, max_length=None,
        return_dict_in_generate=False, num_return_sequences=1, output_attentions=False, output_hidden_states=False,
    )  # fmt: skip
    if config.pad_token_id is None:  # fills up what ends early in a batch; never measured
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return config


@contextmanager
def record_candidates(model: PreTrainedModel) -> Iterator[list[list[tuple[list[int], list[float]]]]]:
    """Keep the most probable next tokens of every forward, by sequence, while the block is open."""
    candidates: list[list[tuple[list[int], list[float]]]] = []

    def keep(module, args, output) -> None:
        probabilities = torch.softmax(output.logits[:, -1].float(), dim=-1)
        top = probabilities.topk(min(N_CANDIDATES, probabilities.shape[-1]))
        candidates.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))

    handle = model.register_forward_hook(keep)
    try:
        yield candidates
    finally:
        handle.remove()
