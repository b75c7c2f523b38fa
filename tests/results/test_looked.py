"""What pixels and parts of an image's features do, there and back: csv, json, parquet; alone, beside others, damaged."""

import json
import shutil

import numpy as np
import pytest
from looked import META, make_deepstack, make_patches
from stored_samples import make_knockouts

from mask_impact.errors import OutputError
from mask_impact.results.deepstack_files import load_deepstack, save_deepstack
from mask_impact.results.flow_files import save_flows
from mask_impact.results.patch_files import load_patches, save_patches
from mask_impact.results.stored import Stored, read_stored

FORMS = ("csv", "json", "parquet")
KINDS = {
    "patches": (make_patches, save_patches, load_patches),
    "deepstack": (make_deepstack, save_deepstack, load_deepstack),
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
    for name in ("x", "x.patches.csv", "x.deepstack.meta.json", "x.flows"):
        (found,) = read_stored(tmp_path / name).values()
        assert (found.notes, len(found.parts)) == ((), 3), name
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
    table = tmp_path / f"x.{kind}.{form}"
    save(make(), tmp_path / "x", [form])
    other = make()
    other.targets[1].logprob_change[2] += 1
    save(other, tmp_path / "y", [form])
    own = table.read_bytes()
    for content, said in (
        ((tmp_path / f"y.{kind}.{form}").read_bytes(), "its crc32 is another"),
        (own[: len(own) // 2], "cannot be read|is not complete"),
        (b"", "cannot be read|is not a list of records"),
    ):
        table.write_bytes(content)
        with pytest.raises(OutputError, match=said) as refused:
            load(tmp_path / "x")
        assert "\n" not in str(refused.value)
    table.unlink()
    with pytest.raises(OutputError, match=f"expected x.{kind}.csv or the like"):
        load(tmp_path / "x")


LITERAL = [
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
]


@pytest.mark.parametrize(("kind", "at", "value", "said"), LITERAL)
def test_a_meta_file_that_does_not_fit_is_refused_with_its_field(tmp_path, kind, at, value, said):
    make, save, load = KINDS[kind]
    save(make(), tmp_path / "x", ["csv"])
    path = tmp_path / f"x.{kind}.meta.json"
    meta = json.loads(path.read_bytes())
    *way, last = (int(key) if key.isdigit() else key for key in at.split("."))
    one = meta
    for key in way:
        one = one[key]
    one[last] = value
    path.write_text(json.dumps(meta))
    with pytest.raises(OutputError) as refused:
        load(tmp_path / "x")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
