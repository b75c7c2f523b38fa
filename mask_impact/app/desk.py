"""The work behind the page: questions to one loaded model, one at a time, and the stored results of a folder.

Knows the Python functions; neither gradio nor HTML. What comes from a browser is checked here.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from mask_impact.analyses import settings
from mask_impact.analyses.observer import Observer
from mask_impact.api import functions
from mask_impact.api.results import Result, WhatIf, load_result
from mask_impact.errors import InputError, MaskImpactError, OutputError, ranges, shown
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.content import content_positions
from mask_impact.prompts.groups import Group, Layout
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.videos import FPS, MOST_TAKEN, Clip, read_video
from mask_impact.results.explanation_files import load_explanation
from mask_impact.results.explanations import Explanation
from mask_impact.results.tokens import image_name

STOPPED = "stopped: nothing was changed"
POLL_S = 0.1  # between two looks whether work that waits for the model is to be stopped
MOST_PICTURES = 16
MOST_VIDEO_FRAMES = 256
FILMS = (".mp4", ".webm", ".m4v", ".mov", ".avi", ".mkv")  # which PyAV reads; GIF, WebP and PNG may be animated
MOST_CHARACTERS = 200_000  # of a question
MOST_NAMED = 6  # words that are hidden together and named one by one
META = ".meta.json"


class Stopped(MaskImpactError):
    """The work was ended by whoever asked for it."""


class Watch(Observer):
    """Follows a piece of work and ends it on demand. tell: takes the share that is done (0 to 1) and what is being done."""

    def __init__(self, tell: Callable[[float, str], object] = lambda share, what: None) -> None:
        self._tell, self._stop = tell, threading.Event()
        self._what, self._done, self._total = "", 0.0, 1.0

    def stop(self) -> None:
        """Ends the work where it next tells how far it is."""
        self._stop.set()

    def say(self, what: str, total: float = 1.0) -> None:
        """Something else is being done. Stopped."""
        self._what, self._done, self._total = what, 0.0, max(total, 1.0)
        self._advance(0.0)

    def _advance(self, amount: float) -> None:
        if self._stop.is_set():
            raise Stopped(STOPPED)
        self._done = min(self._done + amount, self._total)
        self._tell(self._done / self._total, self._what)

    def explaining(self, n_targets: int, budget: int) -> None:
        self.say("Hiding what the answer may have used", n_targets * budget)

    def forwards_done(self, forwards: float) -> None:
        self._advance(forwards)

    def answers_begin(self, n_answers: int) -> None:
        self.say("Answering again", n_answers)

    def answer_done(self) -> None:
        self._advance(1)


@dataclass(frozen=True)
class Asked:
    """A question that was answered. key: which one, for what is chosen in it; images: PIL images, upright RGB; videos: as
    the model got them; found: what its
    answer used; words: those of the prompt that can be hidden, without the chat template's."""

    question: str
    images: tuple[Any, ...]
    found: Explanation
    words: tuple[Group, ...]
    videos: tuple[Clip, ...] = ()
    key: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Tried:
    """An answer with something hidden, beside the one with nothing hidden. name: what was hidden, in words."""

    name: str
    whatif: WhatIf


