"""Effects and estimates of families of all kinds: against the whole model run in float64 with attention edges cut, once
for each, and against gradients through the whole model."""

from contextlib import ExitStack

import family_oracle
import numpy as np
import pytest
import torch
from broken_replay import BROKEN, without_scale
from family_models import NotHere, build, family_inputs, family_model
from marks import pairs_of, slow_but
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from mask_impact.engine import backward, effects
from mask_impact.engine.backward import estimate_last, estimates
from mask_impact.engine.effects import measure_effects
from mask_impact.engine.kept import keep, keeper_of, keeping
from mask_impact.engine.packing import OfNothing
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.taps import tapped
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group, windows
from mask_impact.errors import ExactnessError, UnsupportedArchitecture

FAMILIES = (
    "gemma", "gemma2", "olmo", "olmo3", "glm", "glm4", "glm4_moe", "smollm3", "seed_oss", "ernie4_5", "helium", "ministral",
    "granite", "granitemoe", "exaone4", "cohere", "cohere2", "gpt2", "gpt_neox", "phi", "opt", "starcoder2", "stablelm",
    "nemotron", "arcee", "apertus", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3",
    "minicpm3",
)  # fmt: skip
USUAL = ("gpt2", "gemma2", "gpt_oss", "deepseek_v3", "cohere", "mixtral", "granite")
FEW = ("gpt2", "gemma2", "gpt_oss", "deepseek_v3")
WAYS = (
    (1, "last"),
    (2, "all"),
    ("all", "all"),
)  # (width, queries); the first is the one of every family's decode steps
N = 9
EVERY = slice(None)


def tiny_family(name, dtype=torch.float64):
    """A tiny model with the attention that knows softcaps, and inputs for it."""
    try:
        model = family_model(name, dtype=dtype)
    except NotHere as error:
        pytest.skip(str(error))
    model.set_attn_implementation("eager")
    return model, family_inputs(model)


def brute_force(model, inputs, produced, token, queries, width, n_layers):
    """float64 [W, N], the change of the token's log-probability where a position is hidden in a window of layers."""
    oracle = family_oracle.Oracle(model)
    before = torch.log_softmax(oracle.logits(inputs, produced), dim=-1)[token]
    n = inputs["input_ids"].shape[1] + len(produced)
    rows = []
    for first, last in zip(*(part.tolist() for part in windows(n_layers, width)), strict=True):
        hide = [{layer: [(queries, one)] for layer in range(first, last + 1)} for one in range(n)]
        logits = (oracle.logits(inputs, produced, one) for one in hide)
        rows.append([float(torch.log_softmax(one, dim=-1)[token] - before) for one in logits])
    return np.array(rows)


def replayed(kept, width, queries):
    """The same by replay: float64 [W, N]."""
    n = kept.n_positions
    variants = each_window_and_group([(one,) for one in range(n)], n, len(kept.states), width, queries)
    token = int(kept.logits[-1].argmax())
    found = measure_targets(kept, variants, [Target(n - 1, token)], kept.logits[-1:])
    return found.logprob_change.reshape(-1, n), token


@pytest.mark.parametrize(("name", "way"), pairs_of(FAMILIES, WAYS, FEW, (1, 2)))
def test_effects_are_those_of_the_whole_model_with_edges_cut(name, way):
    """Hidden in one layer from the last query, in windows and in all layers from every query."""
    width, queries = way
    model, inputs = tiny_family(name)
    with family_oracle.in_float64():
        kept = keep(model, inputs)
        found, token = replayed(kept, width, queries)
    n_layers = len(kept.states)
    expected = brute_force(model, inputs, (), token, EVERY if queries == "all" else -1, width, n_layers)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-9)


# --- while generate() runs ------------------------------------------------------------------------------------------------


def at_each_step(engine, model, inputs, n_steps, measure):
    """What `measure(logits)` gives when each forward pass is done, and the produced ids."""
    found = []
    with engine:
        handle = model.register_forward_hook(lambda module, args, output: found.append(measure(output.logits[0, -1])))
        try:
            ids = model.generate(**inputs, max_new_tokens=n_steps, min_new_tokens=n_steps, do_sample=False)
        finally:
            handle.remove()
    return found, ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("name", "queries"), pairs_of(FAMILIES, ("last", "all"), FEW, (0,)))
