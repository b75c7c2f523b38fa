"""Batch files and datasets become jobs, or an error for each thing that is wrong, with its line."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from marks import slow_but
from pyarrow import parquet

from mask_impact.analyses.settings import RunSettings, of_class
from mask_impact.errors import InputError, UsageError
from mask_impact.prompts import yaml_file
from mask_impact.prompts.yaml_file import ConfigError
from mask_impact.studies import dataset_files
from mask_impact.studies.config import BatchConfig, load_config
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.jobs import Job, Problem
from mask_impact.studies.schema import DefaultsLevel, FileLevel, ModelLevel, PromptLevel, accepted

REPOSITORY = Path(__file__).parents[2]
LAST = "prompts: [{name: a, prompt: x}]"  # what makes a valid file of what stands before it
PNG = b"\x89PNG: there, which is all that is asked of an image here"


@pytest.fixture
def folder(tmp_path):
    """Where config files go, with two images, a text and a model in it; and not the working folder."""
    (tmp_path / "sub").mkdir()
    for name in ("one.png", "sub/two.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "question.txt").write_bytes(b"\xef\xbb\xbfWhat is\n2+2?\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model.gguf").touch()
    return tmp_path


@pytest.fixture
def load(folder):
    """text, kind, flags -> BatchConfig"""

    def load(text, kind="vl", **flags):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "c.yaml").write_bytes(data)
        return load_config(folder / "c.yaml", kind=kind, overrides=flags)

    return load


@pytest.fixture
def problems(load, folder):
    """text, kind, flags -> what is wrong, "LINE: problem" each."""

    def problems(text, kind="vl", **flags):
        with pytest.raises(ConfigError) as caught:
            load(text, kind, **flags)
        assert str(caught.value) == "; ".join(caught.value.problems)
        prefix = f"{folder / 'c.yaml'}:"
        assert all(problem.startswith(prefix) and "\n" not in problem for problem in caught.value.problems)
        return [problem.removeprefix(prefix) for problem in caught.value.problems]

    return problems


# --- what a file says -----------------------------------------------------------------------------------------------------


def test_every_key_of_a_file(load, folder):
    found = load("""
model: {path: Qwen/Qwen3-VL-4B-Instruct, device: "cuda:1", dtype: bfloat16, revision: main, max_image_resolution: 900}
batch_size: 7
formats: [parquet, CSV]
output_dir: results/today
defaults: {num_tokens: 2, variants: "heads, Full", verify: 3, enabled: yes}
prompts:
  - name: first
    prompt: "<image> and <image>?"
    image_path: [one.png, sub/two.png]
    mask_mode: VISION
    raw: true
    batch_size: null
  - {name: skipped, enabled: false, prompt: nowhere.txt, image_path: nowhere.png}
  - {name: second, prompt: question.txt, num_tokens: 1, max_image_resolution: 64, variants: [attn], mask_mode: all, verify: 0}
""")
    images = (str(folder / "one.png"), str(folder / "sub/two.png"))
    first = RunSettings(
        num_tokens=2, variants=("full", "heads"), raw=True, verify=3, mask_mode="vision", max_image_resolution=900
    )
    second = RunSettings(num_tokens=1, variants=("attn",), batch_size=7, mask_mode="both", max_image_resolution=64)
    assert found == BatchConfig(
        model="Qwen/Qwen3-VL-4B-Instruct",
        revision="main",
        device="cuda:1",
        dtype="bfloat16",
        formats=("csv", "parquet"),
        output_dir=folder / "results/today",
        jobs=(Job("first", "<image> and <image>?", images, first, {}), Job("second", "What is\n2+2?", (), second, {})),
        n_disabled=1,
    )


def test_what_is_expected_and_labels_are_carried_along(load):
    found = load(
        """
prompts:
  - {name: a, prompt: x, expected: [yes, "no"], labels: {category: sum, level: 2}}
  - {name: b, prompt: x, expected: "4"}
  - {name: c, prompt: x, expected: null, labels: null}
""".replace("[yes", '["yes"')
    )
    assert [job.carried for job in found.jobs] == [
        {"category": "sum", "level": 2, "expected": ["yes", "no"]},
        {"expected": "4"},
        {},
    ]


def test_what_is_not_said_is_as_on_the_command_line(load):
    found = load(LAST)
    assert found == BatchConfig(None, None, "auto", "auto", None, Path("output"), found.jobs, 0)
    assert found.jobs == (Job("a", "x", (), RunSettings(), {}),)


def test_null_is_as_if_not_said(load):
    keys = (
        "model",
        "defaults",
        "device",
        "dtype",
        "revision",
        "formats",
        "output_dir",
        "batch_size",
        "max_image_resolution",
    )
    for text in (
        "".join(f"{key}:\n" for key in keys),
        "model: {path: null, device: null, dtype: null, revision: null}\n",
    ):
        assert load(text + LAST) == load(LAST)
    assert load("prompts: [{name: a, prompt: x, image_path: null, batch_size: null, raw: null}]") == load(LAST)
    assert load("prompts: [{name: a, prompt: x, image_path: []}]") == load(LAST)


def test_the_model_may_be_a_mapping_a_text_and_keys_at_the_top(load):
    expected = load("model: {path: demo, device: cpu, dtype: float32, revision: r, batch_size: 3}\n" + LAST)
    assert expected.jobs[0].settings.batch_size == 3
    assert load("model: demo\ndevice: cpu\ndtype: float32\nrevision: r\nbatch_size: 3\n" + LAST) == expected
    both = "model: {path: demo, device: cpu, batch_size: 3}\ndevice: cpu\ndtype: float32\nrevision: r\nbatch_size: 3\n"
    assert load(both + LAST) == expected


def test_formats_are_a_list_or_a_text(load):
    for formats in ("json, csv", "[JSON, csv]", '["json", " csv "]'):
        assert load(f"formats: {formats}\n" + LAST).formats == ("csv", "json")


def test_models_that_are_not_files_here_stay_as_they_are(load, folder):
    (folder / "demo").mkdir()
    for path in ("demo", "smollm2", "Qwen/Qwen3-1.7B", "https://example.org/model", "nowhere.gguf", "~/m"):
        assert load(f"model: {path}\n" + LAST).model == path


def test_a_model_beside_the_file_is_found_there(load, folder):
    for path in ("model", "./model", "model.gguf", "sub/../model"):
        assert load(f"model: {path}\n" + LAST).model == os.path.normpath(folder / path)


def test_paths_are_relative_to_the_file_wherever_one_is(load, folder, monkeypatch):
    text = "output_dir: out\nprompts: [{name: a, prompt: question.txt}, {name: b, prompt: x, image_path: one.png}]"
    load(text)
    monkeypatch.chdir(folder.parent)
    found = load_config(f"{folder.name}/c.yaml", kind="vl")
    assert found.output_dir == Path(folder.name) / "out"
    assert (found.jobs[0].prompt, found.jobs[1].images) == ("What is\n2+2?", (str(folder / "one.png"),))
    absolute = f"output_dir: {folder / 'x'}\nprompts: [{{name: a, prompt: x, image_path: {folder / 'one.png'}}}]"
    assert load(absolute).output_dir == folder / "x"
    assert load(absolute).jobs[0].images == (str(folder / "one.png"),)


def test_urls_stay_as_they_are(load):
    text = "prompts: [{name: a, prompt: x, image_path: 'HTTPS://example.org/a b.png'}]"
    assert load(text, allow_remote=True).jobs[0].images == ("HTTPS://example.org/a b.png",)


def test_a_byte_order_mark_and_windows_line_ends_are_nothing(load, problems):
    assert load(b"\xef\xbb\xbf" + f"model: demo\r\n{LAST}\r\n".encode()).model == "demo"
    assert problems("\ufeffmodel: demo\r\nmodl: x\r\n" + LAST)[0].startswith("2: unknown key 'modl'")


def test_yaml_s_words_for_true_and_its_aliases_and_merge_keys(load, folder):
    found = load("""
