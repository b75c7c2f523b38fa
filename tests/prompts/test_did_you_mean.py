"""A mistyped group names what was probably meant: a part by name, or a word of the prompt."""

import numpy as np
import pytest

from mask_impact.errors import InputError
from mask_impact.prompts.groups import Layout
from mask_impact.results.tokens import ImageRecord, TokenTable

WORDS = ("What", " color", " is", " the", " star", "?")


def layout(with_image=True):
    """Six words, and an image of one cell before them where there is one."""
    texts = (*(["<|image_pad|>"] if with_image else []), *WORDS)
    kinds = (*(["image"] if with_image else []), *["text"] * len(WORDS))
    place = np.array([0 if kind == "image" else -1 for kind in kinds], dtype=np.int32)
    tokens = TokenTable(np.arange(len(texts)), texts, kinds, place, place, place)
    images = [ImageRecord("a.png", (32, 32), (32, 32), (1, 1))] if with_image else []
    return Layout(tokens, images, len(texts), lambda ids: "".join(texts[one] for one in ids))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qestion", "question"),
        ("imge", "image"),
        ("sistem", "system"),
        ("colr", "color"),
        ("starr", "star"),
        ("spezial", "special"),
    ],
)
def test_a_mistyped_part_names_what_was_meant(typed, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        layout().resolve(typed)


def test_what_is_near_to_nothing_gets_no_guess():
    with pytest.raises(InputError) as caught:
        layout().resolve("banana")
    assert "did you mean" not in str(caught.value)
    with pytest.raises(InputError) as caught:
        layout(with_image=False).resolve("imge")
    assert "image" not in str(caught.value).partition(": ")[2]