def test_effects_of_decode_steps_with_a_cache_are_those_of_the_whole_model(name, queries):
    """float32, beside the local maps; the last of three steps, behind a window that has dropped keys."""
    model, inputs = tiny_family(name, torch.float32)
    engine = RidingEngine(model, keep_states=queries)

    def measure(logits):
        n = engine.n_positions
        variants = each_window_and_group([(one,) for one in range(n)], n, len(engine.states), 1, queries)
        return measure_effects(engine, variants, logits)

    steps, ids = at_each_step(engine, model, inputs, 3, measure)
    assert [one.produced for one in steps] == ids
    assert len(engine.steps) == 3
    n = N + 2
    found = steps[-1].logprob_change.reshape(-1, n)
    assert max(steps[-1].floor) < 1e-4
    expected = brute_force(model, inputs, ids[:2], ids[2], EVERY if queries == "all" else -1, 1, len(found))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(FEW, FAMILIES))
def test_a_pass_of_generate_is_as_good_as_one_of_the_whole_sequence(name):
    """Kept while tokens were produced one by one; cut short, it is the pass of fewer of them."""
    model, inputs = tiny_family(name, torch.float32)
    engine = keeper_of(model)
    with keeping(engine) as kept:
        ids = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for n_more in (4, 1) if name in FEW else (4,):
        longer = {"input_ids": ids[:, : N + n_more], "attention_mask": torch.ones_like(ids[:, : N + n_more])}
        whole, parts = keep(model, longer, n_more + 1), kept[0].until(N + n_more)
        torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-4)
        targets = [Target(N - 1 + n_more, int(ids[0, N + n_more])), Target(N - 1, 4)]
        one, other = (estimates(some, targets) for some in (parts, whole))
        for rule in one:
            torch.testing.assert_close(one[rule].every, other[rule].every, rtol=2e-3, atol=1e-4)
        variants = each_window_and_group([(2,), (N - 2, 3)], N + n_more, len(parts.states), "all", "all")
        one, other = (measure_targets(some, variants, targets, some.logits[[-1, 0]]) for some in (parts, whole))
        np.testing.assert_allclose(one.logprob_change, other.logprob_change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "gpt_oss"])
def test_bfloat16_keeps_the_digits_of_small_effects(name):
    """Against the same weights in float64: what is left is rounding of the model's own states, most of all within experts."""
    model, inputs = tiny_family(name, torch.bfloat16)
    kept = keep(model, inputs)
    found, token = replayed(kept, 1, "last")
    expected = brute_force(model, inputs, (), token, -1, 1, len(kept.states))
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    large = np.abs(expected) > 1e-3 * np.abs(expected).max()
    assert np.median(np.abs(found[large] / expected[large] - 1)) < (0.2 if name == "gpt_oss" else 0.05)


# --- estimates ------------------------------------------------------------------------------------------------------------


def weights_of(module, query, key, mask, options):
    """float64 [H, n, N], and the keys' visibility; by another way than the program's."""
    group = query.shape[1] // key.shape[1]
    logits = query[0].double() @ key[0].double().repeat_interleave(group, dim=0).transpose(1, 2)
    logits = logits * (options.get("scaling") or query.shape[-1] ** -0.5)
    if options.get("softcap"):
        logits = torch.tanh(logits / options["softcap"]) * options["softcap"]
    visible = torch.ones(logits.shape[-2:], dtype=torch.bool).tril() if mask is None else mask[0, 0] > -1e30
    return logits, visible


def removed(logits, visible, sinks, values):
    """[N, H, n, E], what each key's removal does to the heads' outputs."""

    def attended(seen):
        there = logits.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            there = torch.cat([there, sinks.double()[:, None, None].expand(*there.shape[:-1], 1)], dim=-1)
        return torch.softmax(there, -1).nan_to_num(0.0)[..., : visible.shape[1]] @ values

    before, changes = attended(visible), []
    for key in range(visible.shape[1]):
        seen = visible.clone()
        seen[:, key] = False
        changes.append(attended(seen) - before)
    return torch.stack(changes)


