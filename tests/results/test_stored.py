"""All that is stored under one name, there and back: cut flows, answers without something, and what belongs together."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from stored_samples import META, make_knockouts, make_whatif
from synthetic import make_explanation, make_result

from mask_impact.errors import OutputError
from mask_impact.results.answer_files import load_whatif, save_whatif
from mask_impact.results.explanation_files import save_explanation
from mask_impact.results.flow_files import load_flows, save_flows
from mask_impact.results.store import save
from mask_impact.results.stored import Stored, read_stored


def same_tokens(one, other):
    assert one.texts == other.texts
    assert one.kinds == other.kinds
    for name in ("ids", "image", "row", "column"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_cut_flows_come_back_as_they_were(tmp_path, form):
    found = make_knockouts()
    save_flows(found, tmp_path / "x", [form])
    again = load_flows(tmp_path / f"x.flows.{form}")
    assert again.flows == found.flows
    same_tokens(again.tokens, found.tokens)
    np.testing.assert_array_equal((again.first, again.last), (found.first, found.last))
    for one, other in zip(again.steps, found.steps, strict=True):
        for name in ("step", "token_id", "token_text", "probability", "top1_texts", "floor", "likeliest"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("logprob_change", "kl_divergence", "top1"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert again.generated_text == found.generated_text
    assert {key: again.meta[key] for key in META} == META


def test_answers_without_something_come_back_as_they_were(tmp_path):
    found = make_whatif()
    again = load_whatif(save_whatif(found, tmp_path / "x"))
    assert (again.answer, again.others, again.layers, again.n_layers) == (
        found.answer, found.others, found.layers, found.n_layers,
    )  # fmt: skip
    same_tokens(again.tokens, found.tokens)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    save_flows(make_knockouts(), tmp_path / "x", ["csv"])
    with pytest.raises(OutputError, match="no result there"):
        load_flows(tmp_path / "y")
    save_flows(make_knockouts(), tmp_path / "z", ["csv"])
    twice = tuple(replace(step, logprob_change=2 * step.logprob_change) for step in make_knockouts().steps)
    save_flows(replace(make_knockouts(), steps=twice), tmp_path / "other", ["csv"])
    (tmp_path / "z.flows.csv").write_bytes((tmp_path / "other.flows.csv").read_bytes())
    with pytest.raises(OutputError, match="does not hold the numbers"):
        load_flows(tmp_path / "z")
    (tmp_path / "z.flows.csv").unlink()
    with pytest.raises(OutputError, match=r"its table is not: expected z\.flows\.csv"):
        load_flows(tmp_path / "z")


def test_files_of_an_earlier_version_say_what_they_lack(tmp_path):
    save_flows(make_knockouts(), tmp_path / "x", ["csv"])
    path = tmp_path / "x.flows.meta.json"
    meta = json.loads(path.read_text())
    del meta["formats"]
    path.write_text(json.dumps(meta))
    with pytest.raises(OutputError, match=r"x\.flows\.meta\.json is not the meta file of a result: formats is missing"):
        load_flows(tmp_path / "x")


# --- together ---------------------------------------------------------------------------------------------------------------


def parts(stored):
    return [name for name in ("result", "answer", "flows", "whatif") if getattr(stored, name) is not None]


@pytest.mark.parametrize("asked", ["x", "x.flows.csv", "x.whatif.json", "x.answer.csv", "x.flows.meta.json"])
def test_a_name_has_all_that_is_of_its_prompt(tmp_path, asked):
    save_explanation(replace(make_explanation(), meta=META), tmp_path / "x")
    save_flows(make_knockouts(images=["a.png"]), tmp_path / "x", ["csv"])
    save_whatif(make_whatif(images=["a.png"]), tmp_path / "x")
    (stored,) = read_stored(tmp_path / asked).values()
    assert parts(stored) == ["answer", "flows", "whatif"]
    assert stored.notes == ()


def test_what_is_of_another_prompt_is_left_out_and_said(tmp_path):
    """It was put there by hand: a run removes it."""
    save_flows(make_knockouts(), tmp_path / "x", ["csv"])
    save_whatif(make_whatif(prompt="When?"), tmp_path / "other")
    (tmp_path / "other.whatif.json").rename(tmp_path / "x.whatif.json")
    (stored,) = read_stored(tmp_path / "x").values()
    assert parts(stored) == ["flows"]
    assert stored.notes == ("x.whatif is of another prompt, image or model, and left out",)
    (asked,) = read_stored(tmp_path / "x.whatif.json").values()
    assert parts(asked) == ["whatif"]  # what was asked for by its file stays
    assert asked.notes == ("x.flows is of another prompt, image or model, and left out",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["answer"].update(tokens=[]), "answer.tokens"),
        (lambda content: content["others"][0].update(probability_of_first_token="much"), "others.0.probability_of_first_token"),
        (lambda content: content["answer"]["tokens"][0].update(probability=7.0), "answer.tokens.0.probability"),
        (lambda content: content["others"][1].pop("text"), "others.1.text is missing"),
    ],
)  # fmt: skip
def test_answers_that_are_damaged_are_refused_in_one_line(tmp_path, change, said):
    path = save_whatif(make_whatif(), tmp_path / "x")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(OutputError, match=re.escape(said)) as caught:
        load_whatif(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_flows_whose_tokens_have_no_text_are_refused_in_one_line(tmp_path):
    save_flows(make_knockouts(), tmp_path / "x", ["csv"])
    path = tmp_path / "x.flows.meta.json"
    content = json.loads(path.read_text())
    del content["steps"][1]["top1_texts"]["9"]
    path.write_text(json.dumps(content))
    with pytest.raises(OutputError, match="step 1 has no text of token 9"):
        load_flows(tmp_path / "x")


def test_a_sibling_of_an_earlier_version_is_left_out_and_said(tmp_path):
    save(replace(make_result(), meta=META), tmp_path / "x", ["csv"])
    save_flows(make_knockouts(), tmp_path / "x", ["csv"])
    (tmp_path / "x.whatif.json").write_text("{")
    path = tmp_path / "x.flows.meta.json"
    path.write_text(path.read_text().replace('"formats"', '"forms"'))
    (stored,) = read_stored(tmp_path / "x").values()
    assert parts(stored) == ["result"]
    assert [note.partition(":")[0] for note in stored.notes] == ["Left out", "Left out"]
    assert "formats is missing" in stored.notes[0]
    with pytest.raises(OutputError, match="formats is missing"):
        read_stored(tmp_path / "x.flows.csv")


def test_distances_alone_and_tables_of_others_are_read_as_before(tmp_path):
    save(make_result(), tmp_path / "x", ["csv"])
    (stored,) = read_stored(tmp_path / "x").values()
    assert parts(stored) == ["result"]
    (tmp_path / "x.meta.json").unlink()
    (stored,) = read_stored(tmp_path / "x.csv").values()
    assert parts(stored) == ["result"]
    with pytest.raises(OutputError, match="does not exist"):
        read_stored(tmp_path / "y")
    with pytest.raises(OutputError, match="no result there"):
        read_stored(tmp_path / "y.flows.csv")


def test_one_by_itself_is_stored_too():
    result = make_result()
    assert parts(Stored.of(result)) == ["result"]
    assert parts(Stored.of(make_explanation())) == ["answer"]
    assert parts(Stored.of(make_knockouts())) == ["flows"]
    assert parts(Stored.of(make_whatif())) == ["whatif"]
    assert Stored.of(make_whatif()).meta["prompt"] == "Where?"
