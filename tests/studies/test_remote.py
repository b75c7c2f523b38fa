"""Studies in stores that fsspec knows: the files of a study on this machine, each whole, one writer at a time without locks."""

import json
import time
from contextlib import suppress

import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from studying import sentences, study_files, write_config, write_dataset

from mask_impact.commands.main import main
from mask_impact.commands.scripts import main_text
from mask_impact.errors import OutputError, UsageError
from mask_impact.results.remote import WHOLE_PUTS, Remote, place_of
from mask_impact.studies import remote_lease
from mask_impact.studies.remote_lease import sole_remote_writer
from mask_impact.studies.writer import Shard, writing

STORE = "memory://bucket/out"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """The process's own store, empty; leases settle at once."""
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(remote_lease, "SECONDS_TO_SETTLE", 0)
    fs.store.clear()
    yield fs
    fs.store.clear()


def taken(fs, folder):
    """The files of a study in the store, as `study_files` has them."""
    found = {}
    for path in sorted(fs.find(folder)):
        table, name = path.split("/")[-2:]
        if name.endswith(".parquet"):
            with fs.open(path) as file:
                content = pq.read_table(file).drop_columns(["seconds"]).to_pylist() if table == "prompts" else None
            found[f"{table}/{name}"] = content if table == "prompts" else fs.cat_file(path)
    return found


