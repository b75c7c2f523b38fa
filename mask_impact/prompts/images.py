"""From what names a picture (a path, an address, an object) to the RGB image that a processor takes.

Nothing is guessed and nothing leaks: a picture that can't be read whole is an error of one line, whatever Pillow raises
on it, and Pillow's warnings stay inside. Colour profiles are not applied, as the models' own loaders apply none. Knows
Pillow and numpy; knows no model.
"""

import base64
import http.client
import io
import logging
import os
import queue
import re
import string
import threading
import time
import urllib.error
import urllib.request
import warnings
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mask_impact.errors import InputError, UsageError, public_address
from mask_impact.prompts.marks import is_data
from mask_impact.results.inputs import IMAGE, open_file

ACCEPTED = "a PNG, JPEG, WebP, GIF, BMP or TIFF file is accepted"
MAX_REMOTE_BYTES = 64 * 2**20
TIMEOUT_S = 30.0  # of silence
TOTAL_S = 60.0  # of the whole download

# Pillow logs some errors besides raising them; without a handler, Python would print these.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Picture:
    """A picture as a model gets it. `image` is RGB, upright, within `max_resolution`, and carries no metadata; `source`
    is how it was named (path as given, `public_address` of a URL, "image" for objects); `size` is (width, height) of the
    original in pixels, upright too."""

    image: Image.Image
    source: str
    size: tuple[int, int]


def read_pictures(
    sources: Sequence, *, max_resolution: int | None = None, allow_remote: bool = False
) -> tuple[Picture, ...]:
    """Each of `sources` as `read_picture` reads it, in their order."""
    return tuple(read_picture(source, max_resolution=max_resolution, allow_remote=allow_remote) for source in sources)


def read_picture(
    source, *, max_resolution: int | None = None, allow_remote: bool = False, name: str | None = None
) -> Picture:
    """The picture that `source` names: a path, an http(s) URL, a data: address, a PIL image (left as it is), or an array.

    Arrays are uint8 [height, width], [height, width, 1 | 3 | 4], or bool [height, width]. Of several frames the first is
    read (of a PIL image, the one it is at). EXIF orientation is applied and transparency composed on white. Grey that is
    wider than 8 bits is scaled: I;16 always by its 16 bits, I and F by the smallest of the ranges 0..255 and 0..65535,
    F also 0..1, that holds all of its values.

    `max_resolution`: the longest edge in pixels; what is longer is scaled down, aspect kept. `allow_remote`: whether a
    URL may be fetched. `name`: what a file is called, where that is not its path. Raises InputError for what can't be fetched
    or read whole, UsageError for a `max_resolution` below 1.
    """
    if max_resolution is not None and max_resolution < 1:
        raise UsageError(f"`max_image_resolution` must be at least 1, not {max_resolution}")
    if isinstance(source, np.ndarray):
        name, image = "image", _decoded("image", _from_array(source))
    elif isinstance(source, Image.Image):
        name, image = "image", _decoded("image", source)
    elif isinstance(source, str | os.PathLike):
        remote = isinstance(source, str) and re.match("https?://", source, re.IGNORECASE)
        path = os.fsdecode(source)
        if is_data(path):
            file, name = _written_out(path), f"{path[:40]}..."
        else:
            name = name or (public_address(path) if remote else path)
            file = _fetched(path, allow_remote) if remote else _opened(path, name)
        with file:
            image = _decoded(name, file)
    else:
        raise InputError(f"an image is a path, a URL, a PIL image or a numpy array, not {type(source).__name__}")
    return Picture(_shrunk(image, max_resolution or max(image.size)), name, image.size)


def preview(picture_image: Image.Image, longest_edge: int = 1024) -> bytes:
    """A JPEG file of a `Picture.image`, to look at later: at most `longest_edge` pixels long, never enlarged. The same
    pixels give the same bytes."""
    file = io.BytesIO()
    _shrunk(picture_image, longest_edge).save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def part_of(image: Image.Image, region: tuple[float, float, float, float]) -> Image.Image:
    """What of a picture lies in a region (left, top, right, bottom, in shares of width and height); black beyond its sides."""
    left, top, right, bottom = region
    left, top = round(left * image.width), round(top * image.height)
    right, bottom = max(left + 1, round(right * image.width)), max(top + 1, round(bottom * image.height))
    return image.crop((left, top, right, bottom))


# --- getting at it --------------------------------------------------------------------------------------------------------


def _from_array(array: np.ndarray) -> Image.Image:
    kind = (array.dtype.name, array.ndim, *array.shape[2:])
    if kind not in (("uint8", 2), ("uint8", 3, 1), ("uint8", 3, 3), ("uint8", 3, 4), ("bool", 2)) or not array.size:
        raise InputError(
            f"an array of {array.dtype} {list(array.shape)} is no image; "
            "uint8 [height, width], [height, width, 1 | 3 | 4] and bool [height, width] are accepted, none of them empty"
        )
    array = array[..., 0] if kind[2:] == (1,) else array
    return Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)


def _opened(path: str, name: str) -> BinaryIO:
    try:
        return open_file(path, IMAGE)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or characters that no file name can have
        shown = name if len(name) <= 400 else name[:400] + "..."  # a data: URL is the whole picture
        if os.path.isdir(path):
            problem = "is a folder; name the files in it"
        elif re.match("[a-z][a-z0-9+.-]+:", name, re.IGNORECASE):
            problem = "is no file, and of URLs only those that begin with http:// or https:// are accepted"
        elif isinstance(error, FileNotFoundError):
            problem = f"does not exist; {ACCEPTED}"
        else:
            problem = f"cannot be opened: {reason(error)}; {ACCEPTED}"
        raise InputError(f"image '{shown}' {problem}") from error


