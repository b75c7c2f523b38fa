"""What the vision tower's layers read: against keys that are really hidden, one at a time; and what is wrong is rejected.

The tower is Qwen3-VL's, tiny and random, with attentions far from uniform; sharpened, one key has nearly all of a query's weight.
"""

import itertools
from functools import cache

import pytest
import torch
import tower_oracle
from tiny_models import tiny_image_inputs, tiny_model
from torch.nn import functional
from transformers import AttentionInterface
from transformers.models.qwen3_vl import modeling_qwen3_vl

from mask_impact.engine import tower as towers
from mask_impact.engine import tower_map
from mask_impact.engine.features import FeaturePass
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.tower import keys_hidden, readings, tower_of
from mask_impact.errors import ExactnessError, ModelError, UnsupportedArchitecture

GRIDS = ((1, 4, 6), (1, 4, 4))
WITHIN = {torch.float32: (1e-4, 0.0), torch.float64: (1e-9, 1e-14)}  # of itself, and of the attention's output


def model_of(dtype=torch.float64, sharpness=1.0, seed=0):
    model = tiny_model("qwen3_vl", dtype=dtype, seed=seed)
    for block in model.model.visual.blocks:
        block.attn.scaling *= sharpness
    return model


def measured(model, n_images=1, image=0, unit=1, probes=0, seed=0):
    """[L, M] of attention, full and its error, as the engine measures one image of a prompt."""
    again = FeaturePass(model, tiny_image_inputs(model, n_images=n_images, grids=GRIDS), 1)
    values, own = again.pixel_values(image)[None], again.own()
    with torch.no_grad():
        found = readings(decoder_of(model), tower_of(model), lambda: again.seen(own, image, values), unit, probes, seed)
    return [torch.stack([getattr(one, name) for one in found]) if getattr(found[0], name) is not None else None
            for name in ("attention", "full", "error")]  # fmt: skip