def by_autograd(model, inputs, token):
    """[L, H, n, N], gradients of the token's log-odds at each head's output through the whole model, along each key's removal."""
    outputs, changes = [], []

    def attend(own, module, query, key, value, mask, *args, **options):
        with torch.no_grad():
            logits, visible = weights_of(module, query, key, mask, options)
            values = value[0].double().repeat_interleave(query.shape[1] // key.shape[1], dim=0)
            changes.append(removed(logits, visible, options.get("s_aux"), values))
        output = own(query, key, value, mask, *args, **options)[0]
        outputs.append(output if output.requires_grad else output.requires_grad_(True))
        return outputs[-1], None

    with torch.enable_grad(), tapped(decoder_of(model), attend):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        others = logits.index_fill(0, torch.tensor([token]), -torch.inf)
        gradients = torch.autograd.grad(logits[token] - torch.logsumexp(others, 0), outputs)
    return torch.stack(
        [
            torch.einsum("khne,nhe->hnk", change, gradient[0])
            for change, gradient in zip(changes, gradients, strict=True)
        ]
    )


@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_gradient_estimates_are_gradients_through_the_whole_model_along_what_hiding_does(name):
    model, inputs = tiny_family(name)
    with family_oracle.in_float64():
        kept = keep(model, inputs)
        target = Target(N - 1, int(kept.logits[-1].topk(3).indices[1]))
        n_layers = len(kept.states)
        found = estimates(kept, [target], ("gradient",), layers=range(n_layers))["gradient"]
        alone = estimate_last(kept, target)
        expected = by_autograd(model, inputs, target.token)
    assert expected.abs().amax((1, 2, 3)).min() > 1e-4
    maps = torch.stack([found.maps[layer] for layer in range(n_layers)])
    torch.testing.assert_close(maps.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.every.double(), expected.sum(2), rtol=1e-5, atol=1e-7)
    for last in (found.last, alone):
        torch.testing.assert_close(last.double(), expected[:, :, -1], rtol=1e-5, atol=1e-7)


# --- frozen: the same model with constants in the place of what the rule holds ----------------------------------------------


class Constants:
    """The model with norms' scales, activations' ratios, softmax weights and the cap's ratio as they are with nothing changed:
    what is left is linear in what a head gives. Knows modules by their names, unlike the program."""

    def __init__(self, model, inputs):
        self.model, self.inputs, self.decoder = model, inputs, decoder_of(model)
        named = [(type(module).__name__, module) for module in model.modules()]
        self.centred = {module for name, module in named if name.endswith("LayerNorm")}
        scaled = {module for name, module in named if name.endswith(("RMSNorm", "Activation", "GELUTanh"))}
        self.modules = self.centred | scaled | {model.get_output_embeddings()}
        self.factors, self.weights, self.changes = {}, [], []
        self.run(self.note, self.look)

    def run(self, hook, attend):
        with ExitStack() as stack, torch.no_grad():
            for module in self.modules:
                stack.callback(module.register_forward_hook(hook).remove)
            stack.enter_context(tapped(self.decoder, attend))
            return self.model(**self.inputs, use_cache=False).logits[0, -1]

    def parts(self, module, x):
        """What is multiplied by a constant, and what is added behind it."""
        bias = getattr(module, "bias", None) if module in self.centred else None
        return x - x.mean(-1, keepdim=True) if module in self.centred else x, 0.0 if bias is None else bias

    def note(self, module, args, output):
        if module is not self.model.get_output_embeddings():
            x, bias = self.parts(module, args[0])
            self.factors.setdefault(module, []).append((output - bias) / x)

    def put(self, module, args, output):
        if module is self.model.get_output_embeddings():
            self.mapped = output[0, -1]
            return output
        x, bias = self.parts(module, args[0])
        self.factors[module].append(factor := self.factors[module].pop(0))
        return x * factor + bias

    def look(self, own, module, query, key, value, mask, *args, **options):
        logits, visible = weights_of(module, query, key, mask, options)
        values = value[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        self.weights.append(torch.softmax(logits.masked_fill(~visible, -torch.inf), -1))
        self.changes.append(removed(logits, visible, None, values))
        return own(query, key, value, mask, *args, **options)

    def odds(self, token, change):
        """The token's log-odds, where a layer's head of a query gives something more; change: (layer, head, query, [E])."""
        layer, head, row, more = change
        place = iter(range(len(self.weights)))

        def attend(own, module, query, key, value, mask, *args, **options):
            here = next(place)
            output = self.weights[here] @ value[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
            if here == layer:
                output[head, row] += more
            return output.transpose(0, 1).unsqueeze(0).contiguous(), None

        logits = self.run(self.put, attend)
        if not hasattr(self, "last"):  # what stands behind the head: a cap, or a factor
            self.last = logits / self.mapped
        logits = self.mapped * self.last
        others = logits.index_fill(0, torch.tensor([token]), -torch.inf)
        return float(logits[token] - torch.logsumexp(others, 0))


PAIRS = [(0, 1, N - 1, 3), (1, 2, N - 1, N - 1), (1, 0, 5, 2), (2, 3, N - 1, 4), (0, 0, 0, 0)]


@pytest.mark.parametrize("name", ["gpt2", "cohere", "gemma2"])
def test_frozen_estimates_are_those_of_the_model_with_its_constants_put_in(name):
    """Layer norms of torch and written by hand, a gelu written by hand, parallel branches, softcaps, a factor behind the head."""
    model, inputs = tiny_family(name)
    with family_oracle.in_float64():
        kept = keep(model, inputs)
        token = int(kept.logits[-1].topk(3).indices[1])
        constants = Constants(model, inputs)
        nothing = (0, 0, 0, torch.zeros(()))
        same = torch.log_softmax(kept.logits[-1], -1)[token]
        assert constants.odds(token, nothing) == pytest.approx(float(same - torch.log1p(-same.exp())), abs=1e-9)
        found = estimates(kept, [Target(N - 1, token)], ("frozen", "gradient"), layers=range(3))
        for layer, head, row, key in PAIRS:
            along = 1e-5 * constants.changes[layer][key, head, row]
            up, down = (constants.odds(token, (layer, head, row, sign * along)) for sign in (1, -1))
            frozen, plain = (float(found[rule].maps[layer][head, row, key]) for rule in ("frozen", "gradient"))
            assert frozen == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)
            assert frozen != pytest.approx(plain, rel=1e-2) or not constants.changes[layer][key, head, row].any()


# --- what must not go unnoticed ---------------------------------------------------------------------------------------------


NAMED = [f"{family}-{broken.__name__}" for family, broken in BROKEN]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=NAMED)
def test_what_is_left_out_is_refused_before_numbers_are_given(name, broken, monkeypatch):
    model, inputs = tiny_family(name, torch.float32)
    kept = keep(model, inputs)
    broken(monkeypatch, model)
    with pytest.raises(ExactnessError, match=r"^(model\.)?(layers\.\d \(|the replayed model differs)"):
        replayed(kept, "all", "all")


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=NAMED)
def test_the_oracle_would_tell_what_is_left_out(name, broken, monkeypatch):
    """Where the program's own checks are off."""
    model, inputs = tiny_family(name)
    kept = keep(model, inputs)
    broken(monkeypatch, model)
    monkeypatch.setattr(effects, "prove", lambda kept: None)
    monkeypatch.setattr(effects, "check_replayed", lambda *given: None)
    found, token = replayed(kept, "all", "all")
    expected = brute_force(model, inputs, (), token, EVERY, "all", len(kept.states))
    assert np.abs(found - expected).max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ["estimates", "answers"])
