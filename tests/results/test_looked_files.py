"""What pixels and parts of an image's features do and the vision tower reads, there and back: csv, json, parquet; alone,
beside others, damaged."""

import shutil

import numpy as np
import pytest
from looked import META, make_deepstack, make_patches, make_tower
from stored_samples import make_knockouts

from mask_impact.errors import OutputError
from mask_impact.results.deepstack_files import load_deepstack, save_deepstack
from mask_impact.results.flow_files import save_flows
from mask_impact.results.patch_files import load_patches, save_patches
from mask_impact.results.stored import Stored, read_stored
from mask_impact.results.tower_files import load_tower, save_tower

FORMS = ("csv", "json", "parquet")
KINDS = {
    "patches": (make_patches, save_patches, load_patches),
    "deepstack": (make_deepstack, save_deepstack, load_deepstack),
    "tower": (make_tower, save_tower, load_tower),
}


def assert_equal(one, other, where="found"):
    """Field by field, without the shared fixtures of other tests: arrays by values and kind, what has fields by these."""
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, where)
    elif isinstance(one, tuple) and one and hasattr(one[0], "__dict__"):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    elif hasattr(one, "__dict__"):
        for name, value in vars(one).items():
            assert_equal(value, getattr(other, name), f"{where}.{name}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name, value in one.items():
            assert_equal(value, other[name], f"{where}[{name}]")
    else:
        assert one == other, where


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_come_back_as_they_were(tmp_path, kind, form):
    make, save, load = KINDS[kind]
    save(make(), tmp_path / "x", [form], "as typed")
    again = load(tmp_path / f"x.{kind}.{form}")
    assert again.meta["command"] == "as typed"
    assert_equal(make(meta=META | {"command": "as typed"}), again)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [{"effects": False}, {"probes": 0}, {"probes": 1}], ids=str)
def test_a_tower_comes_back_without_effects_and_with_any_number_of_probes(tmp_path, form, given):
    save_tower(make_tower(**given), tmp_path / "x", [form])
    assert_equal(make_tower(meta=META | {"command": ""}, **given), load_tower(tmp_path / "x"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["full", "error", "attention"])
def test_what_a_tower_reads_is_checked_beside_what_hiding_does(tmp_path, name, form):
    save_tower(make_tower(), tmp_path / "x", [form])
    other = make_tower()
    getattr(other.readings[0], name)[1, 2, 3] += 1
    save_tower(other, tmp_path / "y", [form])
    shutil.copy(tmp_path / f"y.tower.{form}", tmp_path / f"x.tower.{form}")
    with pytest.raises(OutputError, match=rf"x.tower.{form} does not hold the numbers .* its crc32 is another"):
        load_tower(tmp_path / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_comparison_that_sees_nothing_would_be_found(kind):
    make = KINDS[kind][0]
    other = make()
    other.targets[1].logprob_change[2] += 1
    with pytest.raises(AssertionError, match=r"targets\[1\].logprob_change"):
        assert_equal(make(), other)


def test_they_are_found_under_their_name_alone_and_with_others(tmp_path):
    save_patches(make_patches(), tmp_path / "x")
    (only,) = read_stored(tmp_path / "x").values()
    assert (len(only.parts), only.patches.fills) == (1, ("blur", "gray"))
    save_deepstack(make_deepstack(), tmp_path / "x")
    save_flows(make_knockouts(images=["picture0.png"]), tmp_path / "x")
    save_tower(make_tower(), tmp_path / "x")
    for name in ("x", "x.patches.csv", "x.deepstack.meta.json", "x.flows", "x.tower.json", "x.tower_effects.csv"):
        (found,) = read_stored(tmp_path / name).values()
        assert (found.notes, len(found.parts)) == ((), 4), name
    assert [*read_stored(tmp_path)] == ["x"]


def test_those_of_another_prompt_are_left_out_and_said(tmp_path):
    save_patches(make_patches(), tmp_path / "x")
    save_deepstack(make_deepstack(meta=META | {"prompt": "another"}), tmp_path / "y")
    for path in tmp_path.glob("y.deepstack.*"):
        shutil.copy(path, tmp_path / path.name.replace("y", "x", 1))
    (found,) = read_stored(tmp_path / "x").values()
    assert (found.patches is not None, found.deepstack) == (True, None)
    assert found.notes == ("x.deepstack is of another prompt, image or model, and left out",)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_a_stored_prompt_by_itself(kind):
    found = Stored.of(KINDS[kind][0]())
    assert (getattr(found, kind) is not None, len(found.parts)) == (True, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_another_run_a_lost_one_and_a_short_one_are_refused_in_one_line(tmp_path, kind, form):
    make, save, load = KINDS[kind]
    own_table = {"tower": "tower_effects"}.get(kind, kind)
    table = tmp_path / f"x.{own_table}.{form}"
    save(make(), tmp_path / "x", [form])
    other = make()
    other.targets[1].logprob_change[2] += 1
    save(other, tmp_path / "y", [form])
    own = table.read_bytes()
    for content, said in (
        ((tmp_path / f"y.{own_table}.{form}").read_bytes(), "its crc32 is another"),
        (own[: len(own) // 2], "cannot be read|is not complete"),
        (b"", "cannot be read|is not a list of records"),
    ):
        table.write_bytes(content)
        with pytest.raises(OutputError, match=said) as refused:
            load(tmp_path / "x")
        assert "\n" not in str(refused.value)
    table.unlink()
    with pytest.raises(OutputError, match=f"expected x.{own_table}.csv or the like"):
        load(tmp_path / "x")
