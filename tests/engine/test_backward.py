"""Estimates by one backward pass against what they are by definition: removed keys, moved head outputs, constants put back."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from marks import slow_but
from oracle import float32_becomes
from tiny_models import tiny_model

from mask_impact.engine import backward
from mask_impact.engine.backward import Flow
from mask_impact.engine.hiding_effects import Factored, hiding_effects, values_along
from mask_impact.engine.kept import keep, keeping
from mask_impact.engine.plans import SequencePlan
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.taps import tapped, up_to_own, visible_keys
from mask_impact.engine.targets import Target, measure_targets, value_of
from mask_impact.engine.variants import each_window_and_group
from mask_impact.errors import ExactnessError, UsageError
from mask_impact.models.architectures import EXAMPLES

TEXT = sorted(name for name in EXAMPLES if not name.startswith("qwen3_vl"))
USUAL = ("qwen3", "gemma3_text", "phi3", "qwen3_vl")
N = 9
STEP = 1e-5


@pytest.fixture(autouse=True)
def float64_throughout():
    """The library's norms and routers work in float32, in which the small differences of the oracle have no digits."""
    with float32_becomes(torch.float64):
        yield


def inputs_of(n=N):
    ids = torch.randint(3, 60, (1, n), generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def made(name):
    """A float64 model, its inputs, and the token that is asked about."""
    model = tiny_model(name, dtype=torch.float64).eval()
    inputs = inputs_of()
    if name.startswith("qwen3_vl"):
        inputs["mm_token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    with torch.no_grad():
        token = int(model(**inputs).logits[0, -1].topk(3).indices[1])
    return model, inputs, token


# --- the oracle: a head's output is moved along what really removing a key does, and the target looked at ----------------


def log_odds(logits, token):
    return value_of(logits.unsqueeze(0), [Target(-1, token)])[0]


def estimate(forward, token, rule="frozen", flows=(), **how):
    """Of one token at the last position."""
    return backward.estimate(forward, [Target(forward.n_positions - 1, token)], rule, flows, **how)


@torch.no_grad()
def value_with(model, inputs, targets, measure, change=None):
    """The sum of the targets, from whole logits, where `change(layer, output)` [n, H, D] changes what a layer's heads give."""
    decoder = decoder_of(model)
    index = {id(layer.module.self_attn): layer.index for layer in decoder.layers}

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        output = own(query, key, value, mask, *args, **kwargs)[0]
        return (output if change is None else change(index[id(module)], output.clone())), None

    with tapped(decoder, attend):
        logits = model(**inputs, use_cache=False).logits[0].double()
    total = 0.0
    for one in targets:
        p = torch.softmax(logits[one.row], 0)
        if one.instead is not None:
            total += float((p[one.token] / p[one.instead]).log())
        else:
            total += float(p[one.token].log() - (0 if measure == "log-prob" else (1 - p[one.token]).log()))
    return total


def target_with(model, inputs, token, change=None):
    """The log-odds where `change(layer, output)` [n, H, D] changes what a layer's heads give."""
    return value_with(model, inputs, [Target(-1, token)], "log-odds", change)


@torch.no_grad()
def removed(model, inputs):
    """{layer: [n, N, H, D]}: how much each head's output of each query changes where a key is removed, key by key."""
    decoder = decoder_of(model)
    index = {id(layer.module.self_attn): layer.index for layer in decoder.layers}
    found = {}

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        n, n_keys, n_heads = query.shape[2], key.shape[2], query.shape[1]
        group = n_heads // key.shape[1]
        seen = visible_keys(mask, 0, n, n_keys, None, key.device)
        seen = up_to_own(n, n_keys, key.device) if seen is None else seen
        scaling = kwargs.get("scaling")
        changes = torch.zeros(n, n_keys, n_heads, query.shape[-1], dtype=query.dtype)
        for head in range(n_heads):
            k, v = key[0, head // group], value[0, head // group]
            for i in range(n):
                logits = (k @ query[0, head, i]) * scaling
                logits[~seen[i]] = -torch.inf
                before = torch.softmax(logits, 0) @ v
                for j in range(n_keys):
                    if not seen[i, j]:
                        continue
                    without = logits.clone()
                    without[j] = -torch.inf
                    after = torch.zeros_like(before) if seen[i].sum() == 1 else torch.softmax(without, 0) @ v
                    changes[i, j, head] = after - before
        found[index[id(module)]] = changes
        return own(query, key, value, mask, *args, **kwargs)

    with tapped(decoder, attend):
        model(**inputs, use_cache=False)
    return found


def moved(pair, along):
    """A change of one head's output of one query."""
    layer, head, i, _ = pair

    def change(at, output):
        if at == layer:
            output[0, i, head] += along
        return output

    return change


def by_hand(model, inputs, token, pairs, target=None):
    """{(layer, head, i, j): central difference of the target along what removing the key does to the head's output}."""
    target = target or target_with
    changes = removed(model, inputs)
    found = {}
    for pair in pairs:
        layer, head, i, j = pair
        along = STEP * changes[layer][i, j, head]
        ends = [target(model, inputs, token, moved(pair, sign * along)) for sign in (1, -1)]
        found[pair] = (ends[0] - ends[1]) / (2 * STEP)
    return found


def frozen_modules(model, inputs):
    """Puts constants in place of what the frozen rules hold: norms' scale, activations' ratio, attention weights, routers."""
    decoder = decoder_of(model)
    scales, ratios = {}, {}
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    acts = [m for m in model.modules() if type(m).__name__ in ("SiLU", "SiLUActivation", "GELUTanh")]

    def keep(store):
        def hook(module, args, output):
            store.setdefault(id(module), []).append((output / args[0]).nan_to_num(0.5))

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for module in norms:
            stack.callback(module.register_forward_hook(keep(scales)).remove)
        for module in acts:
            stack.callback(module.register_forward_hook(keep(ratios)).remove)
        outputs = {}
        weights = {}
        index = {id(layer.module.self_attn): layer.index for layer in decoder.layers}

        def attend(own, module, query, key, value, mask, *args, **kwargs):
            n, n_keys = query.shape[2], key.shape[2]
            seen = visible_keys(mask, 0, n, n_keys, None, key.device)
            seen = up_to_own(n, n_keys, key.device) if seen is None else seen
            wide = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            logits = (query @ wide.transpose(2, 3) * kwargs.get("scaling")).masked_fill(~seen, -torch.inf)
            weights[index[id(module)]] = torch.softmax(logits, -1)
            outputs[index[id(module)]] = True
            return own(query, key, value, mask, *args, **kwargs)

        stack.enter_context(tapped(decoder, attend))
        model(**inputs, use_cache=False)

    def replaced(store):
        def hook(module, args, output):
            kept = store[id(module)]
            factor = kept.pop(0)
            kept.append(factor)
            return args[0] * factor

        return hook

    def enter(stack):
        for module in norms:
            stack.callback(module.register_forward_hook(replaced(scales)).remove)
        for module in acts:
            stack.callback(module.register_forward_hook(replaced(ratios)).remove)

    return enter, weights, index


@torch.no_grad()
def frozen_target(model, inputs, token, change=None, constants=None):
    """As target_with, of the model with the constants in place: linear in what a head gives."""
    enter, weights, index = constants or frozen_modules(model, inputs)
    decoder = decoder_of(model)

    def attend(own, module, query, key, value, mask, *args, **kwargs):
        layer = index[id(module)]
        wide = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        output = (weights[layer] @ wide).transpose(1, 2).contiguous()
        return (output if change is None else change(layer, output)), None

    with ExitStack() as stack:
        enter(stack)
        stack.enter_context(tapped(decoder, attend))
        return float(log_odds(model(**inputs, use_cache=False).logits[0, -1], token))


PAIRS = [(0, 1, N - 1, 3), (1, 2, N - 1, N - 1), (1, 0, 5, 2), (0, 3, 4, 4), (2, 1, N - 1, 0), (0, 0, 0, 0)]


def single(forward, token, rule, pair):
    """One E: by a flow of one key to one query, and by its place in the whole map."""
    layer, head, i, j = pair
    source, target = torch.zeros(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
    source[j], target[i] = True, True
    found = estimate(forward, token, rule, [Flow(source, target)], layers=[layer])
    return float(found.flows[0, layer, head]), float(found.maps[layer][head, i, j])


# --- tests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but(USUAL, [*TEXT, "qwen3_vl"]))
def test_gradient_estimates_are_differences_of_the_target_along_what_hiding_does(name):
    model, inputs, token = made(name)
    pairs = [pair for pair in PAIRS if pair[0] < len(decoder_of(model).layers)]
    expected = by_hand(model, inputs, token, pairs)
    assert max(map(abs, expected.values())) > 1e-6
    forward = keep(model, inputs)
    for pair, value in expected.items():
        assert single(forward, token, "gradient", pair) == pytest.approx((value, value), rel=1e-5, abs=1e-9), pair


@pytest.mark.parametrize("name", slow_but(USUAL, [*TEXT, "qwen3_vl"]))
def test_frozen_estimates_are_those_of_the_model_with_its_constants_put_in(name):
    model, inputs, token = made(name)
    assert frozen_target(model, inputs, token) == pytest.approx(target_with(model, inputs, token), abs=1e-9)
    pairs = [pair for pair in PAIRS if pair[0] < len(decoder_of(model).layers)]
    forward, target = keep(model, inputs), partial(frozen_target, constants=frozen_modules(model, inputs))
    for pair, value in by_hand(model, inputs, token, pairs, target).items():
        assert single(forward, token, "frozen", pair) == pytest.approx((value, value), rel=1e-5, abs=1e-9), pair


def test_sums_are_those_of_the_single_ones():
    model, inputs, token = made("qwen3")
    forward = keep(model, inputs)
    everyone = torch.ones(N, dtype=torch.bool)
    flows = []
    for j in range(N):
        source = torch.zeros(N, dtype=torch.bool)
        source[j] = True
        last = torch.zeros(N, dtype=torch.bool)
        last[-1] = True
        flows += [Flow(source, everyone), Flow(source, last)]
    found = estimate(forward, token, "gradient", flows)
    torch.testing.assert_close(found.flows[0::2].permute(1, 2, 0), found.every, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.flows[1::2].permute(1, 2, 0), found.last, rtol=1e-5, atol=1e-7)


def test_chunks_of_queries_change_nothing(monkeypatch):
    model, inputs, token = made("qwen3")
    forward = keep(model, inputs)
    whole = [estimate(forward, token, rule) for rule in backward.RULES]
    monkeypatch.setattr(backward, "BYTES_AT_ONCE", 1)
    for rule, one in zip(backward.RULES, whole, strict=True):
        again = estimate(forward, token, rule)
        torch.testing.assert_close(again.every, one.every, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(again.last, one.last, rtol=1e-5, atol=1e-8)


def test_several_targets_are_the_sum_of_each():
    model, inputs, _ = made("qwen3")
    forward = keep(model, inputs)
    targets = [Target(N - 1, 7), Target(N - 3, 11), Target(4, 5)]
    for measure in ("log-odds", "log-prob"):
        for rule in backward.RULES:
            together = backward.estimate(forward, targets, rule, measure=measure)
            alone = [backward.estimate(forward, [one], rule, measure=measure) for one in targets]
            torch.testing.assert_close(together.every, sum(one.every for one in alone), rtol=1e-4, atol=1e-7)
            assert together.values == pytest.approx([one.values[0] for one in alone])
            # The rows of a target see nothing behind themselves.
            assert not alone[2].every[..., 5:].any()
            assert alone[2].every[..., :5].any()


@pytest.mark.parametrize(
    ("targets", "measure"),
    [
        ([Target(N - 1, 7), Target(N - 4, 11)], "log-odds"),
        ([Target(N - 1, 7), Target(N - 4, 11)], "log-prob"),
        ([Target(N - 1, 7, instead=9)], "log-odds"),
    ],
)
def test_any_target_is_followed_along_what_hiding_does(targets, measure):
    model, inputs, _ = made("qwen3")
    pairs = [(0, 1, N - 4, 3), (1, 2, N - 1, 2), (1, 0, 5, 2), (0, 0, 0, 0)]

    def of_targets(model, inputs, token, change=None):
        return value_with(model, inputs, targets, measure, change)

    expected = by_hand(model, inputs, None, pairs, of_targets)
    for (layer, head, i, j), value in expected.items():
        found = backward.estimate(keep(model, inputs), targets, "gradient", measure=measure, layers=[layer])
        assert float(found.maps[layer][head, i, j]) == pytest.approx(value, rel=1e-5, abs=1e-9)
    assert max(map(abs, expected.values())) > 1e-6
    assert sum(found.values) == pytest.approx(of_targets(model, inputs, None), abs=1e-8)


def test_the_whole_map_of_a_layer_has_the_sums_in_it():
    model, inputs, token = made("qwen3")
    found = estimate(keep(model, inputs), token, "gradient", layers=[1])
    assert list(found.maps) == [1]
    torch.testing.assert_close(found.maps[1].sum(1), found.every[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.maps[1][:, -1], found.last[1], rtol=1e-5, atol=1e-7)
    assert not found.maps[1].triu(1).any()  # no query sees what is behind it


@pytest.mark.parametrize("name", slow_but(USUAL, [*TEXT, "qwen3_vl", "qwen3_vl_moe"]))
def test_a_pass_of_generate_is_as_good_as_one_of_the_whole_sequence(name):
    """Kept while tokens were produced one by one; cut short, it is the pass of fewer of them."""
    model = tiny_model(name).eval()
    inputs = inputs_of()
    if name.startswith("qwen3_vl"):
        inputs["mm_token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if name.endswith("moe"):
        model.set_experts_implementation("eager")
    engine = RidingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states="all")
    with keeping(engine) as kept:
        ids = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    for n_more in (5, 2, 0):
        longer = {key: ids[:, : N + n_more] if key == "input_ids" else value for key, value in inputs.items()}
        for key in ("attention_mask", "mm_token_type_ids"):
            if key in inputs:
                fill = torch.full((1, n_more), int(key == "attention_mask"))
                longer[key] = torch.cat([inputs[key], fill], dim=1)
        whole, parts = keep(model, longer, n_more + 1), kept[0].until(N + n_more)
        torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-5)
        target = [Target(N - 1 + n_more, int(ids[0, N + n_more])), Target(N - 1, 4)]
        one, other = (backward.estimates(some, target) for some in (parts, whole))
        for rule in backward.RULES:
            torch.testing.assert_close(one[rule].every, other[rule].every, rtol=1e-3, atol=1e-5)
        variants = each_window_and_group([(2,), (N - 2, 3)], N + n_more, len(parts.states), "all", "all")
        one, other = (measure_targets(some, variants, target, some.logits[[-1, 0]]) for some in (parts, whole))
        np.testing.assert_allclose(one.logprob_change, other.logprob_change, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", slow_but(USUAL, [*TEXT, "qwen3_vl"]))
def test_both_rules_over_one_graph_are_each_by_itself(name):
    model, inputs, token = made(name)
    forward = keep(model, inputs)
    target, flow = [Target(N - 1, token), Target(N - 3, 4)], Flow(torch.arange(N) < 3, torch.arange(N) > 4)
    both = backward.estimates(forward, target, flows=[flow], layers=[1])
    for rule, found in both.items():
        alone = backward.estimate(forward, target, rule, [flow], layers=[1])
        assert found.values == pytest.approx(alone.values, rel=1e-9)
        for part in ("last", "every", "flows", "received"):
            torch.testing.assert_close(getattr(found, part), getattr(alone, part), rtol=1e-6, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(found.maps[1], alone.maps[1], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(both["frozen"].every, both["gradient"].every, rtol=0.1)


@pytest.mark.parametrize("keep_states", ["last", "all"])
@pytest.mark.parametrize("name", slow_but(USUAL, [*TEXT, "qwen3_vl"]))
def test_the_last_query_can_be_followed_by_itself(name, keep_states):
    model, inputs, token = made(name)
    target = Target(N - 1, token)
    whole = backward.estimate(keep(model, inputs), [target], "gradient").last
    engine = RidingEngine(model, plans=[SequencePlan(n_steps=0)], keep_states=keep_states)
    with engine, torch.no_grad():
        model(**inputs)
        found = backward.estimate_last(engine, target)
        odds = backward.estimate_last(engine, target, "log-prob")
        with pytest.raises(UsageError, match="the last of 9 positions is followed, not 3"):
            backward.estimate_last(engine, Target(3, token))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-8)
    assert whole.abs().amax((1, 2)).min() > 1e-6
    assert not torch.allclose(odds, whole, rtol=1e-2)


def padded_inputs(inputs, n_padding):
    ids = torch.nn.functional.pad(inputs["input_ids"], (n_padding, 0), value=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (n_padding, 0), value=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


@pytest.mark.parametrize("rule", backward.RULES)
def test_padding_on_the_left_counts_for_nothing(rule, monkeypatch):
    model, inputs, token = made("qwen3")
    plain = estimate(keep(model, inputs), token, rule)
    padded = keep(model, padded_inputs(inputs, 3))
    found = estimate(padded, token, rule)
    torch.testing.assert_close(found.every[..., 3:], plain.every, rtol=1e-5, atol=1e-8)
    assert not found.every[..., :3].any()
    monkeypatch.setattr(
        backward, "each_visible_key", lambda mask, number, n, keys, window, device: up_to_own(n, keys, device)
    )
    assert estimate(padded, token, rule).every[..., :3].any()  # what a padded position that is counted would show


def test_keys_outside_a_sliding_window_have_nothing():
    model, inputs, token = made("mistral")
    window = model.config.sliding_window
    assert window < N
    found = estimate(keep(model, inputs), token, "gradient", layers=[0])
    outside = torch.ones(N, N, dtype=torch.bool).tril(-window)
    assert not found.maps[0][:, outside].any()
    assert found.maps[0][:, ~outside].any()


@pytest.mark.parametrize("rule", backward.RULES)
def test_a_mixture_of_experts_is_followed(rule):
    model = tiny_model("qwen3_vl_moe", dtype=torch.float64).eval()
    model.set_experts_implementation("eager")  # the grouped kernel has no float64
    inputs = inputs_of() | {"mm_token_type_ids": torch.zeros(1, N, dtype=torch.long)}
    pairs = [(0, 1, N - 1, 3), (1, 0, 5, 2)]
    if rule == "frozen":
        found = estimate(keep(model, inputs), 7, rule)
        assert found.every.isfinite().all()
        assert found.every.any()
        return
    forward = keep(model, inputs)
    for pair, value in by_hand(model, inputs, 7, pairs).items():
        assert single(forward, 7, rule, pair) == pytest.approx((value, value), rel=1e-5, abs=1e-9)


def plain(weights, along):
    """p / (1 - p) (o - v) . g, whatever the weight."""
    return weights / (1 - weights).clamp_min(0.25) * ((weights * along).sum(-1, keepdim=True) - along)


def without_renormalisation(monkeypatch):
    """The factors of sums are the weights."""
    of = Factored.of.__func__

    def broken(cls, *args):
        found = of(cls, *args)
        return replace(found, factors=found.factors / (1 + found.factors))

    monkeypatch.setattr(Factored, "of", classmethod(broken))


def dominant_by_the_plain_form(monkeypatch):
    along = Factored.along

    def broken(self, gradient):
        found = along(self, gradient)
        values = self.values.repeat_interleave(len(gradient) // len(self.values), dim=0)
        own = (values.gather(1, self.dominant.unsqueeze(-1).expand_as(gradient)) * gradient).sum(dim=-1)
        return replace(found, at_dominant=self.share / (1 - self.share).clamp_min(0.25) * (found.own - own))

    monkeypatch.setattr(Factored, "along", broken)


def in_maps(formula):
    return lambda monkeypatch: monkeypatch.setattr(backward, "hiding_effects", formula)


BROKEN = {
    "no renormalisation": (
        in_maps(lambda weights, along: weights * ((weights * along).sum(-1, keepdim=True) - along)),
        "map",
    ),
    "the dominant key by the plain form": (in_maps(plain), "map"),
    "no renormalisation in sums": (without_renormalisation, "sums"),
    "the dominant key by the plain form in sums": (dominant_by_the_plain_form, "sums"),
}


def test_the_oracle_rejects_groups_of_values_in_the_wrong_order(monkeypatch):
    model, inputs, token = made("qwen3")
    pairs = [(0, 0, N - 1, 3), (0, 3, N - 1, 3), (1, 2, 5, 2)]
    expected = by_hand(model, inputs, token, pairs)
    of = backward._Attention.of.__func__

    def turned(cls, *args):
        found = of(cls, *args)
        found.values = found.values.flip(0)
        return found

    monkeypatch.setattr(backward._Attention, "of", classmethod(turned))
    forward = keep(model, inputs)
    apart = [abs(single(forward, token, "gradient", pair)[0] - value) for pair, value in expected.items()]
    assert max(apart) > 1e-3 * max(map(abs, expected.values()))


def test_the_oracle_rejects_a_gradient_that_is_rounded_to_bfloat16(monkeypatch):
    model, inputs, token = made("qwen3")
    pairs = [(0, 0, N - 1, 3), (1, 2, N - 1, 2)]
    expected = by_hand(model, inputs, token, pairs)
    through = backward._through_layer
    monkeypatch.setattr(
        backward,
        "_through_layer",
        lambda forward, index, gradients, *rest: through(
            forward, index, {rule: one.bfloat16().double() for rule, one in gradients.items()}, *rest
        ),
    )
    forward = keep(model, inputs)
    apart = [abs(single(forward, token, "gradient", pair)[0] / value - 1) for pair, value in expected.items()]
    assert max(apart) > 1e-4


@pytest.mark.parametrize("broken", BROKEN)
def test_the_oracle_rejects_a_broken_formula(broken, monkeypatch):
    model, inputs, token = made("qwen3")
    pairs = [(0, 0, 0, 0), (0, 1, N - 1, 3), (0, 1, 1, 0), (0, 1, 1, 1), (1, 2, 1, 0), (1, 2, 1, 1)]
    expected = by_hand(model, inputs, token, pairs)
    break_it, how = BROKEN[broken]
    break_it(monkeypatch)
    forward, way = keep(model, inputs), ("sums", "map").index(how)
    apart = [abs(single(forward, token, "gradient", pair)[way] - value) for pair, value in expected.items()]
    assert max(apart) > 1e-4 * max(map(abs, expected.values()))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_sums_of_effects_are_those_of_each_by_itself(dtype, rtol):
    """Keys that have all of the weight, or most, or none; queries that see one key, or nothing; values that are much alike."""
    torch.manual_seed(0)
    n_heads, n_groups, n, dim = 4, 2, 12, 6
    logits = 3 * torch.randn(n_heads, n, n, dtype=torch.float64)
    logits[:, 7, 2] += 40
    visible = torch.ones(n, n, dtype=torch.bool).tril()
    visible[5] = False
    weights = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1).nan_to_num(0.0).to(dtype)
    values = (torch.randn(n_groups, n, dim, dtype=torch.float64) + 5).to(dtype)
    gradient = torch.randn(n_heads, n, dim, dtype=torch.float64).to(dtype)
    along = torch.einsum("hnd,hid->hin", values.repeat_interleave(2, dim=0), gradient)
    torch.testing.assert_close(values_along(gradient, values), along)
    each = hiding_effects(weights.double(), along.double())
    found = Factored.of(weights.clone(), values)
    by_key, source = found.along(gradient).by_key(), torch.arange(n) % 3 == 2
    close = {"rtol": rtol, "atol": rtol * float(each.abs().max())}
    torch.testing.assert_close(by_key.double(), each.sum(dim=1), **close)
    by_query = found.along(gradient).by_query(found.of_keys(source))
    torch.testing.assert_close(by_query.double(), each[..., source].sum(dim=-1), **close)
    assert not by_query[:, 5].any()


def test_effects_of_a_key_with_nearly_all_of_the_weight_keep_their_digits():
    weights = torch.tensor([1 - 1e-9, 1e-9], dtype=torch.float64).float()
    along = torch.tensor([2.0, -3.0])
    assert hiding_effects(weights, along)[0] == pytest.approx(-5.0, rel=1e-5)
    assert hiding_effects(torch.tensor([1.0]), torch.tensor([2.0]))[0] == pytest.approx(-2.0)


def test_gradients_that_are_not_finite_give_no_estimates(monkeypatch):
    model, inputs, token = made("qwen3")
    kept = keep(model, inputs)
    through = backward._through_layer

    def spoiled(kept, index, gradients, *rest):
        return through(kept, index, {rule: one * float("nan") for rule, one in gradients.items()}, *rest)

    monkeypatch.setattr(backward, "_through_layer", spoiled)
    with pytest.raises(ExactnessError, match="gradients are not finite"):
        estimate(kept, token)


def test_the_model_is_as_it_was():
    model, inputs, token = made("qwen3")
    next(model.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    expected = target_with(model, inputs, token)
    forward = keep(model, inputs)
    found = estimate(forward, token)
    assert found.values == (pytest.approx(expected, abs=1e-9),)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UsageError, match="a rule is one of frozen, gradient"):
        estimate(forward, token, "attnlrp")
    two = {name: value.repeat(2, 1) for name, value in inputs.items()}
    with pytest.raises(UsageError, match="one sequence at a time"):
        keep(model, two)
