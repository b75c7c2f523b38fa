"""The public link of the local page: only where it was asked for, said with what it means, and no loss where there is no network.

Needs gradio (the extra `serve`). Nothing here reaches a network: what would make the link is replaced.
"""

import json
import sys
import urllib.request
from types import SimpleNamespace

import pytest

import mask_impact
from mask_impact.app.desk import Desk
from mask_impact.app.serving import Serving
from mask_impact.commands import serve as command
from mask_impact.commands.main import main

gradio = pytest.importorskip("gradio")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
LINK = "https://abc.gradio.live"


@pytest.fixture(scope="module")
def desk():
    return Desk(mask_impact.load("demo"))


def no_network(**_):
    print("a line of gradio's own", file=sys.stderr)
    raise RuntimeError("Could not get share link from Gradio API Server.")


@pytest.mark.parametrize("share", [False, True])
def test_the_flag_is_what_gradio_is_told_whatever_the_environment_says(desk, monkeypatch, share):
    from mask_impact.app import page

    told = {}
    monkeypatch.setenv("GRADIO_SHARE", "true")
    monkeypatch.setattr(
        page.gr.Blocks, "launch", lambda self, **given: told.update(given) or (None, "http://here/", None)
    )
    assert page.serve(desk, Serving(share=share))[1] == "http://here/"
    assert told["share"] is share


def test_without_the_flag_no_link_is_asked_for(desk, monkeypatch):
    from mask_impact.app.page import serve

    asked = []
    monkeypatch.setenv("GRADIO_SHARE", "true")
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **given: asked.append(given) or LINK)
    page, address = serve(desk)
    page.close(verbose=False)
    assert (asked, page.share_url) == ([], None)
    assert address.startswith("http://127.0.0.1:")


def served(argv, monkeypatch, capsys, tunnel):
    """(exit code, stdout, stderr) of the command, which is ended once its page has been read."""
    pages = []

    def read_and_end(_):
        pages.append(urllib.request.urlopen(address[0], timeout=20).read())
        raise KeyboardInterrupt

    address = []
    say = command.say
    monkeypatch.setattr(command, "say", lambda text: (address.append(find(text)), say(text)))
    monkeypatch.setattr("gradio.networking.setup_tunnel", tunnel)
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=read_and_end))
    code = main(["serve", "-m", "demo", *argv])
    assert b"Content-Security-Policy" in pages[0]
    return code, *capsys.readouterr()


def find(text):
    return next((word for word in text.replace('"', " ").split() if word.startswith("http://127.0.0.1:")), None)


def test_a_public_link_is_printed_with_what_it_means(monkeypatch, capsys):
    code, out, err = served(["--share", "--json"], monkeypatch, capsys, lambda **_: LINK)
    assert code == 0
    assert json.loads(out)["public"] == LINK
    (said, reach) = [line for line in err.splitlines() if line.startswith("NOTE: ")]
    assert "goes through gradio's servers and is open to anybody who has it" in said
    assert "up to a week" in said
    assert "whoever reaches the page can use the model" in reach


def test_without_a_network_the_page_is_served_and_one_line_says_so(monkeypatch, capsys):
    code, out, err = served(["--share", "--json"], monkeypatch, capsys, no_network)
    assert code == 0
    assert set(json.loads(out)) == {"address"}
    (said,) = [line for line in err.splitlines() if line.startswith("NOTE: ")]
    assert said == "NOTE: gradio could not make a public link (is there a network?); the page is served without one"
    assert "Traceback" not in err
    assert "gradio's own" not in err
