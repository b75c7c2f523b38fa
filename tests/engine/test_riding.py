"""The riding tensor: a rule for each operation, held against the operation itself in float64; and what has no rule is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from mask_impact.engine.riding import engine, tensor
from mask_impact.engine.riding.tensor import NoRule, Ride, Riding
from mask_impact.errors import ExactnessError

N_SEQUENCES, N_POSITIONS, WIDTH, N_VARIANTS = 2, 4, 6, 5
OWNER = torch.tensor([0, 0, 1, 1, 1])


def riding(dtype=torch.float32, size=0.5, seed=0, n_sequences=N_SEQUENCES):
    """A riding tensor [B, 4, 6] with five variants; with two sequences, two of the first and three of the second."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(n_sequences, N_POSITIONS, WIDTH, generator=generator, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    d = (size * torch.randn(N_VARIANTS, WIDTH, generator=generator, dtype=torch.float64)).to(wide)
    ride = Ride("a layer", torch.zeros_like(y, dtype=dtype), OWNER if n_sequences > 1 else None)
    ride.in_attention = False
    y = y.to(dtype)
    return Riding.make(y, y[:, -1].to(wide), d, 2, N_POSITIONS, ride)


def drawn(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS, GAIN = drawn(8, WIDTH), drawn(8, seed=8), drawn(WIDTH, seed=9)
PLAIN = drawn(N_SEQUENCES, N_POSITIONS, WIDTH, seed=10)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3.0))))


def rms(x):
    return GAIN.to(x.dtype) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def hand_made_layer_norm(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def in_place(x):
    gate = functional.silu(x)
    gate *= x * 2
    gate.add_(1.0)
    return gate


OTHER_WEIGHT = drawn(8, WIDTH, seed=11)


def linear_gated(activation):
    """As in a gated MLP: what is multiplied is formed as it enters the last map."""

    def operation(x):
        gate, up = (functional.linear(x, one.to(x.dtype)) for one in (WEIGHT, OTHER_WEIGHT))
        return functional.linear(activation(gate) * up, WEIGHT.t().to(x.dtype))

    return operation


def written_over(x):
    """What an activation was given is written over before its differences are formed."""
    x = x * 1
    gate, up = functional.silu(x), x + 0
    x.mul_(2)
    return gate * up


OPERATIONS = {
    "linear": lambda x: functional.linear(x, WEIGHT.to(x.dtype)),
    "linear with bias": lambda x: functional.linear(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype)),
    "Conv1D": lambda x: torch.addmm(BIAS.to(x.dtype), x.view(-1, x.size(-1)), WEIGHT.t().to(x.dtype)).view(
        *x.size()[:-1], 8
    ),
    "matmul": lambda x: x @ WEIGHT.t().to(x.dtype),
    "linear of parts": lambda x: functional.linear(x.view(*x.shape[:-1], 2, 3), WEIGHT[:, :3].to(x.dtype)),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "new gelu": new_gelu,
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.4142135623730951)),
    "quick gelu": quick_gelu,
    "relu": functional.relu,
    "relu squared": lambda x: torch.square(functional.relu(x)),
    "relu in place": lambda x: functional.relu(x * 1, inplace=True),
    "softcap": lambda x: torch.tanh(x / 1.5) * 1.5,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: functional.softplus(x, beta=2.0),
    "exp": torch.exp,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.4, max=0.3),
    "relu6": functional.relu6,
    "rms by hand": rms,
    "rms_norm": lambda x: functional.rms_norm(x, (WIDTH,), GAIN.to(x.dtype), 1e-6),
    "layer_norm": lambda x: functional.layer_norm(x, (WIDTH,), GAIN.to(x.dtype), GAIN.to(x.dtype), 1e-5),
    "layer norm by hand": hand_made_layer_norm,
    "norm of heads": lambda x: functional.rms_norm(x.view(*x.shape[:-1], 2, 3), (3,)).flatten(-2),
    "variance": lambda x: x / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-3),
    "sum": lambda x: x + PLAIN.to(x.dtype) - 0.5 * x,
    "sum from the right": lambda x: 1.0 - x + (3 + x),
    "product": lambda x: x * PLAIN.to(x.dtype) * x,
    "quotient": lambda x: (x + 9) / (x + 7) + 2 / (x + 8),
    "sum over parts": lambda x: x.view(*x.shape[:-1], 2, 3).sum(-2),
    "cube and root": lambda x: x**3 + (x.square() + 1) ** 0.5,
    "chunk": lambda x: (lambda one, other: one * functional.silu(other))(*x.chunk(2, dim=-1)),
    "split": lambda x: torch.split(x, [2, 4], dim=-1)[1],
    "every other": lambda x: x[..., ::2] * x[..., 1::2],
    "transposed parts": lambda x: x.reshape(*x.shape[:-1], 2, 3).transpose(-1, -2).reshape(x.shape),
    "cat": lambda x: torch.cat([x, PLAIN.to(x.dtype)], dim=-1),
    "where": lambda x: torch.where(PLAIN > 0, x, 0.0),
    "masked": lambda x: x.masked_fill(PLAIN > 0, 0.0) * (PLAIN[..., :1] > 0),
    "last position": lambda x: x[:, -2:] * 2,
    "flat rows": lambda x: functional.silu(x.view(-1, WIDTH)).unsqueeze(0).squeeze(0).view(x.shape),
    "addcmul": lambda x: torch.addcmul(PLAIN.to(x.dtype), x, GAIN.to(x.dtype), value=0.5),
    "in place": in_place,
    "linear gated": linear_gated(functional.silu),
    "linear gated by gelu": linear_gated(lambda x: functional.gelu(x, approximate="tanh")),
    "activation written over": written_over,
    "activation squared": lambda x: (lambda gate: gate * gate + gate)(functional.silu(x)),
    "activation of parts": lambda x: functional.silu(x.view(*x.shape[:-1], 2, 3)).flatten(-2) * x,
    "float and back": lambda x: (x.float() if x.dtype != torch.float64 else x).mul(2).to(x.dtype),
}  # fmt: skip