class Desk:
    """One loaded model that answers one question at a time, and a folder of stored results (None: no folder).

    given: settings of `explain`, such as num_tokens and budget. A tab is whoever asks, by any name; it can stop its own work.
    """

    def __init__(self, model: LoadedModel, folder: str | None = None, **given: Any) -> None:
        settings.make_settings("explain", given)  # SettingError at once
        self.model, self.folder = model, None if folder is None else Path(folder)
        self._given = {"num_tokens": settings.ANSWER_TOKENS} | given
        self._owner = threading.Lock()
        self._at_work: dict[str, Watch] = {}

    @property
    def takes_pictures(self) -> bool:
        """Whether the model sees images."""
        return self.model.kind == "vl"

    # --- whose turn it is -----------------------------------------------------------------------------------------------------

    @contextmanager
    def working(self, tab: str, tell: Callable[[float, str], object]) -> Iterator[Watch]:
        """The model for as long as the block is open; waits until nobody else has it. Stopped."""
        watch = self._at_work[tab] = Watch(tell)
        try:
            watch.say("Waiting for the model")
            while not self._owner.acquire(timeout=POLL_S):
                watch.say("Waiting for the model")
            try:
                yield watch
            finally:
                self._owner.release()
        finally:
            if self._at_work.get(tab) is watch:
                del self._at_work[tab]

    def stop(self, tab: str | None = None) -> None:
        """Ends the work of a tab, or all work (None)."""
        for name, watch in list(self._at_work.items()):
            if tab in (None, name):
                watch.stop()

    # --- questions ------------------------------------------------------------------------------------------------------------

    def ask(
        self, question: str, files: Sequence[str], watch: Watch, fps: float = FPS, frames: int = MOST_TAKEN
    ) -> Asked:
        """The answer to a question about the pictures and videos in files, and what it used. fps, frames: of each second of a
        video how many frames are taken, and how many at most.

        InputError for a question, a picture or a video that can't be used; otherwise errors as of `mask_impact.explain`.
        """
        question = question.strip("\n")
        if len(question) > MOST_CHARACTERS:
            raise InputError(f"the question has {len(question):,} characters; {MOST_CHARACTERS:,} at most are accepted")
        if len(files) > MOST_PICTURES:
            raise InputError(f"there are {len(files)} pictures; {MOST_PICTURES} at most are accepted")
        watch.say("Reading the question")
        if not 1 <= (frames or 0) <= MOST_VIDEO_FRAMES:
            raise InputError(f"of a video 1 to {MOST_VIDEO_FRAMES} frames are taken, not {frames}")
        films = [file for file in files if _is_video(str(file))]
        images = tuple(_image(file) for file in files if file not in films)
        limit = self._given.get("max_image_resolution")
        videos = tuple(
            read_video(str(file), fps=fps or 0, most=int(frames), max_resolution=limit, name=Path(file).name)
            for file in films
        )
        watch.say("Answering")
        found = functions.explain(self.model, question, images=images, videos=videos, observer=watch, **self._given)
        return Asked(question, images, found, self._words(found), videos)

    def hide(self, asked: Asked, positions: Sequence[int], watch: Watch) -> Tried:
        """The answer again without what stands at some positions of the prompt. InputError for positions that are not there."""
        chosen = _positions(positions, asked.found.n_prompt)
        taken = {one.name for one in settings.of_command("without")}
        given = {name: value for name, value in self._given.items() if name in taken}
        whatif = functions.without(
            self.model,
            asked.question,
            f"tokens {ranges(chosen)}",
            images=asked.images,
            videos=asked.videos,
            observer=watch,
            **given,
        )
        return Tried(_named(asked, chosen), whatif)

    def _words(self, found: Explanation) -> tuple[Group, ...]:
        """Words of the prompt's content, those without a visible character left out."""

        def decode(ids: list[int]) -> str:
            return self.model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

        content = content_positions(found.tokens, found.n_prompt)
        words = Layout(found.tokens, found.images, found.n_prompt, decode).words()
        text = (word for word in words if found.tokens.kinds[word.positions[0]] == "text" and word.name.strip())
        return tuple(word for word in text if content[list(word.positions)].any())

    # --- stored results -------------------------------------------------------------------------------------------------------

    def stored(self) -> list[str]:
        """The names of the folder's results, the newest first; OutputError where the folder can't be read."""
        if self.folder is None:
            return []
        if not self.folder.is_dir():
            raise OutputError(f"there is no folder {shown(str(self.folder))}; runs write their results there")
        newest: dict[str, float] = {}
        for path in self.folder.glob(f"*{META}"):
            name = path.name.removesuffix(META).removesuffix(".answer")
            if name and not name.endswith(".flows"):
                newest[name] = max(newest.get(name, 0.0), path.stat().st_mtime)
        return sorted(newest, key=lambda name: (-newest[name], name))

    def open(self, name: str) -> Explanation | Result:
        """A stored result: what its answer used, or the result itself where that was not asked for. OutputError."""
        if self.folder is None or name not in self.stored():
            raise OutputError(f"there is no result {shown(str(name))} in the folder (any more)")
        stem = self.folder / name
        if (self.folder / f"{name}.answer{META}").is_file():
            return load_explanation(stem)
        result = load_result(stem)
        return result.answer or result


def _is_video(file: str) -> bool:
    """Whether an uploaded file is a film by its name, or an animation; others are pictures."""
    if Path(file).suffix.lower() in FILMS:
        return True
    from PIL import Image

    try:
        with Image.open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # what is wrong with it is said where it is read


def _image(file: str) -> Any:
    """The picture in an uploaded file, under its own name: where it is kept is nobody's business."""
    return read_picture(str(file), name=Path(file).name).image


def _positions(given: Any, n_prompt: int) -> tuple[int, ...]:
    """Positions of a prompt, ascending, each once. InputError."""
    if not isinstance(given, list | tuple) or not given:
        raise InputError("nothing is chosen: click words, or draw a box on a picture")
    if not all(type(one) is int and 0 <= one < n_prompt for one in given):
        raise InputError(f"positions of the prompt are whole numbers from 0 to {n_prompt - 1}")
    return tuple(sorted(set(given)))


def _named(asked: Asked, positions: tuple[int, ...]) -> str:
    """What is hidden, in words: the words of the prompt, and how many cells of which picture."""
    chosen, tokens = set(positions), asked.found.tokens
    words = [word.name.strip() for word in asked.words if chosen & set(word.positions)]
    parts = [f"“{word}”" for word in words[:MOST_NAMED]]
    parts += [f"{len(words) - MOST_NAMED} more words"] if len(words) > MOST_NAMED else []
    for number, image in enumerate(asked.found.images):
        n = sum(int(tokens.image[position]) == number for position in positions)
        which = "the picture" if len(asked.found.images) == 1 else f"picture {number}"
        if image.moment is not None:
            which = image_name(asked.found.images, number)
        if n == image.n_tokens:
            parts.append(which)
        elif n:
            parts.append(f"{n} cell{'s' * (n > 1)} of {which}")
    return " + ".join(parts) or f"{len(positions)} tokens of the template"
