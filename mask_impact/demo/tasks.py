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

import random
from dataclasses import dataclass
from functools import lru_cache

from mask_impact.demo.held_out import Cell, Span, is_held_out
from mask_impact.demo.pictures import COLORS

# -- words ------------------------------------------------------------------------------------------------------------

NAMES = ("Mia", "Tom", "Anna", "Ben", "Emma", "Leo", "Lily", "Max", "Nina", "Sam", "Zoe", "Jack", "Kate", "Paul", "Eva",
         "Noah")  # fmt: skip
OBJECTS = ("ball", "cup", "book", "hat", "key", "lamp", "box", "coat", "pen", "bag", "kite", "drum", "ring", "shoe",
           "chair", "boat")  # fmt: skip
STORY_COLORS = (*COLORS, "black", "white")

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
