"""Results from files: a table of the seven columns alone becomes the Result that its rows say, and what can't be read is
said in one line."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import NASTY_TEXTS, assert_same
from synthetic import PAD, make_result

from mask_impact.errors import OutputError, UsageError
from mask_impact.results.foreign import read_results
from mask_impact.results.foreign_tables import guess_grid, parse_grid
from mask_impact.results.store import load_result, save
from mask_impact.results.stored import read_stored
from mask_impact.results.tables import COLUMNS, to_dataset_table, to_table

FORMATS = ("csv", "json", "parquet")


def write_table(frame, path):
    """As others write them: with pandas' defaults."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".json":
        frame.to_json(path, orient="records", double_precision=15)
    else:
        frame.to_parquet(path)
    return path


def frame_of(result):
    return to_table(result).to_pandas().astype({"token_masked": str, "variant": str})


def only(results):
    (result,) = results.values()
    return result


@pytest.fixture
def frame():
    return frame_of(make_result(n_steps=2))


# --- the seven columns alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_bare_table_gives_the_distances_and_tokens_of_its_rows(tmp_path, form):
    """Whatever the order of its rows and columns, and whatever else stands in it."""
    made = make_result(n_steps=2, grids=((2, 3),))
    frame = frame_of(made).sample(frac=1, random_state=0)[[*COLUMNS[::-1]]].assign(comment="x", layer_name=1)
    read = read_results(write_table(frame, tmp_path / f"elsewhere.{form}"))
    assert list(read) == ["elsewhere"]
    result = read["elsewhere"]
    assert result.variants == made.variants
    assert (result.n_prompt, result.n_layers) == (made.n_prompt, made.n_layers)
    assert result.tokens.texts == (*made.tokens.texts[:-1], "")  # the last produced token was never masked
    for step, expected in zip(result.steps, made.steps, strict=True):
        for metric in ("l2", "cosine"):
            np.testing.assert_allclose(getattr(step, metric), getattr(expected, metric), rtol=1e-6, atol=1e-15)
        assert step.positions.tolist() == expected.positions.tolist()
        assert step.candidates == ()


def test_parquet_keeps_every_bit(tmp_path, frame):
    result, made = only(read_results(write_table(frame, tmp_path / "x.parquet"))), make_result(n_steps=2)
    assert all(
        (a.l2 == b.l2).all() and (a.cosine == b.cosine).all() for a, b in zip(result.steps, made.steps, strict=True)
    )


@pytest.mark.parametrize("form", FORMATS)
def test_token_texts_of_every_kind_survive(tmp_path, form):
    """Texts that look like missing values, numbers or markup; `NA` is a token, not a hole."""
    texts = [text.replace("\r\n", "\n") for text in NASTY_TEXTS]  # pandas' CSV does not keep the difference
    made = make_result(texts)
    save(made, tmp_path / "own", [form])
    (tmp_path / f"own.{form}").rename(tmp_path / f"bare.{form}")
    assert only(read_results(tmp_path / f"bare.{form}")).tokens.texts[:-1] == made.tokens.texts[:-1]


def test_numbers_that_are_floats_in_the_file_are_taken_where_they_are_whole(tmp_path, frame):
    frame = frame.astype({"layer": float, "token_position": float})
    assert only(read_results(write_table(frame, tmp_path / "x.parquet"))).n_layers == 3
    frame.loc[3, "layer"] = 1.5
    with pytest.raises(OutputError, match=r"column layer .* does not hold whole numbers"):
        only(read_results(write_table(frame, tmp_path / "x.parquet")))


def test_steps_may_be_counted_from_one(tmp_path, frame):
    frame["generation_step"] += 1
    result = only(read_results(write_table(frame, tmp_path / "x.csv")))
    assert [step.step for step in result.steps] == [0, 1]
    assert "The file counts generation steps from 1, this program from 0" in result.meta["notices"]


