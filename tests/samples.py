"""Texts, values and results that several tests use."""

import dataclasses

import numpy as np

from mask_impact.findings.comparison import Settings

NASTY_TEXTS = (
    *(
        "NA",
        "null",
        "nan",
        "",
        "\n",
        "\r\n",
        "\r",
        "a,b",
        'say "x"',
        "'",
        '"',
        "\\",
        "\t",
        " lead",
        "0x1",
        "1.0",
        "True",
    ),
    *("日本語", "�", "\u2028", "\u202eevil", "\x1b[31m", "a\0b", "🙂", '"l2_distance":9,', "},\n{"),
)


TINY_VALUES = np.array(
    [1e-30, 1e-42, 1.4e-45, 1.1754944e-38, 0.0, -0.0, 3.4e38, 1 / 3, 0.1, 16777217], dtype=np.float32
)


def assert_same(one, other, where="result"):
    """Field by field, arrays by dtype and bits (NaN equals NaN)."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif isinstance(one, tuple):
        assert isinstance(other, tuple), where
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def with_values(result, **changes):
    steps = tuple(dataclasses.replace(s, effect=dataclasses.replace(s.effect, **changes)) for s in result.steps)
    return dataclasses.replace(result, steps=steps)


def grouped(result, groups):
    """The result with the effects of groups (name, positions): those of the first positions, in the groups' order."""
    steps = []
    for step in result.steps:
        places = [step.positions.tolist().index(positions[0]) for _, positions in groups]
        names = ("logit_change", "logprob_change", "kl_divergence", "top1")
        columns = {name: getattr(step.effect, name)[:, places] for name in names}
        effect = dataclasses.replace(step.effect, **columns, groups=tuple(groups))
        steps.append(dataclasses.replace(step, effect=effect))
    return dataclasses.replace(result, steps=tuple(steps))


GROUPS = (("the start", (0, 1)), ("image 0", tuple(range(2, 5))), ("<b>end</b>", (9,)), ("whole", (0, 4, 8)))


WORDS = ("<s>", "The", " capital", " of", " France", " is", "\n", " the", " capital", "?")


OTHER = ("<s>", "The", " capital", " city", " of", " France", " is", "\n", " the", " capital")


ALIGNED = [(0, 0), (1, 1), (2, 2), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]  # WORDS with OTHER


FEW = Settings(n_permutations=99)