def test_logits_that_are_not_the_model_s_are_refused_where_nothing_is_replayed(asked, dtype, monkeypatch):
    """Neither estimates nor what is asked with the model's rounding runs what hides nothing: there its last states are held
    against its logits."""
    model, inputs = tiny_family("granite", dtype)
    kept = keep(model, inputs)
    target = Target(N - 1, int(kept.logits[-1].argmax()))
    variants = each_window_and_group([(2,)], N, len(kept.states), "all", "all")

    def ask():
        if asked == "estimates":
            return estimates(kept, [target])
        return measure_targets(kept, variants, [target], kept.logits[-1:], directly=True)

    ask()
    without_scale(monkeypatch, model)
    with pytest.raises(
        ExactnessError, match=r"^the model's logits differ by \d\.\de[+-]\d\d .* from those that are formed of its"
    ):
        ask()


def test_the_oracle_would_tell_an_estimate_without_its_sink(monkeypatch):
    """With half of the weight on one key, what is left without it has the sink in it."""
    model, inputs = tiny_family("gpt_oss")
    with family_oracle.in_float64():
        kept = keep(model, inputs)
        target = Target(N - 1, int(kept.logits[-1].argmax()))
        expected = by_autograd(model, inputs, target.token).sum(2)
        monkeypatch.setattr(backward, "attention_options", lambda *given: (None, None))
        found = estimates(kept, [target], ("gradient",))["gradient"].every
    assert not torch.allclose(found.double(), expected, rtol=0.05)