def test_combinations_that_are_not_there_have_no_value(tmp_path):
    """As in a dataset that keeps the strongest head only."""
    made = make_result(n_steps=2, n_heads=4)
    table = to_dataset_table(made, "one", "{}", "summary")
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "part-00000.parquet")
    result = read_results(tmp_path / "set")["one"]
    head_names = [name for name in made.variants[2:] if name in result.variants]
    for step, full in zip(result.steps, made.steps, strict=True):
        strongest = full.l2[:, :, 2:].argmax(axis=2)
        for index, name in enumerate(result.variants):
            there = (
                np.ones_like(strongest, bool) if name not in head_names else strongest == made.variants.index(name) - 2
            )
            expected = np.where(there, full.l2[:, :, made.variants.index(name)], np.nan)
            np.testing.assert_array_equal(step.l2[:, :, index], expected)
    assert result.generated_text == made.generated_text
    assert result.steps[1].token_text == made.steps[1].token_text  # from the generated text, since it was never masked


def test_heads_are_in_the_order_of_their_numbers(tmp_path):
    frame = frame_of(make_result(n_heads=12)).sort_values("variant")
    expected = ("Full", "Attn", *(f"Head_{head}" for head in range(12)))
    assert only(read_results(write_table(frame, tmp_path / "x.parquet"))).variants == expected


# --- sinks and images, which a bare table does not name ---------------------------------------------------------------------


def test_a_token_that_takes_most_of_the_distance_in_all_layers_is_a_sink(tmp_path, frame):
    """The rule that measured results have for attention weights, on shares of the L2 distance of Full."""
    frame.loc[(frame.token_position == 2) & (frame.variant == "Full"), "l2_distance"] = 1e6
    result = only(read_results(write_table(frame, tmp_path / "x.parquet")))
    assert result.sinks == (2,)
    assert any("no attention weights" in note for note in result.meta["notices"])


def test_runs_of_image_tokens_are_images_of_the_grid_given(tmp_path):
    frame = frame_of(make_result(["a", *[PAD] * 12, "b", *[PAD] * 6, "c"]))
    path = write_table(frame, tmp_path / "x.parquet")
    result = only(read_results(path, [(4, 3), (1, 6)]))
    assert [image.grid for image in result.images] == [(4, 3), (1, 6)]
    assert result.tokens.image[:21].tolist() == [-1, *[0] * 12, -1, *[1] * 6, -1]
    assert result.tokens.row[1:13].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert result.tokens.column[1:13].tolist() == [0, 1, 2] * 4
    assert not result.meta["notices"] or "guess" not in " ".join(result.meta["notices"])


def test_a_grid_that_is_not_given_is_guessed_and_said_so(tmp_path):
    frame = frame_of(make_result(["a", *[PAD] * 12, "b"]))
    result = only(read_results(write_table(frame, tmp_path / "x.parquet")))
    assert result.images[0].grid == (3, 4)
    assert any("3 rows x 4 columns, is a guess from its 12 tokens" in note for note in result.meta["notices"])


@pytest.mark.parametrize(("n", "grid"), [(1, (1, 1)), (256, (16, 16)), (12, (3, 4)), (7, (1, 7)), (1024, (32, 32))])
def test_a_guess_is_the_nearest_to_a_square(n, grid):
    assert guess_grid(n) == grid


@pytest.mark.parametrize(("text", "grid"), [("16x12", (16, 12)), (" 2 X 3 ", (2, 3)), ("4×5", (4, 5))])  # noqa: RUF001
def test_a_grid_is_rows_by_columns(text, grid):
    assert parse_grid(text) == grid


@pytest.mark.parametrize("text", ["16", "0x4", "4x-1", "axb", "", "4x4x4"])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(UsageError, match="ROWSxCOLUMNS"):
        parse_grid(text)


