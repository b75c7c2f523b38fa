"""Build a tiny random model of every decoder of the installed transformers, and see what it is made of.

    python tools/families.py                a table in Markdown, of all causal and image-text classes
    python tools/families.py NAME ...       only these model types
    python tools/families.py --json         a line of JSON for each
    python tools/families.py --kind text --write    write docs/reference/models.md

A model is built from its default config with small numbers (`shrunk`), or from the table of `tests/family_models.py`. The
oracle of `tests/family_oracle.py` runs it, and the local impact that `engine.riding` measures is compared with it. Each
model has a process of its own, with a limit of time and of memory.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import family_models  # noqa: E402
import family_oracle  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import CONFIG_MAPPING, PreTrainedConfig  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from mask_impact.engine.riding.engine import RidingEngine  # noqa: E402

MAPPINGS = {"text": MODEL_FOR_CAUSAL_LM_MAPPING, "image-text": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
NAMES = {"text": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "image-text": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
LARGEST = 30_000_000  # parameters of a model that still counts as tiny
COLUMNS = ("model_type", "kind", "built", "given", "interface", "softmax", "others", "has", "engine", "opaque")

# What a number of a config becomes, by parts of its name; the first that fits. A number below it stays.
SMALL = (
    (("vocab",), family_models.VOCABULARY),
    (("layer_offset", "n_group", "topk_group", "mamba_n_groups"), 1),
    (("layer_period", "experts_per_tok", "top_k", "topk", "moe_k"), 2),
    (("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    (("num_attention_heads", "n_head", "num_heads", "attention_heads", "n_heads", "mamba_heads"), 4),
    (("d_head",), 32),
    (("d_ssm",), 128),
    (("rotary_dim",), 8),
    (("head_dim", "head_size", "headdim"), 16),
    (("num_hidden_layers", "n_layer", "num_layers", "depth", "encoder_layers", "decoder_layers", "num_blocks"), 3),
    (("experts", "num_local"), 4),
    (("lora_rank", "_rank"), 16),
    (("max_position", "n_positions", "max_seq", "n_ctx", "max_source", "max_target"), 128),
    (("sliding_window", "window_size", "chunk_size", "attention_window"), family_models.WINDOW),
    (("intermediate", "ffn", "inner", "mlp_dim", "d_ff", "moe_hidden"), 96),
    (("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "hidden_dim", "width", "projection_dim"), 64),
    (("output_dim", "out_hidden", "input_dim", "state_size", "d_state"), 64),
)
KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")
# What a type needs beside that.
SPECIAL = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "glm5_next_text": {"index_topk": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention"]},
}


def shrunk(config):
    """Keyword arguments of a config like this one with small numbers, and of the configs in it."""
    arguments = {}
    fields = type(config).__dataclass_fields__
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            arguments[name] = shrunk(value) | {"model_type": value.model_type}
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            arguments[name] = token_id(name)
        elif isinstance(value, int) and not isinstance(value, bool) and name in fields:
            number = next((small for parts, small in SMALL if any(part in name for part in parts)), value)
            arguments[name] = min(value, number)
    layers = arguments.get("num_hidden_layers") or 3
    for name in KINDS_OF_LAYERS:
        kinds = getattr(config, name, None)
        if name in fields and isinstance(kinds, list | tuple) and kinds:
            arguments[name] = few_of_each(kinds, layers)
    if "kv_lora_rank" in fields and "num_key_value_heads" in arguments:
        arguments["num_key_value_heads"] = arguments["num_attention_heads"]
    has_sections = "mrope_section" in (config.ignore_keys_at_rope_validation or ())
    if has_sections and "rope_type" in (config.rope_parameters or ()):
        arguments["rope_parameters"] = family_models.MROPE
    return arguments | SPECIAL.get(config.model_type, {})


def few_of_each(kinds, number):
    """Some entries of a list of kinds of layers, each kind at least once if `number` allows it, as they come."""
    first = list(dict.fromkeys(kinds))[-number:]
    return first + [first[-1]] * (number - len(first))


def token_id(name):
    """An id of the special ones: of an image what family_models says, of others one that no prompt has."""
    if name.startswith("image_token"):
        return family_models.IMAGE
    ends = {"pad": 1, "bos": 2, "eos": 3}
    return ends.get(name[:3], family_models.IMAGE + 1 + sum(map(ord, name)) % 8)


def build(name, kind):
    """A tiny model of this type, from the table of the tests or from its default config."""
    if name in (*family_models.FAMILIES, *family_models.VISION_LANGUAGE_FAMILIES):
        in_table = name in family_models.FAMILIES
        if in_table == (kind == "text"):
            return family_models.family_model(name, dtype=torch.float64)
    config_class = CONFIG_MAPPING[name]
    config = config_class(**shrunk(config_class()))
    try:
        return family_models.build(config, MAPPINGS[kind], dtype=torch.float64)
    except AttributeError:  # a causal class that takes the config of its text alone
        if config.get_text_config() is config:
            raise
        model_class = MAPPINGS[kind][type(config)]
        config = config.get_text_config()
        return family_models.build(config, {type(config): model_class}, dtype=torch.float64)


def given(model):
    """Inputs that the model takes, with an image where family_models knows how, and what they are in one word."""
    if model.config.model_type in family_models.VISION_LANGUAGE_FAMILIES:
        return family_models.family_inputs(model), "image"
    return family_models.family_inputs(model, text_only=True), "text"


def measure(model, inputs):
    """How far local impact is from the oracle: {"engine": the largest relative error, "opaque": classes of modules that full
    states ride through}."""
    expected = family_oracle.measure(model, inputs)
    with torch.no_grad(), family_oracle.in_float64(), RidingEngine(model) as engine:
        model(**inputs)
    measured = [
        family_oracle.Distances(layer[:, 0], layer[:, 1], layer[:, 2:].T)
        for layer in engine.steps[0].l2.double().numpy()
    ]
    opaque = {type(module).__name__ for module in engine.layers.known.opaque.modules}
    softmax = [layer for layer in expected if layer is not None]
    return {"engine": family_oracle.largest_error(measured, softmax), "opaque": sorted(opaque)}


def look(name, kind):
    """What there is to say about one model type: a row of the table."""
    row = {"model_type": name, "kind": kind}
    try:
        model = build(name, kind)
    except (Exception, SystemExit) as error:
        return row | {"built": short(error)}
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if n_parameters > LARGEST:
        return row | {"built": f"too large: {n_parameters / 1e6:.0f} million parameters"}
    row["built"] = "yes"
    try:
        inputs, row["given"] = given(model)
        oracle = family_oracle.Oracle(model)
        with torch.no_grad(), family_oracle.in_float64():
            expected = model(**inputs, use_cache=False).logits[0, -1]
        got = oracle.logits(inputs)
    except Exception as error:
        nobody = "no module calls" in str(error)
        return row | {"interface": "no" if nobody else f"does not run: {short(error)}"}
    n_softmax = sum(bool(modules) for modules in oracle.attentions)
    gap = float((got - expected).abs().max() / expected.abs().max())
    row |= {"interface": "yes" if gap < 1e-6 else f"yes, off by {gap:.0e}"}
    row |= {"softmax": n_softmax, "others": len(oracle.layers) - n_softmax}
    try:
        row["has"] = sorted(parts(oracle, inputs))
        return row | measure(model, inputs)
    except Exception as error:
        return row | {"engine": short(error)}


def parts(oracle, inputs):
    """What a decoder has, as found by running it: softcap, sinks, position_bias, experts, and:

    unseen keys: the last query does not see all positions, because of a window, chunks or sparse attention.
    parallel: a layer's output moves exactly as the attention's row does, though other modules with weights run in it;
    attention alone: none do.
    """
    found = set(oracle.features)
    modules = {name for layer in oracle.layers for name, _ in layer.named_modules()}
    if any(name.rpartition(".")[2] == "experts" for name in modules):
        found.add("experts")
    oracle.knows_attn = True  # a guess where nobody has read the modeling file: what the attention module returns
    for index, layer in enumerate(oracle.measure(inputs)):
        if layer is not None:
            if (layer.full == 0).any():
                found.add("unseen keys")
            if layer.full.max() > 0 and np.allclose(layer.full, layer.attn, rtol=1e-9, atol=1e-12):
                inside = sum(parameter.numel() for one in oracle.attentions[index] for parameter in one.parameters())
                matrices = sum(one.numel() for one in oracle.layers[index].parameters() if one.dim() > 1)
                found.add("parallel" if matrices > 1.01 * inside else "attention alone")
    return found


def short(error):
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 110 else text[:107] + "..."


def child(pipe, name, kind, gigabytes):
    """One model in this process, which ends with it."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        pipe.send(look(name, kind))
    except BaseException as error:  # whatever happens, there is a row
        traceback.print_exc()
        pipe.send({"model_type": name, "kind": kind, "built": short(error)})


