"""The evidence card as HTML without a script: for a page, a notebook, an app. Knows cards and their template.

Every text of a prompt, a token or a file goes through Jinja2's escaping. What can't be seen in a text is written out.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from mask_impact.results.explanations import Explanation
from mask_impact.results.tokens import ImageRecord, films, image_title
from mask_impact.views.card import Box, Card, Cell, Row, Word
from mask_impact.views.layer_bars import nats
from mask_impact.views.page import rendered, shown, template_text
from mask_impact.views.text import percent, percent_after

FAINT = 0.02  # of the largest change: cells with less are not drawn
MOST_TARGETS = 64  # that have a card
Edge = tuple[float, float, float, float]


def card_document(found: Explanation, number: int = 0, theme: str = "light") -> str:
    """The card of one target with its own styles: a fragment that stands anywhere. theme: `light`, `dark`, or `auto` for the
    system's. It has no script: a form opens a video's pairs of frames."""
    card = CardView(Card(found, number))
    return rendered(
        "card_alone.html", {"styles": template_text("card.css"), "theme": theme, "card": card, "scripted": False}
    )


@dataclass(frozen=True)
class Picture:
    """An image of the prompt as the card draws it. name: what it is called; key: of its element in the document; source: a data
    URI, empty without a preview; cells: those that are drawn, evidence without a tint; outline: the edges around the cells of
    evidence, (x1, y1, x2, y2) in its pixels."""

    number: int
    key: str
    size: tuple[int, int]
    source: str
    cells: tuple[Cell, ...]
    outline: tuple[Edge, ...]
    blur: float
    name: str


@dataclass(frozen=True)
class Frame:
    """A pair of a video's frames in its strip. total: the sum of its cells' changes, nats; part: 0 to 1, of its bar."""

    picture: Picture
    total: float
    part: float
    time: str
    frames: str

    @property
    def tone(self) -> str:
        """`for` where it speaks for the target."""
        return "for" if self.total <= 0 else "against"

    @property
    def number(self) -> str:
        """The total as text."""
        return nats(self.total, True)


@dataclass(frozen=True)
class Film:
    """A video over time. number: among the videos that have a strip; opened: the pair that stands large, by its place: it has
    evidence, or the strongest cell."""

    number: int
    title: str
    frames: tuple[Frame, ...]
    opened: int

    @property
    def picture(self) -> Picture:
        """The pair that stands large."""
        return self.frames[self.opened].picture


class CardView:
    """A card's texts and lengths as its template takes them."""

    def __init__(self, card: Card) -> None:
        self.card, self.target = card, card.target
        self.pictures = [self._picture(number) for number in range(len(card.found.images))]
        self.films = [self._film(*one) for one in enumerate(films(card.found.images))]
        in_films = {frame.picture.number for film in self.films for frame in film.frames}
        self.stills = [picture for picture in self.pictures if picture.number not in in_films]

    @property
    def tinted(self) -> bool:
        """Whether some cell is tinted, which may be shown smoothly."""
        return any(not cell.evidence for picture in self.pictures for cell in picture.cells)

    @property
    def steps(self) -> list[tuple[int, str, bool]]:
        """(number, text, whether the target has it) of each produced token; without special ones that are not asked about."""
        found = self.card.found
        tokens = zip(found.tokens.texts[found.n_prompt :], found.tokens.kinds[found.n_prompt :], strict=True)
        all_steps = [
            (number, shown(text), number in self.target.steps, kind) for number, (text, kind) in enumerate(tokens)
        ]
        said = [(number, text, own) for number, text, own, kind in all_steps if own or kind != "special"]
        return [(number, text.lstrip() if place == 0 else text, own) for place, (number, text, own) in enumerate(said)]

    def strength(self, one: Word | Cell | Row) -> float:
        """0 to 1, how strong a change is on the card's scale."""
        return round(min(abs(one.change) / self.card.largest, 1.0), 4)

    def tone(self, one: Word | Cell | Row) -> str:
        """`for` where it speaks for the target, `against` where it speaks against it."""
        return "for" if one.change <= 0 else "against"

    def tip(self, one: Word | Cell) -> str:
        """What is said of a word or a cell under the pointer."""
        if one.place is None:
            return ""
        how = "really hidden" if one.measured else "estimated"
        change = self.target.change(one.place)
        return f"{shown(self.target.names[one.place]).strip()}: {nats(change, one.measured)} nats, {how}"

    def positions(self, place: int) -> str:
        """A unit's positions, separated by spaces."""
        return " ".join(map(str, self.target.positions[place]))

    def nats(self, row: Row) -> str:
        """A row's change as text."""
        return nats(row.change, row.measured)

    def left(self, row: Row) -> str:
        """The probability with nothing hidden and without a row's unit; empty where it was not measured, or is none."""
        probability = self.target.probability
        if not row.measured or self.target.instead or probability <= 0:
            return ""
        return f"{percent(probability)} → {percent_after(probability, row.change)}"

    def several(self, kind: str) -> str:
        """What the units of a kind are called."""
        return self.card.several(kind)

    def lead(self, word: Word) -> str:
        """The space before a word, which is not shaded with it; none before the first."""
        return "" if word is self.card.words[0] else word.text[: len(word.text) - len(word.text.lstrip(" "))]

    def body(self, word: Word) -> str:
        """A word without that space; a line break stays one."""
        return "\n".join(shown(line) for line in word.text.lstrip(" ").split("\n"))

    def chance(self) -> str:
        """The target's probability."""
        return percent(self.target.probability)

    def picture_of(self, row: Row) -> Picture | None:
        """The image that a row's box is in."""
        return None if row.image < 0 else self.pictures[row.image]

    def _film(self, number: int, pairs: Sequence[int]) -> Film:
        images = self.card.found.images
        cells = {pair: [cell for cell in self.card.cells if cell.image == pair] for pair in pairs}
        sums = {pair: sum(cell.change for cell in cells[pair]) for pair in pairs}
        largest = max(map(abs, sums.values())) or 1.0

        def weight(pair: int) -> tuple[bool, float]:
            return any(cell.evidence for cell in cells[pair]), max(
                (abs(cell.change) for cell in cells[pair]), default=0.0
            )

        def frame(pair: int) -> Frame:
            moment, part = images[pair].moment, round(abs(sums[pair]) / largest, 4)
            return Frame(self.pictures[pair], sums[pair], part, f"{moment.time_s:.1f} s", moment.named)

        title = f"Video {images[pairs[0]].moment.video} over time" if len(films(images)) > 1 else "The video over time"
        return Film(number, title, tuple(map(frame, pairs)), pairs.index(max(pairs, key=weight)))

    def _picture(self, number: int) -> Picture:
        image = self.card.found.images[number]
        cells = [one for one in self.card.cells if one.image == number]
        evidence = {(one.row, one.column): one.box for one in cells if one.evidence}
        drawn = [one for one in cells if one.evidence or self.strength(one) >= FAINT]
        source, key = image_source(image), picture_key(image, number)
        blur = round(min(image.size[0] / image.grid[1], image.size[1] / image.grid[0]) / 2, 2)
        outline = tuple(_outline(evidence))
        return Picture(
            number, key, image.size, source, tuple(drawn), outline, blur, image_title(self.card.found.images, number)
        )


