"""What a notebook shows: the picture of a result, and its interactive figure with values computed here from the table."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from synthetic import make_result as make_record

from mask_impact.api.results import Result
from mask_impact.errors import UsageError

HOSTILE = ["<script>alert(1)</script>", "a<b>&amp;</b>", "line\nbreak", "\u202eleft", "=1+1"]


def make_result(*args, **settings):
    """A synthetic result with its conveniences."""
    return Result(**vars(make_record(*args, **settings)))


@pytest.fixture(scope="module")
def result():
    """Two images of 2x3 and 1x2 cells behind the first token, which is the sink; three steps."""
    return make_result(n_steps=3, grids=[(2, 3), (1, 2)])


def expected_columns(result, step):
    """(first position, positions) of every column, by a loop over positions."""
    columns = []
    for position in result.steps[step].positions.tolist():
        image = int(result.tokens.image[position])
        if position in result.sinks:
            continue
        if image >= 0 and columns and columns[-1][0] == image:
            columns[-1][1].append(position)
        else:
            columns.append((image, [position]))
    return [positions for _, positions in columns]


@pytest.mark.parametrize(("step", "variant", "metric"), [(0, None, "l2"), (1, "Attn", "cosine"), (2, "Head_1", "l2")])
def test_the_figure_shows_the_table_s_values(result, step, variant, metric):
    (heat,) = result.plot(step=step, variant=variant, metric=metric).data
    frame = result.to_frame()
    frame = frame[(frame.generation_step == step) & (frame.variant == (variant or "Full"))]
    table = frame.pivot(index="layer", columns="token_position", values=f"{metric}_distance").astype(float)
    shares = 100 * table.div(table.drop(columns=list(result.sinks)).sum(axis=1), axis=0)
    columns = expected_columns(result, step)
    assert [len(positions) for positions in columns][:2] == [6, 2]
    np.testing.assert_allclose(heat.customdata, np.stack([table[places].sum(axis=1) for places in columns], axis=1))
    np.testing.assert_allclose(heat.z, np.stack([shares[places].sum(axis=1) for places in columns], axis=1))
    np.testing.assert_allclose(np.sum(heat.z, axis=1), 100)
    assert list(heat.y) == list(range(result.n_layers))
    assert list(heat.text[0][:3]) == ["1-6 image 0", "7-8 image 1", "9 “ capital”"]


def test_sinks_are_named_and_shown_on_request(result):
    figure = result.plot()
    assert "attention sinks left out: 0 “The”" in figure.layout.title.text
    with_sinks = result.plot(sinks=True)
    assert "left out" not in with_sinks.layout.title.text
    assert with_sinks.data[0].text[0][0] == "0 “The”"
    assert len(with_sinks.data[0].x) == len(figure.data[0].x) + 1


@pytest.mark.parametrize(("settings", "said"), [
    ({"step": 3}, "steps 0 to 2"), ({"variant": "Tail"}, "the result has Full, Attn, Head_0"), ({"metric": "l1"}, "l2, cosine"),
])  # fmt: skip
def test_what_is_not_there_is_said(settings, said, result):
    with pytest.raises(UsageError, match=said):
        result.plot(**settings)


def test_nothing_masked_is_an_empty_figure():
    figure = make_result(mask_mode="vision").plot()
    assert figure.data[0].z is None


def test_many_tokens_have_numbers_instead_of_names():
    assert make_result([str(number) for number in range(200)]).plot().layout.xaxis.ticktext is None


def test_texts_are_no_markup():
    """plotly takes some HTML for markup."""
    result = make_result(HOSTILE, produced=["<b>bold</b>"], sinks=(0,))
    figure = result.plot()
    shown = [figure.layout.title.text, *figure.data[0].text[0], *figure.layout.xaxis.ticktext]
    assert {tag for text in shown for tag in re.findall("<[^>]*>", text)} == {"<br>", "<sub>", "</sub>"}
    assert "“&lt;b&gt;bold&lt;/b&gt;”" in figure.layout.title.text
    assert any("a&lt;b&gt;&amp;amp;" in text for text in shown)
    assert all(char not in text for text in shown for char in "\n\u202e")


def test_a_notebook_shows_the_picture_and_the_summary_escaped_for_html():
    html = make_result(HOSTILE, sinks=())._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html)[1])))
    assert min(picture.size) > 300
    assert np.asarray(picture.convert("L")).std() > 5
