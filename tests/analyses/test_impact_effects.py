"""Effects on the answer as a user has them: in results and files, by groups, from the script and in studies."""

from dataclasses import replace
from functools import partial

import effect_oracle
import numpy as np
import pandas as pd
import pytest
import yaml
from checkpoints import make_tokenizer
from tiny_models import tiny_image_inputs, tiny_inputs, tiny_model

import mask_impact
from mask_impact.analyses.observer import Observer
from mask_impact.api.functions import analyze as analyze_all
from mask_impact.commands.scripts import main_text
from mask_impact.errors import InputError, OutputError, UsageError
from mask_impact.models import loading
from mask_impact.results.effect_tables import EFFECT_COLUMNS
from mask_impact.views.summary import render_summary
from mask_impact.views.summary_json import result_entry

N_STEPS = 3
analyze = partial(analyze_all, answer=False)  # local maps and effects alone


def test_analyze_gives_them_and_files_give_them_back(tmp_path):
    """Every row of every format against the arrays; the seven-column files stay as they are."""
    loaded = loading.wrap(tiny_model("qwen3_vl"), make_tokenizer())
    inputs = tiny_image_inputs(loaded.model)
    settings = {"num_tokens": N_STEPS, "mask_mode": "vision"}
    plain = analyze(loaded, inputs, **settings)
    result = analyze(loaded, inputs, **settings, effect=True, window=2, ablation="zero-value")
    assert result.meta["effect"] == {"window": 2, "queries": "last", "groups": "tokens"}
    assert result.meta["ablation"] == "zero-value"
    plain = analyze(loaded, inputs, **settings, ablation="zero-value")
    assert (plain.has_effects, result.has_effects) == (False, True)
    expected = effect_oracle.effects(
        loaded.model, inputs, [step.token_id for step in result.steps], 1, window=2, ablation="zero-value",
        positions=result.steps[1].positions.tolist(),
    )  # fmt: skip
    np.testing.assert_allclose(result.steps[1].effect.logprob_change, expected["logprob_change"], rtol=1e-3, atol=1e-6)

    plain.save(tmp_path / "plain", formats=("csv",))
    result.save(tmp_path / "both", formats=("csv", "json", "parquet"))
    assert (tmp_path / "plain.csv").read_bytes() == (tmp_path / "both.csv").read_bytes()
    assert not (tmp_path / "plain.effect.csv").exists()
    frames = [
        pd.read_csv(tmp_path / "both.effect.csv", keep_default_na=False),
        pd.read_json(tmp_path / "both.effect.json"),
        pd.read_parquet(tmp_path / "both.effect.parquet"),
    ]
    rows = [
        (step.step, layer, int(position), bool(step.effect.top1[layer, row] != step.token_id))
        for step in result.steps
        for layer in range(result.n_layers)
        for row, position in enumerate(step.positions)
    ]
    numbers = np.concatenate([step.effect.kl_divergence.reshape(-1) for step in result.steps])
    for frame in frames:
        assert list(frame.columns) == list(EFFECT_COLUMNS)
        assert (
            list(zip(frame.generation_step, frame.layer, frame.token_position, frame.top1_changed, strict=True)) == rows
        )
        assert set(frame.variant) == {"Full"}
        np.testing.assert_array_equal(frame.kl_divergence.astype(np.float32), numbers)
        floors = np.array([step.effect.floor[1] for step in result.steps])[frame.generation_step]
        np.testing.assert_array_equal(frame.below_floor, frame.logprob_change.abs().astype(np.float32) <= floors)
        assert frame.top1_token.tolist() == [
            step.effect.top1_texts[int(token)] for step in result.steps for token in step.effect.top1.reshape(-1)
        ]
    for form in ("csv", "json", "parquet"):
        result.save(tmp_path / form, formats=(form,))
        again = mask_impact.load_result(tmp_path / form)
        for one, other in zip(result.steps, again.steps, strict=True):
            for name in ("logit_change", "logprob_change", "kl_divergence", "top1"):
                np.testing.assert_array_equal(getattr(one.effect, name), getattr(other.effect, name))
            assert (one.effect.top1_texts, one.effect.floor) == (other.effect.top1_texts, other.effect.floor)
    (tmp_path / "csv.effect.csv").unlink()
    with pytest.raises(OutputError, match=r"csv\.effect\.\* is missing"):
        mask_impact.load_result(tmp_path / "csv")