defaults: &shared {num_tokens: 4, raw: on}
prompts:
  - &first
    name: first
    prompt: &text "hello: world"
    image_path: &images [one.png, one.png]
    mask_mode: vision
  - {name: second, prompt: *text, image_path: *images}
  - {<<: *first, name: third, mask_mode: text}
  - {name: "4", prompt: *text, <<: [*shared, {num_tokens: 9, verify: 1}]}
""")
    assert [job.name for job in found.jobs] == ["first", "second", "third", "4"]
    assert [job.settings.mask_mode for job in found.jobs] == ["vision", "both", "text", "both"]
    assert [len(job.images) for job in found.jobs] == [2, 2, 2, 0]
    assert {job.settings.num_tokens for job in found.jobs} == {4}
    assert [job.settings.verify for job in found.jobs] == [0, 0, 0, 1]
    assert all(job.prompt == "hello: world" and job.settings.raw for job in found.jobs)


def test_what_yaml_1_1_would_make_numbers_and_dates_of_is_text(load):
    for name in ("007", "2024-01-01", "1:30", "0x10", "=", "1e3", "héllo wörld", "a.csv", "日本"):
        (job,) = load(f"prompts: [{{name: {name.replace(':', '-')}, prompt: {name}}}]").jobs
        assert (job.name, job.prompt) == (name.replace(":", "-"), name)


def test_merge_signs_in_values_are_text(load):
    assert load("prompts: [{name: a, prompt: <<}]").jobs[0].prompt == "<<"


def test_a_prompt_is_kept_to_the_letter(load):
    text = (
        "prompts:\n- name: a\n  prompt: |\n    <|im_start|>user\n    x.txt\n- name: b\n  prompt: |-\n    a\n    q.txt\n"
    )
    assert [job.prompt for job in load(text).jobs] == ["<|im_start|>user\nx.txt\n", "a\nq.txt"]


def test_text_models_take_every_mode_but_vision(load):
    for mode in ("text", "both", "all", "Text"):
        (job,) = load(f"prompts: [{{name: a, prompt: <image>, mask_mode: {mode}, image_path: null}}]", "text").jobs
        assert job.settings.mask_mode == {"all": "both"}.get(mode, mode.lower())


def test_a_disabled_prompt_needs_no_files_and_leaves_its_name_to_others(load):
    text = "prompts: [{name: a, prompt: x}, {name: A, prompt: no.txt, image_path: no.png, enabled: false}]"
    assert load(text).n_disabled == 1
    text = "defaults: {enabled: false}\nprompts: [{name: a, prompt: x}, {name: b, prompt: x, enabled: true}]"
    assert [job.name for job in load(text).jobs] == ["b"]


# --- flags ----------------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_where_they_are_given(load):
    text = """