def test_a_decoder_that_can_t_run_again_is_one_line():
    """A layer is given something that has nothing to do with positions; local maps are there."""
    model, inputs = tiny_family("gemma3_text", torch.float32)
    inputs["other"] = torch.zeros(3, 5)
    said = r"^layers\.0 is given `other`, of shape \(3, 5\), without a row for each position: no effects, estimates or knockouts"
    with pytest.raises(UnsupportedArchitecture, match=said), RidingEngine(model, keep_states="all"), torch.no_grad():
        model(**inputs, use_cache=False)
    engine = RidingEngine(model, keep_states="all", must_keep=False)
    with keeping(engine) as kept, torch.no_grad():
        model(**inputs, use_cache=False)
    assert kept == [None]
    assert len(engine.steps) == 1


def test_experts_beside_the_attention_take_whole_states():
    """In a parallel block no difference of the attention goes through them: that they choose shows when a layer runs again."""
    if "cohere2_moe" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no cohere2_moe")
    tiny = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    config = CONFIG_MAPPING["cohere2_moe"](
        **tiny, sliding_window=5, pad_token_id=None, bos_token_id=None, eos_token_id=None
    )
    model = build(config, MODEL_FOR_CAUSAL_LM_MAPPING, dtype=torch.float64)
    model.set_attn_implementation("eager")
    inputs = family_inputs(model)
    with family_oracle.in_float64():
        kept = keep(model, inputs)
        assert not any(kept.decoder.opaque(index) for index in range(3))
        found, token = replayed(kept, "all", "all")
    assert any(kept.decoder.opaque(index) for index in range(3))
    expected = brute_force(model, inputs, (), token, EVERY, "all", 3)
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-9)


def test_what_a_layer_writes_into_changes_no_pair():
    """OLMo clips what a linear map gives, in place."""
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with OfNothing() as maps:
        torch.nn.functional.linear(x, weight).clamp_(-0.1, 0.1)
        x.add_(1)
        torch.nn.functional.linear(x, weight)
    (first, made), (second, _) = maps.pairs
    torch.testing.assert_close(made, first @ weight.T)
    torch.testing.assert_close(second, first + 1)


@pytest.mark.parametrize("broken", ["turned", "hidden"])
def test_what_stands_behind_the_last_layer_and_is_no_module_is_refused(broken, monkeypatch):
    """Only factors may stand between modules, and between the head and the logits."""
    model, inputs = tiny_family("gpt2", torch.float32)
    if broken == "turned":
        own = type(model).forward

        def forward(self, *args, **kwargs):
            output = own(self, *args, **kwargs)
            output.logits = output.logits.flip(-1)
            return output

        monkeypatch.setattr(type(model), "forward", forward)
    else:
        monkeypatch.setattr(type(model.lm_head), "__call__", lambda self, x: torch.nn.functional.linear(x, self.weight))
    with pytest.raises(
        UnsupportedArchitecture, match=r"^what GPT2LMHeadModel makes of its last layer's output can't be told"
    ):
        keep(model, inputs)
