"""The closed form and the distances against the obvious way: mask the key, take the softmax again, subtract, in float64."""

import mpmath
import numpy as np
import pytest
import torch

from mask_impact.engine.attention import cosine_distance, lengths, masking_differences, query_attention
from mask_impact.engine.riding.norms_and_gates import (
    ACTIVATIONS,
    TAYLOR_RADIUS,
    gated_difference,
    rms_difference,
)

N_HEADS, N_GROUPS, N_KEYS, HEAD_DIM = 6, 2, 11, 8


def random_attention(seed=0, n_keys=N_KEYS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(N_HEADS, HEAD_DIM, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(N_GROUPS, n_keys, HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    return query.to(dtype), keys.to(dtype), values.to(dtype), torch.ones(n_keys, dtype=torch.bool)


def plain_attention(query, keys, values, visible, scaling=1.0):
    """[H, D] in float64; zero where nothing is visible."""
    heads = torch.arange(N_HEADS) // (N_HEADS // N_GROUPS)
    logits = scaling * torch.einsum("hd,hnd->hn", query.double(), keys.double()[heads])
    weights = torch.softmax(logits.masked_fill(~visible, float("-inf")), dim=-1).nan_to_num(0.0)
    return torch.einsum("hn,hnd->hd", weights, values.double()[heads])


def expected_differences(query, keys, values, visible, scaling=1.0):
    whole = plain_attention(query, keys, values, visible, scaling)
    rows = []
    for key in range(keys.shape[1]):
        masked = visible.clone()
        masked[key] = False
        rows.append(plain_attention(query, keys, values, masked, scaling) - whole)
    return torch.stack(rows)


def assert_rows_close(actual, expected, rtol):
    """Relative to each row's own size: small differences count as much as large ones."""
    error = (actual.double() - expected).norm(dim=-1)
    assert (error <= rtol * expected.norm(dim=-1)).all(), (error / expected.norm(dim=-1)).max()


def test_every_key_of_every_head_agrees_with_masking_it():
    query, keys, values, visible = random_attention()
    actual = masking_differences(query_attention(query, keys, values, 1.0, visible), 0, N_KEYS)
    assert_rows_close(actual, expected_differences(query, keys, values, visible), 1e-5)


def test_chunks_of_keys_are_rows_of_the_whole():
    attention = query_attention(*random_attention()[:3], 3.0, torch.ones(N_KEYS, dtype=torch.bool))
    whole = masking_differences(attention, 0, N_KEYS)
    parts = [masking_differences(attention, start, min(start + 4, N_KEYS)) for start in range(0, N_KEYS, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("weight", [0.4999, 0.5, 0.5001, 0.9, 0.999, 0.999999, 1 - 1e-9])
def test_a_key_of_any_weight_is_exact(weight):
    """From one half to a sink that takes everything but 1e-9: the others' differences are tiny and must keep their digits."""
    _, keys, values, visible = random_attention(1)
    # Logits by construction: key 3 gets `weight`, the others share the rest unevenly.
    query = torch.zeros(N_HEADS, HEAD_DIM)
    query[:, 0] = 1.0
    shares = torch.linspace(1, 2, N_KEYS, dtype=torch.float64)
    shares[3] = 0
    shares = shares / shares.sum() * (1 - weight)
    shares[3] = weight
    keys[:, :, 0] = shares.log().float()
    attention = query_attention(query, keys, values, 1.0, visible)
    torch.testing.assert_close(attention.weights[:, 3], torch.full((N_HEADS,), weight), rtol=1e-6, atol=0)
    actual = masking_differences(attention, 0, N_KEYS)
    assert_rows_close(actual, expected_differences(query, keys, values, visible), 1e-5)


def test_two_keys_of_exactly_one_half():
    """p / (1 - p) is 1 for both, and neither is the one that dominates."""
    query, keys, values, visible = random_attention(2, n_keys=2)
    keys[:, 1] = keys[:, 0]
    attention = query_attention(query, keys, values, 1.0, visible)
    assert (attention.weights == 0.5).all()
    assert_rows_close(masking_differences(attention, 0, 2), expected_differences(query, keys, values, visible), 1e-6)


def test_a_logit_gap_beyond_float32s_exponential_keeps_the_dominant_keys_difference():
    """exp(-200) is zero in float32: without the sink the others' weights must come from the logits again."""
    query, keys, values, visible = random_attention(3)
    query = torch.ones_like(query)
    keys[:, 4] += 200 / HEAD_DIM
    attention = query_attention(query, keys, values, 1.0, visible)
    assert (attention.weights[:, 4] == 1.0).all()
    expected = expected_differences(query, keys, values, visible)
    actual = masking_differences(attention, 0, N_KEYS)
    assert_rows_close(actual[4], expected[4], 1e-5)
    assert actual.isfinite().all()


def test_the_only_visible_key_leaves_nothing():
    query, keys, values, _ = random_attention()
    visible = torch.zeros(N_KEYS, dtype=torch.bool)
    visible[5] = True
    attention = query_attention(query, keys, values, 1.0, visible)
    actual = masking_differences(attention, 0, N_KEYS)
    torch.testing.assert_close(actual[5], -attention.output, rtol=0, atol=0)
    assert (actual[[*range(5), *range(6, N_KEYS)]] == 0).all()


def attention_of_a_kind(query, keys, values, visible, softcap, sinks):
    """[H, E] in float64, of one head after the other; zero where nothing is visible."""
    rows = []
    for head in range(N_HEADS):
        group = head // (N_HEADS // N_GROUPS)
        logits = keys[group].double() @ query[head].double()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = torch.where(visible, logits, -torch.inf).exp()
        total = weights.sum() + (0.0 if sinks is None else sinks[head].double().exp())
        rows.append((weights @ values[group].double()) / total.clamp_min(1e-300))
    return torch.stack(rows)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sink", [None, 0.0, 6.0, -30.0])
@pytest.mark.parametrize("value_dim", [HEAD_DIM, 5])
def test_capped_logits_sinks_and_values_of_another_width_agree_with_masking(softcap, sink, value_dim):
    """Softcap before the mask; a sink's part of the weight goes to no value; a dominant key beside a sink; a single key."""
    query, keys, values, visible = random_attention(4)
    values, visible[2] = values[..., :value_dim], False
    keys[:, 6] += 0.8 * query[::3]  # a key with more than half of the weight in some heads
    sinks = None if sink is None else torch.full((N_HEADS,), sink) + torch.linspace(-1, 1, N_HEADS)
    attention = query_attention(query, keys, values, 1.0, visible, softcap=softcap, sinks=sinks)
    assert softcap is not None or (sink is not None and sink > 0) or bool((attention.weights > 0.5).any())
    whole = attention_of_a_kind(query, keys, values, visible, softcap, sinks)
    torch.testing.assert_close(attention.output.double(), whole, rtol=1e-5, atol=1e-6)
    actual = masking_differences(attention, 0, N_KEYS)
    assert actual.shape == (N_KEYS, N_HEADS, value_dim)
    hidden = [visible & (torch.arange(N_KEYS) != key) for key in range(N_KEYS)]
    expected = torch.stack([attention_of_a_kind(query, keys, values, one, softcap, sinks) - whole for one in hidden])
    assert_rows_close(actual[visible], expected[visible], 2e-5)
    assert (actual[2] == 0).all()
    alone = query_attention(query, keys[:, :1], values[:, :1], 1.0, None, softcap=softcap, sinks=sinks)
    wanted = attention_of_a_kind(query, keys[:, :1], values[:, :1], visible[:1], softcap, sinks)
    assert_rows_close(masking_differences(alone, 0, 1)[0], -wanted, 1e-6)


def test_invisible_keys_have_a_difference_of_exactly_zero():
    query, keys, values, visible = random_attention()
    visible[:4] = False
    attention = query_attention(query, keys, values, 1.0, visible)
    actual = masking_differences(attention, 0, N_KEYS)
    assert (actual[:4] == 0).all()
    assert_rows_close(actual[4:], expected_differences(query, keys, values, visible)[4:], 1e-5)


def test_a_value_close_to_the_output_keeps_its_digits():
    """Equal values but for a millionth: o - v is a millionth too, and float32 alone would keep one digit of it."""
    query, keys, values, visible = random_attention(4)
    values = values[:, :1] + 1e-6 * values
    expected = expected_differences(query, keys, values, visible)
    assert_rows_close(
        masking_differences(query_attention(query, keys, values, 1.0, visible), 0, N_KEYS), expected, 1e-4
    )


# --- distances ----------------------------------------------------------------------------------------------------------


def distances(baseline, differences):
    found = lengths(baseline, differences)
    return found.l2, cosine_distance(found)


def mp_distances(y, d):
    with mpmath.workdps(60):
        y, d = ([mpmath.mpf(float(x)) for x in vector] for vector in (y, d))
        masked = [a + b for a, b in zip(y, d, strict=True)]
        norm, masked_norm = (mpmath.sqrt(mpmath.fsum(x * x for x in vector)) for vector in (y, masked))
        l2 = mpmath.sqrt(mpmath.fsum(x * x for x in d))
        if not norm or not masked_norm:
            return float(l2), 0.0 if norm == masked_norm else 1.0
        return float(l2), float(1 - mpmath.fsum(a * b for a, b in zip(y, masked, strict=True)) / norm / masked_norm)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_distances_keep_their_digits_at_every_size(size):
    generator = torch.Generator().manual_seed(5)
    baseline = torch.randn(64, generator=generator)
    differences = size * torch.randn(20, 64, generator=generator)
    l2, cosine = distances(baseline, differences)
    for row in range(20):
        expected_l2, expected_cosine = mp_distances(baseline, differences[row])
        assert float(l2[row]) == pytest.approx(expected_l2, rel=1e-6)
        assert float(cosine[row]) == pytest.approx(expected_cosine, rel=1e-5)


@pytest.mark.parametrize("scale", [-3.0, -1.5, -1.0, -0.999, -0.5, -1e-5, 0.0, 1e-5, 2.0])
def test_parallel_differences_turn_nothing_or_everything(scale):
    """Shortening or stretching leaves the angle, reversing turns it round; zero vectors as defined."""
    baseline = torch.tensor([3.0, 4.0, 0.0, 12.0])
    l2, cosine = distances(baseline, scale * baseline[None])
    assert float(l2[0]) == pytest.approx(abs(scale) * 13.0, rel=1e-6)
    expected = 1.0 if scale == -1.0 else 2.0 if scale < -1.0 else 0.0
    assert float(cosine[0]) == pytest.approx(expected, abs=1e-8)  # at -0.999 y + d is itself mostly rounding


def test_zero_vectors_follow_the_definition_and_nothing_is_nan():
    zero, some = torch.zeros(4), torch.tensor([1.0, 0.0, 2.0, 0.0])
    _, cosine = distances(zero, torch.stack([zero, some]))
    assert cosine.tolist() == [0.0, 1.0]
    _, cosine = distances(some, torch.stack([zero, -some]))
    assert cosine.tolist() == [0.0, 1.0]


def test_distances_of_heads_are_taken_head_by_head():
    generator = torch.Generator().manual_seed(6)
    baseline, differences = torch.randn(3, 8, generator=generator), torch.randn(5, 3, 8, generator=generator)
    l2, cosine = distances(baseline, differences)
    assert l2.shape == cosine.shape == (5, 3)
    one, other = distances(baseline[1], differences[:, 1])
    torch.testing.assert_close(l2[:, 1], one)
    torch.testing.assert_close(cosine[:, 1], other)


# --- norms and gates ------------------------------------------------------------------------------------------------------


EPS = 1e-6


def rms_norm(state, weight):
    """[..., hidden] in the state's dtype."""
    return state / (state.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e-2, 1.0, 100.0])
def test_the_difference_of_a_norm_keeps_its_digits(size, offset):
    hidden = 48
    weight = torch.linspace(0.5, 1.5, hidden) + offset
    generator = torch.Generator().manual_seed(7)
    state = torch.randn(hidden, generator=generator)
    rows = size * torch.randn(10, hidden, generator=generator)
    expected = rms_norm(state.double() + rows.double(), weight) - rms_norm(state.double(), weight)
    if size == 1e-9:  # float64 has too few digits left for the obvious way
        expected = rms_difference(state.double(), rows.double(), EPS, weight.double())
    assert_rows_close(rms_difference(state, rows, EPS, weight), expected, 2e-6)


def test_the_difference_of_a_norm_holds_where_the_state_is_taken_away():
    """x + d = 0 (or next to it) gives -norm(x), not what is left of two numbers that cancel."""
    weight = torch.linspace(0.5, 1.5, 48)
    state = torch.randn(48, generator=torch.Generator().manual_seed(8))
    rows = torch.stack([-state, -state * (1 - 1e-4), -state * 1.5, state * 0])
    expected = rms_norm(state.double() + rows.double(), weight) - rms_norm(state.double(), weight)
    actual = rms_difference(state, rows, EPS, weight)
    assert_rows_close(actual[:3], expected[:3], 1e-4)
    torch.testing.assert_close(actual[0], -rms_norm(state, weight), rtol=1e-6, atol=0)
    assert (actual[3] == 0).all()


@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("size", [1e-9, 1e-4, TAYLOR_RADIUS / 5, TAYLOR_RADIUS, 1.0, 30.0])
def test_the_difference_of_a_gate_keeps_its_digits(name, size):
    """Against the obvious way in high precision, on both sides of the radius of the Taylor series."""
    generator = torch.Generator().manual_seed(9)
    width, n_rows = 40, 6
    gate, up = (4 * torch.randn(width, generator=generator) for _ in range(2))
    gate[:4] = torch.tensor([-30.0, 30.0, 0.0, -1.278])
    gate_rows, up_rows = (size * torch.randn(n_rows, width, generator=generator) for _ in range(2))

    def act(x):
        if name == "silu":
            return x / (1 + mpmath.exp(-x))
        return x * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))) / 2

    with mpmath.workdps(50):
        g, u, dg, du = (t.double().numpy().astype(object) for t in (gate, up, gate_rows, up_rows))
        mpf = np.vectorize(mpmath.mpf, otypes=[object])
        g, u, dg, du = mpf(g), mpf(u), mpf(dg), mpf(du)
        act = np.vectorize(act, otypes=[object])
        expected = torch.tensor((act(g + dg) * (u + du) - act(g) * u).astype(float))
    actual = gated_difference(ACTIVATIONS[name], gate, up, gate_rows, up_rows, out=torch.empty(n_rows, width))
    assert_rows_close(actual, expected, 3e-6)


@pytest.mark.parametrize("size", [1e-3, 0.5])
def test_half_precision_rows_lose_no_more_than_their_own_rounding(size):
    generator = torch.Generator().manual_seed(10)
    gate, up = (torch.randn(512, generator=generator) for _ in range(2))
    gate_rows, up_rows = ((size * torch.randn(5, 512, generator=generator)).bfloat16() for _ in range(2))
    silu = ACTIVATIONS["silu"]
    actual = gated_difference(silu, gate, up, gate_rows, up_rows, out=torch.empty(5, 512))
    wide = [tensor.double() for tensor in (gate, up, gate_rows, up_rows)]
    expected = gated_difference(silu, *wide, out=torch.empty(5, 512, dtype=torch.float64))
    assert_rows_close(actual, expected, 1e-5)


def test_many_rows_are_worked_on_in_blocks_without_a_seam(monkeypatch):
    generator = torch.Generator().manual_seed(11)
    gate, up = (torch.randn(64, generator=generator) for _ in range(2))
    gate_rows, up_rows = (torch.randn(33, 64, generator=generator) for _ in range(2))
    silu = ACTIVATIONS["silu"]
    whole = gated_difference(silu, gate, up, gate_rows, up_rows, out=torch.empty(33, 64))
    monkeypatch.setattr("mask_impact.engine.riding.norms_and_gates.CPU_SERIAL_ELEMENTS", 7 * 64)
    parts = gated_difference(silu, gate, up, gate_rows, up_rows, out=torch.empty(33, 64))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)
