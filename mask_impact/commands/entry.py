"""Where a process of the command line begins: Ctrl-C and SIGTERM end it in one line from its first moment on.

Nothing is imported before that but Python's own modules; reading a command's imports takes most of a second.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from mask_impact.studies.signals import ended_by


def main(argv: Sequence[str] | None = None) -> int:
    """The command `mask-impact`; returns the exit code."""
    return _enter("mask-impact", "main", "main", argv)


def main_vl(argv: Sequence[str] | None = None) -> int:
    """The script `mask_impact_vl.py`; returns the exit code."""
    return _enter("mask_impact_vl.py", "scripts", "main_vl", argv)


def main_text(argv: Sequence[str] | None = None) -> int:
    """The script `mask_impact_analysis.py`; returns the exit code."""
    return _enter("mask_impact_analysis.py", "scripts", "main_text", argv)


def _enter(program: str, module: str, name: str, argv: Sequence[str] | None) -> int:
    def end(number: int, frame: Any) -> NoReturn:
        os.write(2, f"{program}: interrupted\n".encode())
        os._exit(130)

    for descriptor in range(3):  # of one that is closed the number would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    with ended_by(end):
        command = getattr(importlib.import_module(f"mask_impact.commands.{module}"), name)
        return command(argv)