model: {path: demo, revision: r, device: cpu, dtype: float16, max_image_resolution: 5}
formats: csv
output_dir: here
defaults: {num_tokens: 2, variants: [full], batch_size: 3, raw: true, verify: 4, mask_mode: text}
prompts: [{name: a, prompt: x, image_path: one.png, num_tokens: 6}]
"""
    settings = {
        "num_tokens": 9, "variants": ("heads", "attn"), "batch_size": 8, "raw": False, "verify": 1, "mask_mode": "VISION",
        "max_image_resolution": 7, "allow_remote": True,
    }  # fmt: skip
    place = {
        "model": "m",
        "revision": "s",
        "device": "cuda",
        "dtype": "auto",
        "formats": "parquet",
        "output_dir": "there",
    }
    found = load(text, **settings, **place)
    expected = RunSettings(**settings | {"variants": ("attn", "heads"), "mask_mode": "vision"})
    jobs = (Job("a", "x", found.jobs[0].images, expected, {}),)
    assert found == BatchConfig("m", "s", "cuda", "auto", ("parquet",), Path("there"), jobs, 0)
    assert load(text, **dict.fromkeys({**settings, **place})) == load(text)


def test_a_model_flag_leaves_out_the_revision_of_another_model(load):
    assert load("model: {path: Qwen/Qwen3-1.7B, revision: r}\n" + LAST, model="demo").revision is None


def test_flags_that_can_t_be_right_are_not_the_file_s_fault(load, folder):
    (folder / "d.csv").write_text("prompt\nx\n")
    for flags, error in (
        ({"num_tokens": 0}, UsageError), ({"mask_mode": "visio"}, UsageError), ({"formats": "xml"}, UsageError),
        ({"variants": ("full", "x")}, UsageError), ({"colour": 1}, TypeError), ({"colour": None}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error):
            load("nonsense", **flags)
        with pytest.raises(error):
            read_dataset(folder / "d.csv", kind="vl", defaults=flags)


def test_precedence_whatever_is_given_where(load):
    """Every level gives some of the keys, each its own value: the first level that gives a key decides."""
    rng = random.Random(1)
    for _ in range(60):
        levels = {}
        for level, keys in {
            "flags": ("num_tokens", "batch_size", "max_image_resolution", "verify"),
            "prompt": ("num_tokens", "batch_size", "max_image_resolution", "verify"),
            "defaults": ("num_tokens", "batch_size", "max_image_resolution", "verify"),
            "top": ("batch_size", "max_image_resolution"),
        }.items():
            levels[level] = {key: rng.randrange(1, 1000) for key in keys if rng.random() < 0.5}
        model = {key: levels["top"].pop(key) for key in list(levels["top"]) if rng.random() < 0.5}
        prompt = {"name": "a", "prompt": "x"} | levels["prompt"]
        data = {"model": model, **levels["top"], "defaults": levels["defaults"], "prompts": [prompt]}
        settings = load(yaml.safe_dump(data), **levels["flags"]).jobs[0].settings
        wins = {**model, **levels["top"], **levels["defaults"], **levels["prompt"], **levels["flags"]}
        expected = RunSettings(
            num_tokens=wins.get("num_tokens", 1),
            batch_size=wins.get("batch_size"),
            verify=wins.get("verify", 0),
            max_image_resolution=wins.get("max_image_resolution"),
        )
        assert settings == expected


# --- what is wrong in a file ----------------------------------------------------------------------------------------------

WRONG_VALUES = {
    "name": (["yes", "12", "1.5", "null", "[a]", "{a: b}"], "name must be text, not "),
    "prompt": (["no", "42", "", "~", "[x]"], "prompt must be text, not "),
    "num_tokens": (['"5"', "yes", "1.0", "0", "-3", "null", "five", "[1]", "010", "1e3"], "a whole number, at least 1, not "),
    "batch_size": (['"5"', "true", "0", "2.5"], "a whole number, at least 1, or null (by free memory), not "),
    "max_image_resolution": (['"5"', "true", "0", "640x480"], "a whole number of pixels, at least 1, or null"),
    "video_fps": (['"5"', "true", "0", "null"], "video_fps must be a number of frames in a second, above 0, not "),
    "video_frames": (['"5"', "true", "0", "2.5"], "video_frames must be a whole number of frames, at least 1, not "),
    "video_path": (["5", "true", "{a: b}", "[a, null]", "[[a]]", '""', '[""]'], "video_path must be a path, a list of paths, o"),
    "verify": (['"5"', "true", "-1", "null"], "verify must be a whole number, at least 0, not "),
    "ablation": (["blur", "null", "[mask]"], "ablation must be mask, zero-value or mean-value, not "),
    "effect": (['"yes"', "1", "null"], "effect must be true or false, not "),
    "window": (['"9"', "0", "2.5", "some"], "window must be a whole number of layers, at least 1, or all, not "),
    "queries": (["first", "null"], "queries must be last or all, not "),
    "top": (['"5"', "0", "all"], "top must be a whole number, at least 1, or null (all of them), not "),
    "groups": (["5", '""', "[a]"], "groups must be text: tokens, words, or a path of a YAML file of groups, or null (words "),
    "answer": (["5", "null", "text"], "answer must be true or false, not "),
    "target": (["5", '""', "null"], "target must be text: answer, thinking, all, each, numbers of produced tokens (0-4), or "),
    "instead": (["5", '""'], "instead must be text, or null (all other tokens), not "),
    "measure": (["5", "odds", "null"], "measure must be log-odds or log-prob, not "),
    "budget": (["0", "null", "1.5"], "budget must be a whole number of forward passes, at least 1, not "),
    "routes": (["5", '""'], "routes must be text: auto, flows such as image -> last, with ; between them, or a path of a "),
    "matrix": (["5", "null"], "matrix must be true or false, not "),
    "content_only": (["5", "null"], "content_only must be true or false, not "),
    "pixels": (["5", "null"], "pixels must be true or false, not "),
    "by": (["5", "cells"], "by must be search, tokens or patches, or null (search), not "),
    "beam": (["0", "1.5", "null"], "beam must be a whole number of rectangles, at least 1, not "),
    "fills": (["[black]", "null"], "fills must be some of border, mean, blur, grey, not "),
    "split": (["5", "null"], "split must be true or false, not "),
    "deepstack": (["5", "null"], "deepstack must be true or false, not "),
    "region": (["5", '""', "null"], "region must be text: image tokens, such as image 0 rows 1-2, not "),
    "baseline": (["grey", "null"], "baseline must be blank, mean or zero, not "),
    "tower": (["5", "null"], "tower must be true or false, not "),
    "unit": (["cell", "null"], "unit must be patch or token, not "),
    "max_cost": (['"5"', "0", "1e9"], "max_cost must be a whole number of row-layers, at least 1, not "),
    "enabled": (['"yes"', "1", "null", "tru"], "enabled must be true or false, not "),
    "raw": (['"yes"', "0"], "raw must be true or false, or null (as the model needs it), not "),
    "mask_mode": (["vison", "null", "5", "[text]", '""'], "mask_mode must be text, vision, both or all, not "),
    "variants": (["[full, head]", "[]", "null", "5", "[5]", "full;attn"], "variants must be some of full, attn, heads, "),
    "image_path": (["5", "true", "{a: b}", "[a, null]", "[[a]]", '""', '[""]'], "image_path must be a path, a list of paths, o"),
    "device": (["gpu", "'cuda:'", "5", '""', "[cpu]"], "device must be auto, cpu, cuda, cuda:N or mps, not "),
    "dtype": (["bf16", "16", "[float16]"], "dtype must be auto, float32, bfloat16 or float16, not "),
    "revision": (["1234567", '""', "[a]"], "revision must be text: a branch, tag or commit, not "),
    "path": (["5", '""', "[demo]"], "path must be text: a hub id, a folder, a .gguf file, demo or smollm2, not "),
    "formats": (["[csv, xml]", "[]", "5", "csv;json", "{csv: json}"], "formats must be some of csv, json, parquet, not "),
    "output_dir": (["5", '""', "[a]"], "output_dir must be text: a folder, not "),
    "model": (["5", "[demo]", "true"], "model must be a hub id or path, or a mapping with path, revision, device, dtype"),
    "expected": (["5", "[]", "[a, 5]", '""', "{a: b}"], "expected must be text: the expected answer, or a list of texts"),
    "labels": (["5", "[a]", "text", "{a: [b]}", "{a: null}"], "labels must be a mapping from names to texts, numbers, or true"),
    "defaults": (["5", "[a]", "text", "false"], "defaults must be a mapping of what prompts have in common"),
    "prompts": (["5", "[]", "null", "{name: a, prompt: x}", "text"], "prompts must be a list, not empty, of mappings"),
}  # fmt: skip


def test_every_key_has_wrong_values_and_says_what_it_takes():
    levels = (FileLevel, ModelLevel, DefaultsLevel, PromptLevel)
    known = {key for level in levels for key in level.model_fields}
    assert set(WRONG_VALUES) == known
    assert all(accepted(key) for key in known | {"image"})
    settings = {one.name for one in of_class(RunSettings)}
    assert settings | {"image_path", "video_path", "enabled"} == set(DefaultsLevel.model_fields) | {"allow_remote"}


def lines_with(key, value):
    """(text, line of the key) for each place where the key may stand."""
    if key in PromptLevel.model_fields:
        others = "".join(f"    {other}: a\n" for other in ("name", "prompt") if other != key)
        yield (
            f"prompts:\n  - enabled: true\n    {key}: {value}\n{others}".replace(
                "enabled: true\n", "\n" if key == "enabled" else "enabled: true\n"
            ),
            3,
        )
    if key in DefaultsLevel.model_fields:
        yield f"# comment\n\ndefaults:\n  {key}: {value}\n" + LAST, 4
    if key in ModelLevel.model_fields:
        yield f"model:\n\n  {key}: {value}\n" + LAST, 3
    if key == "prompts":
        yield f"model: demo\nprompts: {value}\n", 2
    elif key in FileLevel.model_fields:
        yield (
            f"device: cpu\n{key}: {value}\n{LAST}".removeprefix("device: cpu\n" * (key == "device")),
            1 + (key != "device"),
        )


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_a_wrong_value_is_one_problem_in_its_line(problems, key):
    values, said = WRONG_VALUES[key]
    for text, line in (place for value in values for place in lines_with(key, value)):
        (problem,) = problems(text)
        assert problem.startswith(f"{line}: {key} must be "), text
        assert said in problem


def test_a_word_that_is_mistyped_is_told_which_was_meant(problems, folder):
    assert problems("defaults: {mask_mode: visio}\n" + LAST)[0].endswith("not the text 'visio'; did you mean vision?")
    assert problems("defaults: {variants: [full, heds]}\n" + LAST)[0].endswith(
        "not the text 'heds'; did you mean heads?"
    )
    assert problems("dtype: float\n" + LAST)[0].endswith("not the text 'float'; did you mean float32?")
    (problem,) = read_dataset(write(folder / "d.jsonl", [{"prompt": "x", "mask_mode": "txt"}]), kind="vl")
    assert problem.message.endswith("not the text 'txt'; did you mean text?")
    assert "did you mean" not in problems("dtype: 16\n" + LAST)[0]


def test_what_a_value_is_instead_is_said(problems):
    said = {
        '"5"': "not the text '5'", "yes": "not true", "2.5": "not the number 2.5", "": "not null", "[]": "not an empty list",
        "[1]": "not a list", "{a: b}": "not a mapping", "x" * 99: "not the text '" + "x" * 60 + "...'",
    }  # fmt: skip
    for value, words in said.items():
        assert problems(f"defaults:\n  num_tokens: {value}\n" + LAST)[0].endswith(words)
    assert problems("prompts:\n- name: 12\n  prompt: x")[0].endswith("not the number 12 (in quotes it is text)")
    assert problems("prompts:\n- name: a\n  prompt: off")[0].endswith("not false (in quotes it is text)")
    assert problems("defaults: {mask_mode: 5}\n" + LAST)[0].endswith("not the number 5")


ONE = "prompts:\n- name: a\n  "
TEXTS = [
    # unknown keys
    ("modl: demo\n" + LAST, ["1: unknown key 'modl' at the top level; did you mean 'model'? accepted are "]),
    ("model:\n  path: demo\n  Device: cpu\n" + LAST, ["3: unknown key 'Device' under model; did you mean 'device'?"]),
    ("num_tokens: 3\n" + LAST, ["1: unknown key 'num_tokens' at the top level; it may stand under defaults or in a prompt;"]),
    ("defaults:\n  name: x\n" + LAST, ["2: unknown key 'name' under defaults; it may stand in a prompt;"]),
    ("defaults: {prompt: x}\n" + LAST, ["1: unknown key 'prompt' under defaults; it may stand in a prompt;"]),
    (ONE + "prompt: x\n  num_token: 3", ["4: unknown key 'num_token' in a prompt; did you mean 'num_tokens'?"]),
    (ONE + "prompt: x\n  3: 3", ["4: unknown key '3' in a prompt; accepted are max_image_resolution, "]),
    (ONE + "prompt: x\n  allow_remote: true", ["4: unknown key 'allow_remote' in a prompt; "]),
    # missing keys: the line of the mapping
    ("\nmodel: demo", ["2: prompts is missing; it must be a list, not empty, of mappings with name and prompt"]),
    ("prompts:\n- enabled: true\n  prompt: x", ["2: name is missing; it must be text"]),
    ("prompts:\n- name: a\n- {}\n", ["2: prompt is missing", "3: name is missing", "3: prompt is missing"]),
    (ONE + "prompt: x\n-\n- x", ["4: prompts must be a list", "5: prompts must be a list"]),
    # keys twice, at the top and under model
    ("device: cpu\nmodel: {device: cuda}\n" + LAST, ["1: device is the text 'cpu' here and the text 'cuda' under"]),
    ("model: {batch_size: 2}\nbatch_size: 3\n" + LAST, ["2: batch_size is the number 3 here and the number 2 under model"]),
    ("model: {max_image_resolution: null}\nmax_image_resolution: 3\n" + LAST, ["2: max_image_resolution is the number 3"]),
    ("model:\n  device: cpu\n  path: demo\n  device: cpu\n" + LAST, ["4: the key 'device' is given twice, first in line 2"]),
    ("model: demo\n'model': demo\n" + LAST, ["2: the key 'model' is given twice, first in line 1; keep one"]),
    ("prompts: [{name: a, name: a, prompt: x}]", ["1: the key 'name' is given twice, first in line 1; keep one"]),
    ("defaults: &d {verify: 1}\nprompts:\n- name: a\n  <<: *d\n  prompt: x\n  <<: *d", ["6: the key '<<' is given twice"]),
    # names
    (ONE + "prompt: x\n- prompt: y\n  name: a", ["5: the name 'a' is taken, in line 2; give another"]),
    ("prompts:\n- name: Straße\n  prompt: x\n- name: STRASSE\n  prompt: y", ["4: the name 'STRASSE' is taken, in line 2"]),
    ("prompts:\n- name: é\n  prompt: x\n- name: e\u0301\n  prompt: y", ["4: the name 'e\u0301' is taken, in line 2"]),
    ("prompts: [&a {name: a, prompt: x}, *a]", ["1: the name 'a' is taken, in line 1"]),
    ("prompts:\n- name: ../x\n  prompt: x", ["2: the name '../x' contains a path separator"]),
    ("prompts:\n- name: ''\n  prompt: x", ["2: the name '' is empty"]),
    ("prompts:\n- name: CON\n  prompt: x", ["2: the name 'CON' is reserved on Windows"]),
    ("prompts:\n- name: 'a '\n  prompt: x\n  enabled: false", ["2: the name 'a ' begins or ends with a space"]),
    (f"prompts:\n- name: {'x' * 195}\n  prompt: x", ["2: the name 'xxxx"]),
    # prompts and their images
    (ONE + "prompt: ' '", ["3: the prompt is empty; give some text"]),
    (ONE + "prompt: no.txt", ["3: prompt file '{folder}/no.txt' does not exist"]),
    (ONE + "prompt: latin.txt", ["3: prompt file '{folder}/latin.txt' is not UTF-8 (byte 1)"]),
    (ONE + "prompt: empty.txt", ["3: the prompt is empty"]),
    (ONE + "prompt: dir.txt", ["3: prompt file '{folder}/dir.txt' cannot be read: it is a folder"]),
    (ONE + "image_path: one.png\n  prompt: <image> <image>", ["4: the prompt marks 2 places for an image (<image>), and"]),
    (ONE + "prompt: <image>", ["3: the prompt marks 1 place for an image (<image>), and the number of"]),
    (ONE + "prompt: <|image_pad|>\n  image_path: one.png", ["3: the prompt has the model's own token <|image_pad|>"]),
    (ONE + "prompt: x\n  image_path: two.png", ["4: image '{folder}/two.png' does not exist; give a file or URL"]),
    (ONE + "prompt: x\n  image_path: [one.png, sub, ftp://x/y]", ["4: image '{folder}/sub' is", "4: image '{folder}/ftp:/x/y' "]),
    ('prompts:\n- name: a\n  prompt: x\n  image_path: "a\\0\\n"', ["4: image '{folder}/a\\x00\\n' does not exist"]),
    (ONE + "prompt: x\n  image_path: http://x/y.png", ["4: image 'http://x/y.png' is fetched only where "]),
    ("defaults:\n  image_path: two.png\nprompts: [{name: a, prompt: x}, {name: b, prompt: x}]", ["2: image '{folder}/two.png' "]),
    (ONE + "prompt: x\n  mask_mode: vision", ["4: mask_mode vision needs an image; give image_path"]),
    ("defaults: {mask_mode: vision}\nprompts:\n- {name: a, prompt: x, image_path: one.png}\n- {name: b, prompt: y}", ["4: mask"]),
    (ONE + "enabled: no\n  prompt: x\n- {name: b, prompt: x, enabled: false}", ["1: every prompt is disabled (2 of"]),
    ("defaults: {enabled: false}\n" + LAST, ["2: every prompt is disabled (1 of them)"]),
    # the form of the file
    ("", ["1: the file is empty"]),
    ("# only\n# comments\n", ["1: the file is empty"]),
    ("\n- name: a", ["2: no mapping; one with model and prompts is accepted"]),
    ("just text", ["1: no mapping"]),
    ("prompts:\n\t- name: a", ["2: column 1: a tab, where YAML takes only spaces"]),
    (ONE + " prompt: x", ["3: column 10: a ':' where none can be; check the indentation"]),
    (ONE + "prompt: what: this", ["3: column 15: a ':' where none can be"]),
    (ONE + "prompt\n  num_tokens: 3", ["3: column 3: neither 'key: value' nor part"]),
    ("model: demo\nprompts:\n- name: a\n  prompt: \"x\n", ["4: column 11: a quote is opened here and never closed"]),
    ("model: demo\nprompts:\n- name: a\n  prompt: 'it's'\n", ["4: column 15: this does not fit what is above; check inde"]),
    ("model: demo\nformats: [csv, json\n", ["2: column 10: a comma or the closing ] is missing"]),
    ("formats: [csv json]\nmodel: {path: demo\n", ["2: column 8: a comma or the closing } is missing"]),
    (ONE + "prompt: >home", ["3: column 12: text can't begin with | or >"]),
    ("model: demo\nprompts: - a", ["2: column 10: sequence entries are not allowed here; check indentation and quotes"]),
    (ONE + "prompt: @home", ["3: column 11: text can't begin with '@'; put it in quotes"]),
    (ONE + "prompt: %home", ["3: column 11: text can't begin with '%'"]),
    (ONE + "prompt: *bold", ["3: column 11: there is no anchor for the alias 'bold'; put text that begins with *"]),
    ('output_dir: "C:\\data"\n', ["1: column 17: a backslash and 'd' in double quotes"]),
    ("model: demo\n---\nmodel: demo", ["2: column 1: a second document (---) begins here; one is accepted"]),
    ("a: &a x\nb: &a y", ["2: column 4: an anchor with a name that is taken"]),
    ("defaults: &a 5\nmodel:\n  <<: *a", ["1: column 11: << with something else; it takes mappings"]),
    ("model: demo\n[a, b]: c", ["2: column 1: a list or a mapping as a key; keys are text"]),
    ("model: demo\nx: a\0b", ["2: the character U+0000 can't stand in YAML"]),
    (b"model: demo\n# caf\xe9\n", ["2: byte 17 of the file (0xe9) is not UTF-8; save the file as UTF-8"]),
    ("model: demo".encode("utf-16"), ["1: byte 0 of the file (0xff) is not UTF-8"]),
    ("batch_size: " + "9" * 5000, ["1: column 13: '9999"]),
    ("batch_size: !!int five\n", ["1: column 13: 'five' can't be read as its tag"]),
    ("batch_size: !!int ''\n", ["1: column 13: '' can't be read as its tag"]),
    ("enabled: !!bool maybe\n", ["1: column 10: 'maybe' can't be read as its tag"]),
    ("%YAML 1.1\n", ["2: column 1: this does not fit what is above"]),
    ('model: demo\nx: "\\UFFFFFFFF"', ["2: column 7: a code that stands for no character"]),
    # tags
    ("model: demo\noutput_dir: !!python/object/apply:os.system x\n" + LAST, ["2: the tag '!!python/object/apply:os.system' is"]),
    ("model: !include other.yaml\n" + LAST, ["1: the tag '!include' is not accepted"]),
    ("model: !!binary AAAA\n" + LAST, ["1: the tag '!!binary' is not accepted"]),
    ("defaults: !!set {verify}\n" + LAST, ["1: the tag '!!set' is not accepted", "1: verify must be"]),
    ("formats: !!omap [csv]\n" + LAST, ["1: the tag '!!omap' is not accepted"]),
    ("defaults: !!str {verify: 1}\n" + LAST, ["1: the tag '!!str' is not accepted"]),
    ("model: !<tag:x> demo\n" + LAST, ["1: the tag '!!tag:x' is not accepted"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TEXTS)
def test_what_is_wrong_and_in_which_line(problems, folder, text, expected):
    (folder / "latin.txt").write_bytes(b"\x41\xe9")
    (folder / "empty.txt").write_bytes(b"\n\n")
    (folder / "dir.txt").mkdir()
    found = problems(text)
    assert len(found) == len(expected), found
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start.replace("{folder}", str(folder)))
        assert re.search("; |must be|give |taken as", problem), "it says what is accepted"


def test_messages_made_for_flags_name_the_key_of_the_file(problems, folder):
    assert "is 0: give one (image_path) for each mark" in problems(ONE + "prompt: <image>")[0]
    (problem,) = read_dataset(write(folder / "d.jsonl", [{"prompt": "<image>"}]), kind="vl")
    assert "is 0: give one (image) for each mark" in problem.message


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_lines(problems, folder):
    found = problems("""\