def looked(name, kind, seconds, gigabytes):
    """`look` in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender, name, kind, gigabytes))
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(seconds) else {"built": f"nothing after {seconds} s"}
    except EOFError:
        process.join()
        row = {"built": f"its process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {"model_type": name, "kind": kind} | row


def cell(value):
    """A value in the table."""
    if isinstance(value, float):
        return f"{value:.1e}"
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|")


DOCUMENT = ROOT / "docs" / "reference" / "models.md"
HEAD = """\
# Models of transformers

Every text model of transformers {version}, built tiny with random weights in float64. Its local impact is compared with
brute force, which hides each token from the last position of a layer and runs the layer again. `python tools/families.py
--kind text --write` makes this page.

What is in the first table has been tried, not proven for your checkpoint: that is done when it first runs, and `mask-impact
verify MODEL` shows how exact it is there. It also says why effects can't be had, where they can't.

## Measured

- layers: how many of them have softmax attention, and how many have none. Those that have one are measured.
- error: the largest relative difference from brute force, of `Full`, `Attn` and every head.
- as a whole: modules whose operations have no rule of their own. The states of all hidden tokens go through them, and
  a result gets a noise floor.

| model_type | layers | has | error | as a whole |
|---|---|---|---|---|
"""
REST = """
## Not measured

