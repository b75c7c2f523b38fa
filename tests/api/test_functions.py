"""The Python functions: what they take for a model, images and flows, their keywords, and what they give."""

import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_loaded
from PIL import Image

import mask_impact
from mask_impact.analyses.settings import RunSettings, SettingError, UnknownSetting, of_command
from mask_impact.errors import InputError, MaskImpactError, ModelError, OutputError, UsageError
from mask_impact.models import sources
from mask_impact.results import answers, flows, records
from mask_impact.results.flows import Flow
from mask_impact.views.answers import render_whatif
from mask_impact.views.flows import render_flows
from mask_impact.views.summary import render_summary

PICTURE = Path(__file__).parents[2] / "examples" / "shapes.png"
QUESTION = "What color is the star?"
PROMPT = "the cat sat on the mat"
# Each function with what it needs besides a model and a prompt, and the command whose settings it takes.
FUNCTIONS = {
    "run": (mask_impact.analyze, ()),
    "knockout": (mask_impact.knockout, ("text -> last",)),
    "without": (mask_impact.without, ("cat",)),
}
EACH = pytest.mark.parametrize("command", FUNCTIONS)


@pytest.fixture(scope="module")
def text(text_checkpoint):
    return mask_impact.load(str(text_checkpoint))


@pytest.fixture(scope="module")
def seeing(vl_checkpoint):
    return mask_impact.load(str(vl_checkpoint))


def numbers(found):
    """What was measured, as one array."""
    if isinstance(found, records.Result):
        return np.concatenate([step.l2.reshape(-1) for step in found.steps])
    if isinstance(found, flows.Knockouts):
        return np.concatenate([step.logprob_change.reshape(-1) for step in found.steps])
    return np.concatenate([one.probabilities for one in (found.answer, *found.others)])


def assert_same(one, other):
    assert type(one) is type(other)
    assert one.tokens.ids.tolist() == other.tokens.ids.tolist()
    assert np.array_equal(numbers(one), numbers(other))


# --- the model ------------------------------------------------------------------------------------------------------------


@EACH
def test_a_model_s_name_is_as_good_as_the_model(command, text, text_checkpoint):
    function, more = FUNCTIONS[command]
    loaded = function(text, PROMPT, *more, raw=True, num_tokens=2)
    for name in (str(text_checkpoint), text_checkpoint):
        assert_same(function(name, PROMPT, *more, raw=True, num_tokens=2), loaded)


def test_the_demo_is_a_model_s_name(vl_checkpoint, monkeypatch):
    monkeypatch.setattr(sources, "demo_path", lambda kind: {"vl": vl_checkpoint}[kind])
    found, expected = (mask_impact.analyze(one, "cat", answer=False) for one in ("demo", mask_impact.load("demo")))
    assert_same(found, expected)
    (result,) = mask_impact.analyze_many("demo", ["cat"], answer=False)
    assert result.meta["model"] == "demo (vl)"


