"""Files of a result: what stands in them, that they are whole or absent, and that reading gives the same again."""

import base64
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from samples import NASTY_TEXTS, TINY_VALUES, assert_same
from synthetic import make_result

from mask_impact.errors import OutputError, UsageError
from mask_impact.results import distance_files, store
from mask_impact.results.files import check_output
from mask_impact.results.names import FORMATS
from mask_impact.results.store import load_result, save
from mask_impact.results.table_files import parse_formats
from mask_impact.results.tables import COLUMNS, to_table


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rich_result(dtype=np.float32):
    """Two steps, nasty tokens, two images, tiny values, a noise floor in one layer."""
    result = make_result(
        NASTY_TEXTS, n_steps=2, dtype=dtype, grids=((1, 3), (2, 1)), sinks=(0, 3), generated_text=" Paris.\n"
    )
    result.steps[0].l2[0].reshape(-1)[: len(TINY_VALUES)] = TINY_VALUES
    result.steps[1].cosine[2].reshape(-1)[: len(TINY_VALUES)] = TINY_VALUES
    result.steps[1].noise_floor[1] = 1e-4
    return result


# The table


def test_table_has_exactly_the_contract_columns_in_order():
    assert to_table(make_result()).column_names == [
        *("generation_step", "layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance")
    ]


@pytest.mark.parametrize("mask_mode", ["both", "text", "vision"])
def test_rows_are_ordered_step_layer_position_variant_and_carry_their_own_number(mask_mode):
    """Against nested loops, the plainest way to write the order down."""
    result = make_result(n_steps=2, grids=((2, 3),), mask_mode=mask_mode)
    assert [len(step.positions) for step in result.steps] == {"both": [11, 12], "text": [5, 6], "vision": [6, 6]}[
        mask_mode
    ]
    expected = [
        (t, layer, result.tokens.texts[j], j, name, step.l2[layer, row, v], step.cosine[layer, row, v])
        for t, step in enumerate(result.steps)
        for layer in range(result.n_layers)
        for row, j in enumerate(step.positions)
        for v, name in enumerate(("Full", "Attn", "Head_0", "Head_1"))
    ]
    rows = list(zip(*(column.to_pylist() for column in to_table(result).columns), strict=True))
    assert rows == expected
    assert rows != [row[:5] + row[:4:-1] for row in expected]  # the comparison sees swapped distances


def test_table_keeps_the_dtype_of_the_distances_and_codes_texts():
    for dtype in (np.float32, np.float64):
        schema = to_table(make_result(dtype=dtype)).schema
        assert (
            str(schema.field("l2_distance").type)
            == str(schema.field("cosine_distance").type)
            == ("float" if dtype is np.float32 else "double")
        )
        assert str(schema.field("token_masked").type).startswith("dictionary<values=string")


def test_repeated_tokens_make_a_valid_frame():
    """pandas refuses categories that occur twice, and image tokens all have the same text."""
    frame = to_table(make_result(["<|image_pad|>"] * 5, n_steps=2)).to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert set(frame.token_masked) == {"<|image_pad|>", " Paris"}


# What other programs read


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_pandas_reads_every_token_and_every_bit_back(tmp_path, form):
    result = rich_result()
    save(result, tmp_path / "run", [form])
    frame = {
        "csv": lambda path: pd.read_csv(path, keep_default_na=False),
        "json": lambda path: pd.read_json(path, dtype={"token_masked": str}),
        "parquet": pd.read_parquet,
    }[form](tmp_path / f"run.{form}")
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == result.n_rows
    expected = to_table(result).to_pandas()
    for name in COLUMNS[:5]:
        assert frame[name].tolist() == expected[name].tolist(), name
    for name in COLUMNS[5:]:
        assert frame[name].to_numpy(np.float32).tobytes() == expected[name].to_numpy(np.float32).tobytes(), name