modl: demo
device: gpu
defaults:
  num_tokens: "5"
prompts:
  - name: a
    prompt: <image>
    verify: -1
    image_path: no.png
  - name: A
    prompt: no.txt
    prompt: 5
  - prompt: ""
    mask_mode: vision
  - 7
output_dir: []
""")
    lines = [int(problem.partition(":")[0]) for problem in found]
    assert lines == [1, 2, 4, 8, 9, 10, 12, 12, 13, 13, 14, 15, 16]


def test_what_follows_from_another_problem_is_not_said(problems):
    """An image of the wrong type is no missing image."""
    text = "prompts:\n- {name: a, prompt: <image>, image_path: 5, mask_mode: vision}"
    assert [problem[:15] for problem in problems(text)] == ["2: image_path m"]
    text = "defaults:\n  image_path: 5\nprompts: [{name: a, prompt: <image>, mask_mode: vision}]"
    assert [problem[:15] for problem in problems(text)] == ["2: image_path m"]
    text = "prompts:\n- {name: a, prompt: x, enabled: 'false', image_path: no.png}"
    assert [problem[:15] for problem in problems(text)] == ["2: enabled must"]


def test_what_is_wrong_in_an_anchor_is_said_once_and_there(problems):
    text = "prompts:\n- &a\n  name: a\n  num_tokens: 0\n  prompt: x\n- {<<: *a, name: b}\n- {<<: *a, name: c}"
    assert [problem[:13] for problem in problems(text)] == ["4: num_tokens"]
    assert problems("model: &m {path: 5}\n" + LAST + "\ndefaults: *m")[-1].startswith(
        "1: unknown key 'path' under defaults"
    )


def test_text_models_take_no_images(problems, load):
    text = "prompts:\n- name: a\n  prompt: <image>\n  image_path: one.png"
    assert [problem[:40] for problem in problems(text, "text")] == ["4: a text model takes no image; leave it"]
    text = "prompts:\n- name: a\n  prompt: x\n  mask_mode: vision"
    assert problems(text, "text") == ["4: mask_mode vision needs an image; give text or both"]
    assert load(
        "prompts: [{name: a, prompt: x, image_path: one.png, enabled: false}, {name: b, prompt: x}]", "text"
    ).n_disabled


def test_a_mask_mode_flag_holds_for_every_prompt(problems):
    text = "prompts:\n- {name: a, prompt: x, image_path: one.png}\n- {name: b, prompt: x}"
    assert [problem[:24] for problem in problems(text, mask_mode="vision")] == ["3: mask_mode vision need"]


@pytest.mark.parametrize("name", ["nowhere.yaml", ".", "a\0b"])
def test_a_file_that_can_t_be_read(folder, name):
    with pytest.raises(ConfigError, match=r"can't be read: .*; give the path of a YAML file") as caught:
        load_config(f"{folder}/{name}", kind="vl")
    assert caught.value.problems[0].startswith(f"{folder}/{name}: ")


def test_random_mistakes_are_found_in_their_lines(problems, load, folder):
    """A valid file of random keys; then one value of it is wrong, and its line is found by looking for it."""
    rng = random.Random(2)
    right = {
        "num_tokens": [1, 50], "mask_mode": ["text", "Both"], "variants": [["full"], "attn,heads"], "raw": [True, None],
        "verify": [0, 9], "batch_size": [None, 4], "max_image_resolution": [None, 4],
        "image_path": [None, "one.png", ["sub/two.png"]], "enabled": [True],
    }  # fmt: skip

    def some():
        return {key: rng.choice(values) for key, values in right.items() if rng.random() < 0.4}

    for turn in range(60):
        data = {"model": {"path": "demo", "device": "cpu"}, "defaults": some()}
        data["prompts"] = [{"name": f"n{i}", "prompt": "a: b"} | some() for i in range(rng.randrange(1, 4))]
        dump = {"sort_keys": False, "default_flow_style": False}
        assert len(load(yaml.safe_dump(data, **dump)).jobs) == len(data["prompts"])
        place = rng.choice([data["model"], data["defaults"], *data["prompts"]])
        key = rng.choice([*place, "unheard_of"])
        place[key] = {"what": f"mark{turn}"}
        text = yaml.safe_dump(data, **dump)
        line = text[: text.index(f"what: mark{turn}")].count("\n")  # the key is the line above
        assert [problem.split(" ")[0] for problem in problems(text)] == [f"{line}:"], text


def test_any_damage_is_a_configuration_error_and_nothing_else(load, folder):
    """Bytes changed, lost or doubled at random in a real file."""
    rng = random.Random(3)
    good = (REPOSITORY / "prompts_config_vl.yaml").read_bytes().replace(b"examples/shapes.png", b"one.png")
    assert len(load(good).jobs) == 4
    outcomes = {True: 0, False: 0}
    for _ in range(120):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(
                [b"", b"\t", b":", b"[", b'"', b"- ", b"&a ", b"*a", b"\xff", b"!", b"\n", b"{"]
            )
        try:
            load(bytes(data))
            outcomes[True] += 1
        except ConfigError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 5


# --- bombs ----------------------------------------------------------------------------------------------------------------


def laughs(pattern, levels=40):
    lines = ["a0: &a0 {k0: x}" if "<<" in pattern else "a0: &a0 [x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + pattern.replace("*", f"*a{level - 1}").replace("#", str(level)))
    return "\n".join(lines)


MANY, DEEP, ENDLESS = (
    "more than 100,000 keys and values",
    "more than 50 levels in each other",
    "would have no end",
)
BOMBS = {
    "laughs": (laughs("[*, *, *, *, *, *, *, *, *, *]"), MANY),
    "mappings": (laughs("{a: *, b: *, c: *}"), MANY),
    "merges": (laughs("{k#: y, <<: [*, *, *, *]}"), MANY),
    "quadratic": (f"a: &a [{'x, ' * 1000}]\nb: [{'*a, ' * 1000}]", MANY),
    "wide": ("a: [" + "x, " * 200_000 + "]", MANY),
    "recursive": ("a: &a [x, *a]", ENDLESS),
    "recursive merge": ("a: &a {<<: *a}", ENDLESS),
    "recursive deep": ("a: &a {b: {c: [d, *a]}}", ENDLESS),
    "nested": ("a: " + "[" * 100_000, DEEP),
    "nested blocks": ("\n".join(" " * depth + "a:" for depth in range(2000)), DEEP),
    "nested by aliases": (laughs("[*]", 90), DEEP),
    "large": ("a: " + "x" * 10 * 2**20, "larger than 10 MiB, the most that is read; many prompts fit into a dataset"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", slow_but(BOMBS.keys() - {"wide"}, BOMBS))
def test_bombs_are_refused_before_they_go_off(folder, bomb, monkeypatch):
    monkeypatch.delattr(yaml_file._Loader, "value_of")  # nothing is written out
    text, problem = BOMBS[bomb]
    (folder / "c.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=problem) as caught:
        load_config(folder / "c.yaml", kind="vl")
    assert time.process_time() - start < 20
    assert len(caught.value.problems) == 1


def test_the_limits_are_exact(load, problems, monkeypatch):
    assert (yaml_file.MAX_NODES, yaml_file.MAX_BYTES) == (100_000, 10 * 2**20)
    text = "defaults: &d {variants: [full, attn], verify: 2}\nprompts: [{name: a, prompt: x, <<: *d}]"
    shared = 1 + 2 + 3 + 1  # the mapping, its keys, the list with its elements, the number
    n_nodes = 1 + 2 + shared + 1 + 1 + 3 + 2 + shared
    for limit, exact, wrong in (
        ("MAX_NODES", n_nodes, f"more than {n_nodes - 1} keys"),
        ("MAX_BYTES", len(text), "larger than"),
        ("MAX_DEPTH", 6, "more than 5 levels"),
    ):
        monkeypatch.setattr(yaml_file, limit, exact)
        assert load(text).jobs[0].settings.verify == 2
        monkeypatch.setattr(yaml_file, limit, exact - 1)
        with pytest.raises(ConfigError, match=wrong):
            load(text)
        monkeypatch.undo()


def test_many_prompts_are_read(load):
    prompts = "".join(f"- {{name: n{i}, prompt: x}}\n" for i in range(1000))
    assert len(load(f"prompts:\n{prompts}").jobs) == 1000


def test_no_tag_runs_anything(problems, folder):
    text = f'output_dir: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ["{folder}/touched"]]\n'
    assert problems(text + LAST)[0].startswith("1: the tag '!!python/object/apply:pathlib.Path' is not accepted")
    assert not (folder / "touched").exists()


# --- the files that are shipped -------------------------------------------------------------------------------------------


def test_the_shipped_files_load():
    vl = load_config(REPOSITORY / "prompts_config_vl.yaml", kind="vl")
    assert [job.name for job in vl.jobs] == ["two_plus_two", "capital", "conversation", "star"]
    assert (vl.model, vl.n_disabled, vl.output_dir) == ("demo", 0, REPOSITORY / "output")
    star = vl.jobs[3]
    assert (star.prompt, star.settings.mask_mode) == ("What color is the star?", "both")
    assert star.images == (str(REPOSITORY / "examples/shapes.png"),)
    assert vl.jobs[2].prompt.startswith("<|im_start|>user\n")
    text = load_config(REPOSITORY / "prompts_config.yaml", kind="text")
    assert (text.model, len(text.jobs)) == ("demo", 3)
    assert not {job.name for job in vl.jobs} & {job.name for job in text.jobs}  # both write to output/


def test_the_file_for_images_has_every_key_with_its_default():
    written = yaml.safe_load((REPOSITORY / "prompts_config_vl.yaml").read_text())["defaults"]
    fields = DefaultsLevel.model_fields
    elsewhere = {"max_image_resolution", "batch_size"}  # at the top, where they stand for all prompts too
    assert set(written) == set(fields) - elsewhere
    chosen = {"mask_mode": "text", "raw": False}
    defaults = {key: fields[key].default for key in written}
    assert (
        written == {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} | chosen
    )


def test_neither_torch_nor_what_only_datasets_need_is_imported():
    heavy = {"torch", "transformers", "PIL", "pyarrow", "pandas"}
    code = f"import sys, mask_impact.studies.config, mask_impact.studies.dataset; print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


# --- datasets -------------------------------------------------------------------------------------------------------------

ROWS = [
    {"name": "first", "prompt": "hello", "image": "one.png", "num_tokens": 3, "mask_mode": "VISION", "answer": "yes", "id": 7},
    {"name": None, "prompt": 'a, b\n"quoted" é', "image": None, "num_tokens": None, "mask_mode": None, "answer": "", "id": 8},
    {"name": "third", "prompt": "nowhere.txt", "image": "", "num_tokens": 1, "mask_mode": "all", "answer": "日本", "id": 9},
]  # fmt: skip


def write(path, rows):
    """The rows as the file's suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file)
            writer.writerow(rows[0])
            writer.writerows(["" if value is None else value for value in row.values()] for row in rows)
    return path


