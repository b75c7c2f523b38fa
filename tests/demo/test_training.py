"""What the demo checkpoints are trained on is what the program gives a model, and a stage starts where another ended."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

import mask_impact
from mask_impact import demo
from mask_impact.demo import moving, pictures, tasks, wholes
from mask_impact.prompts.encoding import encode
from mask_impact.prompts.images import read_picture
from mask_impact.prompts.videos import read_video

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import train_demo
from demo_training import easy, evaluation, lessons, models, sequences, tower
from demo_training.tokenizer import LATER_ANSWERS, LATER_STARTS, LATER_WORDS, build_tokenizer, extended

SEED = 2024


@pytest.fixture(scope="module")
def base():
    return build_tokenizer()


@pytest.fixture(scope="module")
def tokenizer(base):
    return extended(base)


@pytest.fixture(scope="module")
def loaded():
    return mask_impact.load("demo", kind="vl", device="cpu", dtype="float32")


@pytest.fixture
def small(tokenizer):
    """A model of two layers."""
    torch.manual_seed(0)
    return models.build_model("vl", 2, tokenizer).eval()


# -- the tokenizer ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_made_again_as_it_is_bundled(base):
    bundled = AutoTokenizer.from_pretrained(demo.TEXT_PATH)
    assert base.backend_tokenizer.to_str() == bundled.backend_tokenizer.to_str()


def test_later_words_are_one_token_each_behind_all_others(base, tokenizer):
    words = [*LATER_ANSWERS, *LATER_STARTS, *(f" {word}" for word in (*LATER_ANSWERS, *LATER_WORDS))]
    ids = [tokenizer(word)["input_ids"] for word in words]
    assert all(len(one) == 1 for one in ids)
    later = [word for word, (one,) in zip(words, ids, strict=True) if one >= len(base)]
    assert later == [word for word in words if len(base(word)["input_ids"]) > 1]
    assert len(later) > 0.8 * len(words)
    assert base.get_vocab().items() <= tokenizer.get_vocab().items()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_no_earlier_prompt_or_answer_is_split_otherwise(base, tokenizer):
    samples = [sample for task in tasks.TEXT_TASKS for sample in tasks.text_samples(task, 200, SEED, held_out=False)]
    texts = [text for sample in samples for text in (sample.prompt + sample.raw_answer, sample.answer)]
    for task in pictures.IMAGE_TASKS:
        shown = pictures.image_samples(task, 30, SEED, held_out=False)
        texts += [f"{sample.question}\n{sample.answer}" for sample in shown]
    assert base(texts)["input_ids"] == tokenizer(texts)["input_ids"]


# -- sequences --------------------------------------------------------------------------------------------------------


def same_inputs(loaded, seen, question, sequence):
    """Whether the program's inputs are those of a training sequence, up to its answer."""
    theirs = encode(loaded, question, [seen]).inputs
    batch = sequences.collate([sequence], loaded.tokenizer, models.image_processor())
    n = theirs["input_ids"].shape[1]
    assert (batch.labels[0] != sequences.IGNORED).nonzero()[0] == n - 1
    for name, value in batch.inputs.items():
        own = value[:, :n] if value.ndim == 2 and name in ("input_ids", "mm_token_type_ids") else value
        torch.testing.assert_close(own.to(theirs[name].dtype), theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", moving.MOVING_TASKS)
def test_films_are_trained_on_as_the_program_gives_them_to_a_model(loaded, task):
    for sample in moving.moving_samples(task, 6, SEED):
        sequence = sequences.film_chat([(sample.question, sample.answer)], sample.film)
        same_inputs(loaded, read_video(list(sample.film.frames())), sample.question, sequence)


def test_pictures_are_trained_on_as_the_program_gives_them_to_a_model(loaded):
    for task in wholes.WHOLE_TASKS:
        (sample,) = wholes.whole_samples(task, 1, SEED)
        sequence = sequences.chat([(sample.question, sample.answer)], sample.scene)
        same_inputs(loaded, read_picture(sample.image), sample.question, sequence)


@pytest.mark.parametrize("kind", [one for one in lessons.LESSONS if not one.startswith("easy")])
def test_lessons_are_of_the_training_side_and_true(kind, monkeypatch):
    asked = []
    for module, name in ((wholes, "is_held_out"), (moving, "is_held_out"), (pictures, "is_held_out")):
        known = getattr(module, name)
        monkeypatch.setattr(module, name, lambda key, known=known: asked.append(known(key)) or asked[-1])
    drawn = lessons.lesson(kind, random.Random(SEED), 40)
    assert len(drawn) >= 40
    assert asked.count(False) >= 40
    answers = {sequence.pieces[1][0].removesuffix("<|im_end|>") for sequence in drawn}
    known = {*wholes.ROUND_CORNERS, *pictures.SHAPES, *pictures.COLORS, *moving.DIRECTIONS}
    assert len(answers) > 3
    assert answers <= known


@torch.no_grad()
def test_hidden_cells_are_seen_by_no_other_token_and_positions_stay(small, tokenizer):
    """Held against other pixels in these cells: what is behind them does not change."""
    scene, other = (wholes.random_large_scene(random.Random(seed), held_out=False) for seed in (1, 2))
    turns = [(wholes.LARGE_QUESTION, "arch")]
    states = []
    for shown in (scene, other):
        cells = tuple((row, column) for row in range(4) for column in range(4))
        whole = sequences.chat(turns, shown, hidden=cells)
        batch = sequences.collate([whole], tokenizer, models.image_processor())
        visible = sequences.Batch(batch.inputs, batch.labels)
        states.append([evaluation.last_hidden_state(small, one)[0, -8:] for one in (batch, visible)])
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.allclose(states[0][1], states[1][1])
    nothing = sequences.Batch(batch.inputs, batch.labels, torch.zeros_like(batch.hidden))
    torch.testing.assert_close(evaluation.last_hidden_state(small, nothing)[0, -8:], states[1][1], rtol=1e-4, atol=1e-5)


def test_easy_vqa_is_read_as_it_is():
    pytest.importorskip("easy_vqa")
    train, test = easy.pictures("train"), easy.pictures("test")
    assert (len(train), len(test)) == (4000, 1000)
    assert sum(len(one.turns) for one in train + test) == 48248
    assert train[0].turns[0] == ("what is the blue shape?", "rectangle")
    assert train[0].image().size == (64, 64)
    assert not {one.path for one in train} & {one.path for one in test}
    sequence = lessons.lesson("easy", random.Random(0), 1)[0]
    assert sequence.pieces[0][0].count("<|image_pad|>") == 4


def test_questions_made_about_easy_vqa_are_answered_as_it_answers_them():
    pytest.importorskip("easy_vqa")
    own = {picture.path: dict(picture.turns) for picture in easy.pictures("train")}
    rng, answers = random.Random(SEED), set()
    for picture in easy.known() * 3:
        shown = easy.Shown(picture)
        for question, answer in [easy.question_about(shown, rng), *easy.quiz_about(shown, rng, short=False)]:
            assert own[picture.path].get(question, answer) == answer
            answers |= {answer} if question in own[picture.path] else set()
    assert answers == {"yes", "no", *easy.SHAPES, *easy.COLORS}


def test_a_short_quiz_names_what_is_shown_and_what_is_not():
    shown = easy.Shown(easy.Known("", "circle", "teal"))
    for seed in range(20):
        quiz = dict(easy.quiz_about(shown, random.Random(seed), short=True))
        assert {question for question, answer in quiz.items() if answer == "yes"} == {" circle?", " teal?"}
        assert set(quiz.values()) == {"yes", "no"}
        assert len(quiz) == 7


def test_easy_vqa_is_watched_on_pictures_that_are_not_trained_on():
    pytest.importorskip("easy_vqa")
    watched = {picture.path for picture, _, _ in easy.watched_samples(10_000)}
    assert len(watched) == 400
    assert not watched & {picture.path for picture in easy.known()}
    assert not watched & {picture.path for picture in easy.pictures("test")}
    assert {picture.path for picture in easy.known(held_out=True)} <= watched


def test_a_moved_figure_is_whole_and_of_its_colors(monkeypatch):
    pixels = np.full((64, 64, 3), 240, dtype=np.uint8)
    pixels[3:20, 50:60] = (255, 0, 0)
    monkeypatch.setattr(easy, "_pixels", lambda path: pixels)
    monkeypatch.setattr(easy, "known", lambda: (easy.Known("", "rectangle", "red"),))
    places = set()
    for seed in range(60):
        shown = np.asarray(easy.random_shown(random.Random(seed)).image())
        red = (shown == (255, 0, 0)).all(-1)
        rows, columns = red.any(1).nonzero()[0], red.any(0).nonzero()[0]
        assert (np.ptp(rows), np.ptp(columns), red.sum()) == (16, 9, 170)
        places.add((rows[0], columns[0]))
    assert len(places) > 50


# -- stages -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_stage_begins_from_a_given_checkpoint_and_knows_more_words(tmp_path, base, tokenizer):
    options = train_demo.parse_arguments(["--given", f"vl={demo.VL_PATH}", "--work", str(tmp_path)])
    bundled = AutoModelForImageTextToText.from_pretrained(demo.VL_PATH, dtype=torch.float32)
    begun = train_demo.initial_model(train_demo.STAGES["tower"], tokenizer, options)
    before, after = bundled.state_dict(), begun.state_dict()
    words = [name for name in after if before[name].shape != after[name].shape]
    for name in after:
        assert torch.equal(before[name][: len(base)], after[name][: len(base)])
    assert all("embed_tokens" in name or "lm_head" in name for name in words)


def test_a_given_checkpoint_that_is_none_is_refused(capsys):
    for given in ("vl=nowhere", f"nothing={demo.VL_PATH}"):
        with pytest.raises(SystemExit):
            train_demo.parse_arguments(["--given", given])
        assert "STAGE=DIR is accepted" in capsys.readouterr().err


@pytest.mark.parametrize("name", train_demo.TOWER_LESSONS)
def test_the_tower_lesson_changes_the_tower_alone_and_goes_on_from_its_state(small, name, monkeypatch):
    if name == "easy":
        pytest.importorskip("easy_vqa")
        monkeypatch.setattr(tower, "N_EASY", 8)
    lesson = train_demo.TOWER_LESSONS[name](small, models.image_processor(), "cpu")
    before = {name: value.clone() for name, value in small.state_dict().items()}
    optimizer = torch.optim.SGD(lesson.parameters(), lr=0.1)
    train_demo.training_step(optimizer, lesson.loss(random.Random(1)))
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("model.visual.") for name in changed)
    again = train_demo.TOWER_LESSONS[name](small, models.image_processor(), "cpu")
    again.load_state_dict(lesson.state_dict())
    with torch.no_grad():
        assert again.loss(random.Random(2)) == lesson.loss(random.Random(2))
    assert lesson.last["drift"] > 0
