"""What each setting takes: said once, checked when the settings are made, and refused in one sentence."""

import math
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest

from mask_impact.analyses.settings import SETTINGS, Place, RunSettings, SettingError, UnknownSetting, make_settings
from mask_impact.commands.main import main
from mask_impact.errors import UsageError
from mask_impact.prompts.yaml_file import ConfigError
from mask_impact.studies.config import load_config
from mask_impact.studies.dataset import read_dataset
from mask_impact.studies.jobs import Problem

# Setting: values as they are given and kept; and values that can't be, with what is said to be accepted.
TAKEN = {
    "num_tokens": [(1, 1), (np.int64(7), 7)],
    "variants": [("full", ("full",)), ("heads,full", ("full", "heads")), (["ATTN", " heads"], ("attn", "heads"))],
    "mask_mode": [("text", "text"), ("Vision", "vision"), ("both", "both"), ("all", "both")],
    "ablation": [("mask", "mask"), ("zero-value", "zero-value"), ("mean-value", "mean-value")],
    "raw": [(None, None), (True, True), (False, False)],
    "max_image_resolution": [(None, None), (1, 1)],
    "video_fps": [(2.0, 2.0), (1, 1.0), (0.5, 0.5)],
    "video_frames": [(1, 1), (64, 64)],
    "allow_remote": [(True, True)],
    "verify": [(0, 0), (3, 3)],
    "effect": [(True, True)],
    "window": [(1, 1), (9, 9), ("all", "all"), ("ALL", "all")],
    "queries": [("last", "last"), ("all", "all")],
    "top": [(None, None), (5, 5)],
    "groups": [(None, None), ("tokens", "tokens"), ("words", "words"), ("groups.yaml", "groups.yaml")],
    "max_cost": [(1, 1)],
    "answer": [(True, True), (False, False)],
    "target": [("answer", "answer"), ("0-4", "0-4")],
    "instead": [(None, None), ("blue", "blue")],
    "measure": [("log-odds", "log-odds"), ("log-prob", "log-prob")],
    "budget": [(12, 12)],
    "routes": [(None, None), ("auto", "auto")],
    "matrix": [(True, True)],
    "content_only": [(True, True)],
    "pixels": [(True, True)],
    "by": [(None, None), ("tokens", "tokens")],
    "beam": [(1, 1), (64, 64)],
    "fills": [("grey,mean", ("mean", "grey")), (["blur"], ("blur",))],
    "split": [(True, True)],
    "deepstack": [(True, True)],
    "region": [("image", "image"), ("image 0 rows 1", "image 0 rows 1")],
    "baseline": [("zero", "zero")],
    "tower": [(True, True)],
    "unit": [("token", "token")],
    "batch_size": [(None, None), (64, 64)],
}
AT_LEAST_1 = "a whole number, at least 1"
LAYERS = "a whole number of layers, at least 1, or all"
REFUSED = {
    "num_tokens": (AT_LEAST_1, [0, -1, 1.0, "3", True, None, [1]]),
    "variants": ("some of full, attn, heads", ["tail", [], "", "full,tail", "ful", None, 3, [["full"]]]),
    "mask_mode": ("text, vision, both or all", ["images", "", None, 1]),
    "ablation": ("mask, zero-value or mean-value", ["blur", "Mask", "zero_value", None]),
    "raw": ("true or false", [1, "yes"]),
    "max_image_resolution": ("a whole number of pixels, at least 1", [0, 2.5, "100"]),
    "video_fps": ("a number of frames in a second, above 0", [0, -1, "2", True, None]),
    "video_frames": ("a whole number of frames, at least 1", [0, 2.5, None]),
    "allow_remote": ("true or false", [1, None]),
    "verify": ("a whole number, at least 0", [-1, None]),
    "effect": ("true or false", [1, None, "true"]),
    "window": (LAYERS, [0, 1.5, "some", None, True]),
    "queries": ("last or all", ["first", None]),
    "top": (AT_LEAST_1, [0, 1.5, "all"]),
    "groups": ("text: tokens, words, or a path of a YAML file of groups", ["", 3]),
    "max_cost": ("a whole number of row-layers, at least 1", [0, None]),
    "answer": ("true or false", [1, None]),
    "target": (
        "text: answer, thinking, all, each, numbers of produced tokens (0-4), or text of the answer",
        ["", None, 3],
    ),
    "instead": ("text", ["", 3]),
    "measure": ("log-odds or log-prob", ["effect", None]),
    "budget": ("a whole number of forward passes, at least 1", [0, None]),
    "routes": (
        "text: auto, flows such as image -> last, with ; between them, or a path of a YAML file of flows",
        ["", True],
    ),
    "matrix": ("true or false", [1, None]),
    "content_only": ("true or false", ["yes", None]),
    "pixels": ("true or false", [1, None]),
    "by": ("search, tokens or patches", ["cells", ""]),
    "beam": ("a whole number of rectangles, at least 1", [0, 1.5, None]),
    "fills": ("some of border, mean, blur, grey", ["tail", "", None]),
    "split": ("true or false", [1, None]),
    "deepstack": ("true or false", [1, None]),
    "region": ("text: image tokens, such as image 0 rows 1-2", ["", None]),
    "baseline": ("blank, mean or zero", ["grey", None]),
    "tower": ("true or false", [1, None]),
    "unit": ("patch or token", ["cell", None]),
    "batch_size": (AT_LEAST_1, [0, "all"]),
}
MEANT = {"Mask": "mask", "zero_value": "zero-value", "ful": "full"}