SUFFIXES = ("jsonl", "csv", "parquet")


def read(path, kind="vl", **flags):
    return list(read_dataset(path, kind=kind, defaults=flags))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_rows_are_the_same_jobs_in_every_format(folder, suffix, monkeypatch):
    path = write(folder / f"d.{suffix}", ROWS)
    carried = [{key: str(row[key]) if suffix == "csv" else row[key] for key in ("answer", "id")} for row in ROWS]
    image = (str(folder / "one.png"),)
    expected = [
        Job("first", "hello", image, RunSettings(num_tokens=3, mask_mode="vision"), carried[0]),
        Job("row_000002", ROWS[1]["prompt"], (), RunSettings(), carried[1]),
        Job("third", "nowhere.txt", (), RunSettings(mask_mode="both"), carried[2]),
    ]
    assert read(path) == expected
    monkeypatch.chdir(folder.parent)
    assert read(f"{folder.name}/d.{suffix}") == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flags_win_over_rows(folder, suffix):
    path = write(folder / f"D.{suffix}".replace("csv", "CSV") if suffix != "csv" else folder / "d.csv", ROWS)
    flags = {"num_tokens": 9, "mask_mode": "text", "variants": ("heads",), "batch_size": 4, "raw": True, "verify": 2}
    place = {"model": "demo", "output_dir": "x", "max_image_resolution": 77, "allow_remote": None}
    settings = RunSettings(**flags, max_image_resolution=77)
    assert {job.settings for job in read(path, **flags, **place)} == {settings}