def test_csv_with_pandas_defaults_has_all_rows(tmp_path):
    """Without keep_default_na=False some tokens read as missing, but never a row more or less."""
    result = rich_result()
    save(result, tmp_path / "run", ["csv"])
    assert len(pd.read_csv(tmp_path / "run.csv")) == result.n_rows


def test_json_is_strict_and_a_list_of_records(tmp_path):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    result = rich_result()
    save(result, tmp_path / "run")
    records = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert len(records) == result.n_rows
    assert list(records[0]) == list(COLUMNS)
    assert [record["token_masked"] for record in records[: 4 * result.n_prompt : 4]] == list(
        result.tokens.texts[: result.n_prompt]
    )
    json.loads((tmp_path / "run.meta.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_more_rows_than_a_chunk_are_all_written_in_order(tmp_path, monkeypatch):
    result = make_result(n_steps=2, n_layers=2)
    save(result, tmp_path / "whole")
    monkeypatch.setattr(distance_files, "ROWS_PER_CHUNK", 7)
    save(result, tmp_path / "chunks")
    for suffix in ("csv", "json"):
        assert (tmp_path / f"whole.{suffix}").read_bytes() == (tmp_path / f"chunks.{suffix}").read_bytes()


def test_text_that_is_not_unicode_is_written_as_replacement_character(tmp_path):
    """Bytes of a command line that are not UTF-8 arrive as lone surrogates, which no file can hold."""
    save(make_result(["\ud800", "a\udc80b", "c"], meta={"prompt": "\udcff"}), tmp_path / "run", "csv,json,parquet")
    loaded = load_result(tmp_path / "run")
    assert loaded.tokens.texts[:2] == ("�", "a�b")
    assert loaded.meta == {"prompt": "�"}
    assert set(pd.read_csv(tmp_path / "run.csv").token_masked) == {"�", "a�b", "c"}


# The meta file


def test_meta_holds_the_run_the_steps_and_the_token_table(tmp_path):
    result = rich_result()
    save(result, tmp_path / "run")
    meta = json.loads((tmp_path / "run.meta.json").read_text(encoding="utf-8"))
    assert meta["schema_version"] == 1
    assert meta["run"] == result.meta
    assert meta["generated_text"] == " Paris.\n"
    assert meta["variants"] == list(result.variants)
    assert meta["n_prompt"] == result.n_prompt
    assert meta["sinks"] == [0, 3]
    step = meta["steps"][1]
    assert (step["token_id"], step["token_text"], step["seconds"]) == (701, ".", 0.25)
    assert len(step["candidates"]) == 5
    assert step["self_check_max"] == result.steps[1].self_check.max()
    assert step["noise_floor_max"] == 1e-4
    assert step["noise_floor"] == [None, 1e-4, None]
    cell = meta["tokens"][3]
    assert cell.pop("text") == "<|image_pad|>"
    box = [100, 0, 150, 40]  # the third of three cells of 50 x 40 pixels
    assert cell == {"position": 3, "id": 103, "kind": "image", "image": 0, "row": 0, "column": 2, "box": box}
    assert meta["tokens"][0]["image"] is meta["tokens"][0]["box"] is None
    image = meta["images"][1]
    assert base64.b64decode(image.pop("preview")) == result.images[1].preview
    assert image == {"source": "picture1.png", "size": [50, 80], "resized": [32, 64], "grid": [2, 1]}


def test_meta_survives_values_that_are_not_json(tmp_path):
    """An hour's run must not be lost for a NaN or an odd object among the remarks about it."""
    meta = {"loss": float("nan"), "shape": (1, 2), "count": np.int64(3), "where": Path("a") / "b", 5: "five"}
    save(make_result(meta=meta), tmp_path / "run")
    loaded = load_result(tmp_path / "run").meta
    assert loaded == {"loss": None, "shape": [1, 2], "count": 3, "where": str(Path("a") / "b"), "5": "five"}


# Round trip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_load_gives_back_every_field_and_bit(tmp_path, form, dtype):
    result = rich_result(dtype)
    save(result, tmp_path / "run", [form])
    assert_same(load_result(tmp_path / "run"), result)


def test_line_ends_in_tokens_survive_in_a_file_that_is_read_in_blocks(tmp_path):
    """A reader that cuts its blocks at line ends would cut inside a quoted token; blocks are a megabyte."""
    result = make_result(["\n" * 30] * 200, n_layers=36)
    save(result, tmp_path / "run", ["csv"])
    assert (tmp_path / "run.csv").stat().st_size > 2**20
    assert_same(load_result(tmp_path / "run"), result)


def test_the_round_trip_comparison_sees_the_last_bit(tmp_path):
    result = make_result()
    save(result, tmp_path / "run")
    loaded = load_result(tmp_path / "run")
    loaded.steps[0].l2[0, 0, 0] = np.nextafter(loaded.steps[0].l2[0, 0, 0], np.float32(9))
    with pytest.raises(AssertionError, match="l2"):
        assert_same(loaded, result)


def test_arrays_that_are_not_contiguous_are_written_right(tmp_path):
    result = make_result()
    step = result.steps[0]
    views = {
        name: np.asfortranarray(np.repeat(getattr(step, name), 2, axis=0))[::2]
        for name in ("l2", "cosine", "attention", "baseline_norm", "self_check")
    }
    result = dataclasses.replace(result, steps=(dataclasses.replace(step, **views),))
    save(result, tmp_path / "run")
    assert_same(load_result(tmp_path / "run"), make_result())


@pytest.mark.parametrize("suffix", ["", ".csv", ".json", ".parquet", ".meta.json"])
def test_load_takes_the_name_or_any_of_its_files(tmp_path, suffix):
    result = make_result()
    save(result, tmp_path / "v1.5 run", "csv,json,parquet")
    assert_same(load_result(f"{tmp_path}/v1.5 run{suffix}"), result)


def test_a_name_with_suffix_saves_and_loads_as_the_name(tmp_path):
    saved = save(make_result(), tmp_path / "run.csv")
    assert [path.name for path in saved.paths] == ["run.csv", "run.json", "run.meta.json"]
    assert check_output(tmp_path, "run.meta.json") == tmp_path / "run"


def test_load_reads_a_csv_that_another_program_wrote_again(tmp_path):
    """Line ends, quoting and further columns are free, numbers are not."""
    save(rich_result(), tmp_path / "run", ["csv"])
    frame = pd.read_csv(tmp_path / "run.csv", keep_default_na=False)
    frame.assign(extra=1).to_csv(tmp_path / "run.csv", index=False, quoting=1, lineterminator="\r\n")
    assert_same(load_result(tmp_path / "run"), rich_result())


def test_a_table_of_an_earlier_run_is_removed_and_named(tmp_path):
    save(make_result(seed=1), tmp_path / "run", ["parquet"])
    saved = save(make_result(seed=2), tmp_path / "run", ["csv"])
    assert saved.notes == (f"Removed, because it is of an earlier run: {tmp_path / 'run.parquet'}",)
    assert sorted(contents(tmp_path)) == ["run.csv", "run.meta.json"]
    assert_same(load_result(tmp_path / "run"), make_result(seed=2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "run.meta.json").unlink(), "does not exist"),
        (lambda d: (d / "run.csv").unlink(), "expected run.csv beside it"),
        (
            lambda d: (d / "run.csv").write_bytes(b"".join((d / "run.csv").read_bytes().splitlines(True)[:-1])),
            "run.csv is not complete: 59 rows, expected 60",
        ),
        (lambda d: (d / "run.csv").write_text("nothing\n1\n"), "cannot be read"),
        (lambda d: (d / "run.csv").write_bytes(b"\xff\x00\x01"), "cannot be read"),
        (lambda d: (d / "run.csv").write_bytes(b""), "cannot be read"),
        (lambda d: save(make_result(seed=9), d / "x") and os.replace(d / "x.csv", d / "run.csv"), "step 0 differs"),
        (lambda d: (d / "run.meta.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "run.meta.json").write_text("[]"), "schema version None"),
        (lambda d: (d / "run.meta.json").write_text('{"schema_version": 2}'), "schema version 2"),
        (lambda d: (d / "run.meta.json").write_text('{"schema_version": 1}'), "not the meta file"),
        (lambda d: (d / "run.meta.json").write_text('{"schema_version": 1, "formats": 3}'), "not the meta file"),
    ],
)
def test_load_refuses_what_is_missing_broken_or_of_another_run_in_one_line(tmp_path, damage, message):
    save(make_result(), tmp_path / "run", ["csv"])
    damage(tmp_path)
    with pytest.raises(OutputError, match=message) as caught:
        load_result(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["n_rows", "steps", "tokens", "variants", "distance_dtype", "n_prompt", "run", "sinks"])
def test_load_refuses_a_meta_file_that_lacks_a_key(tmp_path, key):
    save(make_result(), tmp_path / "run", ["csv"])
    path = tmp_path / "run.meta.json"
    meta = json.loads(path.read_text())
    del meta[key]
    path.write_text(json.dumps(meta))
    with pytest.raises(OutputError, match=f"not the meta file of a result: {key} is missing"):
        load_result(path)


# Formats


def test_default_formats_change_above_many_rows_and_a_note_says_so(tmp_path, monkeypatch):
    result = make_result()
    monkeypatch.setattr(store, "MANY_ROWS", result.n_rows)
    assert [path.name for path in save(result, tmp_path / "a").paths] == ["a.csv", "a.json", "a.meta.json"]
    monkeypatch.setattr(store, "MANY_ROWS", result.n_rows - 1)
    saved = save(result, tmp_path / "b")
    assert [path.name for path in saved.paths] == ["b.csv", "b.parquet", "b.meta.json"]
    assert len(saved.notes) == 1
    assert saved.notes[0].startswith("60 rows: CSV and Parquet in place of")
    assert save(result, tmp_path / "c", "json").notes == ()


def test_parquet_codes_its_tokens(tmp_path):
    save(make_result(n_steps=3), tmp_path / "run", ["parquet"])
    assert str(pq.read_schema(tmp_path / "run.parquet").field("token_masked").type).startswith("dictionary")


def test_formats_are_parsed_once_each_in_file_order():
    assert parse_formats(" parquet, CSV,csv") == ("csv", "parquet")
    for bad in ("", "xlsx", "csv,", (), ["csv", "tsv"]):
        with pytest.raises(UsageError):
            parse_formats(bad)


# Whole or not at all


def fail_in_json(error):
    def write(result, file):
        file.write(b"[ half a fi")
        raise error

    return write


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("x"), MemoryError()]
)
@pytest.mark.parametrize("before", [False, True])
def test_a_failure_while_writing_leaves_the_folder_as_it_was(tmp_path, monkeypatch, error, before):
    if before:
        save(make_result(seed=1), tmp_path / "run", "csv,json")
    (tmp_path / "unrelated").write_text("stays")
    old = contents(tmp_path)
    monkeypatch.setitem(store.WRITERS, "json", fail_in_json(error))
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        save(make_result(seed=2), tmp_path / "run", "csv,json,parquet")
    assert contents(tmp_path) == old


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failure_while_naming_brings_the_old_files_back(tmp_path, monkeypatch, failing, links):
    """A file that another program holds open (Windows) fails only when it is replaced; also where hard links are not
    to be had."""
    save(make_result(seed=1), tmp_path / "run", "csv")
    old = contents(tmp_path)
    real, calls = os.replace, []

    def replace(source, target):
        if str(source).endswith(".tmp") and not str(target).endswith(".tmp"):
            calls.append(target)
            if len(calls) == failing + 1:
                raise PermissionError(errno.EACCES, "held by another program")
        real(source, target)

    def no_link(source, target):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(OutputError, match="held by another program"):
        save(make_result(seed=2), tmp_path / "run", "csv,json")
    assert contents(tmp_path) == old