@pytest.fixture
def run(tmp_path, text_checkpoint, capsys):
    def call(*argv, to=STORE):
        code = main(
            ["study", str(tmp_path / "data.jsonl"), "--model", str(text_checkpoint), "--output-dir", str(to), *argv]
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_store_gets_the_files_that_this_machine_does_and_goes_on_with_them(run, store, tmp_path, capsys):
    rows = [{"prompt": prompt, "kind": "ab"[number % 2]} for number, prompt in enumerate(sentences(18))]
    write_dataset(tmp_path / "data.jsonl", [*rows[:17], "no json"])
    assert run(to=tmp_path / "out")[0] == 3
    code, _, err = run("--reduce", "summary")
    assert code == 3, err
    expected = study_files(tmp_path / "out" / "data")
    assert taken(store, "bucket/out/data") == expected
    assert json.loads(store.cat_file("bucket/out/data/manifest.json")) == json.loads(
        (tmp_path / "out" / "data" / "manifest.json").read_text()
    )
    (entry,) = store.cat_file("bucket/out/data.errors.jsonl").decode().splitlines()
    assert json.loads(entry)["row"] == 18
    assert not [path for path in store.find("bucket") if path.rpartition("/")[2].startswith(".")]
    store.pipe_file("bucket/out/data/prompts/part-000001.parquet", b"damaged")
    write_dataset(tmp_path / "data.jsonl", rows)  # another row, too
    code, out, err = run("--resume")
    assert code == 0
    assert "18 prompts: 2 written; 16 were there already" in out
    assert "memory://bucket/out/data/prompts/part-000001.parquet is done again" in err
    assert not store.exists("bucket/out/data.errors.jsonl")
    assert main(["study", "report", f"{STORE}/data", "--by", "kind", "--output-dir", str(tmp_path / "report")]) == 0
    assert "All prompts (18)" in capsys.readouterr().out
    assert run(to=tmp_path / "out")[0] == 0
    write_dataset(tmp_path / "data.jsonl", rows[:3])
    assert run()[0] == 0
    assert sorted(taken(store, "bucket/out/data")) == ["impact/part-000000.parquet", "prompts/part-000000.parquet"]


def test_what_cannot_be_is_said_in_one_line(run, store, tmp_path, text_checkpoint, capsys):
    write_dataset(tmp_path / "data.jsonl", [{"prompt": "the cat"}])
    for to, said in (
        ("s3://bucket/out", "s3:// needs a package that is not there: pip install s3fs"),
        ("nowhere://bucket", "nowhere:// is no store that is known"),
        ("https://example.org/out", "can't be written to"),
    ):
        code, out, err = run(to=to)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    path = write_config(tmp_path / "study.yaml", ["the cat"])
    assert main_text(["--config", str(path), "--model", str(text_checkpoint), "--output-dir", STORE]) == 2
    assert "the files of each prompt go to a folder of this machine" in capsys.readouterr().err
    assert main(["study", "report", f"{STORE}/data"]) == 1
    assert f"{STORE}/data does not exist" in capsys.readouterr().err
    assert store.find("bucket") == []


class Broken(LocalFileSystem):
    """A filesystem whose connection breaks in the middle of a file."""

    def pipe_file(self, path, value, **kwargs):
        super().pipe_file(path, value[: len(value) // 2])
        raise OSError("connection lost")


def test_a_file_has_its_name_when_all_of_it_is_there_or_its_store_shows_no_half_ones(tmp_path):
    place = Remote(Broken(), str(tmp_path), "sftp") / "a"
    with pytest.raises(OutputError, match="connection lost"):
        place.write(lambda file: file.write(b"whole"))
    assert [*tmp_path.iterdir()] == []
    whole = Remote(LocalFileSystem(), str(tmp_path), "sftp") / "a"
    whole.write(lambda file: file.write(b"whole"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]
    with suppress(OutputError):  # the same where a store is taken for one with whole puts, and is none
        (Remote(Broken(), str(tmp_path), WHOLE_PUTS[0]) / "b").write(lambda file: file.write(b"whole"))
    assert (tmp_path / "b").read_bytes() == b"wh"


# --- one writer at a time ---------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_shares_go_on_at_once(store):
    folder = place_of(STORE)
    with writing(folder, "data"):
        with (
            pytest.raises(OutputError, match=f"another run is writing the results of 'data' into {STORE}"),
            writing(folder, "data"),
        ):
            pass
        with pytest.raises(OutputError, match="another run"), writing(folder, "data", shard=Shard(0, 2)):
            pass
        with writing(folder, "other"):
            pass
    with writing(folder, "data", shard=Shard(0, 2)), writing(folder, "data", shard=Shard(1, 2)):
        pass
    assert store.find("bucket") == []


def test_a_lease_that_has_ended_is_no_obstacle_and_its_run_writes_nothing_more(store):
    folder = place_of(STORE)
    with sole_remote_writer(folder, "data", {"x"}) as old:
        old.check()
        note = json.loads(store.cat_file("bucket/out/.data.lease"))
        store.pipe_file("bucket/out/.data.lease", json.dumps(note | {"until": time.time() - 1}).encode())
        with sole_remote_writer(folder, "data", {"x"}) as new:
            new.check()
            with pytest.raises(OutputError, match="another run has taken over 'data'"):
                old.check()
    with sole_remote_writer(folder, "data", {"x"}) as lease:
        lease._until = time.time() - 1  # this machine was cut off: another may have begun, and seen nobody
        with pytest.raises(OutputError, match="did not renew its lease"):
            lease.check()
    assert store.find("bucket") == []


def test_of_two_runs_that_begin_at_once_one_goes_on(store, monkeypatch):
    """The other writes its lease when the first has looked, and written its own."""
    folder, others = place_of(STORE), []

    def meanwhile(seconds):
        monkeypatch.setattr(remote_lease.time, "sleep", lambda seconds: None)
        others.append(remote_lease.RemoteLease(folder / ".data.lease", {"x"}))

    monkeypatch.setattr(remote_lease.time, "sleep", meanwhile)
    with pytest.raises(OutputError, match="another run is writing"), sole_remote_writer(folder, "data", {"x"}):
        pass
    others[0].check()


def test_addresses_of_files_are_paths_and_others_are_stores():
    assert str(place_of("output/a")) == "output/a"
    assert str(place_of("file:///tmp/a")) == "/tmp/a"
    found = place_of("memory://bucket/a b/c.d")
    assert (found.name, found.stem, found.parent.name, str(found / "e")) == (
        "c.d",
        "c",
        "a b",
        "memory://bucket/a b/c.d/e",
    )
    with pytest.raises(UsageError, match="is no store"):
        place_of("zzz://x")
