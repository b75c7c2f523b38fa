"""What answers of a dataset used, read again from its parts: as measured, or an error that says what does not fit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explained import explained
from synthetic import make_result

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.dataset_answers import DatasetAnswers, card_table
from mask_impact.results.explanation_tables import NUMBERS, explanation_table
from mask_impact.results.store import save
from mask_impact.results.stored import joined, read_stored
from mask_impact.results.study_folder import is_old, table_of
from mask_impact.results.tables import to_dataset_table, with_prompt

NAMES = ("star", "north & south", "a/b")


def results():
    """One prompt with an image, which differs from the others in all of its numbers."""
    for number, name in enumerate(NAMES):
        made = make_result(seed=number, grids=((2, 2),), sinks=())
        effects = {position: -1.0 - position - number / 3 for position in range(1, made.n_prompt)}
        yield name, explained(made, effects, needed=(2,), becomes={2: " other"})


@pytest.fixture(params=["now", "before"])
def folder(request, tmp_path):
    """A dataset's folder of two parts, as a study writes it, or an earlier version did."""
    kinds = {
        "impact": lambda one, name: to_dataset_table(one, name, "", "none"),
        "answer": lambda one, name: with_prompt(explanation_table(one.answer), name, one.generated_text, ""),
        "card": lambda one, name: with_prompt(card_table(one.answer), name, one.generated_text, ""),
    }
    found = list(results())
    for name, make in kinds.items():
        place = table_of(tmp_path / "study", name, request.param == "before")
        place.mkdir(parents=True)
        for part, of_part in enumerate((found[:2], found[2:])):
            table = pa.concat_tables([make(one, prompt).unify_dictionaries() for prompt, one in of_part])
            pq.write_table(table, place / f"part-{part:06d}.parquet")
    return tmp_path / "study"


def test_every_prompt_of_a_dataset_is_read_as_it_was_measured(folder):
    answers = DatasetAnswers(folder)
    assert list(answers) == list(NAMES)
    for name, result in results():
        found, measured = answers[name], result.answer
        for field in NUMBERS:
            np.testing.assert_array_equal(getattr(found.targets[0], field), getattr(measured.targets[0], field))
        assert found.tokens.texts == measured.tokens.texts
        assert found.images == measured.images
        assert found.targets[0].evidence == measured.targets[0].evidence
        assert found.targets[0].probability == measured.targets[0].probability


def test_numbers_of_another_run_are_refused(folder):
    path = table_of(folder, "answer", is_old(folder)) / "part-000000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("logprob_change")
    changed = pa.array(table["logprob_change"].to_numpy() * np.float32(1.5))
    pq.write_table(table.set_column(place, "logprob_change", changed), path)
    with pytest.raises(OutputError, match="does not hold the numbers of the run"):
        DatasetAnswers(folder)["star"]
    pq.write_table(table.slice(1), path)
    with pytest.raises(OutputError, match="rows of the prompt 'star', expected"):
        DatasetAnswers(folder)["star"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ("[]", "schema version None"), ('{"schema_version": 1}', "is missing")],
)
def test_a_card_that_is_none_is_an_error_in_one_line(folder, content, said):
    path = table_of(folder, "card", is_old(folder)) / "part-000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("card"), "card", pa.array([content])), path)
    with pytest.raises(OutputError, match=said) as caught:
        DatasetAnswers(folder)["a/b"]
    assert "\n" not in str(caught.value)


def test_a_datasets_folder_has_distances_and_answers(folder):
    found = read_stored(folder)
    assert list(found) == list(NAMES)
    for name, result in results():
        both, lean = found[name], found.lean(name)
        np.testing.assert_array_equal(both.result.steps[0].l2, result.steps[0].l2)
        assert both.result.images == result.images  # the previews, which a table of distances has not
        assert (lean.result, lean.answer.generated_text) == (None, result.generated_text)
    assert list(read_stored(folder, prompt_name="star")) == ["star"]
    with pytest.raises(UsageError, match="has no prompt 'moon'; it has 'star'"):
        read_stored(folder, prompt_name="moon")


def test_a_folder_of_results_is_all_that_is_stored_in_it(tmp_path):
    (tmp_path / "output").mkdir()
    for number, name in enumerate(("b", "a.b")):
        made = make_result(seed=number)
        save(explained(made, {1: -1.0 - number}), tmp_path / "output" / name)
    (tmp_path / "output" / "notes.json").write_text("{}")
    found = read_stored(tmp_path / "output")
    assert list(found) == ["a.b", "b"]
    assert found["b"].result is not None
    assert (found.lean("b").result, found.lean("b").answer is None) == (None, False)
    assert list(read_stored(tmp_path / "output", prompt_name="b")) == ["b"]
    with pytest.raises(UsageError, match="`grid` is for tables that have none"):
        read_stored(tmp_path / "output", grids=[(2, 2)])
    names = list(joined([found, read_stored(tmp_path / "output" / "b"), read_stored(tmp_path / "output")]))
    assert names == ["a.b", str(tmp_path / "output" / "b")]  # the same one