| model_type | why |
|---|---|
"""


def document(rows):
    """The page of the documentation that says what was measured, and what was not."""
    measured = [row for row in rows if isinstance(row.get("engine"), float)]
    text = HEAD.format(version=transformers.__version__)
    for row in measured:
        layers = f"{row['softmax']} + {row['others']} without" if row["others"] else str(row["softmax"])
        error = "0" if row["engine"] == 0 else f"{row['engine']:.0e}"
        cells = [f"`{row['model_type']}`", layers, cell(row["has"]), error, cell([f"`{one}`" for one in row["opaque"]])]
        text += f"| {' | '.join(cells)} |\n"
    text += REST
    for row in rows:
        if row not in measured:
            text += f"| `{row['model_type']}` | {cell(why_not(row))} |\n"
    return text


def why_not(row):
    """Why a row has no error."""
    if row.get("built") != "yes":
        return f"could not be built tiny: {row['built']}"
    if row["interface"] == "no":
        return "its layers do not call transformers' attention interface"
    if "engine" not in row:
        return f"the oracle: {row['interface']}"
    return row["engine"]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model_type; all, if none is given")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each instead of the table")
    parser.add_argument("--kind", choices=list(NAMES), help="only the causal, or only the image-text classes")
    parser.add_argument("--seconds", type=float, default=60, help="for one model (default: 60)")
    parser.add_argument("--gigabytes", type=float, default=8, help="of address space for one model (default: 8)")
    parser.add_argument("--write", action="store_true", help="write it as a page of the documentation")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known = {name for names in NAMES.values() for name in names}
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"{', '.join(unknown)}: not among the causal and image-text classes of transformers")
    rows = []
    if not args.json and not args.write:
        print(f"transformers {transformers.__version__}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for kind, names in NAMES.items():
        for name in names if args.kind in (None, kind) else ():
            if not args.names or name in args.names:
                rows.append(row := looked(name, kind, args.seconds, args.gigabytes))
                line = f"| {' | '.join(cell(row.get(column, '')) for column in COLUMNS)} |"
                print(json.dumps(row) if args.json else name if args.write else line, flush=True)
    if args.write:
        DOCUMENT.write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