def _outline(cells: dict[tuple[int, int], Box]) -> Iterator[Edge]:
    """The edges between cells of the set and others."""
    for (row, column), (left, top, right, bottom) in sorted(cells.items()):
        if (row - 1, column) not in cells:
            yield left, top, right, top
        if (row + 1, column) not in cells:
            yield left, bottom, right, bottom
        if (row, column - 1) not in cells:
            yield left, top, left, bottom
        if (row, column + 1) not in cells:
            yield right, top, right, bottom


def image_source(image: ImageRecord) -> str:
    """A data URI of an image, empty without a preview."""
    return f"data:image/jpeg;base64,{b64encode(image.preview).decode()}" if image.preview else ""


def picture_key(image: ImageRecord, number: int) -> str:
    """The id of an image's element in a document."""
    return f"mi-{crc32(image.preview):08x}-{number}"


def pictures_html(cards: Mapping[int, Card]) -> tuple[str, dict[int, str]]:
    """(the images, each once, the pictures of each card with their evidence outlined), for a page that has `card.css`."""
    views = {number: CardView(card) for number, card in cards.items()}
    by_key = {picture.key: picture for view in views.values() for picture in view.pictures}
    images = rendered("card_images.html", {"pictures": list(by_key.values())})
    return images, {
        number: rendered("card_pictures.html", {"card": view}) for number, view in views.items() if view.pictures
    }


def images_html(images: Sequence[ImageRecord]) -> dict[str, str]:
    """The images of a prompt by the ids of their elements, each as it stands in a document; those that were kept."""
    found = {picture_key(one, number): one for number, one in enumerate(images) if one.preview}
    return {
        key: rendered("card_images.html", {"pictures": [{"key": key, "source": image_source(one), "size": one.size}]})
        for key, one in found.items()
    }


def cards_html(found: Explanation) -> tuple[str, list[str]]:
    """(the images, which stand once in the document, the cards of the targets, the first MOST_TARGETS), for a page that has
    `card.css` and a script that opens a video's pairs of frames."""
    views = [CardView(Card(found, number)) for number in range(min(len(found.targets), MOST_TARGETS))]
    images = rendered("card_images.html", {"pictures": views[0].pictures if views else []})
    return images, [rendered("card.html", {"card": one, "scripted": True}) for one in views]