def expected(operation, x):
    """(z, d) by the operation itself in float64, on whole tensors of which only the last row differs."""
    y = x.plain.double()

    def last(rows):
        states = y.clone()
        states[:, -1] = rows
        out = operation(states)
        lead = out.reshape(len(y), -1, *out.shape[2:]) if out.shape[:1] == y.shape[:1] else out.view(*y.shape[:2], -1)
        return lead[:, -1]

    z = x.z.double()
    own = last(z)
    owner = OWNER if x.ride.owner is not None else torch.zeros(N_VARIANTS, dtype=torch.int64)
    moved = []
    for number, difference in zip(owner.tolist(), x.d.double(), strict=True):
        rows = z.clone()
        rows[number] += difference
        moved.append((last(rows) - own)[number])
    return own, torch.stack(moved)


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATIONS)
def test_differences_through_an_operation_are_those_of_the_operation(name):
    """Two sequences at once. float32 differences of size 1, and of size 1e-5, where subtracting two results leaves two digits."""
    for size in (1.0, 1e-5):
        x = riding(size=size)
        out = OPERATIONS[name](x)
        z, d = expected(OPERATIONS[name], x)
        assert isinstance(out, Riding)
        assert torch.equal(out.plain, OPERATIONS[name](x.plain)) or name.startswith(("linear", "Conv", "matmul"))
        torch.testing.assert_close(out.z.double(), z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.d.double(), d, rtol=3e-5, atol=3e-6 * size * float(d.abs().max() / size))


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        "softplus",
        "layer_norm",
        "rms by hand",
        "linear with bias",
        "gelu by erf",
        "clamp",
        "linear gated",
        "gelu tanh",
    ],
)
def test_in_float64_they_are_exact_to_its_digits(name):
    x = riding(torch.float64)
    out = OPERATIONS[name](x)
    z, d = expected(OPERATIONS[name], x)
    torch.testing.assert_close(out.z, z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(out.d, d, rtol=1e-11, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_linear_map_in_half_precision_keeps_what_was_rounded_away(dtype):
    """z before rounding comes back, and differences of size 1e-7, which float16 does not know, keep their digits."""
    x = riding(dtype, size=1e-7)
    x.z = x.z + 1e-3 * drawn(*x.z.shape)
    weight, bias = WEIGHT.to(dtype), BIAS.to(dtype)
    out = functional.linear(x, weight, bias)
    wanted_z = functional.linear(x.z.double(), weight.double(), bias.double())
    wanted = functional.linear(x.d.double(), weight.double())
    own = functional.linear(x.last.double(), weight.double(), bias.double())
    lost = (out.last.double() - own).abs().max()  # the output's own rounding, which is not its business
    assert (out.z.double() - wanted_z).abs().max() <= lost + 1e-5
    torch.testing.assert_close(out.d.double(), wanted, rtol=2e-2, atol=1e-9)


@torch.no_grad()
def test_a_gated_product_in_half_precision_is_rounded_once_before_its_map():
    """The differences behind it are those of the operation, to what a bfloat16 map keeps."""
    x = riding(torch.bfloat16)
    out = linear_gated(functional.silu)(x)
    weights = WEIGHT.to(torch.bfloat16).double(), OTHER_WEIGHT.to(torch.bfloat16).double()
    base, moved = (
        functional.linear(functional.silu(rows @ weights[0].t()) * (rows @ weights[1].t()), weights[0].t())
        for rows in (x.base.double(), x.base.double() + x.d.double())
    )
    wanted = moved - base
    assert float((out.d - wanted).norm() / wanted.norm()) < 1e-2
    assert float((out.d.roll(1, 0) - wanted).norm() / wanted.norm()) > 0.1


@torch.no_grad()
def test_where_nothing_is_left_it_is_exactly_nothing():
    x = riding(n_sequences=1)
    x.d[1] = -x.z[0]
    out = functional.linear(x, WEIGHT, BIAS)
    assert torch.equal(out.d[1], BIAS - out.z[0])
    assert torch.equal(rms(x).d[1], -rms(x).z[0])
    x.d[1] *= 1 - 1e-6  # of the root's argument only a millionth of a millionth is left
    moved = x.z[0].double() + x.d[1].double()
    wanted = rms(moved) - rms(x.z[0].double())
    torch.testing.assert_close(rms(x).d[1].double(), wanted, rtol=1e-3, atol=1e-4)


REFUSED = {
    "topk": lambda x: x.topk(2),
    "greater": lambda x: x > 0,
    "argmax": lambda x: x.argmax(-1),
    "data": lambda x: x.data,
    "memory": lambda x: x.__cuda_array_interface__,
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "data_ptr": lambda x: x.data_ptr(),
    "mean over rows": lambda x: x.mean(1),
    "cumsum": lambda x: x.cumsum(1),
    "transpose of rows": lambda x: x.transpose(0, 1),
    "without the last": lambda x: x[:, :-1],
    "into a plain one": lambda x: PLAIN.clone().add_(x),
    "index": lambda x: x[..., torch.tensor([0, 1])],
    "write a part": lambda x: x.__setitem__((0, 0), 1.0),
    "out": lambda x: torch.add(x, 1, out=torch.empty(x.shape)),
    "weights": lambda x: functional.linear(PLAIN, x[0]),
    "integers": lambda x: x.long(),
    "power": lambda x: x**1.5,
}


@torch.no_grad()
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_and_named(name):
    with pytest.raises(NoRule, match=r"in a layer"):
        REFUSED[name](riding())


@torch.no_grad()
def test_what_asks_for_no_numbers_is_answered_with_plain_ones():
    x = riding()
    assert (x.shape, x.dtype, x.dim(), len(x)) == ((N_SEQUENCES, N_POSITIONS, WIDTH), torch.float32, 3, N_SEQUENCES)
    for made in (
        torch.zeros_like(x),
        x.new_ones(2),
        PLAIN.double().type_as(x),
        PLAIN.view(-1).view_as(x),
        torch.isnan(x),
    ):
        assert type(made) is torch.Tensor
    assert torch.equal(PLAIN.double().to(x), PLAIN)


@torch.no_grad()
def test_a_tensor_that_was_written_to_behind_its_back_is_refused():
    """A part shares its memory; so does what was taken out of it before."""
    x = riding()
    part = x[..., :3]
    part.mul_(2)
    with pytest.raises(NoRule, match="written to in place"):
        x + 1
    assert torch.equal(part.d, riding().d[..., :3] * 2)
    x = riding()
    x.plain.add_(1)
    with pytest.raises(NoRule, match="written to in place"):
        functional.silu(x)


@torch.no_grad()
def test_dropout_that_is_active_is_refused_and_else_it_is_nothing():
    x = riding()
    assert functional.dropout(x, 0.5, training=False) is x
    assert nn.Dropout(0.5).eval()(x) is x
    with pytest.raises(ExactnessError, match="evaluation mode"):
        functional.dropout(x, 0.5, training=True)


@torch.no_grad()
def test_when_the_ride_is_over_it_is_a_tensor_like_any_other():
    x = riding()
    x.ride.open = False
    assert type(x > 0) is torch.Tensor
    assert torch.equal(x.cumsum(1), x.plain.cumsum(1))


@torch.no_grad()
def test_attn_is_the_first_sum_with_a_tensor_of_its_size_and_the_update_is_without_the_input():
    x = riding(n_sequences=1)
    entered = x.ride.entered.copy_(drawn(1, N_POSITIONS, WIDTH, seed=3) * 1e4)
    out = entered + 0.5 * x
    mlp = functional.silu(out)
    out = out + mlp
    assert torch.equal(x.ride.attn[0].l2, torch.linalg.vector_norm(0.5 * x.d, dim=-1))
    assert torch.equal(out.update, 0.5 * x.z + mlp.z)  # not out.z - entered, which has lost four digits
    assert (out + out).update is None
    assert (out + entered).update is None


def test_each_rule_is_of_a_function_of_torch():
    assert len(engine.RULES_FROM) == 4
    assert all(callable(function) for function in tensor.RULES)
    assert tensor.RULES[functional.linear] is not tensor.RULES[torch.add]
