"""Every error that mask-impact raises on purpose, in one family.

    MaskImpactError
    ├── UsageError            a flag or argument that cannot be right, whatever the model (exit 2)
    ├── InputError            a prompt or a file that cannot be used
    ├── ModelError            a model that cannot be had, or cannot be read
    │   └── UnsupportedArchitecture   a model whose decoder layers are not in the table of architectures
    ├── DeviceError           a device that is not there, or memory that does not suffice
    ├── OutputError           a place that cannot be written, a result that cannot be read
    ├── WorkerError           a worker of a study that ended, or did not get on
    └── ExactnessError        the self-check or the activations themselves: no numbers can be given

A message is one line and says what was wrong, where, and what would be accepted. This module knows nothing else of the
package.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class MaskImpactError(Exception):
    """Base of the family; `exit_code` is what a script returns when it ends with this error."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(told(message))


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


class WorkerError(MaskImpactError):
    """Workers of a study that can't be had, that ended or did not get on."""


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


LONGEST_WORD = 200  # of a message: a path or a value that is longer is cut in the middle
LONGEST_MESSAGE = 4000
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+?(?=[]'\"`),;:.]*(?:\s|$))", re.IGNORECASE)


def told(message: str) -> str:
    """A message as it is told: long words cut in the middle, and addresses as `public_address` has them. Telling it again
    changes nothing."""
    message = _ADDRESS.sub(lambda found: public_address(found[0]), message)
    message = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda found: _cut(found[0], LONGEST_WORD), message)
    return _cut(message, LONGEST_MESSAGE)


def _cut(text: str, most: int) -> str:
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def public_address(address: str) -> str:
    """Scheme, host and path of an address: what else it has may be a password, a key or a signature."""
    found = re.match(r"([a-z][a-z0-9+.-]*://)(?:[^/?#]*@)?([^/?#]*)([^?#]*)", address, re.IGNORECASE)
    if found is None or "".join(found.groups()) == address:
        return address
    return f"{''.join(found.groups())} {LEFT_OUT}"


LEFT_OUT = "(the rest of the address is left out)"


def described(value: Any) -> str:
    """A value of a file in words, as in "must be text, not the number 5"."""
    if isinstance(value, bool):  # before int, which it is too
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {digits(value)[:60]}"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    kind = type(value).__name__
    return "an empty list" if value == [] else {"NoneType": "null", "dict": "a mapping"}.get(kind, f"a {kind}")


def digits(value: float) -> str:
    """A number as text, and of a whole number that Python does not write out its size."""
    try:
        return repr(value)
    except ValueError:
        return f"of {value.bit_length()} bits"


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


def ranges(numbers: Iterable[int], between: str = ",") -> str:
    """Whole numbers in ascending order, runs of them from first to last: 0-5,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return between.join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


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