def test_a_suffix_in_capitals_is_one(folder):
    os.rename(write(folder / "d.csv", ROWS), folder / "D.CSV")
    assert len(read(folder / "D.CSV")) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_are_a_path_or_a_list_of_them(folder, suffix):
    paths = ["one.png", "sub/two.png"]
    rows = [{"prompt": "<image> x <image>", "image": json.dumps(paths) if suffix == "csv" else paths}]
    (job,) = read(write(folder / f"d.{suffix}", rows))
    assert job.images == tuple(str(folder / path) for path in paths)
    rows = [{"prompt": "x", "image": "https://example.org/x.png"}]
    (job,) = read(write(folder / f"d.{suffix}", rows), allow_remote=True)
    assert job.images == ("https://example.org/x.png",)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_columns_as_pandas_writes_them_are_numbers_and_names(suffix, folder):
    """A missing number makes a column of floats, and names may be numbers."""
    frame = pd.DataFrame(
        {"prompt": ["x", "y"], "name": [7, 8], "num_tokens": [2, None], "max_image_resolution": [None, 64]}
    )
    path = folder / f"d.{suffix}"
    if suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        getattr(frame, f"to_{suffix}")(path, index=False)
    one, other = read(path)
    assert (one.name, one.settings.num_tokens, one.settings.max_image_resolution) == ("7", 2, None)
    assert (other.name, other.settings.num_tokens, other.settings.max_image_resolution) == ("8", 1, 64)


