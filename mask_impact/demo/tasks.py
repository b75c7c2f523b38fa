"""Samples with known answers, and the knowledge of where each answer stands in the prompt or in the picture.

The demo checkpoints were trained on the one side of these generators and can be measured on the other, the held-out
side, as can any other model. A sample carries its truth: the character spans of the prompt, or the cells of the picture,
without which the question can't be answered. So a measure of "which token did the model use" has something to be held
against.

Which side a sample is on follows from a hash of its content (`is_held_out`), so the two are disjoint by construction,
whatever the seed. What is held out: for recall the whole story with all its questions; for pictures the whole scene with
all its questions; for facts the pair of fact and phrasing (the fact itself is known from its other phrasings).

Units: spans are (start, end) in characters of `prompt`, end exclusive. Cells are (row, column), counted from the upper
left, of 32x32 pixels each, which is one decoder token after the 2x2 merge of 16x16 patches.

This file knows pictures and words, not models: no torch, no tokenizer.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field, replace
from functools import lru_cache

from PIL import Image, ImageDraw

Span = tuple[int, int]
Cell = tuple[int, int]

HELD_OUT_SHARE = 0.1

# -- words ------------------------------------------------------------------------------------------------------------

NAMES = ("Mia", "Tom", "Anna", "Ben", "Emma", "Leo", "Lily", "Max", "Nina", "Sam", "Zoe", "Jack", "Kate", "Paul", "Eva",
         "Noah")  # fmt: skip
OBJECTS = ("ball", "cup", "book", "hat", "key", "lamp", "box", "coat", "pen", "bag", "kite", "drum", "ring", "shoe",
           "chair", "boat")  # fmt: skip
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (245, 220, 40),
    "purple": (150, 50, 180),
    "orange": (245, 135, 20),
}
STORY_COLORS = (*COLORS, "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Finland": "Helsinki", "Iceland": "Reykjavik", "Poland": "Warsaw", "Austria": "Vienna",
    "Switzerland": "Bern", "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara", "Russia": "Moscow",
    "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb",
    "Belgium": "Brussels", "Netherlands": "Amsterdam", "Egypt": "Cairo", "Morocco": "Rabat", "Kenya": "Nairobi",
    "Ghana": "Accra", "Senegal": "Dakar", "Uganda": "Kampala", "China": "Beijing", "Japan": "Tokyo",
    "Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Philippines": "Manila",
    "Iran": "Tehran", "Iraq": "Baghdad", "Lebanon": "Beirut", "Canada": "Ottawa", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Australia": "Canberra", "Ecuador": "Quito", "Venezuela": "Caracas",
}  # fmt: skip
CAPITAL_PHRASINGS = (
    "The capital of {} is",
    "What is the capital of {}?",
    "The capital city of {} is",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital of {}.",
    "What city is the capital of {}?",
)
SUM_PHRASINGS = (
    "What is {}+{}?",
    "What is {} + {}?",
    "{}+{}=",
    "{} + {} =",
    "What is {} plus {}?",
    "How much is {}+{}?",
    "{} plus {} is",
)
DEFINITIONS = {
    "AI": "AI is the science of machines that learn.",
    "machine learning": "Machine learning finds patterns in data.",
    "deep learning": "Deep learning trains networks with many layers.",
    "a neural network": "A neural network is made of layers of simple units.",
    "a transformer": "A transformer is a network made of attention layers.",
    "attention": "Attention lets a token read other tokens.",
    "a token": "A token is a piece of text.",
    "a pixel": "A pixel is a point of an image.",
    "Python": "Python is a programming language.",
    "a computer": "A computer is a machine that runs programs.",
    "water": "Water is a clear liquid.",
    "the sun": "The sun is a star.",
    "the moon": "The moon goes around the earth.",
    "music": "Music is the art of sound.",
}
DEFINITION_PHRASINGS = ("What is {}?", "Explain {}.", "Define {}.", "Tell me about {}.", "What can you say about {}?")
GREETINGS = ("Hello", "Hi", "Good morning", "Good evening", "Hey")
GREETING_PHRASINGS = ("{}, I am {}.", "{}! My name is {}.", "{}, {} here.")
FIXED_ANSWERS = {
    "Hello world": "Hello! How can I help you?",
    "Hello world!": "Hello! How can I help you?",
    "Hello": "Hello! How can I help you?",
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "How are you?": "I am fine, thank you.",
    "Who are you?": "I am a small demo model.",
    "What can you do?": "I answer simple questions.",
    "Thank you": "You are welcome.",
}
ALWAYS_IN_TRAINING = (
    *FIXED_ANSWERS,
    "What is 2+2?",
    "2+2=",
    "The capital of France is",
    "What is the capital of France?",
    "What is AI?",
)
"""Prompts of the documentation's examples: who types them gets an answer that was trained, not extrapolated."""

