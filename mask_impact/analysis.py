"""`analyze`: one prompt through the model's own `generate()` with the engine riding, to a Result.

Generation is greedy and otherwise as the model's generation config says. Knows no files and prints nothing; whoever wants
to show progress passes an observer.
"""

import copy
import dataclasses
import datetime
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

import mask_impact
from mask_impact.architectures import locate
from mask_impact.encoding import EncodedPrompt, encode, encode_inputs, token_texts
from mask_impact.engine import Masked, MaskingEngine, RawStep
from mask_impact.errors import DeviceError, InputError
from mask_impact.images import Picture, read_pictures
from mask_impact.loading import LoadedModel
from mask_impact.records import Candidate, Result, StepRecord, variant_names
from mask_impact.settings import VARIANT_GROUPS, RunSettings
from mask_impact.summary import find_sinks
from mask_impact.verification import Verification, choose_layers, verify

N_CANDIDATES = 5


class Observer:
    """Is told how a run gets on, and does nothing about it; see `cli` for one that draws a progress bar."""

    def begin(self, n_tokens: int, n_layers: int, n_steps: int) -> None:
        """A run over a prompt of n_tokens starts (again, after running out of memory)."""

    def layer_done(self, step: int, layer: int) -> None:
        """A layer of a step is measured."""

    def note(self, text: str) -> None:
        """Something the user should know, in one line."""