def units_of(n, unit=1):
    """bool [M, P]"""
    return torch.eye(n // unit, dtype=torch.bool).repeat_interleave(unit, dim=1)


@cache
def expected(dtype=torch.float64, sharpness=1.0, n_images=1, image=0, unit=1, seed=0):
    model = model_of(torch.float64, sharpness, seed)  # in float64 whatever is asked about
    inputs = tiny_image_inputs(model, n_images=n_images, grids=GRIDS)
    n = int(inputs["image_grid_thw"][image].prod())
    if dtype == torch.float32:  # the same picture
        inputs["pixel_values"] = inputs["pixel_values"].float().double()
    return tower_oracle.local_map(model, inputs["pixel_values"], inputs["image_grid_thw"], image, units_of(n, unit))


def assert_close(found, wanted, dtype=torch.float64):
    relative, absolute = WITHIN[dtype]
    error = (found.double() - wanted).abs() - absolute
    assert (error <= relative * wanted).all(), f"differs from really hiding by {float((error / wanted).max()):.1e}"


# --- the map against really hiding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [1, 4])
def test_the_map_agrees_with_hiding_one_patch_or_token_at_a_time(unit, dtype):
    found, _, _ = measured(model_of(dtype), unit=unit)
    wanted = expected(dtype, unit=unit)
    assert found.shape == (4, 24 // unit)
    assert_close(found, wanted, dtype)
    assert wanted.max() > 3 * wanted.min() > 0


@pytest.mark.parametrize(("sharpness", "dtype"), [(10.0, torch.float32), (4.0, torch.float64), (40.0, torch.float64)])
@pytest.mark.parametrize("unit", [1, 4])
def test_a_key_with_most_of_the_weight_is_exact_too(unit, sharpness, dtype):
    """With half of it, most, nearly all. At the sharpest, the tower's own logits in float32 have too few digits."""
    found, _, _ = measured(model_of(dtype, sharpness), unit=unit)
    assert_close(found, expected(dtype, sharpness, unit=unit), dtype)


@pytest.mark.parametrize("weight", [0.5, 0.9, 0.94, 0.96, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_weight_of_a_key_keeps_its_digits(dtype, weight):
    """One key has it of each query in one head, and another key in another head; against a softmax without it, in float64."""
    generator = torch.Generator().manual_seed(0)
    n, heads, depth = 32, 3, 8
    query, key, value = (torch.randn(heads, n, depth, generator=generator, dtype=torch.float64) for _ in range(3))
    output = torch.randn(20, heads * depth, generator=generator, dtype=torch.float64)
    key[:, :, 0] = 0
    query[:, :, 0] = 1
    for head in (0, 1):  # such that the first dimension adds what is missing for one key of each query
        logits = query[head] @ key[head].T
        others = torch.logsumexp(logits[:, torch.arange(n) != 5 + head], dim=-1)
        gain = (others - logits[:, 5 + head]).mean() + torch.tensor(weight / (1 - weight), dtype=torch.float64).log()
        key[head, 5 + head, 0] = gain
    given = [one.to(dtype) for one in (query, key, value)]
    found = tower_map.reading(*given, 1.0, output.to(dtype)).attention
    query, key, value, output = (one.double() for one in (*given, output.to(dtype)))
    logits, wanted = query @ key.transpose(1, 2), []
    before = (torch.softmax(logits, dim=-1) @ value).transpose(0, 1).flatten(1)
    for hidden in range(n):
        without = logits.clone()
        without[:, torch.arange(n) != hidden, hidden] = -torch.inf
        after = (torch.softmax(without, dim=-1) @ value).transpose(0, 1).flatten(1)
        wanted.append(((after - before) @ output.T)[torch.arange(n) != hidden].square().sum())
    assert_close(found.sqrt(), torch.stack(wanted).sqrt(), dtype)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("image", [0, 1])
def test_each_of_two_images_is_a_world_of_its_own(image, backend):
    model = model_of(torch.float32)
    model.set_attn_implementation(backend)
    found, _, _ = measured(model, n_images=2, image=image)
    assert_close(found, expected(torch.float32, n_images=2, image=image), torch.float32)


def test_values_that_are_nearly_equal_keep_their_digits():
    """Patches of two kinds, as of a figure and its ground, each of which reads its own kind: in float32 the products cancel, and
    these units are formed in float64."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.ones(48, 1).index_fill_(0, torch.arange(24), -1)
    query, key, value = (
        kind * torch.randn(3, 1, 8, generator=generator) + noise * torch.randn(3, 48, 8, generator=generator)
        for noise in (0.1, 0.1, 1e-4)
    )
    query, key = 10 * key + query, key
    weight = torch.randn(20, 24, generator=generator)
    for unit in (1, 4):
        found, wanted = (
            tower_map.reading(*(one.to(dtype) for one in (query, key, value)), 0.3, weight.to(dtype), unit).attention
            for dtype in (torch.float32, torch.float64)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_values_that_are_nearly_equal_would_lose_them_in_float32(monkeypatch):
    monkeypatch.setattr(tower_map, "CANCELLED", -1.0)
    with pytest.raises(AssertionError):
        test_values_that_are_nearly_equal_keep_their_digits()


def test_blocks_of_any_size_give_the_same(monkeypatch):
    whole, full, _ = measured(model_of(), unit=4, probes=2)
    monkeypatch.setattr(tower_map, "KEYS_AT_ONCE", 8)
    monkeypatch.setattr(tower_map, "AT_ONCE", 100)
    found, other, _ = measured(model_of(), unit=4, probes=2)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(other, full, rtol=1e-12, atol=0)


def test_the_whole_update_is_estimated_to_first_order_within_its_standard_error():
    model = model_of(sharpness=3.0)
    inputs = tiny_image_inputs(model, grids=GRIDS)
    for unit in (1, 4):
        _, full, error = measured(model, unit=unit, probes=128)
        wanted = tower_oracle.first_order_map(
            model, inputs["pixel_values"], inputs["image_grid_thw"], units_of(24, unit)
        )
        off = (full - wanted).abs() / error
        assert (off < 5).all()
        assert 0.4 < off.median() < 1.2  # the error says how far off it is
        assert (error / full).median() < 0.12
        attention = measured(model, unit=unit)[0]
        assert ((attention - wanted).abs() / error > 5).float().mean() > 0.5  # what the MLP does is seen


def test_other_seeds_give_other_probes_and_the_same_map():
    one, other = (measured(model_of(), probes=4, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    assert not torch.allclose(one[1], other[1])


# --- flash attention: one call for all images -------------------------------------------------------------------------------


@pytest.fixture
def flash(monkeypatch):
    """A model whose tower calls a kernel as flash attention is called, which is plain here."""
    model = model_of(torch.float64)
    seen = []

    def kernel(module, query, key, value, attention_mask, scaling, cu_seq_lens_q, **kwargs):
        assert attention_mask is None
        edges = [slice(*edge) for edge in itertools.pairwise(cu_seq_lens_q.tolist())]
        seen.append(len(edges))
        parts = [functional.scaled_dot_product_attention(query[:, :, one], key[:, :, one], value[:, :, one], scale=scaling)
                 for one in edges]  # fmt: skip
        return torch.cat(parts, dim=2).transpose(1, 2), None

    visual = model.model.visual
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", kernel)
    monkeypatch.setattr(modeling_qwen3_vl, "is_flash_attention_requested", lambda config: config is visual.config)
    for config in {id(one): one for one in (visual.config, *(block.attn.config for block in visual.blocks))}.values():
        config._attn_implementation = "flash_attention_2"
    assert all(block.attn.config is visual.config for block in visual.blocks)
    return model, seen


def both_images(model):
    """The map of two images in one pass of the tower."""
    again = FeaturePass(model, tiny_image_inputs(model, n_images=2, grids=GRIDS), 1)
    with torch.no_grad():
        return torch.stack([one.attention for one in readings(decoder_of(model), tower_of(model), again.own, 1)])


def features_with_hidden_keys(model, keys, layers=None):
    again = FeaturePass(model, tiny_image_inputs(model, grids=GRIDS), 1)
    own = again.own()
    flags = torch.ones(len(keys), 4, dtype=torch.bool) if layers is None else layers
    with keys_hidden(decoder_of(model), tower_of(model), keys, flags):
        return again.seen(own, 0, again.pixel_values(0).expand(len(keys), -1, -1))


def test_one_call_for_all_images_gives_the_same(flash):
    model, seen = flash
    wanted = [expected(n_images=2, image=image) for image in (0, 1)]
    assert_close(both_images(model), torch.cat(wanted, dim=1))
    assert 2 in seen
    keys = units_of(24, 4)
    found, plain = features_with_hidden_keys(model, keys), features_with_hidden_keys(model_of(), keys)
    for one, other in zip(found.parts, plain.parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_ignoring_where_images_begin_is_rejected(flash, monkeypatch):
    model, _ = flash
    monkeypatch.setattr(towers, "pieces", lambda n, kwargs: [slice(0, n)])
    with pytest.raises(ExactnessError, match="gives another attention output than its queries, keys and values say"):
        both_images(model)


# --- keys hidden in the tower ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_each_variant_has_its_own_keys_in_its_own_layers(backend):
    model = model_of(torch.float32)
    model.set_attn_implementation(backend)
    inputs = tiny_image_inputs(model, grids=GRIDS)
    keys = units_of(24, 4)
    layers = torch.tensor([[True] * 4, [False] * 4, [False, True, True, False], [True, False, False, False],
                           [False, False, False, True], [True] * 4])  # fmt: skip
    found = features_with_hidden_keys(model, keys, layers)
    for number, (one, flags) in enumerate(zip(keys, layers, strict=True)):
        with torch.no_grad(), tower_oracle.masked(model, tower_oracle.hiding(one), flags.nonzero().flatten().tolist()):
            output = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        wanted = [output.pooler_output, *output.deepstack_features]
        for part, expected_part in zip(found.parts, wanted, strict=True):
            torch.testing.assert_close(part[number], expected_part, rtol=1e-4, atol=1e-4)
    own = features_with_hidden_keys(model, keys & False)
    assert (
        (own.parts[0] - found.parts[0]).abs().amax((1, 2)).tolist()[1]
        < 1e-4
        < 1e-2
        < float((own.parts[0] - found.parts[0]).abs().amax((1, 2))[0])
    )


# --- what is wrong is rejected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dominant_key_by_the_formula_that_cancels_is_rejected(dtype, monkeypatch):
    """The closed form for every key, also for one that has nearly all of the weight."""
    monkeypatch.setattr(tower_map, "LEFT", dict.fromkeys(tower_map.LEFT, -1.0))
    with pytest.raises(AssertionError, match="differs from really hiding"):
        test_every_weight_of_a_key_keeps_its_digits(dtype, 1 - 1e-6)


def test_strong_heads_that_are_counted_once_with_each_other_are_rejected(monkeypatch):
    """A pair of heads in both of which a key has most of the weight meets from both sides."""
    changes = tower_map._Block._changes
    monkeypatch.setattr(
        tower_map._Block,
        "_changes",
        lambda self, *pairs: (changes(self, *pairs)[0], torch.zeros(len(pairs[0]), len(self.strong))),
    )
    with pytest.raises(AssertionError, match="differs from really hiding"):
        test_a_key_with_most_of_the_weight_is_exact_too(1, 40.0, torch.float64)


def test_only_one_head_of_a_pair_is_rejected(monkeypatch):
    """What heads do together is more than what each does."""
    own = tower_map._Block._single
    monkeypatch.setattr(
        tower_map._Block,
        "_single",
        lambda self, h, g, *moved: tuple((h == g) * one for one in own(self, h, g, *moved)),
    )
    with pytest.raises(AssertionError, match="differs from really hiding"):
        test_the_map_agrees_with_hiding_one_patch_or_token_at_a_time(1, torch.float64)


def test_an_attention_that_is_no_softmax_of_these_keys_is_refused(monkeypatch):
    """Such as one with a window, or a mask that is not seen."""
    own = towers.reading
    monkeypatch.setattr(
        towers, "reading", lambda query, key, value, scaling, *rest: own(query, key, value, 0.5 * scaling, *rest)
    )
    with pytest.raises(ExactnessError, match="layer 0 of the vision tower gives another attention output"):
        measured(model_of(torch.float32))


def test_models_without_such_a_tower_are_one_line():
    with pytest.raises(
        UnsupportedArchitecture, match=r"^Qwen3ForCausalLM \(qwen3\) has no vision tower of Qwen3-VL's kind"
    ):
        tower_of(tiny_model("qwen3"))


def test_another_backend_and_a_map_that_is_not_plain_are_one_line():
    model = model_of()
    model.model.visual.config._attn_implementation = "mine"
    with pytest.raises(ModelError, match="attention backend 'mine' of the vision tower is not supported"):
        tower_of(model)
    model = model_of()
    model.model.visual.blocks[2].attn.proj = torch.nn.Sequential(model.model.visual.blocks[2].attn.proj)
    with pytest.raises(ModelError, match="layer 2 of the vision tower ends its attention in Sequential"):
        tower_of(model)