def _written_out(address: str) -> BinaryIO:
    """The file that a data: address holds in base64."""
    data = address.partition(",")[2]
    if len(data) > MAX_REMOTE_BYTES * 4 // 3 + 4:
        raise InputError(
            f"image '{address[:40]}...' is longer than {MAX_REMOTE_BYTES / 2**20:g} MiB; give it as a file"
        )
    try:
        return io.BytesIO(base64.b64decode(data, validate=True))
    except ValueError:
        raise InputError(f"image '{address[:40]}...' is no base64; data:image/png;base64,... is accepted") from None


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        file.close()  # the library would read the redirecting answer whole, however long it is
        if urlsplit(url).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"it redirects to '{url}', and only http:// and https:// are accepted")
        return super().redirect_request(request, file, code, message, headers, url)


def _fetched(url: str, allow_remote: bool) -> BinaryIO:
    """What the address has, within `TOTAL_S` whatever the server does."""
    name = public_address(url)
    if not allow_remote:
        raise InputError(
            f"image '{name}' is not on this machine, and nothing is fetched unless `allow_remote` is given"
        )
    answers: queue.SimpleQueue[BinaryIO | BaseException] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            answers.put(_download(url, name))
        except BaseException as error:
            answers.put(error)

    # A thread that can be left behind: names are looked up and headers are read without a bound on all of it.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        answer = answers.get(timeout=TOTAL_S)
    except queue.Empty:
        raise InputError(f"image '{name}' cannot be fetched: it is not there whole after {TOTAL_S:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _download(url: str, name: str) -> BinaryIO:
    try:
        parts = urlsplit(url)
        parts = parts._replace(**{part: quote(getattr(parts, part), string.punctuation) for part in ("path", "query")})
        user, at, host = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=host)
        request = urllib.request.Request(parts.geturl(), headers={"User-Agent": "mask-impact", "Accept": "image/*"})
        if at:  # to this host only, wherever it redirects to
            request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
        with urllib.request.build_opener(_OnlyHttp).open(request, timeout=TIMEOUT_S) as response:
            announced = response.length or 0
            data = _content(response) if announced <= MAX_REMOTE_BYTES else b""
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = reason(cause := getattr(error, "reason", error))
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            told = f"HTTP status {error.code}, {told}"
        elif isinstance(cause, TimeoutError):
            told = f"no answer for {TIMEOUT_S:g} s"
        raise InputError(f"image '{name}' cannot be fetched: {told}") from error
    if max(announced, len(data)) > MAX_REMOTE_BYTES:  # what is announced need not be what comes
        limit = f"{MAX_REMOTE_BYTES / 2**20:g} MiB"
        raise InputError(f"image '{name}' is longer than the {limit} that are fetched at most; give it as a file")
    return io.BytesIO(data)


def _content(response: http.client.HTTPResponse) -> bytes:
    """The answer's bytes, few more than are taken where it is longer."""
    data, ends = bytearray(), time.monotonic() + TOTAL_S
    while len(data) <= MAX_REMOTE_BYTES and time.monotonic() < ends and (part := response.read1(2**16)):
        data += part
    return bytes(data)


def reason(error: object) -> str:
    """What went wrong, in one line."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return type(error).__name__ if text in ("", "None") else text.splitlines()[0]  # "None": a bare SyntaxError


# --- decoding it ----------------------------------------------------------------------------------------------------------


def _decoded(name: str, source: BinaryIO | Image.Image) -> Image.Image:
    """The whole picture, RGB and upright, as an image of its own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(source)
            if 0 in image.size:
                raise InputError(f"image '{name}' has no pixels: its size is {image.width} x {image.height}")
            if image.format == "EPS":  # a program, which Pillow would hand to Ghostscript
                raise InputError(f"image '{name}' is PostScript, which is not run; {ACCEPTED}")
            image.load()
            return _upright(_flat(image), image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"image '{name}' is in no format that can be read, or damaged; {ACCEPTED}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        found = re.search(r"\d+", str(error))  # Pillow gives the number of pixels in its message only
        n_pixels = f"{int(found[0]):,} pixels" if found else "too many pixels"
        limit = f"{Image.MAX_IMAGE_PIXELS:,} at most are accepted"
        raise InputError(f"image '{name}' has {n_pixels}; {limit}, scale it down first") from error
    except Exception as error:  # on damaged files Pillow's plug-ins raise whatever they run into
        raise InputError(f"image '{name}' cannot be read: {reason(error)}; {ACCEPTED}") from error


def _flat(image: Image.Image) -> Image.Image:
    """RGB on white, without the metadata, and never the given object itself."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(image))
    elif image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow has of it
    flat = Image.new("RGB", image.size, "white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat.paste(image, mask=image)
    else:
        flat.paste(image.convert("RGB"))
    return flat


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8 [height, width] of grey that is wider; where Pillow would clip all above 255 to white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:  # nor is NaN in there
        raise ValueError(f"its grey goes from {low:g} to {high:g}, not within 0..255 or 0..65535")
    scaled = values
    if image.mode not in ("I", "F") or high > 255:
        scaled = values // 256
    elif image.mode == "F" and high <= 1:
        scaled = values * 255
    grey = scaled.round().astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):  # one grey that counts as see-through
        grey[values == transparent] = 255
    return grey


def _upright(flat: Image.Image, original: Image.Image) -> Image.Image:
    """Only the orientation is handed on to be applied: Pillow would write the rest of the EXIF block anew, and fail where
    it is damaged. TIFF files are upright once they are loaded, so this is asked afterwards."""
    try:
        orientation = original.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block says nothing; the picture is good without it
        return flat
    flat.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(flat)


def _shrunk(image: Image.Image, longest_edge: int) -> Image.Image:
    factor = longest_edge / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(edge * factor)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