def test_the_produced_token_is_the_one_that_generation_chose():
    """Not the most probable one, where the model's config has a penalty."""
    loaded = loading.wrap(tiny_model("qwen3"), make_tokenizer())
    inputs = tiny_inputs(loaded.model, 9)
    likeliest = int(loaded.model(**inputs).logits[0, -1].argmax())
    loaded.model.generation_config.suppress_tokens = [likeliest]
    result = analyze(loaded, inputs, effect=True)
    token = result.steps[0].token_id
    assert token != likeliest
    expected = effect_oracle.effects(loaded.model, inputs, [token], 0)
    np.testing.assert_allclose(result.steps[0].effect.logprob_change, expected["logprob_change"], rtol=1e-3, atol=1e-6)


def test_another_token_is_another_than_the_model_s_own_choice_not_than_a_rule_s():
    """Where a penalty chose the token, hiding what nobody sees changes nothing."""
    loaded = loading.wrap(tiny_model("mistral"), make_tokenizer())
    inputs = tiny_inputs(loaded.model, 9)
    likeliest = int(loaded.model(**inputs).logits[0, -1].argmax())
    loaded.model.generation_config.suppress_tokens = [likeliest]
    step = analyze(loaded, inputs, effect=True).steps[0]
    effect, changed = step.effect, step.effect.top1_changed(step.token_id)
    assert effect.likeliest == likeliest != step.token_id
    assert not changed[effect.logprob_change == 0].any()
    assert (effect.logprob_change == 0).any()


def test_a_table_of_another_run_is_refused(tmp_path):
    loaded = loading.wrap(tiny_model("qwen3"), make_tokenizer())
    inputs = tiny_inputs(loaded.model, 9)
    for name, window in (("one", 1), ("two", 2)):
        analyze(loaded, inputs, effect=True, window=window).save(tmp_path / name, formats=("csv",))
    (tmp_path / "two.effect.csv").replace(tmp_path / "one.effect.csv")
    with pytest.raises(OutputError, match=r"does not hold the effects of the run in one\.meta\.json: step 0 differs"):
        mask_impact.load_result(tmp_path / "one")


# --- groups and windows of all layers -----------------------------------------------------------------------------------


def test_groups_are_hidden_together(text_checkpoint, tmp_path):
    """Against the oracle, which hides all of a group's positions at once; words as the layout has them."""
    loaded = loading.load(str(text_checkpoint), kind="text", device="cpu")
    prompt = "the cat sat on the mat"
    (tmp_path / "g.yaml").write_text("both: [cat, mat]\nsat: sat\n")
    result = analyze(loaded, prompt, raw=True, effect=True, groups=tmp_path / "g.yaml", num_tokens=2)
    inputs = dict(loaded.tokenizer(prompt, return_tensors="pt"))
    duplicate = effect_oracle.computing_copy(loaded.model)
    ids = [step.token_id for step in result.steps]
    for step, record in enumerate(result.steps):
        assert [positions for _, positions in record.effect.groups] == [(1, 5), (2,)]
        length = inputs["input_ids"].shape[1] + step
        uncut = effect_oracle.all_logits(duplicate, inputs, ids[:step], effect_oracle.NO_EDGES)[-1]
        for layer in range(result.n_layers):
            for place, (_, positions) in enumerate(record.effect.groups):
                edges = effect_oracle.Edges((layer,), (length - 1,), positions)
                cut = effect_oracle.all_logits(duplicate, inputs, ids[:step], edges)[-1]
                expected = effect_oracle.effect(uncut, cut, ids[step])["logprob_change"]
                np.testing.assert_allclose(record.effect.logprob_change[layer, place], expected, rtol=1e-3, atol=1e-6)
    result.save(tmp_path / "r", formats=("csv",))
    assert mask_impact.load_result(tmp_path / "r").steps[1].effect.groups == result.steps[1].effect.groups
    words = analyze(loaded, prompt, raw=True, effect=True, groups="words").steps[0].effect
    assert [positions for _, positions in words.groups] == [(0,), (1,), (2,), (3,), (4,), (5,)]