def test_a_name_of_no_model_is_said_after_what_is_wrong_without_one(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        mask_impact.analyze("./nowhere", PROMPT)
    with pytest.raises(SettingError, match="num_tokens must be"):
        mask_impact.analyze("./nowhere", PROMPT, num_tokens=0)
    with pytest.raises(InputError, match="does not exist"):
        mask_impact.analyze("./nowhere", PROMPT, images=tmp_path / "none.png")


# --- images, flows and layers, one where several may stand ------------------------------------------------------------------


@pytest.mark.slow
def test_a_single_image_is_a_list_of_one(seeing):
    """The characters of a path are no pictures, nor are the rows of an array."""
    image = Image.open(PICTURE).convert("RGB")
    settings = {"num_tokens": 1, "answer": False}
    expected = mask_impact.analyze(seeing, QUESTION, images=[PICTURE], **settings)
    assert len(expected.images) == 1
    for single in (PICTURE, str(PICTURE), image, np.asarray(image), (PICTURE,), (one for one in [PICTURE])):
        assert_same(mask_impact.analyze(seeing, QUESTION, images=single, **settings), expected)
    (of_many,) = mask_impact.analyze_many(seeing, [{"prompt": QUESTION, "images": str(PICTURE)}], **settings)
    assert_same(of_many, expected)


@pytest.mark.slow
def test_a_single_image_is_taken_by_the_others_too(seeing):
    one, other = (mask_impact.knockout(seeing, QUESTION, "image -> last", images=i) for i in (PICTURE, [PICTURE]))
    assert_same(one, other)
    one, other = (mask_impact.without(seeing, QUESTION, "image", images=i, num_tokens=2) for i in (PICTURE, [PICTURE]))
    assert_same(one, other)


def test_a_single_flow_is_a_list_of_one(text):
    expected = mask_impact.knockout(text, PROMPT, [Flow("cat -> last", "cat", "last")], raw=True, window=2)
    for single in ("cat -> last", "cat->last", ("cat", "last"), ["cat", "last"], Flow("cat -> last", "cat", "last")):
        found = mask_impact.knockout(text, PROMPT, single, raw=True, window=2)
        assert_same(found, expected)
        assert [one.flow for one in found.flows] == [Flow("cat -> last", "cat", "last")]
    two = mask_impact.knockout(text, PROMPT, ["cat -> last", ("sat", "mat")], raw=True, window=2)
    assert [one.flow.name for one in two.flows] == ["cat -> last", "sat -> mat"]


def test_a_single_layer_is_a_number(text):
    one, other, all_of_them = (
        mask_impact.without(text, PROMPT, "cat", layers=layers, raw=True) for layers in (1, [1], None)
    )
    assert_same(one, other)
    assert (one.layers, all_of_them.layers) == ((1,), (0, 1, 2))


# --- keywords -------------------------------------------------------------------------------------------------------------


@EACH
def test_the_signature_has_every_setting_with_its_default(command):
    function, _ = FUNCTIONS[command]
    own = {"without": {"num_tokens": 16}, "knockout": {"window": None}, "run": {"answer": True}}.get(command, {})
    taken = {field.name: field.default for field in fields(RunSettings) if command in field.metadata["commands"]}
    assert list(taken) == [one.name for one in of_command(command)]
    parameters = inspect.signature(function).parameters
    keywords = {name: one.default for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    others = {"images": (), "videos": (), "observer": None} | ({"layers": None} if command == "without" else {})
    assert keywords == others | taken | own
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    lines = inspect.getdoc(function).splitlines()
    for one in of_command(command):
        default = own.get(one.name, one.default)
        assert f"    {one.name} ({default!r}): {one.help}" in lines


def test_analyze_has_the_settings_that_it_had():
    assert {
        "num_tokens", "variants", "batch_size", "raw", "verify", "mask_mode", "max_image_resolution", "allow_remote", "effect",
        "window", "ablation", "queries", "groups", "max_cost", "images", "observer",
    } <= set(inspect.signature(mask_impact.analyze).parameters)  # fmt: skip


@EACH
def test_the_defaults_of_the_signature_are_what_is_taken_where_nothing_is_given(command, text):
    function, more = FUNCTIONS[command]
    parameters = inspect.signature(function).parameters
    given = {one.name: parameters[one.name].default for one in of_command(command)} | {"raw": True}
    assert_same(function(text, PROMPT, *more, **given), function(text, PROMPT, *more, raw=True))


@EACH
def test_an_unknown_keyword_says_what_may_have_been_meant(command, text):
    function, more = FUNCTIONS[command]
    for keyword, meant in (("num_token", "num_tokens"), ("max_image_resolutions", "max_image_resolution")):
        with pytest.raises(
            UnknownSetting, match=f"^unknown setting '{keyword}'; did you mean {meant}[?] known are "
        ) as caught:
            function(text, PROMPT, *more, **{keyword: 2})
        assert isinstance(caught.value, UsageError)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(UnknownSetting, match=r"^unknown setting 'zzz'; known are num_tokens, "):
        function(text, PROMPT, *more, zzz=1)


def test_settings_of_another_function_and_old_names_are_unknown(text):
    with pytest.raises(UnknownSetting, match=r"did you mean verify\?"):
        mask_impact.analyze(text, PROMPT, n_verify=2)
    with pytest.raises(UnknownSetting, match="unknown setting 'effect'"):
        mask_impact.knockout(text, PROMPT, effect=True)
    with pytest.raises(UnknownSetting, match=r"did you mean verify\?"):
        next(mask_impact.analyze_many(text, [{"prompt": PROMPT, "verifi": 2}]))


@EACH
def test_a_value_that_can_t_be_names_its_setting(command, text):
    function, more = FUNCTIONS[command]
    for value in (0, -3, 1.5, "2", True, None):
        with pytest.raises(SettingError) as caught:
            function(text, PROMPT, *more, num_tokens=value)
        assert str(caught.value) == f"num_tokens must be a whole number, at least 1, not {value!r}"
        assert caught.value.name == "num_tokens"


def test_a_window_of_a_knockout_is_a_number_that_fits(text):
    for value in (0, "some", 2.5):
        with pytest.raises(
            SettingError, match=f"^window must be a whole number of layers, at least 1, or all, not {value!r}$"
        ):
            mask_impact.knockout(text, PROMPT, "cat -> last", window=value)
    for value in ("all", "ALL"):
        with pytest.raises(UsageError, match="a knockout slides a window over the depth"):
            mask_impact.knockout(text, PROMPT, "cat -> last", window=value)


def test_the_prompt_whose_setting_is_wrong_is_named(text):
    prompts = [PROMPT, {"prompt": PROMPT, "num_tokens": 0}]
    with pytest.raises(SettingError, match=r"^prompt 1: num_tokens must be a whole number, at least 1, not 0$"):
        list(mask_impact.analyze_many(text, prompts, raw=True))


# --- what is given --------------------------------------------------------------------------------------------------------


@EACH
def test_results_are_the_plain_records_with_conveniences(command, text, tmp_path):
    function, more = FUNCTIONS[command]
    found = function(text, PROMPT, *more, raw=True, num_tokens=2)
    plain, kind, page = {
        "run": (records.Result, mask_impact.Result, render_summary),
        "knockout": (flows.Knockouts, mask_impact.Knockouts, render_flows),
        "without": (answers.WhatIf, mask_impact.WhatIf, render_whatif),
    }[command]
    assert type(found) is kind
    assert isinstance(found, plain)
    assert plain(**vars(found)).tokens is found.tokens
    assert str(found) == page(found)
    assert repr(found).startswith(f"{kind.__name__}(")
    assert len(found.to_frame()) > 0
    found.save(tmp_path / "saved")
    assert list(tmp_path.iterdir())
    assert "<" in found._repr_html_()


def test_a_result_is_read_back_as_one(text, tmp_path):
    result = mask_impact.analyze(text, PROMPT, raw=True, num_tokens=2)
    saved = result.save(tmp_path / "r")
    again = mask_impact.load_result(tmp_path / "r")
    assert_same(again, result)
    assert str(again) == str(result)
    assert set(saved.paths) == set(tmp_path.iterdir())


def test_arguments_of_other_types_are_one_line(text):
    def run(function, *args, **given):
        return lambda: list(found) if hasattr(found := function(*args, **given), "__next__") else found

    analyze, without, load = mask_impact.analyze, mask_impact.without, mask_impact.load
    for wrong, said in (
        (run(analyze, None, PROMPT), "the model must be one of mask_impact.load or .* not None"),
        (run(analyze, text.model, PROMPT), "the model must be .* not Qwen3ForCausalLM"),
        (run(analyze, text, PROMPT, observer=5), "`observer` must be an Observer, or None, not int"),
        (run(analyze, text, PROMPT, num_tokens="3"), "num_tokens must be a whole number, at least 1, not '3'"),
        (run(analyze, text, PROMPT, num_tokens=1.5), "num_tokens must be a whole number, at least 1, not 1.5"),
        (
            run(analyze, text, PROMPT, window=None),
            "window must be a whole number of layers, at least 1, or all, not None",
        ),
        (run(analyze, text, PROMPT, variants=5), "variants must be some of .* not 5"),
        (run(analyze, text, 5), "a prompt is text .*, not int"),
        (run(mask_impact.explain, text, PROMPT, seed="x"), "`seed` must be a whole number, not str"),
        (run(mask_impact.explain, text, PROMPT, seed=True), "`seed` must be a whole number, not bool"),
        (run(without, text, PROMPT, None), "what is hidden must be text, or a list of texts, not None"),
        (run(without, text, PROMPT, "cat", layers=1.5), "a layer must be a whole number, not float"),
        (run(without, text, PROMPT, "cat", layers=[True]), "a layer must be a whole number, not bool"),
        (run(mask_impact.analyze_many, text, None), "prompts must be a list, or an iterator, not None"),
        (run(mask_impact.load_result, None), "the path of a result must be text or a path, not None"),
        (run(load, 5), "`model` must be text: .* not int"),
        (run(load, "demo", device=None), "`device` must be text, not None"),
        (run(load, "demo", dtype=["float32"]), "`dtype` must be text, not list"),
        (run(load, "demo", revision=5), "`revision` must be text, not int"),
        (run(load, "demo", check=5), "`check` must be a function of a Reader, not int"),
    ):
        with pytest.raises(MaskImpactError, match=said):
            wrong()


def test_every_public_name_is_there():
    assert all(getattr(mask_impact, name) is not None for name in mask_impact.__all__)
    assert set(mask_impact.__all__) <= set(dir(mask_impact))
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        mask_impact.analyse  # noqa: B018


def test_a_later_answer_to_the_same_prompt_belongs_to_the_run(tmp_path):
    """`evidence` looks longer, and writes over what `run` has written of the answer; the run can be read with it."""
    model, prompt = tiny_loaded(), "the cat sat on the mat"
    given = {"raw": True, "num_tokens": 1}
    mask_impact.analyze(model, prompt, **given).save(tmp_path / "one")
    later = mask_impact.explain(model, prompt, target="all", budget=60, measure="log-prob", **given)
    later.save(tmp_path / "one")
    found = mask_impact.load_result(tmp_path / "one")
    np.testing.assert_array_equal(found.answer.targets[0].contribution, later.targets[0].contribution)
    mask_impact.explain(model, "the cat sat on the", **given).save(tmp_path / "one")
    with pytest.raises(OutputError, match="no result there"):  # what is under a name is of one question
        mask_impact.load_result(tmp_path / "one")
    assert not list(tmp_path.glob("one.csv"))
