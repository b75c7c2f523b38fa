"""What is read back of stored results: a valid file gives a result that all views take, any other one line that says where."""

import copy
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stored_samples import KINDS, read, show, write_all

from mask_impact.errors import OutputError
from mask_impact.results import schema, table_reading
from mask_impact.results.foreign import read_results
from mask_impact.results.table_reading import read_csv, read_json, read_parquet
from mask_impact.results.tables import COLUMNS

FORMS = ("csv", "json", "parquet")
GONE, SHORTER, LONGER, MORE = "gone", "shorter", "longer", "more"  # what can be done with any value
VALUES = (
    *(None, True, "x", "", "7", -1, 0, 2, 1_000_000, 3_000_000_000, 10**17, 1.5, -2.5, 1e308),
    *([], {}, [1_000_000], [None], ["x"], [[1]], {"5": "x"}, {"a": 1}),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def own(files, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def places(one, at=()):
    """The path of each value in JSON, the first and the last of a list standing for all of it."""
    if at:
        yield at
    keys = list(one) if isinstance(one, dict) else sorted({0, len(one) - 1}) if isinstance(one, list) and one else ()
    for key in keys:
        yield from places(one[key], (*at, key))


def changed(meta, at, value):
    """The content with another value at a place."""
    meta = copy.deepcopy(meta)
    one = meta
    for key in at[:-1]:
        one = one[key]
    old = one[at[-1]]
    if value == GONE:
        del one[at[-1]]
    elif value == SHORTER and isinstance(old, list):
        del old[-1:]
    elif value == LONGER and isinstance(old, list):
        old += copy.deepcopy(old[-1:])
    elif value == MORE and isinstance(old, dict):
        old["surprise"] = 1
    else:
        one[at[-1]] = copy.deepcopy(value)
    return meta


def check_one(folder, kind, at, value):
    """Whether a changed file was accepted; what was not is one line that names the file and a field of the path."""
    file, name = KINDS[kind]
    whole = (folder / file).read_bytes()
    (folder / file).write_text(json.dumps(changed(json.loads(whole), at, value)))
    try:
        assert show(read(folder / name), compared=False) > 1000
    except OutputError as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 1000
        assert file in said
        said = said.replace("schema version", "schema_version")
        assert any(str(key) in said for key in at if not isinstance(key, int)), said
        return False
    finally:
        (folder / file).write_bytes(whole)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_meta_file_gives_a_whole_result_or_one_line_with_file_and_field(files, kind):
    """40 changes of each kind of file."""
    paths = list(places(json.loads((files / KINDS[kind][0]).read_bytes())))

    @settings(max_examples=40, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(st.sampled_from(paths), st.sampled_from((*VALUES, GONE, SHORTER, LONGER, MORE)))
    def one(at, value):
        found.append(check_one(files, kind, at, value))

    found = []
    one()
    assert len(found) >= 40
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("form", FORMS)
def test_valid_files_of_all_kinds_and_formats_are_read_and_shown(tmp_path, form):
    write_all(tmp_path, form)
    stored = [read(tmp_path / name) for _, name in KINDS.values()]
    assert [one.notes for one in stored] == [()] * len(KINDS)
    assert all(show(one) > 1000 for one in stored[:2])


LITERAL = [
    ("result", "n_prompt", 3_000_000_000, "n_prompt"),
    ("result", "n_prompt", 5, "n_prompt is 5, and with 2 steps tokens has 8 entries"),
    ("result", "n_rows", 20_000_000, "n_rows is 20,000,000, and the lists of steps have 156"),
    ("result", "n_layers", 2, "steps.0.self_check has 3 entries, expected 2 as n_layers says"),
    ("result", "sinks", [1_000_000], "sinks.0 is 1000000, expected 0 to 7"),
    ("result", "sinks", [-1], "sinks.0"),
    ("result", "formats", None, "formats"),
    ("result", "formats", [], "formats"),
    ("result", "formats", ["exe"], "formats.0"),
    ("result", "variants", ["Full", "Full", "Attn", "Head_0"], "variants has a name twice"),
    ("result", "distance_dtype", "O", "distance_dtype"),
    ("result", "run.notices", 5, "run.notices"),
    ("result", "run.verification", {"triples": 3, "error": "x"}, "run.verification.triples"),
    ("result", "run.effect", 5, "run.effect"),
    ("result", "answer_crc32", -1, "answer_crc32"),
    ("result", "steps.0.step", 1, "steps.0.step is 1, expected 0"),
    ("result", "steps.1.attention", [0.5], "steps.1.attention has 1 entries, expected 7"),
    ("result", "steps.0.attention.0", None, "steps.0.attention.0"),
    ("result", "steps.0.baseline_norm.1", [1.0], "steps.0.baseline_norm.1 has 1 entries, expected 4"),
    ("result", "steps.0.baseline_norm.1.0", 1e300, "steps.0.baseline_norm.1.0"),
    ("result", "steps.0.candidates.0.text", 5, "steps.0.candidates.0.text"),
    ("result", "steps.0.candidates.0.id", [1], "steps.0.candidates.0.id"),
    ("result", "steps.0.candidates.0.probability", 7.0, "steps.0.candidates.0.probability"),
    ("result", "steps.0.positions", [0, 1, 2, 3, 4, 9], "steps.0.positions.5 is 9, expected 0 to 5"),
    ("result", "steps.0.positions", [0, 2, 1, 3, 4, 5], "steps.0.positions does not ascend"),
    ("result", "steps.0.distances_crc32", 7, "step 0 differs from its distances_crc32"),
    ("result", "steps.1.effect", None, "steps.1.effect"),
    ("result", "steps.0.effect.floor", [0.0], "steps.0.effect.floor"),
    ("result", "steps.0.effect.top1_texts", {}, "steps.0.effect.top1_texts"),
    ("result", "steps.0.effect.top1_texts", {"x": "y"}, "steps.0.effect.top1_texts.x"),
    ("grouped", "steps.0.effect.groups.1.1", [0, 99], "steps.0.effect.groups.1.1.1 is 99, expected 0 to 4"),
    ("grouped", "steps.0.effect.groups.1.1", [], "steps.0.effect.groups.1.1"),
    ("grouped", "steps.0.effect.groups.0", ["one", [1], 2], "steps.0.effect.groups.0"),
    ("grouped", "steps.1.effect.estimated", None, "steps.1.effect.estimated"),
    ("grouped", "steps.0.effect.estimated.agreement.rho", "x", "steps.0.effect.estimated.agreement.rho"),
    ("result", "images.0.grid", [2, 2], "images.0.grid has 2 x 2 cells, and tokens has 2 of them"),
    ("result", "images.0.grid", [0, 2], "images.0.grid.0"),
    ("result", "images.0.preview", "!", "images.0.preview: it is no JPEG"),
    ("result", "images.0.preview", "/9j/4AAQ", "images.0.preview: it is no JPEG"),
    ("result", "images", [], "tokens.1.image is 0, which no image has"),
    ("result", "tokens.0.position", 1, "tokens.0.position is 1, expected 0"),
    ("result", "tokens.0.kind", "pixel", "tokens.0.kind"),
    ("result", "tokens.1.row", None, "tokens.1 has only image and column"),
    ("result", "tokens.2.column", 0, "tokens.2 is row 0, column 0 of image 0 again"),
    ("answer", "n_prompt", 99, "n_prompt is 99, and tokens has 8 entries"),
    ("answer", "targets.0.steps", [5], "targets.0.steps.0 is 5, expected 0 to 1"),
    ("answer", "targets.0.token_ids", [1, 2], "targets.0.token_ids has 2 entries, expected 1"),
    ("answer", "targets.0.units", 3, "targets.0.names has 4 entries, expected 3 as units says"),
    ("answer", "targets.0.positions.0", [77], "targets.0.positions.0.0 is 77"),
    ("answer", "targets.0.top1.0", 5, "targets.0.top1_texts has no text of token 5"),
    ("answer", "targets.0.top1.0", -1, "targets.0.measured or .top1"),
    ("answer", "targets.0.measured", 4, "targets.0.measured"),
    ("answer", "targets.0.instead", ["x", 1], "targets.0.instead"),
    ("answer", "targets.0.evidence.0.kind", "smell", "targets.0.evidence.0.kind"),
    ("answer", "targets.0.evidence.0.necessary.places", [4], "targets.0.evidence.0.necessary.places.0 is 4"),
    ("answer", "targets.0.evidence.0.each", [9], "targets.0.evidence.0.each.0 is 9"),
    ("answer", "targets.0.routes.0.layers", [2, 1], "targets.0.routes.0.layers"),
    ("answer", "targets.0.routes.0.estimate.1", [1.0], "targets.0.routes.0.estimate.1 has 1 entries, expected 2"),
    ("answer", "targets.0.heads.heads.0", [0, 7], "targets.0.heads.heads.0.0 is 7"),
    ("answer", "crc32", 5, "its crc32 is another"),
    ("answer", "estimates_crc32", 5, "its estimates_crc32 is another"),
    ("flows", "run.window", "all", "run.window"),
    ("flows", "run", {}, "run.model is missing"),
    ("flows", "steps.1.step", 5, "steps.1.step is 5, expected 1"),
    ("flows", "flows.0.source_positions", [1000], "flows.0.source_positions.0 is 1000"),
    ("flows", "flows.1.target_positions", [-1], "flows.1.target_positions.0"),
    ("flows", "formats", None, "formats"),
    ("flows", "top1_crc32", 5, "its top1_crc32 is another"),
    ("whatif", "layers", [0, 9], "layers.1 is 9, expected 0 to 3"),
    ("whatif", "others.0.positions", [50], "others.0.positions.0 is 50"),
    ("whatif", "others.0.differs_at", 8, "others.0.differs_at is 8, and there are 2 tokens"),
    ("whatif", "schema_version", True, "schema version True"),
    ("patches", "targets.0.place.0", 9, "targets.0.place.0 is 9, expected 0 to 6"),
    ("patches", "targets.1.fill.0", "pink", "targets.1.fill.0 is none of fills"),
    ("patches", "targets.0.route.1", "else", "targets.0.route.1"),
    ("patches", "targets.0.found", 7, "targets.0.found.0 is 7, expected 0 to 6"),
    ("patches", "targets.0.top1_texts", {}, "targets.0.top1_texts has no text of token"),
    ("patches", "targets.0.steps", [2], "targets.0.steps.0 is 2, expected 0 to 1"),
    ("patches", "regions.0.image", 1, "regions.0.image.0 is 1, expected 0 to 0"),
    ("patches", "regions.2.box", [5.0, 0.0, 5.0, 1.0], "regions.2.box is not left, top, right, bottom"),
    ("patches", "regions.2.level", "pixel", "regions.2.level"),
    ("patches", "images", [], "images"),
    ("deepstack", "parts.1.name", "main", "parts: names are there once each"),
    ("deepstack", "norm_share", [0.5], "norm_share has 1 entries, expected 3 as parts says"),
    ("deepstack", "targets.0.differs", [True], "targets.0.differs has 1 entries, expected 8 as parts says"),
    ("deepstack", "targets.0.interaction.1", [0.0], "targets.0.interaction.1 has 1 entries"),
    ("deepstack", "answers.0.set", 8, "answers.0 is 8, expected 0 to 7"),
    ("deepstack", "baseline", "pink", "baseline"),
    ("deepstack", "positions", [], "positions"),
    ("tower", "layers", [0, 3], "layers.1 is 3, expected 0 to 2"),
    ("tower", "layer_sets.1", [1, 1], "layer_sets.1 does not ascend"),
    ("tower", "layer_sets.1", [0, 1, 2], "layer_sets has the same layers twice"),
    ("tower", "readings.0.grid", [4, 5], "readings.0.grid is not of the patch grid of 2 x 2 image tokens"),
    ("tower", "readings.0.image", 1, "readings.0 is 1, expected 0 to 0"),
    ("tower", "unit", "token", "readings.0.grid"),
    ("tower", "most_read", None, "most_read is one of regions"),
    ("tower", "most_read", 9, "targets.0: most_read is region 9, which was not hidden in layers"),
    ("tower", "targets.1.found", 7, "targets.1: found is region 7, which was not hidden in layers"),
    ("tower", "targets.0.layer_set.0", 4, "targets.0.layer_set.0 is 4, expected 0 to 3"),
    ("tower", "targets.0.place.0", 1, "targets.0 has a region in the same layers twice"),
    ("tower", "probes", 2000, "probes"),
    ("tower", "patches.0.grid", [4, 5], "patches.0.grid is not of the patch grid of 2 x 2 image tokens"),
    ("tower", "patches.0.places", [16], "patches.0.places.0 is 16, expected 0 to 15"),
    ("tower", "patches.0.region", 7, "patches.0 is 7, expected 0 to 6"),
]  # fmt: skip


def path_of(dotted):
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


@pytest.mark.parametrize(("kind", "field", "value", "said"), LITERAL)
def test_a_field_that_does_not_fit_is_named(own, kind, field, value, said):
    file, name = KINDS[kind]
    meta = json.loads((own / file).read_bytes())
    (own / file).write_text(json.dumps(changed(meta, path_of(field), value)))
    with pytest.raises(OutputError) as caught:
        read(own / name)
    assert said in str(caught.value)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", '"\\ud800"', "1" * 5000, "[" * 100_000, "", "\x00"])
def test_what_is_no_strict_json_is_one_line(own, text):
    path = own / "run.meta.json"
    path.write_text(path.read_text().replace('"schema_version": 1', f'"schema_version": 1, "x": {text}'))
    if text.startswith("1"):
        path.write_text(path.read_text().replace('"n_rows": 156', f'"n_rows": {text}'))
    with pytest.raises(OutputError, match=r"run\.meta\.json (cannot be read|is not the meta file)") as caught:
        read(own / "run")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_that_checks_nothing_would_be_found(files, kind, monkeypatch):
    monkeypatch.setitem(schema.SCHEMAS, kind.replace("grouped", "result"), schema.Part)
    literal = [(path_of(field), value) for of, field, value, _ in LITERAL if of == kind and value != 3_000_000_000]
    with pytest.raises((AssertionError, TypeError, ValueError, KeyError, AttributeError, IndexError)):
        assert not any(check_one(files, kind, at, value) for at, value in literal)


@pytest.mark.parametrize(
    ("check", "kind", "field", "value"),
    [
        ("check_below", "result", "sinks", [1_000_000]),
        ("check_length", "result", "steps.0.self_check", [0.0]),
        ("check_tokens", "result", "images.0.grid", [1, 5]),
    ],
)
def test_a_check_that_is_left_out_would_be_found(files, check, kind, field, value, monkeypatch):
    assert not check_one(files, kind, path_of(field), value)
    monkeypatch.setattr(schema, check, lambda *_, **__: None)
    with pytest.raises((AssertionError, IndexError, ValueError)):
        assert not check_one(files, kind, path_of(field), value)


# --- tables beside an intact meta file ----------------------------------------------------------------------------------------


def read_table(path):
    if path.suffix == ".parquet":
        return pq.read_table(path)
    return pa.Table.from_pylist(json.loads(path.read_bytes())) if path.suffix == ".json" else pa_csv.read_csv(path)


def write_table(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(table.to_pylist(), default=str))
    else:
        pa_csv.write_csv(table, path)


TABLES = {
    "run": ("l2_distance", "run"),
    "run.effect": ("kl_divergence", "run"),
    "run.answer": ("contribution", "run.answer"),
    "run.matrix": ("contribution", "run.answer"),
    "run.estimates": ("contribution", "run.answer"),
    "cut.flows": ("logprob_change", "cut.flows"),
}


def of_another_type(table, column):
    return table.set_column(
        table.column_names.index(column), column, pa.array([f"x{row}" for row in range(len(table))])
    )


def altered(table, column):
    numbers = table[column].to_numpy(zero_copy_only=False).astype(np.float32).copy()
    numbers[-1] += 1
    return table.set_column(table.column_names.index(column), column, pa.array(numbers))


DAMAGES = {
    "a row too few": lambda table, column: table.slice(0, len(table) - 1),
    "no row": lambda table, column: table.slice(0, 0),
    "a row too many": lambda table, column: pa.concat_tables([table, table.slice(0, 1)]),
    "a hundred times the rows": lambda table, column: pa.concat_tables([table] * 100),
    "no such column": lambda table, column: table.drop_columns([column]),
    "texts": of_another_type,
    "another number": altered,
}


@pytest.fixture(scope="module", params=FORMS)
def in_form(request, tmp_path_factory):
    return request.param, write_all(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_that_is_not_of_its_meta_file_is_one_line(in_form, damage):
    form, folder = in_form
    for stem, (column, name) in TABLES.items():
        path = folder / f"{stem}.{form}"
        whole = path.read_bytes()
        write_table(DAMAGES[damage](read_table(path), column), path)
        try:
            with pytest.raises(OutputError) as caught:
                read(folder / name)
        finally:
            path.write_bytes(whole)
        assert f"{stem}." in str(caught.value), (stem, damage)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"[", b"PAR1", b"[1]", b"a\n1\n", b'[{"a": 1}', b"[" * 99_999]
)
def test_a_file_that_is_no_table_is_one_line(in_form, content):
    form, folder = in_form
    path = folder / f"run.{form}"
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(OutputError, match=rf"run\.{form}") as caught:
            read(folder / "run")
    finally:
        path.write_bytes(whole)
    assert "\n" not in str(caught.value)


def test_whole_numbers_and_yes_or_no_are_what_they_are(own):
    """Whatever a checksum does not hold."""
    path = own / "cut.flows.csv"
    frame = pa_csv.read_csv(path).to_pandas()
    for column, value in (("layer", 7), ("last_layer", 9), ("top1_id", 12345), ("first_layer", -1), ("layer", 0.5)):
        wrong = frame.astype({column: float}) if value == 0.5 else frame.copy()
        wrong.loc[len(frame) - 1, column] = value
        wrong.to_csv(path, index=False)
        with pytest.raises(OutputError, match=r"cut\.flows\.csv"):
            read(own / "cut.flows")


# --- no more is read than what is expected ------------------------------------------------------------------------------------

MANY = 100_000


def first(names):
    return names[:1]


def test_of_a_long_table_only_the_beginning_is_read(tmp_path):
    numbers = pa.table({"a": np.zeros(MANY, dtype=np.float32), "b": np.zeros(MANY, dtype=np.float32)})
    (tmp_path / "x.csv").write_bytes(b"a,b\n" + b"0,0.00000000000000\n" * MANY)
    pq.write_table(numbers, tmp_path / "x.parquet")
    (tmp_path / "x.json").write_bytes(b'[{"a":0}' + b',{"a":0}' * (MANY - 1) + b"]")
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        lengths = [len(read_parquet(file, ["a"], 10))]
    lengths.append(len(read_csv(tmp_path / "x.csv", first, 10, {"a": pa.float32()})))
    lengths.append(len(read_json(tmp_path / "x.json", first, 10, lambda name, values: pa.array(values))))
    assert all(10 < n < MANY for n in lengths)
    assert len(read_json(tmp_path / "x.json", first, MANY, lambda name, values: pa.array(values))) == MANY


@pytest.mark.parametrize("header", ["a" * 70_000, ",".join("a" * 5000), '"' + "\n" * 70_000])
def test_a_first_line_without_end_is_one_line(tmp_path, header, own):
    (tmp_path / "x.csv").write_text(f"{header}\n1\n")
    with pytest.raises(OutputError, match=r"the first line of .*x\.csv is none of names"):
        read_results(tmp_path / "x.csv")
    (own / "run.csv").write_text(f"{header}\n1\n")
    with pytest.raises(OutputError, match=r"run\.csv"):
        read(own / "run")


def test_a_record_without_end_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(table_reading, "LONGEST_RECORD", 1000)
    monkeypatch.setattr(table_reading, "AT_ONCE", 100)
    (tmp_path / "x.json").write_text('[{"a": "' + "x" * 5000)
    with pytest.raises(OutputError, match=r"x\.json has a record of more than 1,000 characters"):
        read_results(tmp_path / "x.json")


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1000])
def test_records_are_the_same_wherever_the_file_is_cut(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(table_reading, "AT_ONCE", at_once)
    records = [{"a": '},\n{"[]', "b": -1.5e-7}, {"a": "\\", "b": 0}, {"b": None, "a": "é"}]
    for indent in (None, 2):
        (tmp_path / "x.json").write_text("\ufeff" + json.dumps(records, indent=indent, ensure_ascii=False) + "\n ")
        table = read_json(tmp_path / "x.json", list, 10, lambda name, values: pa.array(values))
        assert table.to_pylist() == records


# --- tables of others ---------------------------------------------------------------------------------------------------------


def bare(n_rows=4, **columns):
    values = {name: np.arange(n_rows) if "position" in name else np.zeros(n_rows, dtype=np.int64) for name in COLUMNS}
    values |= {"token_masked": ["a"] * n_rows, "variant": ["Full"] * n_rows, "l2_distance": np.ones(n_rows)}
    return pa.table(values | columns)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", ["generation_step", "layer", "token_position", "l2_distance"])
def test_columns_of_another_type_are_one_line_also_in_tables_of_others(tmp_path, form, column):
    path = tmp_path / f"x.{form}"
    write_table(bare(), path)
    assert read_results(path)["x"].n_rows == 4
    for values in (["far"] * 4, [1.5, 0.5, 0.25, 2.5] if column != "l2_distance" else [[1], [2], [3], [4]]):
        if form == "csv" and isinstance(values[0], list):
            continue
        write_table(bare(**{column: values}), path)
        with pytest.raises(OutputError, match=r"x\.(csv|json|parquet)") as caught:
            read_results(path)["x"]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [*FORMS, "folder"])
def test_tables_of_others_have_a_bound_on_their_rows(tmp_path, form, monkeypatch):
    path = tmp_path / f"x.{form}"
    if form == "folder":
        path.mkdir()
    write_table(bare(prompt_name=["p"] * 4), path / "part-0.parquet" if form == "folder" else path)
    name = next(iter(read_results(path)))
    assert read_results(path)[name].n_rows == 4
    monkeypatch.setattr("mask_impact.results.foreign.MOST_ROWS", 3)
    with pytest.raises(OutputError, match="has more than 3 rows"):
        read_results(path)[name]


def test_many_steps_of_few_rows_take_no_time(tmp_path):
    write_table(bare(2, generation_step=[0, 900_000], token_position=[0, 0]), tmp_path / "x.parquet")
    with pytest.raises(OutputError, match=r"no rows of generation step 1"):
        read_results(tmp_path / "x.parquet")["x"]


@pytest.mark.parametrize("formats", ["null", "5", '"csv"', "{}"])
def test_a_damaged_meta_file_beside_a_table_that_was_named_is_one_line(own, formats):
    path = own / "run.meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"formats": json.loads(formats)}))
    with pytest.raises(OutputError, match=r"run\.meta\.json is not the meta file of a result: formats"):
        read_results(own / "run.csv")["run"]