def test_a_csv_image_that_only_looks_like_a_list_is_a_path(folder):
    (folder / "[1] x.png").write_bytes(PNG)
    assert read(write(folder / "d.csv", [{"prompt": "x", "image": "[1] x.png"}]))[0].images == (
        str(folder / "[1] x.png"),
    )


WRONG_ROWS = [
    ({"prompt": 5}, None, "prompt must be text, not the number 5 (in quotes it is text)"),
    ({"prompt": None}, None, "prompt must be text, not null"),
    ({"name": "b"}, "b", "prompt is missing; the row has 'name', and needs prompt or messages or conversations"),
    ({"prompt": " "}, None, "the prompt is empty; give some text"),
    ({"prompt": "x", "name": [3]}, None, "name must be text, not a list"),
    ({"prompt": "x", "name": ""}, "", "the name '' is empty"),
    ({"prompt": "x", "name": "a/b"}, "a/b", "the name 'a/b' contains a path separator"),
    ({"prompt": "x", "name": "OK"}, "OK", "the name 'OK' is that of an earlier row; give another"),
    ({"prompt": "x", "name": "row_000001"}, "row_000001", None),
    ({"prompt": "x", "num_tokens": "3"}, None, "num_tokens must be a whole number, at least 1, not the text '3'"),
    ({"prompt": "x", "num_tokens": True}, None, "num_tokens must be a whole number, at least 1, not true"),
    ({"prompt": "x", "num_tokens": 3.5}, None, "num_tokens must be a whole number, at least 1, not the number 3.5"),
    ({"prompt": "x", "image_path": "a.png"}, None, "image_path is the key of a configuration; in a dataset the column is "),
    ({"prompt": "x", "num_tokens": 0}, None, "num_tokens must be a whole number, at least 1, not the number 0"),
    ({"prompt": "x", "mask_mode": "visio"}, None, "mask_mode must be text, vision, both or all, not the text 'visio'"),
    ({"prompt": "x", "mask_mode": "vision"}, None, "mask_mode vision needs an image; give image"),
    ({"prompt": "x", "image": 5}, None, "image must be a path, a list of paths, or null, not the number 5"),
    ({"prompt": "x", "image": ["one.png", None]}, None, "image must be a path, a list of paths, or null, not null"),
    ({"prompt": "x", "image": {"file": "one.png"}}, None, "image must be a path, a list of paths, or null, not a mapping"),
    ({"prompt": "x", "image": "no.png"}, None, "image '{folder}/no.png' does not exist"),
    ({"prompt": "x", "image": "http://x/y"}, None, "image 'http://x/y' is fetched only where `allow_remote` is given"),
    ({"prompt": "<image>"}, None, "the prompt marks 1 place for an image (<image>), and the number of "),
    ({"prompt": "x", "mask_mode": 3, "num_tokens": 0}, None, "num_tokens must be a whole number, at least 1, not the number 0;"),
    ({"prompt": " ", "name": "x", "image": "no.png"}, "x", "the prompt is empty; give some text; image '{folder}/no.png' does"),
]  # fmt: skip


def test_a_row_that_can_t_be_a_job_is_a_problem_and_the_others_go_on(folder):
    good = {"name": "ok", "prompt": "x"}
    path = write(folder / "d.jsonl", [good, *(row for row, _, _ in WRONG_ROWS), {"prompt": "last"}])
    found = read(path)
    assert (found[0].name, found[-1].name) == ("ok", f"row_{len(WRONG_ROWS) + 2:06d}")
    for number, (item, (_, name, message)) in enumerate(zip(found[1:-1], WRONG_ROWS, strict=True), start=2):
        if message is None:
            assert isinstance(item, Job)
        else:
            assert (item.row, item.name) == (number, name)
            assert item.message.startswith(message.replace("{folder}", str(folder)))
            assert "\n" not in item.message


def test_names_given_by_number_are_taken_too(folder):
    rows = [
        {"prompt": "x"},
        {"prompt": "x", "name": "ROW_000001"},
        {"prompt": "x", "name": "row_000004"},
        {"prompt": "x"},
    ]
    assert [isinstance(item, Problem) for item in read(write(folder / "d.jsonl", rows))] == [False, True, False, True]


def test_text_models_take_no_images_from_rows(folder):
    rows = [{"prompt": "x", "image": "one.png"}, {"prompt": "<image>"}, {"prompt": "x", "mask_mode": "vision"}]
    found = read(write(folder / "d.jsonl", rows), "text")
    assert [type(item) for item in found] == [Problem, Job, Problem]
    assert found[0].message.startswith("a text model takes no image")