def test_every_setting_of_a_run_is_tried_here():
    assert list(TAKEN) == list(REFUSED) == [field.name for field in fields(RunSettings)]


def test_what_is_taken_is_kept_in_one_form():
    for name, pairs in TAKEN.items():
        found = [getattr(RunSettings(**{name: given}), name) for given, _ in pairs]
        assert found == [kept for _, kept in pairs], name
        assert [type(one) for one in found] == [type(kept) for _, kept in pairs], name


def test_what_can_t_be_is_said_in_a_sentence_without_dashes():
    for name, (accepted, values) in REFUSED.items():
        for value in values:
            with pytest.raises(SettingError) as caught:
                RunSettings(**{name: value})
            culprit = "tail" if value == "full,tail" else ["full"] if value == [["full"]] else value
            hint = f"; did you mean {MEANT[value]}?" if isinstance(value, str) and value in MEANT else ""
            assert str(caught.value) == f"{name} must be {accepted}, not {culprit!r}{hint}"
            assert caught.value.name == name
            assert isinstance(caught.value, UsageError)


def test_settings_are_given_by_name_and_stay_as_they_are():
    with pytest.raises(TypeError, match="positional"):
        RunSettings(3)
    with pytest.raises(FrozenInstanceError):
        RunSettings().num_tokens = 3
    assert RunSettings(num_tokens=2) == RunSettings(num_tokens=2) != RunSettings()


def test_places_are_checked_too():
    assert Place(formats="parquet,csv").formats == ("csv", "parquet")
    for device in ("auto", "cpu", "mps", "cuda", "cuda:3"):
        assert Place(device=device).device == device
    for wrong, said in (
        ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16 or float16, not 'int8'"),
        ({"formats": "csv,xls"}, "not 'xls'"),
        ({"output_dir": ""}, "output_dir must be text: a folder, not ''"),
        ({"device_map": "all"}, "device_map must be auto, balanced, balanced_low_0 or sequential, not 'all'"),
    ):
        with pytest.raises(SettingError, match=re.escape(said)):
            Place(**wrong)


def test_each_setting_has_a_flag_and_a_line_of_help():
    for name, one in SETTINGS.items():
        assert one.flag == "--" + name.replace("_", "-")
        assert one.help
        assert "\n" not in one.help
        assert one.checked(one.default) == one.default


