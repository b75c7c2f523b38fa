"""The page's own pieces as HTML: what can be clicked, answers side by side, lines of status. Every text is escaped.

Knows what was asked and tried; not gradio. The evidence card is that of `views.card_html`.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from mask_impact.api.results import Result
from mask_impact.app.desk import Asked, Tried
from mask_impact.results.answers import Answer
from mask_impact.results.explanations import Explanation
from mask_impact.results.tokens import ImageRecord, TokenTable
from mask_impact.views.card_html import card_document
from mask_impact.views.page import shown
from mask_impact.views.summary import render_summary
from mask_impact.views.text import percent

MOST_CARDS = 8  # of a stored result with many targets


def said(text: str) -> str:
    """A text of a prompt, a token or a file: what can't be seen is written out, and nothing of it is markup."""
    return escape(shown(text))


def status_line(text: str, wrong: bool = False) -> str:
    """What the page says of the last click; an error is announced. Empty: nothing."""
    if not text:
        return ""
    return (
        f'<p class="app-status{" app-wrong" if wrong else ""}" role="{"alert" if wrong else "status"}">{said(text)}</p>'
    )


def intro(model: str, device: str, dtype: str, pictures: bool) -> str:
    """The head of the page: what it is for, and which model answers."""
    what = "words and image cells" if pictures else "words"
    return (
        f'<header class="app-head"><h1>mask-impact</h1><p>Ask a question, and see which {what} the answer really used. '
        f"Hide some of them, and ask again.</p>"
        f'<p class="app-soft">Model: <b>{said(model)}</b>, {said(dtype)} on {said(device)}</p></header>'
    )


def cards(asked: Asked, before: Asked | None = None) -> str:
    """The evidence card of an answer, beside the one of an earlier question where one is given."""
    if before is None:
        return f'<div class="app-cards">{_card(asked.found)}</div>'
    columns = "".join(
        f'<section><h2 class="app-label">{name}</h2>{_card(one.found)}</section>'
        for name, one in (("Before", before), ("Now", asked))
    )
    return f'<div class="app-cards app-beside">{columns}</div>'


def stored(found: Explanation | Result) -> str:
    """What is shown of a stored result: its cards, or its summary where it has none."""
    if isinstance(found, Result):
        return f'<pre class="app-summary">{escape(render_summary(found))}</pre>'
    n = len(found.targets)
    shown_cards = "".join(_card(found, number) for number in range(min(n, MOST_CARDS)))
    more = f'<p class="app-soft">{n - MOST_CARDS} more targets are in its files.</p>' if n > MOST_CARDS else ""
    return f'<div class="app-cards">{shown_cards}{more}</div>'


def _card(found: Explanation, number: int = 0) -> str:
    return card_document(found, number, theme="auto")


# --- what can be clicked --------------------------------------------------------------------------------------------------


def chooser(asked: Asked) -> str:
    """The words of the question as buttons and the pictures with their cells; `chooser.js` listens."""
    words = "".join(
        f'<button type="button" class="app-word" aria-pressed="false" data-positions="{_numbers(word.positions)}">'
        f"{said(word.name.strip())}</button>"
        for word in asked.words
    )
    tokens, images = asked.found.tokens, asked.found.images
    pictures = "".join(_picture(number, image, tokens) for number, image in enumerate(images))
    how = "Click words, or draw a box on the picture" if pictures else "Click words"
    return (
        f'<div class="app-choose" data-asked="{asked.key}"><div class="app-choose-head">'
        f'<h2 class="app-label">Hide something and ask again</h2>'
        f'<p class="app-soft">{how}. The answer is then made anew without them.</p></div>'
        f'{f"""<div class="app-pictures">{pictures}</div>""" if pictures else ""}'
        f'<div class="app-words" role="group" aria-label="Words of the question">{words}</div>'
        f'<p class="app-do"><button type="button" class="app-hide" disabled>Hide and ask again</button>'
        f'<button type="button" class="app-clear" disabled>Clear</button>'
        f'<span class="app-chosen app-soft" role="status">nothing chosen</span></p></div>'
    )


def _numbers(positions: Sequence[int]) -> str:
    return " ".join(str(position) for position in positions)


def _picture(number: int, image: ImageRecord, tokens: TokenTable) -> str:
    """An image under a grid of its cells, in its own pixels."""
    width, height = image.size
    source = f"data:image/jpeg;base64,{b64encode(image.preview).decode()}"
    cells = []
    for position in range(len(tokens)):
        if tokens.image[position] == number:
            row, column = int(tokens.row[position]), int(tokens.column[position])
            left, top, right, bottom = image.box(row, column)
            cells.append(
                f'<rect class="app-cell" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" '
                f'data-positions="{position}" data-row="{row}" data-column="{column}"/>'
            )
    rows, columns = image.grid
    label = f"Picture {number}, {rows} x {columns} cells: draw a box, or move with the arrow keys and choose with space"
    return (
        f'<svg class="app-picture" viewBox="0 0 {width} {height}" preserveAspectRatio="xMinYMid" tabindex="0" '
        f'role="application" data-rows="{rows}" data-columns="{columns}" aria-label="{label}">'
        f'<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f'{"".join(cells)}<rect class="app-box" visibility="hidden"/></svg>'
    )


# --- answers side by side -------------------------------------------------------------------------------------------------


def answers(tries: Sequence[Tried]) -> str:
    """The answer with nothing hidden above those without something, the newest first; nothing where nothing was tried."""
    if not tries:
        return ""
    own = tries[0].whatif.answer
    rows = [_answer("nothing hidden", own, own)]
    rows += [_answer(f"without {one.name}", one.whatif.others[0], own) for one in reversed(tries)]
    first = said(own.token_texts[0].strip() or own.token_texts[0])
    return (
        f'<div class="app-answers"><h2 class="app-label">Answers</h2><table><thead><tr><th scope="col">hidden</th>'
        f'<th scope="col">the model says</th><th scope="col">chance of “{first}” first</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(name: str, answer: Answer, own: Answer) -> str:
    steps = "".join(
        f'<span class="app-step{" app-other" if place == answer.differs_at else ""}"><b dir="auto">{said(text)}</b>'
        f"<small>{percent(probability)}</small></span>"
        for place, (text, probability) in enumerate(zip(answer.token_texts, answer.probabilities, strict=True))
    )
    verdict = "" if answer is own else "the same answer" if answer.differs_at is None else "another answer"
    text = "<br>".join(said(line) for line in answer.text.splitlines())
    return (
        f'<tr><th scope="row" dir="auto">{said(name)}</th><td><p class="app-says" dir="auto">{text} '
        f"<small>{verdict}</small></p><div>{steps}</div></td><td>{percent(answer.probability)}</td></tr>"
    )