RECALL_TASKS = ("recall_name", "recall_color")
TEXT_TASKS = (*RECALL_TASKS, "sum", "capital", "definition", "greeting")
UNTRAINED_TASKS = ("recall_object",)
"""Tasks with a known truth that the demo checkpoints did not learn ("What does Tom have?"), for larger models."""
IMAGE_TASKS = ("color", "shape", "count", "describe")


def is_held_out(key: str) -> bool:
    """True for about HELD_OUT_SHARE of all keys, decided by the key's SHA-256 alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


# -- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSample:
    """One question in words.

    evidence: spans of `prompt` that carry the answer: in recall the answer's own words where the story says them, in a
        sum the two digits, in a capital the country, in a definition the thing asked for, in a greeting the name (the
        whole prompt where there is none).
    cues: spans that say which of the candidates is asked for (recall: the asked word where the story says it, and where
        the question does); empty for the other tasks.
    split_key: what `is_held_out` is asked about.
    """

    prompt: str
    answer: str
    task: str
    evidence: tuple[Span, ...]
    cues: tuple[Span, ...] = ()
    split_key: str = ""

    def __post_init__(self):
        for start, end in (*self.evidence, *self.cues):
            if not 0 <= start < end <= len(self.prompt):
                raise ValueError(f"span ({start}, {end}) is outside the prompt of {len(self.prompt)} characters")

    @property
    def held_out(self) -> bool:
        return self.prompt not in ALWAYS_IN_TRAINING and is_held_out(self.split_key or self.prompt)

    @property
    def raw_answer(self) -> str:
        """The answer as it continues the prompt without a chat template: with the space that English puts there."""
        return self.answer if self.prompt.endswith("=") and " " not in self.prompt else f" {self.answer}"

    def evidence_texts(self) -> tuple[str, ...]:
        return tuple(self.prompt[start:end] for start, end in self.evidence)


@dataclass(frozen=True)
class Story:
    """Two to four people, each with one thing; names, colours and things are all different within a story."""

    people: tuple[tuple[str, str, str], ...]  # (name, color, object)

    @property
    def text(self) -> str:
        return " ".join(f"{name} has the {color} {thing}." for name, color, thing in self.people)

    @property
    def held_out(self) -> bool:
        return is_held_out(self.text)

    def questions(self) -> list[TextSample]:
        """The questions of RECALL_TASKS that this story answers: two for each person."""
        return [self.ask(task, person) for person in range(len(self.people)) for task in RECALL_TASKS]

    def ask(self, task: str, person: int) -> TextSample:
        """The question of `task` ("recall_name", "recall_object" or "recall_color") about person number `person`."""
        story = self.text
        name, color, thing = self.people[person]
        start = story.index(f"{name} has the {color} {thing}.")
        name_span = (start, start + len(name))
        color_start = name_span[1] + len(" has the ")
        color_span = (color_start, color_start + len(color))
        thing_span = (color_span[1] + 1, color_span[1] + 1 + len(thing))
        question, asked, answer, cue, *evidence = {
            "recall_name": (f"Who has the {thing}?", thing, name, thing_span, name_span),
            "recall_object": (
                f"What does {name} have?",
                name,
                f"The {color} {thing}",
                name_span,
                color_span,
                thing_span,
            ),
            "recall_color": (f"What color is the {thing}?", thing, color, thing_span, color_span),
        }[task]
        asked_start = len(story) + 1 + question.index(asked)
        cues = (cue, (asked_start, asked_start + len(asked)))
        return TextSample(f"{story} {question}", answer, task, tuple(evidence), cues, split_key=story)


def random_story(rng: random.Random, held_out: bool, n_people: int | None = None) -> Story:
    """A story of `n_people` (2 to 4, drawn if None) on the wanted side of the split."""
    while True:
        n = n_people or rng.randint(2, 4)
        words = zip(rng.sample(NAMES, n), rng.sample(STORY_COLORS, n), rng.sample(OBJECTS, n), strict=True)
        story = Story(tuple(words))
        if story.held_out == held_out:
            return story


def _filled(phrasing: str, *words: str) -> tuple[str, tuple[Span, ...]]:
    """The phrasing with its braces filled, and the span of each filled-in word."""
    parts = phrasing.split("{}")
    text, spans = parts[0], []
    for word, part in zip(words, parts[1:], strict=True):
        spans.append((len(text), len(text) + len(word)))
        text += word + part
    return text, tuple(spans)


@lru_cache
def facts(task: str) -> tuple[TextSample, ...]:
    """All samples, of both sides, of a task with finitely many: "sum", "capital", "definition" or "greeting"."""
    if task == "sum":
        wanted = [(p, (str(a), str(b)), str(a + b)) for p in SUM_PHRASINGS for a in range(10) for b in range(10)]
    elif task == "capital":
        wanted = [(p, (country,), city) for p in CAPITAL_PHRASINGS for country, city in CAPITALS.items()]
    elif task == "definition":
        wanted = [(p, (thing,), text) for p in DEFINITION_PHRASINGS for thing, text in DEFINITIONS.items()]
    elif task == "greeting":
        wanted = [
            (p, (hello, name), f"Hello {name}!") for p in GREETING_PHRASINGS for hello in GREETINGS for name in NAMES
        ]
    else:
        raise ValueError(f"unknown task {task!r}: expected 'sum', 'capital', 'definition' or 'greeting'")
    samples = []
    for phrasing, words, answer in wanted:
        prompt, spans = _filled(phrasing, *words)
        samples.append(TextSample(prompt, answer, task, spans[-1:] if task == "greeting" else spans))
    if task == "greeting":
        samples += [TextSample(p, answer, task, ((0, len(p)),)) for p, answer in FIXED_ANSWERS.items()]
    return tuple(samples)


def text_samples(task: str, n: int, seed: int = 0, held_out: bool = True) -> list[TextSample]:
    """`n` different samples of one of TEXT_TASKS or UNTRAINED_TASKS from one side of the split.

    Tasks with finitely many samples give all they have on that side where that is fewer than `n`.
    """
    rng = random.Random(f"{task}/{seed}/{held_out}")
    if task not in TEXT_TASKS + UNTRAINED_TASKS:
        raise ValueError(f"unknown text task {task!r}: expected one of {', '.join(TEXT_TASKS)}")
    if not task.startswith("recall"):
        side = [sample for sample in facts(task) if sample.held_out == held_out]
        return rng.sample(side, min(n, len(side)))
    samples: dict[str, TextSample] = {}
    while len(samples) < n:
        story = random_story(rng, held_out)
        sample = story.ask(task, rng.randrange(len(story.people)))
        samples[sample.prompt] = sample
    return list(samples.values())


# -- pictures ---------------------------------------------------------------------------------------------------------

CELL_PIXELS = 32


@dataclass(frozen=True)
class Figure:
    """One coloured shape, wholly inside its cell. radius, dx and dy (offset of the centre) in pixels."""

    cell: Cell
    shape: str
    color: str
    radius: int = 12
    dx: int = 0
    dy: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture as a list of figures in reading order, at most one to a cell, on a plain grey background.

    grid: (rows, columns) of cells of 32x32 pixels. background: grey level 0..255.
    """

    figures: tuple[Figure, ...]
    background: int = 200
    grid: tuple[int, int] = (4, 4)

    def __post_init__(self):
        cells = [figure.cell for figure in self.figures]
        if cells != sorted(set(cells)):
            raise ValueError(f"figures must stand in reading order, one to a cell, got cells {cells}")
        for row, column in cells:
            if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
                raise ValueError(f"cell ({row}, {column}) is outside the grid {self.grid}")

    @property
    def held_out(self) -> bool:
        return is_held_out(repr(self))

    def image(self) -> Image.Image:
        """The picture, RGB, 32 * columns wide and 32 * rows high."""
        rows, columns = self.grid
        picture = Image.new("RGB", (CELL_PIXELS * columns, CELL_PIXELS * rows), (self.background,) * 3)
        for figure in self.figures:
            row, column = figure.cell
            mask = _shape_mask(figure.shape, figure.radius, figure.dx, figure.dy)
            picture.paste(COLORS[figure.color], (CELL_PIXELS * column, CELL_PIXELS * row), mask)
        return picture

    def without(self, cell: Cell) -> Scene:
        """The scene with the figure in `cell` painted over by the background."""
        return replace(self, figures=tuple(figure for figure in self.figures if figure.cell != cell))

    def repainted(self, cell: Cell, color: str | None = None, shape: str | None = None) -> Scene:
        """The scene with the figure in `cell` in another colour or shape."""
        changed = {"color": color, "shape": shape}
        changed = {name: value for name, value in changed.items() if value is not None}
        return replace(self, figures=tuple(replace(f, **changed) if f.cell == cell else f for f in self.figures))

    def answer(self, question: str) -> tuple[str, tuple[Cell, ...]] | None:
        """The true answer and the cells that carry it; None where the scene doesn't give exactly one answer."""
        if question in DESCRIBE_QUESTIONS:
            parts = [f"{_article(figure.color)} {figure.color} {figure.shape}" for figure in self.figures]
            text = ", ".join(parts) + "."
            return text[0].upper() + text[1:], tuple(figure.cell for figure in self.figures)
        if question == COUNT_QUESTION:
            return str(len(self.figures)), tuple(figure.cell for figure in self.figures)
        for figure in self.figures:
            if question == color_question(figure.shape) and [f.shape for f in self.figures].count(figure.shape) == 1:
                return figure.color, (figure.cell,)
            if question == shape_question(figure.color) and [f.color for f in self.figures].count(figure.color) == 1:
                return figure.shape, (figure.cell,)
        return None

    def questions(self, task: str) -> list[str]:
        """All questions of one of IMAGE_TASKS that this scene answers unambiguously."""
        candidates = {
            "color": [color_question(figure.shape) for figure in self.figures],
            "shape": [shape_question(figure.color) for figure in self.figures],
            "count": [COUNT_QUESTION],
            "describe": list(DESCRIBE_QUESTIONS),
        }[task]
        return [question for question in dict.fromkeys(candidates) if self.answer(question)]


