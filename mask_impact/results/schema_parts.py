"""What meta files have in common: kinds of numbers, tokens, images, and where in a sequence something may stand.

Knows pydantic; not which file has which part. A fault is a ValueError whose text begins with the field.
"""

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST = 2**31 - 1  # of positions, layers and whatever else columns of int32 count
EXACT = 2**53 - 1  # float64, which ids are read as, has no larger whole numbers without gaps
MOST_PIXELS = 2**24  # of a preview
LARGEST = 3.4028234e38  # that float32 has
ROUNDING = 1e-3  # by so much a probability may be above 1


class Part(BaseModel):
    """Of a meta file: nothing is converted, no number is infinite; what is not named here may stand there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Exact(Part):
    """What a record is made of as it stands."""

    model_config = ConfigDict(extra="forbid")


Count = Annotated[int, Field(ge=0, le=MOST)]
Pixels = Annotated[int, Field(ge=1, le=2**24)]
Window = Annotated[int, Field(ge=1, le=MOST)]  # of layers
Id = Annotated[int, Field(ge=-1, le=EXACT)]  # of a token; -1: not known
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Size = Annotated[float, Field(ge=0)]
Single = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=LARGEST)]
Norm = Annotated[float, Field(ge=0, le=LARGEST)]
Probability = Annotated[float, Field(ge=0, le=1 + ROUNDING)]
Formats = Annotated[list[Literal["csv", "json", "parquet"]], Field(min_length=1, max_length=3)]
Texts = dict[Annotated[str, Field(pattern=r"^-?[0-9]{1,16}$")], str]  # by the id of a token
Floor = Annotated[list[Size], Field(min_length=3, max_length=3)]


class Verification(Part):
    """How exact some random places are."""

    triples: list[Annotated[list[int], Field(min_length=3, max_length=3)]]
    errors: list[float] | None = None
    error: float


class EffectSettings(Part):
    """How effects were measured."""

    window: Window | Literal["all"] = 1
    queries: str | None = None


class Run(Part):
    """What was run, as far as anything of it is used; the rest is free."""

    model: str | None = None
    prompt: str | None = None
    ablation: str | None = None
    command: str | list[str] | None = None
    notices: list[str] | None = None
    images: list[str] | None = None
    digest: str | None = None
    budget: Count = 0
    verification: Verification | None = None
    effect: EffectSettings | None = None


class RunOfFlows(Run):
    """What was run where flows were cut."""

    model: str
    ablation: str
    window: Window


class Token(Part):
    """One of the sequence. image, row, column: of a cell, all of them or none; video, frames, time_s: of a video's cell, and
    said once more by its image."""

    position: int
    id: Id
    text: str
    kind: Literal["text", "special", "image", "video"]
    image: Count | None
    row: Count | None
    column: Count | None
    box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    video: Count | None = None
    frames: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    time_s: Seconds | None = None


def _preview(text: str) -> str:
    from PIL import Image

    try:
        content = base64.b64decode(text, validate=True)
        if content:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels")
                image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no JPEG in base64 ({str(error)[:80]})") from error
    return text


class Picture(Part):
    """An image of the prompt. region: which part of it, in pixels of the original; video, frames, time_s, seconds: of a pair of a
    video's frames, all of them or none."""

    source: str
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    resized: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    grid: Annotated[list[Pixels], Field(min_length=2, max_length=2)]
    preview: Annotated[str, AfterValidator(_preview)]
    region: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    video: Count | None = None
    frames: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    time_s: Seconds | None = None
    seconds: Annotated[list[Seconds], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def is_whole(self) -> "Picture":
        """What is said of a moment is said whole, and runs forward."""
        said = (self.video, self.frames, self.seconds)
        if None in said and any(one is not None for one in said):
            raise ValueError("only some of video, frames, seconds are given")
        if self.frames and (self.frames[0] > self.frames[1] or self.seconds[0] > self.seconds[1]):
            raise ValueError("its frames or seconds run backwards")
        return self


class AgreementEntry(Exact):
    """How far estimates agree with what was measured; None where that can't be said."""

    n: Count
    rho: Annotated[float, Field(ge=-1 - ROUNDING, le=1 + ROUNDING)] | None
    same_sign: Probability | None
    ratio: float | None
    strongest_control: float | None


# --- what belongs together ----------------------------------------------------------------------------------------------------


def check_length(field: str, values: Sequence[Any], n: int, of: str) -> None:
    """ValueError where a list has not the length of what it belongs to."""
    if len(values) != n:
        raise ValueError(f"{field} has {len(values):,} entries, expected {n:,} as {of} says")


def check_below(field: str, numbers: Sequence[int], n: int, ascending: bool = False) -> None:
    """ValueError where a number is not among the n that there are, or they do not ascend."""
    for place, number in enumerate(numbers):
        if not 0 <= number < n:
            raise ValueError(f"{field}.{place} is {number}, expected 0 to {n - 1}")
        if ascending and place and number <= numbers[place - 1]:
            raise ValueError(f"{field} does not ascend: {number} stands behind {numbers[place - 1]}")


def check_tokens(tokens: Sequence[Token], images: Sequence[Picture] | None = None) -> None:
    """ValueError where tokens are not in their order, or not the cells of the images, each of them once; images None: not
    known."""
    grids = None if images is None else [image.grid for image in images]
    cells: dict[int, set[tuple[int, int]]] = {}
    for place, token in enumerate(tokens):
        if token.position != place:
            raise ValueError(f"tokens.{place}.position is {token.position}, expected {place}")
        cell = (token.image, token.row, token.column)
        known = [name for name, number in zip(("image", "row", "column"), cell, strict=True) if number is not None]
        if not known:
            continue
        if len(known) < 3:
            raise ValueError(f"tokens.{place} has only {' and '.join(known)} of image, row, column")
        if grids is None:  # a grid has a token for each of its cells
            rows = columns = n_images = len(tokens)
        else:
            n_images = len(grids)
            rows, columns = grids[token.image] if token.image < n_images else (0, 0)
        for name, number, n in zip(("image", "row", "column"), cell, (n_images, rows, columns), strict=True):
            if number >= n:
                raise ValueError(f"tokens.{place}.{name} is {number}, which no image has")
        of_image = cells.setdefault(token.image, set())
        if (token.row, token.column) in of_image:
            raise ValueError(f"tokens.{place} is row {token.row}, column {token.column} of image {token.image} again")
        of_image.add((token.row, token.column))
    for number, (rows, columns) in enumerate(grids or ()):
        if rows * columns != len(cells.get(number, ())):
            found = len(cells.get(number, ()))
            raise ValueError(f"images.{number}.grid has {rows} x {columns} cells, and tokens has {found} of them")
