"""The page of an explanation: its numbers, what it says of estimates that do not hold, and texts that act on nothing."""

import dataclasses

import pytest
from samples import NASTY_TEXTS
from synthetic import make_explanation as made

from mask_impact.views.explanation import render_explanation
from mask_impact.views.summary_json import explanation_entry, to_text
from mask_impact.views.text import columns


def test_the_page_names_the_strongest_first_with_what_becomes_of_the_answer():
    page = render_explanation(made(), ["output/run.answer.csv"])
    lines = page.splitlines()
    rows = [line for line in lines if line.startswith("     ") and "image 0" in line]
    assert rows[0].split()[0] == "1"
    assert "-2.5" in rows[0]
    assert rows[0].endswith('" <b>"')
    assert "  2 of 3 were really hidden, which took 1.5 forward passes." in lines
    assert "NOT RELIABLE here" in page
    assert "--budget 2 measures all." in page
    assert lines[-1] == "Results saved to: output/run.answer.csv"


def test_reliable_estimates_and_full_measurements_are_said_to_be_so():
    found = made()
    for reliable, said in ((True, "The estimates agree with what was measured"), (None, "All were measured")):
        step = dataclasses.replace(found.steps[0], reliable=reliable)
        page = render_explanation(dataclasses.replace(found, steps=(step,)))
        assert said in page
        assert "NOT RELIABLE" not in page


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_no_text_acts_on_the_terminal_or_leaves_the_page(text):
    found = made(names=(text, text * 20, "<|image_pad|>"))
    page = render_explanation(dataclasses.replace(found, generated_text=text * 9))
    assert all(char == "\n" or char.isprintable() for char in page)
    assert max(columns(line) for line in page.splitlines()) <= 80
    assert to_text(explanation_entry(found)).isascii()
