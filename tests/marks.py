"""Which of a test's parameters are for every run, and which for the slow ones."""

import pytest


def slow_but(usual, names):
    """The names as parameters of a test; those that are not among the usual ones are marked slow."""
    return [name if name in usual else pytest.param(name, marks=pytest.mark.slow) for name in names]
