"""The work behind the local page without gradio: asking, hiding, stopping, stored results, and that every text is escaped."""

import os
import sys
import threading
from pathlib import Path

import pytest

import mask_impact
from mask_impact.app import pieces
from mask_impact.app.desk import MOST_CHARACTERS, MOST_PICTURES, Desk, Stopped, Watch
from mask_impact.commands import main, serve
from mask_impact.errors import InputError, OutputError
from mask_impact.results.explanation_files import save_explanation
from mask_impact.views.text import percent

PICTURE = str(Path(__file__).parents[2] / "examples" / "shapes.png")
VIDEO = str(Path(__file__).parents[2] / "examples" / "shapes.gif")
QUESTION = "What color is the star?"
SPITE = 'What color is <img src=x onerror=alert(1)> "${alert(2)}"?'


@pytest.fixture(scope="module")
def desk():
    return Desk(mask_impact.load("demo", dtype="float32"), num_tokens=3, budget=6)


@pytest.fixture(scope="module")
def asked(desk):
    return desk.ask(QUESTION, [PICTURE], Watch())


def position(asked, word):
    (found,) = (one for one in asked.words if one.name.strip() == word)
    return found.positions[0]


# --- questions ------------------------------------------------------------------------------------------------------------


def test_a_question_gives_what_the_python_function_gives(desk, asked):
    found = mask_impact.explain(desk.model, QUESTION, images=PICTURE, num_tokens=3, budget=6)
    assert asked.found.generated_text == found.generated_text == "orange"
    assert asked.found.targets[0].contribution.tolist() == found.targets[0].contribution.tolist()
    assert [word.name.strip() for word in asked.words] == ["What", "color", "is", "the", "star", "?"]


def test_a_video_is_asked_about_as_the_python_function_does_and_its_cells_are_hidden(desk):
    asked = desk.ask(QUESTION, [VIDEO], Watch(), 1.0, 8)
    found = mask_impact.explain(desk.model, QUESTION, videos=VIDEO, video_fps=1, video_frames=8, num_tokens=3, budget=6)
    assert asked.found.targets[0].contribution.tolist() == found.targets[0].contribution.tolist()
    assert [image.source.partition(",")[0] for image in asked.found.images] == ["shapes.gif"] * 2
    cells = [at for at in range(asked.found.n_prompt) if asked.found.tokens.image[at] == 1]
    assert desk.hide(asked, cells, Watch()).name == "frames 2-3"


def test_what_is_wrong_with_a_video_is_one_line(desk, tmp_path, monkeypatch):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 64)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"^video 'film.mp4' needs the package av \(PyAV\): pip install .*$"):
        desk.ask(QUESTION, [str(film)], Watch())
    with pytest.raises(InputError, match="of a video 1 to 256 frames are taken, not 0"):
        desk.ask(QUESTION, [VIDEO], Watch(), 1.0, 0)


def test_hiding_gives_the_answer_of_without_and_says_what_was_hidden(desk, asked):
    star = position(asked, "star")
    tried = desk.hide(asked, [star], Watch())
    found = mask_impact.without(desk.model, QUESTION, "star", images=PICTURE, num_tokens=3)
    assert tried.whatif.others[0].text == found.others[0].text != found.answer.text
    assert tried.whatif.others[0].probability == found.others[0].probability
    assert (tried.name, tried.whatif.others[0].positions) == ("“star”", (star,))


def test_cells_are_hidden_with_words(desk, asked):
    cells = [at for at in range(asked.found.n_prompt) if asked.found.tokens.image[at] == 0]
    tried = desk.hide(asked, [*reversed(cells[:3]), cells[5], position(asked, "is")], Watch())
    assert tried.name == "“is” + 4 cells of the picture"
    assert tried.whatif.others[0].positions == (*cells[:3], cells[5], position(asked, "is"))
    assert desk.hide(asked, cells, Watch()).name == "the picture"


@pytest.mark.parametrize("chosen", [[], None, "3", [-1], [10_000], [1.0], [True], [None], {"a": 1}])
def test_positions_from_a_browser_are_checked(desk, asked, chosen):
    with pytest.raises(InputError, match=r"position|nothing is chosen"):
        desk.hide(asked, chosen, Watch())


def test_the_whole_prompt_is_not_hidden(desk, asked):
    with pytest.raises(InputError, match="whole prompt"):
        desk.hide(asked, list(range(asked.found.n_prompt)), Watch())


def test_what_cannot_be_asked_is_refused_in_one_line(desk, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match="empty"):
        desk.ask("", [PICTURE], Watch())
    with pytest.raises(InputError, match=r"'broken\.png'") as error:
        desk.ask(QUESTION, [str(broken)], Watch())
    assert str(tmp_path) not in str(error.value)
    with pytest.raises(InputError, match="characters"):
        desk.ask("a" * (MOST_CHARACTERS + 1), [], Watch())
    with pytest.raises(InputError, match="pictures"):
        desk.ask(QUESTION, [PICTURE] * (MOST_PICTURES + 1), Watch())
    with pytest.raises(InputError, match="not on this machine"):
        desk.ask(QUESTION, ["http://127.0.0.1:9/x.png"], Watch())


