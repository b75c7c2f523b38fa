"""The page in gradio: its layout, what each click does, and the server that shows it. The only module that knows gradio."""

import errno
import io
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import gradio as gr

from mask_impact.app import pieces
from mask_impact.app.desk import STOPPED, Asked, Desk, Stopped, Tried
from mask_impact.app.serving import Serving
from mask_impact.errors import MaskImpactError, UsageError
from mask_impact.prompts.videos import FPS, MOST_TAKEN
from mask_impact.views.text import visible

HERE = Path(__file__).parent
PRIVATE = {"api_visibility": "private"}  # of an event: the page's own
MODEL = PRIVATE | {"concurrency_id": "model", "concurrency_limit": 1}  # events that use it wait for each other
KEPT_S = 3600  # uploads and what a tab asked, after the last use
PORTS = range(7860, 7960)  # of which the first free one is taken
WAITING = 32  # events that may wait for the model
PROGRESS = gr.Progress()
DEFAULT = Serving()
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def serve(desk: Desk, how: Serving = DEFAULT, example: tuple[str, str] | None = None) -> tuple[gr.Blocks, str]:
    """The page of a desk, served by threads of its own until `close()`; returns it and its address.

    example: (question, path of a picture) that the form begins with. The page's `share_url` is its public link, None where that
    was not asked for or could not be made. UsageError where the port is taken or the host is not here.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is told to anybody
    blocks = Page(desk, example).blocks
    blocks.queue(max_size=WAITING, api_open=False)
    port = _free_port(how)
    with _silent() if how.share else nullcontext():
        _, local, _ = blocks.launch(
            server_name=how.host, server_port=port, share=how.share, inbrowser=how.open_browser,
            max_file_size=f"{max(1, round(how.max_upload_mb * 1024))}kb",
            theme=_theme(), css=(HERE / "page.css").read_text(encoding="utf-8"), head=POLICY,
            prevent_thread_lock=True, quiet=True, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
            mcp_server=False, enable_monitoring=False, strict_cors=True,
            allowed_paths=[] if example is None else [str(Path(example[1]).resolve())],
        )  # fmt: skip
    return blocks, local


@contextmanager
def _silent() -> Iterator[None]:
    """gradio prints about links, also about those that it could not make."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _free_port(how: Serving) -> int:
    """A port that the page can be served at; UsageError where there is none, or no such address."""
    for port in PORTS if how.port is None else (how.port,):
        try:
            with socket.create_server((how.host, port), family=socket.AF_INET6 if ":" in how.host else socket.AF_INET):
                return port
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (while")[0]
            if error.errno != errno.EADDRINUSE:
                break
    where = f"{how.host}, port {how.port}" if how.port else how.host
    raise UsageError(f"the page can't be served at {where}: {reason}; give another host or port")


# The browser loads nothing from anywhere else, whatever gradio's own scripts ask for.
POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "form-action 'self'; base-uri 'self'\">"
)


