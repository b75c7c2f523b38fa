"""A study read again: the few numbers of each prompt, from parts and from single results, against sums over the records."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explained import explained
from looked import make_deepstack, make_patches
from stored_samples import make_knockouts, rich_result
from synthetic import make_result, with_effects

from mask_impact.errors import OutputError
from mask_impact.findings import prompt_numbers as numbers
from mask_impact.findings.prompt_numbers import Kind
from mask_impact.results.deepstack_files import deepstack_table, save_deepstack
from mask_impact.results.effect_tables import effect_table
from mask_impact.results.explanation_tables import explanation_table, routes_table
from mask_impact.results.flow_files import save_flows
from mask_impact.results.patch_files import patch_table, save_patches
from mask_impact.results.patches import OWN, TOTAL
from mask_impact.results.store import save
from mask_impact.results.study_folder import table_of
from mask_impact.results.tables import prompts_table, to_dataset_table, with_prompt
from mask_impact.studies import reading
from mask_impact.studies.parts import RUN
from mask_impact.studies.reading import find_study

RUN_OF_PART = {"model": "tiny", "window": 3, "queries": "last", "ablation": "mask", "groups": None}


def write_part(folder, results, number=0, run=RUN_OF_PART, reduce="none", labels=None, old=False):
    """A part of a dataset, with parts of effects and answers where the results have them. old: as an earlier version did."""
    metadata = {RUN: json.dumps(run)} if run else {}
    carried = {name: json.dumps((labels or {}).get(name, {})) for name in results}
    tables = {"impact": [to_dataset_table(one, name, carried[name], reduce) for name, one in results.items()]}

    def named(name, table):
        return with_prompt(table, name, results[name].generated_text, carried[name])

    for name, one in results.items():
        if one.has_effects:
            tables.setdefault("effect", []).append(named(name, effect_table(one, one.tokens.texts)))
        if one.answer is not None:
            tables.setdefault("answer", []).append(named(name, explanation_table(one.answer)))
            if any(target.routes for target in one.answer.targets):
                tables.setdefault("routes", []).append(named(name, routes_table(one.answer)))
    if not old:
        tables["prompts"] = [prompts_table([])]
    for kind, several in tables.items():
        place = table_of(folder, kind, old)
        place.mkdir(parents=True, exist_ok=True)
        table = pa.concat_tables([one.unify_dictionaries() for one in several]).unify_dictionaries()
        pq.write_table(
            table.replace_schema_metadata(metadata), place / f"part-{number:06d}.parquet", row_group_size=700
        )


def one_of(found, quantity):
    """(kind, curve) of the only curve of that name."""
    ((kind, curve),) = [pair for pair in found.curves.items() if pair[0].quantity == quantity]
    return kind, curve


def content_of(result):
    special = np.array([kind == "special" for kind in result.tokens.kinds])
    return ~special & ~np.isin(np.arange(len(special)), result.sinks)


def share_by_hand(result, sizes):
    """sizes: of each step [L, P]."""
    image = total = 0.0
    is_image, content = result.tokens.image >= 0, content_of(result)
    for step, size in zip(result.steps, sizes, strict=True):
        size = np.asarray(size, dtype=np.float64)
        image += size[:, is_image[step.positions] & content[step.positions]].sum(axis=1)
        total += size[:, content[step.positions]].sum(axis=1)
    return image / total


@pytest.fixture(params=["parts", "old parts", "results"])
def stored(request, tmp_path):
    """Stores results by name as a dataset or one by one, and reads them."""

    def store(results, **how):
        if request.param != "results":
            write_part(tmp_path / "study", results, old=request.param == "old parts", **how)
        else:
            for name, one in results.items():
                run = {"job": name, "carried": (how.get("labels") or {}).get(name, {})}
                save(replace(one, meta=one.meta | run), tmp_path / "study" / f"{name}_results", ["csv"])
        return {one.name: one for one in find_study(tmp_path / "study").prompts()}

    (tmp_path / "study").mkdir()
    return store


# --- the numbers of a prompt ------------------------------------------------------------------------------------------------


def test_the_image_s_share_is_that_of_the_l2_distances_of_all_steps(stored):
    result = make_result(n_steps=2, n_layers=5, grids=[(2, 3)])
    found = stored({"a": result})["a"]
    kind, curve = one_of(found, numbers.IMAGE_SHARE)
    assert kind == Kind(numbers.IMAGE_SHARE, numbers.IMPACT, 5, "")
    by_hand = share_by_hand(result, [step.l2[:, :, 0] for step in result.steps])
    np.testing.assert_allclose(curve, by_hand, rtol=1e-5)
    assert not np.allclose(curve, share_by_hand(replace(result, sinks=()), [s.l2[:, :, 0] for s in result.steps]))
    assert found.numbers[kind] == pytest.approx(by_hand.mean(), rel=1e-5)
    assert (found.answer, found.n_layers) == (result.generated_text, 5)


def test_measured_effects_go_before_local_impact(stored):
    result = with_effects(make_result(n_steps=2, n_layers=5, grids=[(2, 3)]))
    found = stored({"a": result})["a"]
    kind, curve = one_of(found, numbers.IMAGE_SHARE)
    assert kind == Kind(numbers.IMAGE_SHARE, numbers.EFFECT, 5, "window 3, last query")
    sizes = [
        np.where(step.effect.below_floor, 0, np.abs(step.effect.logprob_change.astype(np.float64)))
        for step in result.steps
    ]
    np.testing.assert_allclose(curve, share_by_hand(result, sizes), rtol=1e-5)
    largest = max(-step.effect.logprob_change.min() for step in result.steps)
    assert found.numbers[Kind(numbers.LARGEST, numbers.EFFECT, 5, "window 3, last query")] == pytest.approx(largest)


def test_a_text_has_no_share_of_an_image(stored):
    found = stored({"a": make_result()})["a"]
    assert [kind for kind in found.curves if kind.quantity == numbers.IMAGE_SHARE] == []


@pytest.mark.parametrize(
    ("needed", "rule", "positions"),
    [((4,), numbers.EVIDENCE, [4]), ((), numbers.STRONG, [2, 3])],
)
def test_the_evidence_is_what_decides_or_else_the_two_strongest(needed, rule, positions, stored):
    """Units are the tokens; without effects by layer it is read where its cosine distance is."""
    result = explained(make_result(n_layers=6), {2: -3.0, 3: -2.0, 4: -0.5}, estimated={1: -9.0}, needed=needed)
    found = stored({"a": result})["a"]
    assert found.reasons == rule
    step = result.steps[0]
    weights = step.cosine[:, np.isin(step.positions, positions), 0].astype(np.float64).sum(axis=1)
    kind, curve = one_of(found, numbers.READING)
    assert kind.measure == "local impact of the evidence"
    np.testing.assert_allclose(curve, weights / weights.sum(), rtol=1e-5)
    depth = found.numbers[kind._replace(quantity=numbers.DEPTH)]
    assert depth == pytest.approx((weights / weights.sum()) @ ((np.arange(6) + 0.5) / 6), rel=1e-5)
    assert found.numbers[Kind(numbers.LARGEST, numbers.EFFECT, 6, "hidden in all layers")] == pytest.approx(3.0)
    assert found.strongest == result.tokens.texts[2]


def test_without_an_answer_it_is_what_all_tokens_do(stored):
    result = make_result(n_layers=4)
    found = stored({"a": result})["a"]
    step, content = result.steps[0], content_of(result)
    weights = step.cosine[:, content[step.positions], 0].astype(np.float64).sum(axis=1)
    kind, curve = one_of(found, numbers.READING)
    assert (kind.measure, found.reasons) == ("local impact of all tokens", numbers.ALL)
    np.testing.assert_allclose(curve, weights / weights.sum(), rtol=1e-5)


def test_effects_that_hide_in_all_layers_at_once_have_no_depth(tmp_path):
    result = with_effects(make_result(n_layers=4))
    write_part(tmp_path / "study", {"a": result}, run=RUN_OF_PART | {"window": "all"})
    (found,) = find_study(tmp_path / "study").prompts()
    assert one_of(found, numbers.READING)[0].measure == "local impact of all tokens"


def test_heads_have_their_part_of_their_layer(stored):
    result = make_result(n_layers=3, n_heads=4)
    ((kind, shares),) = stored({"a": result})["a"].heads.items()
    content = content_of(result)[result.steps[0].positions]
    sums = result.steps[0].l2[:, content, 2:].astype(np.float64).sum(axis=1)
    assert kind == Kind(numbers.HEADS, "local impact in its layer", 3)
    np.testing.assert_allclose(shares, sums / sums.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_reduced_dataset_says_that_it_has_the_strongest_heads_only(tmp_path):
    write_part(tmp_path / "study", {"a": make_result(n_heads=4)}, reduce="summary")
    (found,) = find_study(tmp_path / "study").prompts()
    assert [kind.measure for kind in found.heads] == ["local impact of each token's strongest head"]


def test_flows_of_an_answer_are_estimated_by_layer_and_measured_in_all(stored):
    """Over all targets; heads have their part of what cutting the flows does for the answer."""
    result = rich_result()
    found = stored({"a": result})["a"]
    routes = [route for target in result.answer.targets for route in target.routes]
    kind = Kind("flow image -> last", "estimated", 3)
    np.testing.assert_allclose(found.curves[kind], sum(route.contribution.sum(axis=1) for route in routes), rtol=1e-4)
    whole = kind._replace(measure="measured", how="all layers")
    assert found.numbers[whole] == pytest.approx(sum(route.whole_change for route in routes))
    carried = np.maximum(-sum(route.contribution.astype(np.float64) for route in routes), 0)
    ((_, shares),) = found.heads.items()
    np.testing.assert_allclose(shares, carried / carried.sum(), rtol=1e-4)


def test_knockouts_beside_a_result_are_flows_by_layer(tmp_path):
    flows = make_knockouts(n_steps=2)
    save_flows(flows, tmp_path / "cut")
    (found,) = find_study(tmp_path).prompts()
    assert {kind.quantity for kind in found.curves} == {"flow a -> last", "flow a -> b (heads 0, 3)"}
    (curve,) = [curve for kind, curve in found.curves.items() if kind.quantity == "flow a -> last"]
    np.testing.assert_allclose(curve, sum(step.logprob_change[0] for step in flows.steps), rtol=1e-5)
    assert {(kind.measure, kind.n_layers, kind.how) for kind in found.curves} == {("measured", 3, "window 1")}


def test_labels_come_along(stored):
    results = {"a": make_result(), "b": make_result(seed=1)}
    found = stored(results, labels={"a": {"category": "x"}, "b": {"category": "y", "expected": ["Paris"]}})
    assert {name: dict(one.labels) for name, one in found.items()} == {
        "a": {"category": "x"},
        "b": {"category": "y", "expected": ["Paris"]},
    }


def test_parts_of_an_earlier_version_are_read_by_their_tokens_texts(tmp_path):
    """Which say what is of an image and what is special; the window is not known."""
    result = with_effects(make_result(("<|im_start|>", " what", " is", "?"), grids=[(1, 3)], sinks=()))
    kinds = ("special", *result.tokens.kinds[1:])
    result = replace(result, tokens=replace(result.tokens, kinds=kinds))
    write_part(tmp_path / "new", {"a": result})
    write_part(tmp_path / "old", {"a": result}, run=None, old=True)
    part = tmp_path / "old" / "part-000000.parquet"
    pq.write_table(pq.read_table(part).drop_columns(["kind", "content"]), part)
    (new,), (old,) = (find_study(tmp_path / name).prompts() for name in ("new", "old"))
    assert one_of(old, numbers.IMAGE_SHARE)[0].how == "window not stored"
    for quantity in (numbers.IMAGE_SHARE, numbers.READING):
        np.testing.assert_allclose(one_of(old, quantity)[1], one_of(new, quantity)[1])


# --- pieces -----------------------------------------------------------------------------------------------------------------


def test_where_batches_end_makes_no_difference(tmp_path, monkeypatch):
    results = {name: with_effects(replace(rich_result(), answer=None), seed=n) for n, name in enumerate("abc")}
    results["d"] = rich_result()
    write_part(tmp_path / "study", results)
    whole = [*find_study(tmp_path / "study").prompts()]
    monkeypatch.setattr(reading, "BATCH", 7)
    pieces = [*find_study(tmp_path / "study").prompts()]
    assert [one.name for one in pieces] == ["a", "b", "c", "d"]
    for one, other in zip(whole, pieces, strict=True):
        for what in ("curves", "heads", "numbers"):
            mine, others = getattr(one, what), getattr(other, what)
            assert mine.keys() == others.keys()
            for kind in mine:
                np.testing.assert_allclose(mine[kind], others[kind], rtol=1e-5)


def large_part(folder, n_prompts):
    """A part of n_prompts x 40,000 rows: 8 layers, 250 tokens, 20 heads."""
    folder.mkdir(parents=True, exist_ok=True)
    n_layers, n_tokens, n_heads = 8, 250, 20
    layer, position, head = (one.reshape(-1) for one in np.indices((n_layers, n_tokens, n_heads)))
    rng, n = np.random.default_rng(0), n_layers * n_tokens * n_heads
    variants, texts = pa.array([f"Head_{h}" for h in range(n_heads)]), pa.array([f"w{t}" for t in range(n_tokens)])

    def coded(codes, values):
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), values)

    nothing = np.zeros(n, dtype=np.int32)
    writer = None
    for prompt in range(n_prompts):
        table = pa.table(
            {
                "prompt_name": coded(nothing, pa.array([f"p{prompt}"])), "generation_step": nothing,
                "layer": layer.astype(np.int32), "token_masked": coded(position, texts),
                "token_position": position.astype(np.int32), "variant": coded(head, variants),
                "l2_distance": rng.random(n, dtype=np.float32), "cosine_distance": rng.random(n, dtype=np.float32),
                "kind": coded(nothing, pa.array(["text"])), "content": np.ones(n, dtype=bool),
                "generated_text": coded(nothing, pa.array(["yes"])), "carried": coded(nothing, pa.array(["{}"])),
            }
        )  # fmt: skip
        writer = writer or pq.ParquetWriter(folder / "part-000000.parquet", table.schema)
        writer.write_table(table)
    writer.close()
    return folder


def peak(study):
    """(prompts, most bytes that Python and numpy held and most that pyarrow did, in sum, batches)"""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        n_prompts = sum(1 for _ in study.prompts())
        return n_prompts, tracemalloc.get_traced_memory()[1] + pool.max_memory(), study.n_batches
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BATCH", 20_000)
    few, many = (large_part(tmp_path / str(n), n) for n in (2, 10))
    (_, least, _), (n_prompts, most, n_batches) = peak(find_study(few)), peak(find_study(many))
    assert (n_prompts, n_batches) == (10, 20)  # 400,000 rows
    assert most < 1.3 * least
    monkeypatch.setattr(reading, "BATCH", 10**9)  # all rows at once
    assert peak(find_study(many))[1] > 2 * most


# --- what is not there ------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_study_is_refused_with_where_one_is(tmp_path):
    for path, said in ((tmp_path / "none", "does not exist"), (tmp_path, "has neither parts of a dataset")):
        with pytest.raises(OutputError, match=said):
            find_study(path)
    write_part(tmp_path / "sums", {"a": with_effects(make_result())})
    with pytest.raises(OutputError, match="sums has parts"):
        find_study(tmp_path)
    write_part(tmp_path / "old", {"a": with_effects(make_result())}, old=True)
    for name, study in (("sums/effect", "sums"), ("old.effect", "old")):
        assert find_study(tmp_path / name).source == str(tmp_path / study)


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    write_part(tmp_path / "study", {"a": make_result()})
    part = tmp_path / "study" / "impact" / "part-000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["variant"]), part)
    with pytest.raises(OutputError, match=r"part-000000.parquet has no column variant"):
        [*find_study(tmp_path / "study").prompts()]
    for column, values in (("layer", [10**6]), ("layer", [-1]), ("token_position", [None]), ("l2_distance", ["far"])):
        wrong = pa.chunked_array([pa.array(values * len(table))])
        pq.write_table(table.set_column(table.schema.get_field_index(column), column, wrong), part)
        with pytest.raises(OutputError, match=r"part-000000.parquet cannot be read: "):
            [*find_study(tmp_path / "study").prompts()]
    part.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(OutputError, match=r"part-000000.parquet cannot be read"):
        [*find_study(tmp_path / "study").prompts()]


def test_a_result_that_cannot_be_read_is_left_out_and_named(tmp_path):
    for name in "ab":
        save(make_result(), tmp_path / name, ["csv"])
    (tmp_path / "a.csv").unlink()
    study = find_study(tmp_path)
    assert [one.name for one in study.prompts()] == ["b"]
    assert len(study.notes) == 1
    assert "a.meta.json" in study.notes[0]


# --- images -----------------------------------------------------------------------------------------------------------------


def looked_part(folder, name, deepstack, patches):
    """What a prompt has of images, beside its impacts."""
    write_part(folder, {name: make_result()})
    for table, found in (("deepstack", deepstack_table(deepstack)), ("patches", patch_table(patches))):
        place = table_of(folder, table)
        place.mkdir(exist_ok=True)
        pq.write_table(with_prompt(found, name, "yes", "{}"), place / "part-000000.parquet")


@pytest.mark.parametrize("store", ["parts", "results"])
def test_parts_of_features_and_replaced_pixels_are_numbers_over_all_targets(store, tmp_path):
    deepstack, patches = make_deepstack(), make_patches()
    if store == "parts":
        looked_part(tmp_path / "study", "a", deepstack, patches)
    else:
        (tmp_path / "study").mkdir()
        save_deepstack(deepstack, tmp_path / "study" / "a")
        save_patches(patches, tmp_path / "study" / "a")
    (found,) = find_study(tmp_path / "study").prompts()
    values = {kind.quantity: value for kind, value in found.numbers.items()}
    for place, part in enumerate(deepstack.parts):
        added = sum(target.shapley[place] for target in deepstack.targets)
        assert values[f"part {part.name}"] == pytest.approx(added, rel=1e-5)
    without = sum(float(target.logprob_change[0]) for target in deepstack.targets)
    assert values["without all parts"] == pytest.approx(without, rel=1e-5)
    tokens = [place for place, region in enumerate(patches.regions) if region.level == "token"]
    strongest = 0.0
    for target in patches.targets:
        shown = {
            place: [float(target.logprob_change[row]) for row in target.rows(place, route=TOTAL)] for place in tokens
        }
        strongest += min(max(changes) for changes in shown.values() if changes)
    assert values["pixels of the strongest token"] == pytest.approx(strongest, rel=1e-5)
    ways = [target.rows(target.found, route=OWN) for target in patches.targets]
    own = sum(
        float(target.logprob_change[row]) for target, rows in zip(patches.targets, ways, strict=True) for row in rows
    )
    assert values["pixels, by way of own tokens"] == pytest.approx(own, rel=1e-5)
    kinds = {kind.how for kind in found.numbers if kind.quantity.startswith("part ")}
    assert kinds == {f"at {deepstack.region}, baseline {deepstack.baseline}"}