def analyze(
    model: LoadedModel,
    prompt: str | Mapping[str, Any],
    *,
    images: Sequence[Any] = (),
    num_tokens: int = 1,
    variants: Sequence[str] = VARIANT_GROUPS,
    batch_size: int | None = None,
    raw: bool | None = None,
    n_verify: int = 0,
    mask_mode: str = "both",
    max_image_resolution: int | None = None,
    allow_remote: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Measure what hiding each token in each layer changes, for each of up to `num_tokens` produced tokens.

    prompt: text, ChatML, or ready model inputs (a dict with input_ids [1, n]). images: paths, PIL images or uint8 arrays
    [H, W, 3]; each `<image>` in the prompt marks where one goes, else they go before the text. variants: any of full, attn,
    heads. batch_size: how many masked tokens ride at once (None: by free memory); results do not depend on it. raw: the
    prompt as it is, without chat template. n_verify: how many (step, layer, token) triples to measure again by really
    masking. mask_mode: which tokens to mask, text, vision (the images') or both. max_image_resolution: longest edge of an
    image in pixels. allow_remote: fetch images whose path is an http(s) URL.
    Errors: InputError, UsageError, ExactnessError, DeviceError, UnsupportedArchitecture.
    """
    settings = RunSettings(
        num_tokens, tuple(variants), batch_size, raw, n_verify, mask_mode, max_image_resolution, allow_remote
    )
    pictures = read_pictures(images, max_resolution=max_image_resolution, allow_remote=allow_remote)
    return run(model, prompt, settings, pictures, observer=observer)


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    settings: RunSettings,
    pictures: Sequence[Picture] = (),
    *,
    observer: Observer | None = None,
) -> Result:
    """`analyze` with its arguments already checked and its images already read."""
    observer = observer or Observer()
    if not isinstance(prompt, Mapping):
        encoded = encode(loaded, prompt, pictures, raw=settings.raw)
    elif pictures:
        raise InputError("ready model inputs hold their images as pixel_values; leave `images` out")
    else:
        encoded = encode_inputs(loaded, prompt)
    if not encoded.tokens.masked(settings.mask_mode).any():
        kind = "an image: give one" if settings.mask_mode == "vision" else "text: give some"
        raise InputError(f"mask mode {settings.mask_mode} needs a prompt with {kind}, or another mask mode")
    _check_context(loaded.model, encoded.n_tokens, settings.num_tokens)
    max_rows = settings.batch_size or default_rows(loaded.model)
    started = time.perf_counter()
    while True:
        try:
            pass_ = _generate(loaded.model, encoded, settings, max_rows, observer)
            break
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            max_rows = _smaller_chunk(error, max_rows, encoded.n_tokens, observer)
    meta = describe_run(loaded, prompt, encoded, settings, pass_) | {
        "batch_size": max_rows,
        "seconds": time.perf_counter() - started,
    }
    return _make_result(loaded, encoded, settings, pass_, meta)


def _check_context(model: PreTrainedModel, n_tokens: int, num_tokens: int) -> None:
    limit = model.config.get_text_config().max_position_embeddings
    # The last produced token is never fed back.
    if n_tokens + num_tokens - 1 > limit:
        raise InputError(
            f"the prompt has {n_tokens} tokens and {num_tokens} are to be produced, but the model's context is {limit}; "
            f"shorten the prompt, lower --num-tokens, or shrink its images (--max-image-resolution)"
        )


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


# How torch says it without an exception class of its own: on a CPU (Linux, Windows) and on MPS.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "MPS backend out of memory")


def _smaller_chunk(error: RuntimeError, max_rows: int, n_tokens: int, observer: Observer) -> int:
    """Half the chunk after running out of memory; any other error goes on its way."""
    if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in _OUT_OF_MEMORY):
        raise error
    if max_rows <= 1:
        raise DeviceError(
            f"out of memory with a single masked token riding along ({n_tokens} prompt tokens): shorten the prompt, take a "
            f"smaller model or --dtype bfloat16, or a device with more memory"
        ) from error
    smaller = max(1, min(max_rows, n_tokens) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    observer.note(f"Out of memory: going on with --batch-size {smaller}")
    return smaller


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One `generate()` with the engine riding; candidates: (ids, probabilities) of every step."""

    engine: MaskingEngine
    produced: list[int]
    candidates: list[tuple[list[int], list[float]]]
    verification: Verification | None


def _generate(
    model: PreTrainedModel, encoded: EncodedPrompt, settings: RunSettings, max_rows: int, observer: Observer
) -> _Pass:
    layers = choose_layers(model.config.get_text_config().num_hidden_layers, settings.n_verify)
    masked = None
    if settings.mask_mode != "both":
        prompt_mask = torch.from_numpy(encoded.tokens.masked(settings.mask_mode))
        masked = Masked(prompt_mask, produced=settings.mask_mode == "text")
    engine = MaskingEngine(
        model,
        groups=settings.variants,
        masked=masked,
        max_rows=max_rows,
        on_layer=observer.layer_done,
        record_layers=frozenset(layers),
    )
    observer.begin(encoded.n_tokens, len(engine.decoder.layers), settings.num_tokens)
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in encoded.inputs.items()
    }
    with torch.no_grad(), _record_candidates(model) as candidates, engine:
        sequences = model.generate(**inputs, generation_config=greedy_config(model, settings.num_tokens))
    produced = sequences[0, encoded.n_tokens :].tolist()
    return _Pass(engine, produced, candidates, verify(engine, layers) if layers else None)


def greedy_config(model: PreTrainedModel, num_tokens: int) -> GenerationConfig:
    """The model's own generation config (end tokens, penalties), greedy, with the plain dynamic cache."""
    config = copy.deepcopy(model.generation_config)
    config.update(
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, min_p=None, use_cache=True,
        cache_implementation=None, prefill_chunk_size=None, disable_compile=True, max_new_tokens=num_tokens, max_length=None,
        return_dict_in_generate=False, num_return_sequences=1, output_attentions=False, output_hidden_states=False,
    )  # fmt: skip
    return config


@contextmanager
def _record_candidates(model: PreTrainedModel) -> Iterator[list[tuple[list[int], list[float]]]]:
    """Keep the most probable next tokens of every forward while the block is open."""
    candidates: list[tuple[list[int], list[float]]] = []

    def keep(module, args, output) -> None:
        probabilities = torch.softmax(output.logits[0, -1].float(), dim=-1)
        top = probabilities.topk(min(N_CANDIDATES, len(probabilities)))
        candidates.append((top.indices.tolist(), top.values.tolist()))

    handle = model.register_forward_hook(keep)
    try:
        yield candidates
    finally:
        handle.remove()


def _make_result(
    loaded: LoadedModel, encoded: EncodedPrompt, settings: RunSettings, pass_: _Pass, meta: dict[str, Any]
) -> Result:
    texts, kinds = token_texts(loaded.tokenizer, pass_.produced)
    steps = tuple(
        _make_step(loaded, index, raw_step, token, text, candidates)
        for index, (raw_step, token, text, candidates) in enumerate(
            zip(pass_.engine.steps, pass_.produced, texts, pass_.candidates, strict=True)
        )
    )
    return Result(
        variants=variant_names(pass_.engine.decoder.n_heads, settings.variants),
        n_prompt=encoded.n_tokens,
        tokens=encoded.tokens.extended(pass_.produced, texts, kinds),
        steps=steps,
        generated_text=loaded.tokenizer.decode(pass_.produced, skip_special_tokens=True),
        sinks=find_sinks(steps[0].attention),
        images=encoded.images,
        meta=meta,
    )


def _make_step(
    loaded: LoadedModel, index: int, step: RawStep, token: int, text: str, candidates: tuple[list[int], list[float]]
) -> StepRecord:
    ids, probabilities = candidates
    names, _ = token_texts(loaded.tokenizer, ids)
    return StepRecord(
        step=index,
        token_id=token,
        token_text=text,
        candidates=tuple(Candidate(*entry) for entry in zip(ids, names, probabilities, strict=True)),
        positions=step.positions.numpy(),
        l2=step.l2.numpy(),
        cosine=step.cosine.numpy(),
        attention=step.attention.mean(0).numpy(),
        baseline_norm=step.baseline_norm.numpy(),
        self_check=step.self_check.numpy(),
        noise_floor=step.noise_floor.numpy(),
        seconds=step.seconds,
    )


def describe_run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    encoded: EncodedPrompt,
    settings: RunSettings,
    pass_: _Pass,
) -> dict[str, Any]:
    """What `NAME.meta.json` says of the run besides the measurements; JSON types only."""
    model, decoder = loaded.model, pass_.engine.decoder
    return {
        "tool_version": mask_impact.__version__,
        "model": loaded.name,
        "revision": loaded.revision,
        "model_class": type(model).__name__,
        "architecture": decoder.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor(),
        "attention_backend": decoder.configs[0]._attn_implementation,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "prompt": prompt if isinstance(prompt, str) else None,
        "templated_prompt": encoded.text,
        "num_tokens": settings.num_tokens,
        "mask_mode": settings.mask_mode,
        "max_image_resolution": settings.max_image_resolution,
        "notices": [loaded.note] if loaded.note else [],
        "verification": dataclasses.asdict(pass_.verification) if pass_.verification else None,
    }  # fmt: skip