COUNT_QUESTION = "How many shapes are there?"
DESCRIBE_QUESTIONS = ("Describe the image.", "What is this?", "What is in the image?")


def color_question(shape: str) -> str:
    """The question whose answer is the color of the picture's one `shape`."""
    return f"What color is the {shape}?"


def shape_question(color: str) -> str:
    """The question whose answer is the shape of the picture's one thing of that `color`."""
    return f"What shape is {color}?"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True)
class ImageSample:
    """One question about one picture.

    cells: (row, column) of the cells that carry the answer: the figure's own for colour and shape, all figures' for
        counting and describing (in the answer's order).
    """

    image: Image.Image = field(compare=False, repr=False)
    question: str
    answer: str
    cells: tuple[Cell, ...]
    task: str
    scene: Scene

    @property
    def held_out(self) -> bool:
        return self.scene.held_out


@lru_cache(maxsize=1024)
def _shape_mask(shape: str, radius: int, dx: int, dy: int) -> Image.Image:
    """Coverage (mode "L", one cell in size) of a shape, drawn four times larger and scaled down for smooth edges."""
    scale = 4
    mask = Image.new("L", (CELL_PIXELS * scale,) * 2, 0)
    draw = ImageDraw.Draw(mask)
    x, y, r = (CELL_PIXELS / 2 + dx) * scale, (CELL_PIXELS / 2 + dy) * scale, radius * scale
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "square":
        draw.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=255)
    elif shape == "star":
        # Corner radii alternate: sines and cosines of 36 degree steps, starting upwards.
        unit = [(0, -1), (0.588, -0.809), (0.951, -0.309), (0.951, 0.309), (0.588, 0.809), (0, 1), (-0.588, 0.809),
                (-0.951, 0.309), (-0.951, -0.309), (-0.588, -0.809)]  # fmt: skip
        lengths = [r if corner % 2 == 0 else 0.42 * r for corner in range(10)]
        draw.polygon([(x + ux * k, y + uy * k) for (ux, uy), k in zip(unit, lengths, strict=True)], fill=255)
    elif shape == "cross":
        draw.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=255)
        draw.rectangle((x - 0.35 * r, y - r, x + 0.35 * r, y + r), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}: expected one of {', '.join(SHAPES)}")
    return mask.resize((CELL_PIXELS, CELL_PIXELS), Image.Resampling.BOX)