def test_keywords_that_are_no_settings_are_asked_about():
    with pytest.raises(
        UnknownSetting, match=r"^unknown setting 'ablations'; did you mean ablation\? known are num_tokens, "
    ):
        make_settings("run", {"ablations": "mask"})
    with pytest.raises(UnknownSetting, match=r"^unknown setting 'ablation'; known are "):
        make_settings("without", {"ablation": "mask"})
    assert make_settings("knockout", {"ablation": "zero-value"}) == RunSettings(ablation="zero-value")


# --- bounds ---------------------------------------------------------------------------------------------------------------

BOUNDED = [one for one in SETTINGS.values() if one.kind.most is not None]
HUGE = (10**9 * 10**9, 10**30, 10**5000)


def test_every_number_has_a_bound_that_is_taken_and_told():
    assert [one.name for one in SETTINGS.values() if one.kind.accepted.startswith(("a number", "a whole number"))] == [
        one.name for one in BOUNDED
    ]
    for one in BOUNDED:
        assert one.checked(one.kind.most) == one.kind.most
        for value in (one.kind.most + 1, *HUGE):
            with pytest.raises(SettingError) as caught:
                one.checked(value)
            message = str(caught.value)
            assert message.startswith(f"{one.name} must be {one.kind.accepted}, at most {one.kind.most:,}, not ")
            assert len(message) < 400
            assert "\n" not in message
        for value in (math.inf, -math.inf, math.nan, 1e300):
            with pytest.raises(SettingError):
                one.checked(value)


@pytest.mark.parametrize("one", BOUNDED, ids=lambda one: one.name)
def test_flags_keys_and_columns_have_the_bound_of_the_setting(one, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (str(one.kind.most + 1), "9" * 30, "9" * 5000, "inf", "nan", "1e999"):
        command = {("run", "study", "explain"): "explain", ("study",): "study"}.get(one.commands, "run")
        needs = {"run": ["--effect"], "study": ["--pixels"]}.get(command, [])
        assert main([command, "hi.jsonl", "-m", "demo", *needs, one.flag, value, "-q"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"mask-impact {command}: error: {one.flag} must be ")
        assert (said.count("\n"), len(said) < 500) == (1, True)
        if one.file is not None:
            Path("c.yaml").write_text(f"prompts: [{{name: a, prompt: b, {one.name}: {value}}}]", encoding="utf-8")
            with pytest.raises(ConfigError) as caught:
                load_config("c.yaml", kind=None)
            (problem,) = caught.value.problems
            assert len(problem) < 500
        if one.column:
            Path("d.jsonl").write_text(f'{{"prompt": "hi", "{one.name}": {value}}}', encoding="utf-8")
            (row,) = read_dataset("d.jsonl", kind=None)
            assert isinstance(row, Problem)
            assert len(row.message) < 500


@pytest.mark.parametrize(
    "words",
    [
        ["without", "hi", "hi", "--layers", "9" * 5000], ["without", "hi", "hi", "--layers", "0-99999999999"],
        ["without", "hi", "hi", "--layers", "0-10000"], ["compare", "a", "b", "--bands", "1000000000"],
        ["compare", "a", "b", "--permutations", "1000000000"], ["compare", "a", "b", "--seed", "9" * 5000],
        ["compare", "a", "b", "-k", "9" * 30], ["compare", "a", "b", "--step", "9" * 30], ["top", "a", "-k", "9" * 5000],
        ["top", "a", "--step", "9" * 5000], ["verify", "demo", "-k", "1001"], ["figure", "map", "a", "--width", "inf"],
        ["figure", "map", "a", "--width", "nan"], ["figure", "card", "a", "--target", "9" * 5000],
        ["report", "a", "--max-megabytes", "inf"], ["report", "a", "--max-megabytes", "nan"],
        ["report", "a", "--max-megabytes", "1e999"], ["serve", "--max-upload-mb", "1e308"], ["serve", "--port", "9" * 5000],
        ["top", "a", "--grid", f"{'9' * 5000}x1"],
    ],
)  # fmt: skip
def test_other_numbers_of_commands_are_bounded_too(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), "unexpected" in said, len(said) < 500) == (1, False, True)
    assert re.search("must be|is ROWSxCOLUMNS", said)