@pytest.mark.parametrize(
    ("texts", "grids", "message"),
    [
        (["a", PAD, PAD, "b"], [(2, 2)], "2x2 has 4 cells, and image 0 .* has 2 tokens"),
        (["a", PAD, "b", PAD, "c", PAD], [(1, 1)] * 2, "given 2 times, and .* 3 images"),
        (["a", "b"], [(1, 1)], "no token <|image_pad|>".replace("|", r"\|")),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(tmp_path, texts, grids, message):
    path = write_table(frame_of(make_result(texts)), tmp_path / "x.csv")
    with pytest.raises(UsageError, match=message):
        only(read_results(path, grids))


# --- several prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMATS, "folder"])
def test_prompts_of_one_file_are_results_of_their_own(tmp_path, form):
    made = {name: make_result(["x", name, "z"], seed=seed) for seed, name in enumerate(["second", "first", 'a "b"'])}
    frames = [frame_of(result).assign(prompt_name=name) for name, result in made.items()]
    if form == "folder":
        path = tmp_path / "set"
        path.mkdir()
        for number, frame in enumerate(frames):
            write_table(frame, path / f"part-{number:05}.parquet")
    else:
        path = write_table(pd.concat(frames), tmp_path / f"many.{form}")
    read = read_results(path)
    assert list(read) == list(made)
    for name, result in read.items():
        assert result.tokens.texts[1] == name
        np.testing.assert_allclose(result.steps[0].l2, made[name].steps[0].l2, rtol=1e-6)
    assert list(read_results(path, prompt_name="first")) == ["first"]
    with pytest.raises(UsageError, match="no prompt 'third'; it has 'second', 'first'"):
        read_results(path, prompt_name="third")


def test_prompts_without_a_column_that_names_them_are_refused(tmp_path, frame):
    """Two of the same length give two rows for each cell; two of different tokens, two texts at a position."""
    with pytest.raises(
        OutputError, match=r"two rows for generation_step 0, layer 0, token_position 0, variant Full.*prompt_name"
    ):
        only(read_results(write_table(pd.concat([frame, frame]), tmp_path / "x.parquet")))
    other = frame_of(make_result(["One", " two", " three"]))
    with pytest.raises(OutputError, match=r"two tokens at position 0, 'The' and 'One'.*prompt_name"):
        only(read_results(write_table(pd.concat([frame, other]), tmp_path / "x.parquet")))


# --- this program's own -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".csv", ".json", ".meta.json"])
def test_a_stored_result_is_read_with_its_meta_file(tmp_path, suffix):
    save(make_result(n_steps=2, grids=((1, 2),)), tmp_path / "run", ["csv", "json"])
    read = read_results(tmp_path / f"run{suffix}")
    assert list(read) == ["run"]
    assert_same(read["run"], load_result(tmp_path / "run"))


def test_a_table_that_the_meta_file_does_not_name_is_read_as_it_stands(tmp_path, frame):
    """It is from elsewhere, or from an earlier run."""
    save(make_result(["other", " tokens"]), tmp_path / "run", ["csv"])
    result = only(read_results(write_table(frame, tmp_path / "run.parquet")))
    assert result.tokens.texts[0] == "The"
    assert result.steps[0].candidates == ()


def test_a_name_without_suffix_finds_a_bare_table(tmp_path, frame):
    write_table(frame, tmp_path / "v1.2.csv")
    assert list(read_results(tmp_path / "v1.2")) == ["v1.2"]


def test_a_newer_schema_is_refused(tmp_path):
    save(make_result(), tmp_path / "run")
    meta = json.loads((tmp_path / "run.meta.json").read_text())
    (tmp_path / "run.meta.json").write_text(json.dumps(meta | {"schema_version": 99}))
    with pytest.raises(OutputError, match="schema version 99, this program reads version 1"):
        only(read_results(tmp_path / "run"))


def test_grids_are_not_for_results_that_have_their_own(tmp_path):
    save(make_result(grids=((1, 2),)), tmp_path / "run")
    with pytest.raises(UsageError, match="has the grids of the images"):
        read_results(tmp_path / "run", [(1, 2)])


# --- bad input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_missing_columns_are_named(tmp_path, form, frame):
    path = write_table(frame.drop(columns=["variant", "cosine_distance"]), tmp_path / f"x.{form}")
    with pytest.raises(OutputError, match="no columns variant, cosine_distance; needed are generation_step, layer,"):
        read_results(path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows_is_refused(tmp_path, form, frame):
    with pytest.raises(OutputError, match="has no rows"):
        read_results(write_table(frame.head(0), tmp_path / f"x.{form}"))


@pytest.mark.parametrize("form", FORMATS)
def test_distances_that_are_no_numbers_have_no_value_and_are_counted(tmp_path, form, frame):
    frame.loc[[0, 5], "l2_distance"] = np.nan
    path = write_table(frame, tmp_path / f"x.{form}")
    if form == "json":  # as Python's json module writes it
        path.write_text(path.read_text().replace("null", "NaN"))
    result = only(read_results(path))
    assert np.isnan(result.steps[0].l2.reshape(-1)[[0, 5]]).all()
    assert np.isnan(result.steps[0].l2).sum() == 2
    assert not np.isnan(result.steps[0].cosine).any()
    assert any(note.startswith("2 distances in the file are not finite") for note in result.meta["notices"])
    frame[["l2_distance", "cosine_distance"]] = np.nan
    with pytest.raises(OutputError, match="no distance that is a number"):
        only(read_results(write_table(frame, tmp_path / f"x.{form}")))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("layer", -1, "negative number"),
        ("token_position", 10**9, "only 72 rows: these can't be their numbers"),
        ("generation_step", 5, "no rows of generation step 2"),
        ("l2_distance", "far", "column l2_distance of .* does not hold numbers"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path, column, value, message):
    frame = frame_of(make_result(n_steps=2, texts=("a", " b"), groups=("full", "attn", "heads"))).astype(
        {column: object}
    )
    frame.loc[len(frame) - 1, column] = value
    if column == "l2_distance":
        frame[column] = frame[column].astype(str)
    with pytest.raises(OutputError, match=message.replace("72", str(len(frame)))):
        only(read_results(write_table(frame.convert_dtypes(), tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"\xff\xfe\x00", "cannot be read as CSV"),
        ("x.csv", b"generation_step\n1\n", "no columns layer"),
        ("x.json", b"{}", "not a list of records"),
        ("x.json", b"[1, 2]", "not a list of records"),
        ("x.json", b"[", "cannot be read as JSON"),
        ("x.parquet", b"PAR1", "cannot be read as PARQUET"),
        ("x.txt", b"text", "accepted are .csv, .json and .parquet"),
        ("x", b"text", "accepted are .csv, .json and .parquet"),
    ],
)
def test_files_that_are_no_tables_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match=message) as caught:
        only(read_results(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_record_that_lacks_a_column_is_named(tmp_path, frame):
    records = frame.to_dict("records")
    del records[2]["variant"]
    (tmp_path / "x.json").write_text(json.dumps(records))
    with pytest.raises(OutputError, match=r"record 3 of .* has no variant"):
        read_results(tmp_path / "x.json")


def test_what_is_not_there_is_said(tmp_path):
    for name in ("nothing", "nothing.csv", "folder/nothing"):
        with pytest.raises(OutputError, match="does not exist"):
            read_results(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder without part-"):
        read_results(tmp_path / "folder")


def test_an_empty_token_text_is_one_but_a_missing_one_is_an_error(tmp_path, frame):
    frame["token_masked"] = frame.token_masked.replace(" is", "")
    assert only(read_results(write_table(frame, tmp_path / "x.csv"))).tokens.texts[4] == ""
    table = pa.Table.from_pandas(frame.assign(token_masked=None), preserve_index=False)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(OutputError, match=r"column token_masked .* (is empty|does not hold)"):
        only(read_results(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    "name",
    [
        "k.flows.csv",
        "k.flows",
        "k.flows.meta.json",
        "w.whatif.json",
        "k.patches.csv",
        "k.deepstack",
        "k.tower_effects.csv",
    ],
)
def test_files_of_other_runs_are_said_to_be_so(name, tmp_path):
    with pytest.raises(OutputError, match="not a result of distances"):
        read_results(tmp_path / name)


@pytest.mark.parametrize("kind", ["routes", "matrix", "estimates"])
def test_a_table_alone_that_belongs_to_a_result_is_refused_by_name(kind, tmp_path):
    path = tmp_path / f"x.{kind}.csv"
    path.write_text("a\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"x has no meta file: nothing of that name can be shown"):
        read_stored(path)