LINES = [
    (b'{"prompt": "x"', "column 1 of the line is no JSON: unexpected end of data; {\"prompt\":"),
    (b"prompt: x", "column 1 of the line is no JSON: "),
    (b'{"prompt": NaN}', "column 12 of the line is no JSON: "),
    (b'[{"prompt": "x"}]', "the line must be a JSON object, not a list"),
    (b"5", "the line must be a JSON object, not the number 5"),
    (b'{"prompt": "caf\xe9"}', "byte 15 of the line is not UTF-8"),
    (b'{"prompt": "\\ud800"}', "column "),
    (b"[" * 100_000, "column "),
    (b"\0" * 100, "column 1 of the line is no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), LINES)
def test_lines_that_are_no_rows(folder, line, message):
    (folder / "d.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "x"}\r\n\n  \n' + line + b'\n{"prompt": "y", "name": "b"}'
    )
    first, problem, last = read(folder / "d.jsonl")
    assert (first.name, last.name, problem.row, problem.name) == ("row_000001", "b", 4, None)
    assert problem.message.startswith(message)


def test_a_line_without_end_is_not_held_in_memory(folder, monkeypatch):
    monkeypatch.setattr(dataset_files, "LINE", 1000)
    lines = [b'{"prompt": "' + b"x" * n + b'"}' for n in (10, 5000, 985, 10)]
    (folder / "d.jsonl").write_bytes(b"\n".join(lines))
    found = read(folder / "d.jsonl")
    assert [(type(item), len(getattr(item, "prompt", ""))) for item in found] == [
        (Job, 10),
        (Problem, 0),
        (Job, 985),
        (Job, 10),
    ]
    assert (found[1].row, found[3].name) == (2, "row_000004")


def test_csv_fields_are_text_and_empty_ones_are_not_given(folder):
    (folder / "d.csv").write_text(
        "name,prompt,num_tokens,image,mask_mode,note\n"
        "a,x,3,,,\n\n,x, 12 ,,both,5\nb,,,,,\nc,x,3.5,,,\nd,x,three,,,\ne,x,\nf,x,,,,\nA,x,,,,\n"
    )
    found = read(folder / "d.csv")
    assert [getattr(item, "row", item.name) for item in found] == ["a", "row_000002", 3, 4, 5, 6, "f", 8]
    assert [found[i].settings.num_tokens for i in (0, 1, 6)] == [3, 12, 1]
    assert [found[i].carried for i in (0, 1)] == [{"note": ""}, {"note": "5"}]
    assert found[2].message == "the prompt is empty; give some text"
    assert found[3].message == "num_tokens must be a whole number, at least 1, not the text '3.5'"
    assert found[5].message.startswith("3 fields, where the first line has 6; put commas")


def test_csv_rows_that_are_not_utf_8_are_problems_of_their_own(folder):
    (folder / "d.csv").write_bytes(b"prompt\nx\ncaf\xe9\ncaf\xc3\xa9\n")
    assert [type(item) for item in read(folder / "d.csv")] == [Job, Problem, Job]


@pytest.mark.parametrize(
    ("rest", "line"), [('"open, b\nc, d\n', 4), ('"a"b, c\nd, e', 3), ("x" * 140_000 + ",b\nc,d\n", 3)]
)
def test_csv_that_has_come_apart_is_not_read_on(folder, rest, line):
    """Behind an open quote it is not known what is a row."""
    (folder / "d.csv").write_text("prompt,note\nx,y\n" + rest)
    first, problem = read(folder / "d.csv")
    assert (first.name, problem.row) == ("row_000001", 2)
    assert f"is no CSV, line {line}: " in problem.message
    assert problem.message.endswith("; no row is read from here on")


FILES = [
    ("d.txt", b"prompt\nx\n", "has none of the suffixes that are read; accepted are .jsonl, .csv, .parquet"),
    ("d", b"prompt\nx\n", "has none of the suffixes"),
    ("nowhere.csv", None, "can't be read: No such file or directory; give a file"),
    ("nowhere.jsonl", None, "can't be read: No such file or directory; give a file"),
    ("nowhere.parquet", None, "can't be read: No such file or directory; give a file"),
    ("sub.jsonl", "folder", "can't be read: it is a folder"),
    ("a\0.csv", None, "can't be read: embedded null byte"),
    ("d.jsonl", b"", "is empty; give rows with a prompt"),
    ("d.csv", b"", "is empty"),
    ("d.parquet", b"", "is empty"),
    ("d.csv", b"name;prompt\na;x\n", "has no column prompt; its columns are 'name;prompt'"),
    ("d.csv", b"name,text\na,x\n", "has no column prompt; its columns are 'name, text'"),
    ("d.csv", b"\n\n", "has no column prompt"),
    ("d.csv", b"prompt,note,note\n", "has several columns 'note'; give each a name of its own"),
    ("d.csv", "prompt\nx\n".encode("utf-16"), "has no column prompt: the row is not UTF-8; save the file as UTF-8"),
    ("d.csv", b'"prompt\nx\n', "is no CSV, line 2: "),
    ("d.parquet", b"not parquet at all", "can't be read as Parquet: "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_files_that_are_no_dataset_are_refused_when_asked_for(folder, name, content, message):
    if content == "folder":
        (folder / name).mkdir()
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_dataset(f"{folder}/{name}", kind="vl")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"dataset '{folder}/{name}' ")
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_or_cut_off(folder):
    with pytest.raises(InputError, match="has no column prompt; its columns are 'text'"):
        read_dataset(write(folder / "d.parquet", [{"text": "x"}]), kind="vl")
    data = write(folder / "d.parquet", [{"prompt": "x"}]).read_bytes()
    (folder / "d.parquet").write_bytes(data[:4] + b"\0" * 60 + data[64:])
    (problem,) = read(folder / "d.parquet")
    assert (problem.row, problem.name) == (1, None)
    assert problem.message.endswith("; no row is read from here on")


# --- laziness -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """The files that datasets are read from, as they are opened."""
    files = []
    really = dataset_files._opened
    monkeypatch.setattr(
        dataset_files, "_opened", lambda *args, **kwargs: files.append(really(*args, **kwargs)) or files[-1]
    )
    return files


def where(file):
    return os.lseek(file.fileno(), 0, os.SEEK_CUR)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_the_first_job_comes_before_the_file_is_read(folder, opened, suffix):
    path = write(folder / f"d.{suffix}", [{"prompt": "first"}])
    os.truncate(path, 50 * 2**20)
    tracemalloc.start()
    jobs = read_dataset(path, kind="vl")
    assert [file.closed for file in opened] == [True]  # for its columns; nothing stays open that is not asked for
    assert next(jobs).prompt == "first"
    assert where(opened[1]) <= 2**16
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    jobs.close()
    assert opened[1].closed


def test_the_first_job_comes_before_all_row_groups_are_read(folder, opened):
    texts = ["".join(random.Random(i).choices("abcdefgh", k=1000)) for i in range(4000)]
    parquet.write_table(pa.table({"prompt": texts}), folder / "d.parquet", row_group_size=200)
    jobs = read_dataset(folder / "d.parquet", kind="vl")
    assert next(jobs).prompt == texts[0]
    assert 0 < where(opened[1]) < os.path.getsize(folder / "d.parquet") / 4
    assert sum(1 for _ in jobs) == 3999
    assert opened[1].closed


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "n_rows"), [("jsonl", 30_000), ("csv", 10_000), ("parquet", 10_000)])
def test_memory_does_not_grow_with_the_rows(folder, suffix, n_rows):
    """But for 8 bytes of each name in a set, which takes some ten times that."""
    prompt, path = "x" * (40_000_000 // n_rows), folder / f"d.{suffix}"
    if suffix == "parquet":  # in one row group; and no two the same, which would be stored once
        texts = [f"{number} {prompt}" for number in range(n_rows)]
        parquet.write_table(pa.table({"prompt": texts}), path, compression="none", use_dictionary=False)
        del texts
    else:
        row = json.dumps({"prompt": prompt}) if suffix == "jsonl" else prompt
        with open(path, "w") as file:
            file.write("prompt\n" * (suffix == "csv"))
            file.writelines(itertools.repeat(row + "\n", n_rows))
    assert path.stat().st_size > 40e6
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    most = n_jobs = 0
    for item in read_dataset(path, kind="text"):
        n_jobs += isinstance(item, Job)
        most = max(most, pa.total_allocated_bytes() - arrow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_jobs == n_rows
    assert peak < 5e6 + 100 * n_rows
    assert most < 15e6
