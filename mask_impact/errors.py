"""Every error that mask-impact raises on purpose, in one family.

    MaskImpactError
    ├── UsageError            a flag or argument that cannot be right, whatever the model (exit 2)
    ├── InputError            a prompt or a file that cannot be used
    ├── ModelError            a model that cannot be had, or cannot be read
    │   └── UnsupportedArchitecture   a model whose decoder layers are not in the table of architectures
    ├── DeviceError           a device that is not there, or memory that does not suffice
    ├── OutputError           a place that cannot be written, a result that cannot be read
    └── ExactnessError        the self-check or the activations themselves: no numbers can be given

A message is one line and says what was wrong, where, and what would be accepted. This module knows nothing else of the
package.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class MaskImpactError(Exception):
    """Base of the family; `exit_code` is what a script returns when it ends with this error."""

    exit_code = 1


class UsageError(MaskImpactError):
    """A flag or argument that cannot be right."""

    exit_code = 2


class InputError(MaskImpactError):
    """A prompt, an image or an input file that cannot be used."""


class ModelError(MaskImpactError):
    """A model that cannot be found, downloaded or read."""


class UnsupportedArchitecture(ModelError):
    """A model whose decoder layers are not in the table of architectures."""


class DeviceError(MaskImpactError):
    """A device that is not there, or whose memory does not suffice for a single row."""


class OutputError(MaskImpactError):
    """A place that cannot be written, or a stored result that cannot be read."""


class ExactnessError(MaskImpactError):
    """The model's arithmetic could not be reproduced, or its activations are not finite."""


# How torch and others say it without an exception class of their own: on a CPU (Linux, Windows), on MPS, where a limit is set.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "not enough memory", "MPS backend out of memory", "bad_alloc", "Cannot allocate memory",
    "unable to mmap", "failed to map segment",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory. (Without torch, which this module does not import.)"""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(text in str(error) for text in _OUT_OF_MEMORY)


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust broke down: that is no Exception, and its class has no name to import."""
    return type(error).__name__ == "PanicException"


# --- words of messages ----------------------------------------------------------------------------------------------------


def described(value: Any) -> str:
    """A value of a file in words, as in "must be text, not the number 5"."""
    if isinstance(value, bool):  # before int, which it is too
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:60]}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    kind = type(value).__name__
    return "an empty list" if value == [] else {"NoneType": "null", "dict": "a mapping"}.get(kind, f"a {kind}")


def nearest(word: Any, known: Iterable[str]) -> str | None:
    """What was probably meant by a word that is none of the known ones: what alone begins so, or is spelt much alike."""
    if not isinstance(word, str) or not word:
        return None
    word, known = word.lower(), list(known)
    begun = [one for one in known if one.startswith(word)]
    return begun[0] if len(begun) == 1 else next(iter(get_close_matches(word, known, 1)), None)


def shown(text: str) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def need(what: str, value: Any, types: type | tuple[type, ...], accepted: str) -> None:
    """UsageError where an argument of a Python function is of another type. True and False are no numbers. accepted: in words."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is int):
        said = (
            "None"
            if value is None
            else f"the class {value.__name__}"
            if isinstance(value, type)
            else type(value).__name__
        )
        raise UsageError(f"{what} must be {accepted}, not {said}")