def test_a_group_of_the_whole_prompt_is_refused(text_checkpoint, tmp_path):
    loaded = loading.load(str(text_checkpoint), kind="text", device="cpu")
    (tmp_path / "g.yaml").write_text("cat: cat\neverything: text\n")
    with pytest.raises(
        InputError, match="group 'everything' is the whole prompt: nothing would be left to see; hide less"
    ):
        analyze(loaded, "the cat sat", raw=True, effect=True, groups=tmp_path / "g.yaml")


def test_a_window_of_all_layers_is_measured_once():
    """Around each layer it is the same: and that of the oracle's window as deep as the model."""
    loaded = loading.wrap(tiny_model("qwen3"), make_tokenizer())
    inputs = tiny_inputs(loaded.model, 9)
    rows = []

    class Counting(Observer):
        def effects_begin(self, step, n_variants):
            rows.append(n_variants)

    effect = analyze(loaded, inputs, effect=True, window="all", queries="all", observer=Counting()).steps[0].effect
    assert rows == [9]
    assert effect.logprob_change.shape == (3, 9)
    assert (effect.logprob_change == effect.logprob_change[0]).all()
    ids = [int(loaded.model(**inputs).logits[0, -1].argmax())]
    expected = effect_oracle.effects(loaded.model, inputs, ids, 0, window=7, queries="all")["logprob_change"][1]
    np.testing.assert_allclose(effect.logprob_change[0], expected, rtol=1e-3, atol=1e-5)


# --- the script and studies ---------------------------------------------------------------------------------------------