def test_no_file_has_its_name_before_all_are_complete_and_meta_comes_last(tmp_path, monkeypatch):
    seen, order, real = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda _: seen.append([p.name for p in tmp_path.iterdir() if p.name[0] != "."]))
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(Path(target).name), real(source, target)))
    save(make_result(), tmp_path / "run", "csv,json,parquet")
    assert seen == [[], [], [], []]
    assert order == ["run.csv", "run.json", "run.parquet", "run.meta.json"]


def test_saving_again_replaces_and_leaves_no_temporaries(tmp_path):
    save(make_result(seed=1), tmp_path / "run")
    save(make_result(seed=2), tmp_path / "run")
    assert sorted(contents(tmp_path)) == ["run.csv", "run.json", "run.meta.json"]
    assert_same(load_result(tmp_path / "run"), make_result(seed=2))


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(store.WRITERS, "json", fail_in_json(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputError, match=r"^no space left for .*run\.json: free some disk space"):
        save(make_result(), tmp_path / "run")


def test_a_disk_that_fills_while_arrow_writes_is_an_output_error(tmp_path):
    """/dev/full accepts the opening of a file and refuses every byte, for every user."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    for form, write in store.WRITERS.items():
        with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb", buffering=0) as file:
            write(make_result(), file)
        assert form in FORMATS


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_distance_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, value):
    result = make_result(n_steps=2)
    result.steps[1].cosine[2, 0, 0] = value
    with pytest.raises(OutputError, match="step 1, layer 2"):
        save(result, tmp_path / "run")
    assert contents(tmp_path) == {}


# Names and folders

GOOD_NAMES = ["a", "vl_masking_results", "v1.5", "two words", "größe", "日本", "a..b", "-x", "con2", "x" * 200]
BAD_NAMES = [
    *("", ".", "..", "../x", "x/y", "/abs", "x/", "a\\b", "..\\x", "C:\\x", "C:x", "a:b", ".hidden", ".csv", "~/x"),
    *("a\nb", "a\0b", "\x1b[31m", "a\x7f", "a\u202eb", "a\u2028b", "\ud800", " a", "a ", "a.", "x" * 201, "語" * 67),
    *("con", "NUL", "Aux.txt", "com1", "LPT9.x.y", "nul .a", "con.csv"),
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_plain_name_is_accepted_and_nothing_is_left_behind(tmp_path, name):
    assert check_output(tmp_path / "new" / "folder", name) == tmp_path / "new" / "folder" / name
    assert contents(tmp_path / "new" / "folder") == {}


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_could_leave_the_folder_or_fail_elsewhere_is_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError, match="the output name") as caught:
        check_output(tmp_path / "out", name)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_a_long_accepted_name_can_really_be_saved(tmp_path):
    saved = save(make_result(), tmp_path / ("x" * 200), "csv,json,parquet")
    assert all(path.is_file() for path in saved.paths)


@pytest.mark.parametrize("place", ["file", "file/below", "loop"])
def test_a_place_that_is_no_folder_is_an_output_error(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="cannot write"):
        check_output(tmp_path / place, "run")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        check_output(tmp_path, "run")


def test_a_folder_that_stands_where_a_file_would_is_found_before_the_run(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, "run", ["csv", "json"])


def test_a_nearly_full_disk_is_found_before_the_run(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(OutputError, match=r"nearly full: 1\.0 MiB free"):
        check_output(tmp_path, "run")


def test_a_nul_in_the_folder_is_a_usage_error():
    with pytest.raises(UsageError, match="NUL"):
        check_output("a\0b", "run")


def test_checking_a_name_imports_nothing_heavy(tmp_path):
    code = (
        f"import sys; from mask_impact.results import files, store; from mask_impact.views import summary\n"
        f"files.check_output({str(tmp_path)!r}, 'run')\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'pyarrow', 'orjson') if m in sys.modules])"
    )
    root = Path(store.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