def _theme() -> gr.themes.Base:
    """Quiet colours, and the system's own fonts: none is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.purple, neutral_hue=gr.themes.colors.zinc, font=FONT, font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg,
    )  # fmt: skip


class Page:
    """The layout, and what each click does. blocks: of gradio."""

    def __init__(self, desk: Desk, example: tuple[str, str] | None = None) -> None:
        self._desk = desk
        model = desk.model.model
        dtype = str(model.dtype).removeprefix("torch.")
        title = f"mask-impact: {desk.model.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as self.blocks:
            gr.HTML(pieces.intro(desk.model.name, str(model.device), dtype, desk.takes_pictures))
            if desk.folder is None:
                self._asking(example)
            else:
                with gr.Tab("Ask"):
                    self._asking(example)
                with gr.Tab("Stored results"):
                    self._stored()
            self.blocks.unload(self._left)

    # --- layout ---------------------------------------------------------------------------------------------------------------

    def _asking(self, example: tuple[str, str] | None) -> None:
        question, picture = example or (None, None)
        asked, tries = gr.State(time_to_live=KEPT_S), gr.State(time_to_live=KEPT_S)
        with gr.Row(elem_classes="app-ask"):
            files = gr.Gallery(
                value=None if picture is None else [picture], label="Pictures and videos", file_types=["image", "video"],
                type="filepath",
                interactive=True, columns=3, height=220, object_fit="contain", buttons=[], sources=["upload", "clipboard"],
                fit_columns=False, visible=self._desk.takes_pictures, scale=2, min_width=260, elem_id="pictures",
            )  # fmt: skip
            with gr.Column(scale=3, min_width=300):
                text = gr.Textbox(
                    value=question, label="Question", lines=3, max_lines=12, elem_id="question",
                    placeholder="What color is the star?" if self._desk.takes_pictures else "What is the capital of France?",
                )  # fmt: skip
                with gr.Row(visible=self._desk.takes_pictures):
                    fps = gr.Number(
                        FPS, label="Of a video: frames of each second", minimum=0.01, min_width=160, elem_id="fps"
                    )
                    frames = gr.Number(
                        MOST_TAKEN, label="at most", precision=0, minimum=1, min_width=100, elem_id="frames"
                    )
                with gr.Row(elem_classes="app-buttons"):
                    ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=90)
                    compare = gr.Button("Ask and compare", interactive=False, elem_id="compare", min_width=150)
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                status = gr.HTML(elem_id="status", min_height=44)
        result = gr.HTML(elem_id="result", apply_default_css=False)
        with gr.Column(elem_id="again"):
            choose = gr.HTML(elem_id="choose", apply_default_css=False, js_on_load=_script())
            doing = gr.HTML(elem_id="doing", min_height=24)
            answers = gr.HTML(elem_id="answers", apply_default_css=False)
        shown = [asked, tries, result, choose, answers, doing, compare, status]
        waiting = [
            ask.click(self._ask, [text, files, fps, frames], shown, show_progress_on=status, **MODEL),
            compare.click(self._compare, [text, files, fps, frames, asked], shown, show_progress_on=status, **MODEL),
            choose.submit(self._hide, [asked, tries], [tries, answers, doing], show_progress_on=doing, **MODEL),
        ]
        stop.click(self._stop, None, status, queue=False, cancels=waiting, **PRIVATE)

    def _stored(self) -> None:
        with gr.Row(elem_classes="app-open"):
            name = gr.Dropdown([], label=f"Results in {self._desk.folder}", elem_id="stored", scale=3)
            again = gr.Button("Look again", elem_id="look-again", min_width=120, scale=0)
        status = gr.HTML(elem_id="stored-status")
        card = gr.HTML(elem_id="stored-card", apply_default_css=False)
        gr.on([again.click, self.blocks.load], self._list, None, [name, status], **PRIVATE)
        name.input(self._open, name, [card, status], **PRIVATE)

    # --- clicks ---------------------------------------------------------------------------------------------------------------

    def _ask(
        self, question: str, files: Any, fps: float, frames: int, request: gr.Request, progress: gr.Progress = PROGRESS
    ) -> tuple:
        return self._answered(question, files, (fps, frames), None, request, progress)

    def _compare(
        self, question: str, files: Any, fps: float, frames: int, before: Asked, request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> tuple:  # fmt: skip
        return self._answered(question, files, (fps, frames), before, request, progress)

    def _answered(
        self, question: str, files: Any, of_video: tuple[float, int], before: Asked | None, request: gr.Request,
        progress: gr.Progress,
    ) -> tuple:  # fmt: skip
        """All that is shown of a question."""

        def work() -> tuple:
            with self._desk.working(request.session_hash, progress) as watch:
                asked = self._desk.ask(question or "", [file for file, _ in files or ()], watch, *of_video)
            card = pieces.cards(asked, before)
            return asked, [], card, pieces.chooser(asked), "", "", gr.Button(interactive=True), ""

        return _guarded(work, 8)

    def _hide(
        self, asked: Asked | None, tries: list[Tried] | None, event: gr.EventData, request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> tuple:  # fmt: skip
        """One more answer without what was chosen."""

        def work() -> tuple:
            if asked is None:
                raise UsageError("ask a question first: this page was left for too long, and its answer is gone")
            if event._data.get("asked") != asked.key:
                raise UsageError("the question has changed since: choose again what to hide")
            with self._desk.working(request.session_hash, progress) as watch:
                tried = [*(tries or ()), self._desk.hide(asked, event._data.get("positions"), watch)]
            return tried, pieces.answers(tried), ""

        return _guarded(work, 3)

    def _stop(self, request: gr.Request) -> str:
        """Ends what runs; what waits in the queue is taken out of it, and both tell nothing any more."""
        self._desk.stop(request.session_hash)
        return pieces.status_line(STOPPED)

    def _left(self, request: gr.Request) -> None:
        """The tab was closed: nobody waits for its answer."""
        self._desk.stop(request.session_hash)

    def _list(self) -> tuple:
        return _guarded(lambda: (gr.Dropdown(self._desk.stored(), value=None), ""), 2)

    def _open(self, name: str) -> tuple:
        return _guarded(lambda: (pieces.stored(self._desk.open(name)), ""), 2)


def _guarded(work: Callable[[], tuple], n_outputs: int) -> tuple:
    """What the work gives; where it fails, one line as the last output, and everything else as it was."""
    try:
        return work()
    except MaskImpactError as error:
        line = pieces.status_line(str(error), wrong=not isinstance(error, Stopped))
    except Exception as error:
        print(visible(traceback.format_exc(), "\n"), file=sys.stderr)
        reason = " ".join(str(error).split())[:300]
        line = pieces.status_line(f"unexpected {type(error).__name__}: {reason} (please report it)", wrong=True)
    return (*[gr.skip()] * (n_outputs - 1), line)


def _script() -> str:
    return (HERE / "chooser.js").read_text(encoding="utf-8")