def test_settings_are_checked_when_the_desk_is_made(desk):
    with pytest.raises(mask_impact.MaskImpactError, match="budget"):
        Desk(desk.model, budget=0)


# --- whose turn it is -----------------------------------------------------------------------------------------------------


def test_progress_is_told_and_the_work_can_be_stopped_on_the_way(desk):
    told = []

    def tell(share, what):
        told.append((share, what))
        if what.startswith("Hiding") and share > 0:
            desk.stop("a tab")

    with pytest.raises(Stopped), desk.working("a tab", tell) as watch:
        desk.ask(QUESTION, [PICTURE], watch)
    assert [what for _, what in told][:3] == ["Waiting for the model", "Reading the question", "Answering"]
    assert all(0 <= share <= 1 for share, _ in told)
    with desk.working("a tab", lambda share, what: None) as watch:  # nothing of the stopped work is left
        assert desk.ask(QUESTION, [PICTURE], watch).found.generated_text == "orange"


def test_one_owner_at_a_time_and_who_waits_can_leave(desk):
    waits, left = threading.Event(), []

    def second():
        try:
            with desk.working("second", lambda share, what: waits.set()):
                left.append("had the model")
        except Stopped:
            left.append("stopped")

    with desk.working("first", lambda share, what: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        desk.stop("another")
        assert thread.is_alive()
        desk.stop("second")
        thread.join(10)
    assert left == ["stopped"]
    with desk.working("third", lambda share, what: None) as watch:
        desk.stop()
        with pytest.raises(Stopped):
            watch.say("more")


# --- stored results -------------------------------------------------------------------------------------------------------


def test_stored_results_are_listed_and_opened(desk, asked, tmp_path):
    save_explanation(asked.found, tmp_path / "used")
    result = mask_impact.analyze(desk.model, "What is 2+2?", answer=False, variants="full")
    result.save(tmp_path / "maps")
    for name, when in (("used.answer", 1), ("maps", 2)):
        os.utime(tmp_path / f"{name}.meta.json", (when, when))
    (tmp_path / "cut.flows.meta.json").write_text("{}")
    shelf = Desk(desk.model, str(tmp_path))
    assert shelf.stored() == ["maps", "used"]
    assert 'class="mi-card"' in pieces.stored(shelf.open("used"))
    assert pieces.stored(shelf.open("maps")).startswith('<pre class="app-summary">')
    (tmp_path / "inner").mkdir()
    inner = Desk(desk.model, str(tmp_path / "inner"))
    for name in ("../used", str(tmp_path / "used"), "nothing", "", None):
        with pytest.raises(OutputError, match="there is no result"):
            inner.open(name)
    with pytest.raises(OutputError, match="no result"):
        desk.open("used")
    with pytest.raises(OutputError, match="no folder"):
        Desk(desk.model, str(tmp_path / "missing")).stored()


# --- HTML -----------------------------------------------------------------------------------------------------------------


def test_every_text_is_escaped(desk):
    asked = desk.ask(SPITE, [PICTURE], Watch())
    tried = desk.hide(asked, [word.positions[0] for word in asked.words[3:6]], Watch())
    whole = [pieces.cards(asked), pieces.cards(asked, asked), pieces.chooser(asked), pieces.answers([tried])]
    whole += [
        pieces.status_line(SPITE, wrong=True),
        pieces.intro(SPITE, SPITE, SPITE, True),
        pieces.stored(asked.found),
    ]
    for html in whole:
        assert "<img" not in html
        assert "<script" not in html
    assert "&lt;" in pieces.chooser(asked)


def test_answers_stand_side_by_side_the_newest_first(desk, asked):
    tries = [desk.hide(asked, [position(asked, word)], Watch()) for word in ("star", "is")]
    html = pieces.answers(tries)
    assert html.index("nothing hidden") < html.index("without “is”") < html.index("without “star”")
    told = percent(asked.found.targets[0].probability)
    assert ("another answer" in html, "the same answer" in html, told in html) == (True, True, True)
    assert pieces.answers([]) == pieces.status_line("") == ""


def test_all_cells_can_be_chosen(asked):
    html = pieces.chooser(asked)
    assert html.count('class="app-cell"') == asked.found.images[0].n_tokens
    assert html.count('class="app-word"') == len(asked.words)


# --- the command ----------------------------------------------------------------------------------------------------------


def test_without_gradio_the_command_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    assert main.main(["serve", "-m", "demo"]) == 1
    assert (
        capsys.readouterr().err == "mask-impact serve: error: the page needs gradio: pip install 'mask-impact[serve]'\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "from 1 to 65535"),
        (["--max-upload-mb", "0"], "above 0"),
        (["--folder", "nowhere at all"], "not a folder"),
        (["--budget", "0"], "budget"),
    ],
)
def test_wrong_usage_is_refused_before_a_model_is_loaded(capsys, monkeypatch, words, said):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serve.single, "load_model", lambda *args: pytest.fail("a model was loaded"))
    assert main.main(["serve", *words]) == 2
    assert said in capsys.readouterr().err
