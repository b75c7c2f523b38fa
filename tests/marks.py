"""Which of a test's parameters are for every run, which for the slow ones, and which pairs of them are enough."""

import pytest


def slow_but(usual, names):
    """The names as parameters of a test; those that are not among the usual ones are marked slow."""
    return [name if name in usual else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pairs_of(names, ways, usual, alone):
    """(name, way) as parameters of a test: the usual names in every way, marked for every run; the others in those ways `alone`
    (numbers of ways), marked slow."""
    return [
        pytest.param(name, way, marks=[] if name in usual else [pytest.mark.slow])
        for name in names
        for number, way in enumerate(ways)
        if name in usual or number in alone
    ]