def random_scene(
    rng: random.Random, held_out: bool, n_figures: int | None = None, grid: tuple[int, int] = (4, 4)
) -> Scene:
    """A scene of `n_figures` (1 to 4, drawn if None) on the wanted side of the split."""
    all_cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    while True:
        cells = sorted(rng.sample(all_cells, min(n_figures or rng.randint(1, 4), len(all_cells))))
        figures = tuple(
            Figure(cell, rng.choice(SHAPES), rng.choice(tuple(COLORS)), rng.randint(10, 13), rng.randint(-2, 2),
                   rng.randint(-2, 2))
            for cell in cells
        )  # fmt: skip
        scene = Scene(figures, background=rng.randrange(16, 241, 8), grid=grid)
        if scene.held_out == held_out:
            return scene


def ask_scene(scene: Scene, question: str, task: str) -> ImageSample:
    """The question about the scene with its true answer. Raises ValueError where the scene gives none or several."""
    truth = scene.answer(question)
    if truth is None:
        raise ValueError(f"{question!r} has no single answer in {scene}")
    return ImageSample(scene.image(), question, truth[0], truth[1], task, scene)


def image_samples(
    task: str, n: int, seed: int = 0, held_out: bool = True, grid: tuple[int, int] = (4, 4)
) -> list[ImageSample]:
    """`n` samples, each with a scene of its own, of one of IMAGE_TASKS from one side of the split."""
    if task not in IMAGE_TASKS:
        raise ValueError(f"unknown image task {task!r}: expected one of {', '.join(IMAGE_TASKS)}")
    rng = random.Random(f"{task}/{seed}/{held_out}/{grid}")
    samples: dict[Scene, ImageSample] = {}
    while len(samples) < n:
        scene = random_scene(rng, held_out, grid=grid)
        questions = scene.questions(task)
        if questions:
            samples[scene] = ask_scene(scene, rng.choice(questions), task)
    return list(samples.values())