def test_the_script_says_what_costs_most(tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    argv = ["--model", str(text_checkpoint), "--prompt", "the cat sat"]
    assert main_text([*argv, "--effect", "--window", "2", "--num-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    effect = mask_impact.load_result("output/masking_results").steps[0].effect
    layer, row = np.unravel_index(np.abs(effect.logprob_change).argmax(), effect.logprob_change.shape)
    lines = out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("Effect on the first token"))
    table = next(index for index in range(first, len(lines)) if lines[index].split()[:2] == ["layer", "pos"])
    assert "2 layers around a layer (mask, for the last query)" in " ".join(map(str.strip, lines[first:table]))
    assert lines[table + 1].split()[:2] == [str(layer), str(row)]
    assert "Also written: output/masking_results.effect.csv" in lines
    assert "Effect on the answer (token 2 of at most 2)" in err


WRONG = [
    (["--window", "3"], "--window says how the effect is measured: give --effect too"),
    (["--queries", "all"], "--queries says how the effect is measured: give --effect too"),
    (["--top", "5"], "--top says how the effect is measured: give --effect too"),
    (["--effect", "--queries", "first"], "--queries must be last or all, not 'first'"),
    (["--effect", "--groups", "nowhere.yaml"], "--groups takes tokens, words or a YAML file of groups, and 'nowhere.yaml' "),
    (["--effect", "--max-cost", "3"], "this takes 66 rows through layers, as many as 2 forward passes of this prompt, and 3 "
     "are allowed: hide fewer tokens or larger groups of them, produce fewer tokens, or allow it with --max-cost 66"),
    (["--effect", "--window", "0"], "--window must be a whole number of layers, at least 1, or all, not 0"),
    (["--effect", "--window", "some"], "--window must be a whole number of layers, at least 1, or all, not 'some'"),
    (["--effect", "--window", "4"], "a window of 4 layers does not fit: the model has 3"),
    (["--effect", "--ablation", "blur"], "--ablation must be mask, zero-value or mean-value, not 'blur'"),
]  # fmt: skip


def test_wrong_settings_are_one_line(tmp_path, monkeypatch, capsys, text_checkpoint):
    monkeypatch.chdir(tmp_path)
    for argv, said in WRONG:
        assert main_text(["--model", str(text_checkpoint), "--prompt", "the cat", "--quiet", *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err
        assert not list(tmp_path.glob("output/*"))


def test_a_study_has_them_where_its_file_says_so(tmp_path, monkeypatch, capsys, text_checkpoint):
    """Groups by a file beside the configuration; --resume knows another grouping as another study."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groups.yaml").write_text("animal: cat\nplace: [sat, mat]\n")
    prompts = [
        {"name": "a", "prompt": "the cat sat on the mat"},
        {"name": "b", "prompt": "the cat on mat", "effect": False},
    ]
    common = {"effect": True, "window": 2, "queries": "all", "groups": "groups.yaml", "raw": True}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"prompts": prompts, "defaults": common}))
    argv = ["--config", "study.yaml", "--model", str(text_checkpoint), "--formats", "csv"]
    assert main_text(argv) == 0
    assert not (tmp_path / "output" / "b_results.effect.csv").exists()
    frame = pd.read_csv("output/a_results.effect.csv", keep_default_na=False)
    assert set(zip(frame.token_masked, frame.token_position, frame.n_tokens, strict=True)) == {
        ("animal", 1, 1), ("place", 2, 2)
    }  # fmt: skip
    effect = mask_impact.load_result("output/a_results").steps[0].effect
    assert effect.groups == (("animal", (1,)), ("place", (2, 5)))
    assert effect.logprob_change.shape == (3, 2)
    capsys.readouterr()
    assert main_text([*argv, "--resume"]) == 0
    assert "2 of them are done already" in capsys.readouterr().out
    (tmp_path / "groups.yaml").write_text("animal: cat\n")
    assert main_text([*argv, "--resume"]) == 0
    assert "1 of them are done already" in capsys.readouterr().out
    (tmp_path / "groups.yaml").unlink()
    assert main_text(argv) == 1
    assert "study.yaml:" in (err := capsys.readouterr().err)
    assert "groups.yaml' is no file" in err


# --- only the strongest ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return mask_impact.load("demo", kind="text", device="cpu", dtype="float32")


LONG = "Anna has the green hat and Boris has the red coat. Who has the coat? The one with the"


@pytest.mark.parametrize(
    "how",
    [
        {"window": 3, "groups": "words"},
        pytest.param({"num_tokens": 2, "variants": ("heads",)}, marks=pytest.mark.slow),
        pytest.param({"window": "all", "queries": "all", "groups": "words"}, marks=pytest.mark.slow),
    ],
)
def test_what_only_the_strongest_are_measured_for_is_what_all_are(demo, how):
    """Where it is measured; nothing is said of the rest, but for an estimate."""
    whole = analyze(demo, LONG, effect=True, **how)
    some = analyze(demo, LONG, effect=True, top=3, **how)
    for one, other in zip(whole.steps, some.steps, strict=True):
        measured, estimated = other.effect.measured, other.effect.estimated
        n_distinct = measured[0].sum() if how.get("window") == "all" else measured.sum()
        assert 16 + 3 <= n_distinct <= 16 + 6
        assert one.effect.measured.all()
        assert one.effect.estimated is None
        assert (estimated.control & ~measured).sum() == 0
        for name in ("logit_change", "logprob_change", "kl_divergence"):
            expected, found = getattr(one.effect, name), getattr(other.effect, name)
            assert np.isnan(found[~measured]).all()
            np.testing.assert_allclose(found[measured], expected[measured], rtol=1e-3, atol=1e-6)
        assert (other.effect.top1[measured] == one.effect.top1[measured]).all()
        assert not other.effect.top1_changed(other.token_id)[~measured].any()
        assert np.isfinite(estimated.change).all()
        assert 0 < estimated.forwards < estimated.all_forwards
        largest = np.abs(np.nan_to_num(one.effect.logprob_change)).argmax()
        assert measured.flat[largest] or not estimated.reliable
    assert some.meta["effect"]["top"] == 3
    assert "top" not in whole.meta["effect"]


def test_estimates_are_of_the_token_s_log_probability(demo):
    """A small change to first order is what it is: against what was measured, where hiding does little."""
    effect = analyze(demo, LONG, effect=True, top=4000).steps[0].effect
    assert effect.measured.all()  # there are no more
    little = (np.abs(effect.logprob_change) < 0.01) & (np.abs(effect.logprob_change) > 1e-4)
    assert little.sum() > 50
    ratio = effect.estimated.change[little] / effect.logprob_change[little]
    assert 0.9 < np.median(ratio) < 1.1
    assert effect.estimated.agreement.n == effect.logprob_change.size
    assert effect.estimated.reliable == (effect.estimated.agreement.rho >= 0.7)


def test_what_was_estimated_is_kept_in_every_format_and_shown(demo, tmp_path):
    result = analyze(demo, LONG, effect=True, top=3)
    effect = result.steps[0].effect
    for form in ("csv", "json", "parquet"):
        result.save(tmp_path / form, formats=(form,))
        again = mask_impact.load_result(tmp_path / form).steps[0].effect
        for name in ("logit_change", "logprob_change", "kl_divergence", "top1"):
            np.testing.assert_array_equal(getattr(effect, name), getattr(again, name))
        np.testing.assert_array_equal(effect.estimated.change, again.estimated.change)
        np.testing.assert_array_equal(effect.estimated.control, again.estimated.control)
        for name in ("agreement", "reliable", "forwards", "all_forwards"):
            assert getattr(effect.estimated, name) == getattr(again.estimated, name)
    frame = pd.read_csv(tmp_path / "csv.effect.csv")
    assert list(frame.columns) == [*EFFECT_COLUMNS, "estimate", "control"]
    assert frame.logprob_change.notna().sum() == frame.top1_token.notna().sum() == effect.measured.sum()
    assert not frame.estimate.isna().any()
    text = render_summary(result)
    n, n_all = effect.measured.sum(), effect.measured.size
    assert f"{n} of {n_all} (layer, token) were really hidden, the others estimated" in " ".join(text.split())
    assert f"rank correlation {effect.estimated.agreement.rho:.2f}" in text
    untrue = replace(effect, estimated=replace(effect.estimated, reliable=False))
    assert "NOT RELIABLE here" in render_summary(replace(result, steps=(replace(result.steps[0], effect=untrue),)))
    assert ("NOT RELIABLE" in text) != effect.estimated.reliable
    (entry,) = result_entry(result)["steps"]
    assert entry["effects_estimated"]["measured"] == n
    assert all(np.isfinite(one["logprob_change"]) for one in entry["effects"])


def test_the_strongest_are_estimated_for_hiding_alone():
    loaded = loading.wrap(tiny_model("qwen3"), make_tokenizer())
    with pytest.raises(UsageError, match=r"`top` estimates what `ablation` mask does, not zero-value"):
        analyze(loaded, tiny_inputs(loaded.model, 9), effect=True, top=3, ablation="zero-value")


@pytest.mark.slow
def test_few_cost_little():
    """What is refused for all may be measured for some."""
    with pytest.raises(UsageError, match="rows through layers"):
        analyze("demo", LONG, effect=True, max_cost=800)
    assert analyze("demo", LONG, effect=True, max_cost=800, top=3).has_effects
