"""Ask by clicks: a local page on one loaded model, with the stored results of a folder."""

import argparse
import importlib.util
import time
from pathlib import Path

from mask_impact.analyses.settings import ANSWER_TOKENS, SETTINGS, Place, RunSettings
from mask_impact.app.serving import Serving
from mask_impact.commands import options, single
from mask_impact.commands.caller import Caller
from mask_impact.commands.console import note, say
from mask_impact.commands.narration import Progress, silence
from mask_impact.errors import ModelError, UsageError
from mask_impact.views.summary_json import to_text

LARGEST_PORT = 65535
OF_RUNS = ("num_tokens", "budget", "max_image_resolution")
OF_MODEL = ("model", "device", "dtype", "revision", "device_map")
HOME = ("127.0.0.1", "localhost", "::1")

SHARED = (
    "the public link goes through gradio's servers and is open to anybody who has it, until Ctrl+C or for up to a week, as "
    "gradio says; pictures and questions pass there too"
)
NOT_SHARED = "gradio could not make a public link (is there a network?); the page is served without one"

EPILOG = """\
The page shows the evidence card of an answer. Click words, or draw a box on the picture, to hide
them and ask again. One question is answered at a time; Stop, or closing the tab, ends it.

Only this machine can open the page, unless --host or --share says otherwise. It needs gradio:
pip install 'mask-impact[serve]'

examples:
  mask-impact serve -m demo --open
  mask-impact serve -m Qwen/Qwen3-VL-4B-Instruct --folder output --port 8080
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `mask-impact serve`."""
    groups = options.Groups(parser)
    for name in (*OF_RUNS, *OF_MODEL):
        default = str(ANSWER_TOKENS) if name == "num_tokens" else None
        options.add_setting(groups, SETTINGS[name], default=default)
    add = groups["the page"]
    add("--folder", metavar="DIR", help="also show the stored results of this folder, such as output")
    add(
        "--host",
        metavar="H",
        default=Serving.host,
        help="address to serve at; 0.0.0.0 lets other machines in (default: %(default)s)",
    )
    add("--port", metavar="P", type=_port, help="port to serve at (default: the first free one from 7860)")
    add(
        "--share",
        action="store_true",
        help="also make a public link, which goes through gradio's servers: whoever has it can use the page, for up to a week",
    )
    add("--open", action="store_true", help="open the page in the browser")
    add(
        "--max-upload-mb", metavar="MB", type=options.above_zero, default=Serving.max_upload_mb,
        help="refuse pictures whose files are larger (default: %(default)g)",
    )  # fmt: skip
    options.add_talk(groups, loads=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9) or not 1 <= int(text) <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {LARGEST_PORT}, not {text!r}")
    return int(text)


def run(args: argparse.Namespace, caller: Caller, command: str) -> int:
    """Loads the model, serves the page and prints its address, until Ctrl+C."""
    if importlib.util.find_spec("gradio") is None:
        raise ModelError("the page needs gradio: pip install 'mask-impact[serve]'")
    if args.folder is not None and not Path(args.folder).is_dir():
        raise UsageError(f"--folder '{args.folder}' is not a folder; runs write their results into one, such as output")
    place, given = Place(**options.given(args, Place)), options.given(args, RunSettings)
    silent = args.quiet or args.json
    loaded = single.load_model(caller, place, Progress(args.quiet, args.verbose), silence if silent else say)

    from mask_impact.app.desk import Desk
    from mask_impact.app.page import serve

    desk = Desk(loaded, args.folder, **given)
    page, address = serve(desk, Serving(args.host, args.port, args.share, args.open, args.max_upload_mb))
    public = page.share_url
    try:
        if args.share:
            note(SHARED if public else NOT_SHARED)
        if public or args.host not in HOME:
            note(
                "whoever reaches the page can use the model"
                + " and see the folder's results" * (args.folder is not None)
            )
        if args.json:
            say(to_text({"address": address} | ({"public": public} if public else {})))
        elif not args.quiet:
            say(f"Serving at {address}{f' and {public}' if public else ''} (Ctrl+C ends it)")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    finally:
        desk.stop()
        page.close(verbose=False)
