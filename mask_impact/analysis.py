"""`analyze`: one prompt through the model's own `generate()` with the engine riding, to a Result.

Generation is greedy and otherwise as the model's generation config says. Knows no files and prints nothing; whoever wants
to show progress passes an observer.
"""

import copy
import dataclasses
import datetime
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

import mask_impact
from mask_impact.architectures import Decoder, locate
from mask_impact.effects import AtEachStep, StepEffects, check_cost, each_window_and_group
from mask_impact.encoding import EncodedPrompt, encode, encode_inputs, join, layout_of, token_texts
from mask_impact.engine import Masked, MaskingEngine, RawStep, SequencePlan
from mask_impact.errors import DeviceError, InputError, is_out_of_memory
from mask_impact.groups import Group, read_groups
from mask_impact.images import Picture, read_pictures
from mask_impact.loading import LoadedModel
from mask_impact.records import Candidate, EffectRecord, Result, StepRecord, variant_names
from mask_impact.replay import Variants
from mask_impact.settings import MAX_COST, VARIANT_GROUPS, RunSettings
from mask_impact.summary import find_sinks
from mask_impact.verification import Verification, choose_layers, verify

N_CANDIDATES = 5


class Observer:
    """Is told how a run gets on, and does nothing about it; see `cli` for one that draws a progress bar."""

    def begin(self, n_tokens: int, n_layers: int, n_steps: int) -> None:
        """A run over a prompt of n_tokens starts (again, after running out of memory)."""

    def layer_done(self, step: int, layer: int) -> None:
        """A layer of a step is measured."""

    def effects_begin(self, step: int, n_variants: int) -> None:
        """The effects of n_variants (layer, token) are measured at a step."""

    def effects_done(self, n_variants: int) -> None:
        """So many more of them are measured."""

    def answers_begin(self, n_answers: int) -> None:
        """So many answers are generated."""

    def answer_done(self) -> None:
        """One more of them is there."""

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
    effect: bool = False,
    window: int | str = 1,
    ablation: str = "mask",
    queries: str = "last",
    groups: str | os.PathLike = "tokens",
    max_cost: int = MAX_COST,
    observer: Observer | None = None,
) -> Result:
    """Measure what hiding each token in each layer changes, for each of up to `num_tokens` produced tokens.

    prompt: text, ChatML, or ready model inputs (a dict with input_ids [1, n]). images: paths, PIL images or uint8 arrays
    [H, W, 3]; each `<image>` in the prompt marks where one goes, else they go before the text. variants: any of full, attn,
    heads. batch_size: how many masked tokens ride at once (None: by free memory); results do not depend on it. raw: the
    prompt as it is, without chat template. n_verify: how many (step, layer, token) triples to measure again by really
    masking. mask_mode: which tokens to mask, text, vision (the images') or both. max_image_resolution: longest edge of an
    image in pixels. allow_remote: fetch images whose path is an http(s) URL. ablation: what hiding a token means,
    mask (its logit is -inf), zero-value or mean-value (its weight stays). effect: also measure what hiding each token in the
    `window` layers around each layer (or in `all`) does to the produced token; queries: whether it is hidden from the `last`
    query or from `all`; groups: `tokens`, `words` or the path of a file of groups that are hidden together; max_cost: how
    many row-layers that may take.
    Errors: InputError, UsageError, ExactnessError, DeviceError, UnsupportedArchitecture.
    """
    settings = RunSettings(
        num_tokens, tuple(variants), batch_size, raw, n_verify, mask_mode, max_image_resolution, allow_remote,
        effect, window, ablation, queries, os.fspath(groups), max_cost,
    )  # fmt: skip
    pictures = read_pictures(images, max_resolution=max_image_resolution, allow_remote=allow_remote)
    return run(model, prompt, settings, pictures, observer=observer)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One prompt, ready to be run: encoded, and checked against the model and its settings."""

    prompt: str | Mapping[str, Any]
    encoded: EncodedPrompt
    settings: RunSettings


def prepare(
    loaded: LoadedModel, prompt: str | Mapping[str, Any], settings: RunSettings, pictures: Sequence[Picture] = ()
) -> Prepared:
    """Encode a prompt and check what can be checked before the model runs."""
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
    return Prepared(prompt, encoded, settings)


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    settings: RunSettings,
    pictures: Sequence[Picture] = (),
    *,
    observer: Observer | None = None,
) -> Result:
    """`analyze` with its arguments already checked and its images already read."""
    return run_together(loaded, [prepare(loaded, prompt, settings, pictures)], observer=observer)[0]


def run_together(loaded: LoadedModel, prompts: Sequence[Prepared], *, observer: Observer | None = None) -> list[Result]:
    """The results of several prompts that share their forward passes, in their order.

    They have to agree in `settings.variants`, and be one where `settings.n_verify` is set. A result is that of the prompt
    alone, but for rounding.
    """
    observer = observer or Observer()
    max_rows = min((one.settings.batch_size for one in prompts if one.settings.batch_size), default=0)
    max_rows = max_rows or default_rows(loaded.model)
    groups = _groups_of(loaded, prompts[0])
    started = time.perf_counter()
    while True:
        try:
            passes = _generate(loaded.model, prompts, groups, max_rows, observer)
            break
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            max_rows = _smaller_chunk(error, max_rows, sum(one.encoded.n_tokens for one in prompts), observer)
    seconds = time.perf_counter() - started
    return [
        _make_result(loaded, one, pass_, groups, max_rows, seconds) for one, pass_ in zip(prompts, passes, strict=True)
    ]


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


def _smaller_chunk(error: RuntimeError, max_rows: int, n_tokens: int, observer: Observer) -> int:
    """Half the chunk after running out of memory; any other error goes on its way."""
    if not is_out_of_memory(error):
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
    """What one prompt has of a `generate()` with the engine riding; candidates: (ids, probabilities) of every step."""

    engine: MaskingEngine
    steps: list[RawStep]
    produced: list[int]
    candidates: list[tuple[list[int], list[float]]]
    verification: Verification | None
    effects: list[StepEffects]


def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Prepared],
    groups: Sequence[Group] | None,
    max_rows: int,
    observer: Observer,
) -> list[_Pass]:
    n_steps = max(one.settings.num_tokens for one in prompts)
    config = greedy_config(model, n_steps)
    layers = choose_layers(
        model.config.get_text_config().num_hidden_layers, max(one.settings.n_verify for one in prompts)
    )
    inputs, paddings = join([one.encoded for one in prompts], config.pad_token_id or 0)
    engine = MaskingEngine(
        model,
        groups=prompts[0].settings.variants,
        ablation=prompts[0].settings.ablation,
        plans=[
            SequencePlan(padding, _masked(one), one.settings.num_tokens)
            for padding, one in zip(paddings, prompts, strict=True)
        ],
        max_rows=max_rows,
        on_layer=observer.layer_done,
        record_layers=frozenset(layers),
        keep_states=prompts[0].settings.queries if prompts[0].settings.effect else None,
    )
    effects = _effects(engine, prompts[0], groups, observer)
    observer.begin(sum(one.encoded.n_tokens for one in prompts), len(engine.decoder.layers), n_steps)
    inputs = on_input_device(model, inputs)
    with (
        torch.no_grad(),
        _leave_out_finished(model, engine, config),
        _record_candidates(model) as candidates,
        warnings.catch_warnings(),
        engine,
        ExitStack() as stack,
    ):
        # Of a model whose first weights lie on a disk: some versions hold the inputs' device against "meta".
        warnings.filterwarnings("ignore", ".*on a device type different than your model's device", UserWarning)
        processors = LogitsProcessorList()
        if effects is not None:
            processors.append(stack.enter_context(effects.attached()))
        sequences = model.generate(**inputs, generation_config=config, logits_processor=processors)
    verification = verify(engine, layers) if layers else None
    n_prompt = inputs["input_ids"].shape[1]
    return [
        _Pass(
            engine,
            steps,
            sequences[number, n_prompt : n_prompt + len(steps)].tolist(),
            [of_step[number] for of_step in candidates[: len(steps)]],
            verification,
            effects.steps if effects is not None else [],
        )
        for number, steps in enumerate(engine.sequences)
    ]


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


def _masked(prompt: Prepared) -> Masked | None:
    mode = prompt.settings.mask_mode
    if mode == "both":
        return None
    return Masked(torch.from_numpy(prompt.encoded.tokens.masked(mode)), produced=mode == "text")


@contextmanager
def _leave_out_finished(model: PreTrainedModel, engine: MaskingEngine, config: GenerationConfig) -> Iterator[None]:
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
def _record_candidates(model: PreTrainedModel) -> Iterator[list[list[tuple[list[int], list[float]]]]]:
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


def _groups_of(loaded: LoadedModel, prompt: Prepared) -> tuple[Group, ...] | None:
    """What is hidden together for the effect; None for each masked position by itself."""
    encoded, settings = prompt.encoded, prompt.settings
    if not settings.effect or settings.groups == "tokens":
        return None
    layout = layout_of(loaded, encoded)
    if settings.groups != "words":
        groups = tuple(read_groups(settings.groups, layout))
        if whole := [group.name for group in groups if len(group.positions) == encoded.n_tokens]:
            raise InputError(f"group {whole[0]!r} is the whole prompt: nothing would be left to see; hide less")
        return groups
    masked = encoded.tokens.masked(settings.mask_mode)
    return tuple(group for group in layout.words() if masked[list(group.positions)].all())


def _effects(
    engine: MaskingEngine, prompt: Prepared, groups: Sequence[Group] | None, observer: Observer
) -> AtEachStep | None:
    """What measures the effects; UsageError where they cost more than is allowed."""
    settings, n_layers = prompt.settings, len(engine.decoder.layers)
    if not settings.effect:
        return None

    def variants_of(hidden: Sequence[Sequence[int]], n_positions: int) -> Variants:
        return each_window_and_group(
            hidden, n_positions, n_layers, settings.window, settings.queries, settings.ablation
        )

    def here() -> Variants:
        positions = engine.steps[-1].positions.tolist()
        return variants_of(_hidden_at(groups, positions), engine.n_positions)

    n_prompt = prompt.encoded.n_tokens
    masked = prompt.encoded.tokens.masked(settings.mask_mode).nonzero()[0].tolist()
    first = variants_of(_hidden_at(groups, masked), n_prompt)
    check_cost(first, n_layers, settings.num_tokens, settings.max_cost)
    return AtEachStep(engine, here, observer.effects_begin, observer.effects_done)


def _hidden_at(groups: Sequence[Group] | None, positions: Sequence[int]) -> list[tuple[int, ...]]:
    """What is hidden together at a step."""
    return [(position,) for position in positions] if groups is None else [group.positions for group in groups]


def _make_result(
    loaded: LoadedModel,
    prompt: Prepared,
    pass_: _Pass,
    groups: Sequence[Group] | None,
    max_rows: int,
    seconds: float,
) -> Result:
    encoded = prompt.encoded
    texts, kinds = token_texts(loaded.tokenizer, pass_.produced)
    steps = tuple(
        _make_step(loaded, index, raw_step, token, text, candidates)
        for index, (raw_step, token, text, candidates) in enumerate(
            zip(pass_.steps, pass_.produced, texts, pass_.candidates, strict=True)
        )
    )
    if prompt.settings.effect:
        steps = tuple(
            dataclasses.replace(step, effect=_effect_record(loaded, step, groups, effects))
            for step, effects in zip(steps, pass_.effects, strict=True)
        )
    return Result(
        variants=variant_names(pass_.engine.decoder.n_heads, prompt.settings.variants),
        n_prompt=encoded.n_tokens,
        tokens=encoded.tokens.extended(pass_.produced, texts, kinds),
        steps=steps,
        generated_text=loaded.tokenizer.decode(pass_.produced, skip_special_tokens=True),
        sinks=find_sinks(steps[0].attention),
        images=encoded.images,
        meta=describe_run(loaded, prompt, pass_.engine.decoder)
        | {
            "mask_mode": prompt.settings.mask_mode,
            "effect": _effect_settings(prompt.settings),
            "verification": dataclasses.asdict(pass_.verification) if pass_.verification else None,
            "batch_size": max_rows,
            "seconds": seconds,
        },
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


def _effect_record(
    loaded: LoadedModel, step: StepRecord, groups: Sequence[Group] | None, effects: StepEffects
) -> EffectRecord:
    n_layers, n_hidden = len(step.l2), len(step.positions if groups is None else groups)
    ids = np.unique(effects.top1).tolist()
    texts, _ = token_texts(loaded.tokenizer, ids)

    def of_layers(values: np.ndarray) -> np.ndarray:
        """[L, hidden]; the only window of all layers is around each of them."""
        return np.broadcast_to(values.reshape(-1, n_hidden), (n_layers, n_hidden)).copy()

    return EffectRecord(
        of_layers(effects.logit_change),
        of_layers(effects.logprob_change),
        of_layers(effects.kl_divergence),
        of_layers(effects.top1),
        dict(zip(ids, texts, strict=True)),
        effects.floor,
        None if groups is None else tuple((group.name, group.positions) for group in groups),
        effects.likeliest,
        effects.rounding,
    )


def describe_run(loaded: LoadedModel, prepared: Prepared, decoder: Decoder) -> dict[str, Any]:
    """What a meta file says of a run besides the measurements; JSON types only."""
    prompt, encoded, settings = prepared.prompt, prepared.encoded, prepared.settings
    model = loaded.model
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
        "max_image_resolution": settings.max_image_resolution,
        "notices": [loaded.note] if loaded.note else [],
        "ablation": settings.ablation,
    }  # fmt: skip


def _effect_settings(settings: RunSettings) -> dict[str, Any] | None:
    if not settings.effect:
        return None
    return {"window": settings.window, "queries": settings.queries, "groups": settings.groups}