# -- from the truth to token positions --------------------------------------------------------------------------------


def token_positions(offsets: list[Span], spans: tuple[Span, ...], shift: int = 0) -> tuple[int, ...]:
    """Positions of the tokens that hold any character of any of the spans, ascending.

    offsets: for each token its (start, end) in characters of the text that was tokenized (a fast tokenizer's
        `offset_mapping`). A token that carries the space in front of its word counts for the word.
    shift: where the text that the spans refer to starts within the tokenized text.
    """
    found = []
    for position, (start, end) in enumerate(offsets):
        if any(start < span_end + shift and span_start + shift < end for span_start, span_end in spans):
            found.append(position)
    return tuple(found)


def evidence_positions(sample: TextSample, templated: str, offsets: list[Span]) -> tuple[int, ...]:
    """Positions of the tokens that carry the answer in the templated prompt.

    templated: the text that was tokenized; it contains the sample's prompt exactly once.
    Raises ValueError otherwise, as every position would be a guess.
    """
    if templated.count(sample.prompt) != 1:
        raise ValueError(
            f"the prompt occurs {templated.count(sample.prompt)} times in the templated text, expected once"
        )
    return token_positions(offsets, sample.evidence, shift=templated.index(sample.prompt))


def cell_positions(
    input_ids: list[int], image_token_id: int, cells: tuple[Cell, ...], n_columns: int
) -> tuple[int, ...]:
    """Positions of the picture tokens that show the given cells, in the cells' order.

    input_ids: the ids of one prompt with one picture, whose tokens stand in reading order, `n_columns` to a row.
    """
    image_positions = [position for position, token in enumerate(input_ids) if token == image_token_id]
    return tuple(image_positions[row * n_columns + column] for row, column in cells)
