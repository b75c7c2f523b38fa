"""Effects and estimates of families that no table knows: against the whole model run in float64 with attention edges cut, once
for each, and against gradients through the whole model."""

import family_oracle
import numpy as np
import pytest
import torch
from family_models import NotHere, family_inputs, family_model
from marks import slow_but

from mask_impact.engine.backward import estimate_last, estimates
from mask_impact.engine.effects import measure_effects
from mask_impact.engine.kept import keep
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import find_layers
from mask_impact.engine.taps import tapped
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group, windows

FAMILIES = (
    "gemma", "gemma2", "olmo", "olmo3", "glm", "glm4", "glm4_moe", "smollm3", "seed_oss", "ernie4_5", "helium", "ministral",
    "granite", "granitemoe", "exaone4", "cohere", "cohere2", "gpt2", "gpt_neox", "phi", "opt", "starcoder2", "stablelm",
    "nemotron", "arcee", "apertus", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3",
    "minicpm3",
)  # fmt: skip
USUAL = ("gpt2", "gemma2", "gpt_oss", "deepseek_v3", "cohere", "mixtral", "granite")
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


@pytest.mark.parametrize(("width", "queries"), [(1, "last"), (2, "all"), ("all", "all")])
@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
def test_effects_are_those_of_the_whole_model_with_edges_cut(name, width, queries):
    """Hidden in one layer from the last query, in windows and in all layers from every query."""
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


@pytest.mark.parametrize("queries", ["last", "all"])
@pytest.mark.parametrize("name", slow_but(USUAL, FAMILIES))
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

    with torch.enable_grad(), tapped(find_layers(model), attend):
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
