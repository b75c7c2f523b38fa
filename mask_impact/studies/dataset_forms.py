"""Rows in the forms that others publish data in, as rows with a prompt and images: chat `messages`, LLaVA's `conversations`, and
images as Hugging Face's datasets hold them. Knows no files.

A conversation becomes ChatML, which every model's template then says in its own way. A last turn of the assistant is the answer
that the data give: it is left out, for the model to answer itself, and kept as what was expected.
"""

import base64
from collections.abc import Mapping
from typing import Any

from mask_impact.errors import InputError, described, shown
from mask_impact.findings.correctness import COLUMNS as EXPECTED
from mask_impact.prompts.marks import IMAGE_MARK, VIDEO_MARK

PROMPTS = ("prompt", "messages", "conversations")  # what a row must have one of
MAX_BYTES = 64 * 2**20  # of an image within a row
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def standard(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `prompt`, `image` and `video` as text and paths (or data: addresses); InputError for a form that can't be
    read."""
    several = row.get("images") if row.get("image") is None and isinstance(row.get("images"), list) else None
    films = row.get("videos") if row.get("video") is None and isinstance(row.get("videos"), list) else None
    left_out = {"messages", "conversations", *(["images"] if several is not None else [])}
    left_out |= {"videos"} if films is not None else set()
    plain = {key: value for key, value in row.items() if key not in left_out}
    key = next((key for key in PROMPTS if row.get(key) is not None), None)
    if key is None and "prompt" not in row:
        there = ", ".join(map(str, row)) or "nothing"
        raise InputError(f"prompt is missing; the row has {shown(there)}, and needs {' or '.join(PROMPTS)}")
    found: list[Any] = []
    found_films: list[Any] = []
    if key not in (None, "prompt"):
        plain["prompt"], answer = _chatml(key, row[key], found, found_films)
        if answer and not plain.keys() & {*EXPECTED}:
            plain[EXPECTED[0]] = answer
    elif "messages" in row or "conversations" in row:  # a column like any other, beside a prompt
        plain |= {other: row[other] for other in PROMPTS[1:] if other in row}
    given = next((one for one in (row.get("image"), several, found or None) if one is not None), None)
    if isinstance(given, list):
        plain["image"] = [_image(one) for one in given]
    elif given is not None or "image" in row:
        plain["image"] = _image(given)
    given = next((one for one in (row.get("video"), films, found_films or None) if one is not None), None)
    if given is not None:
        plain["video"] = given
    return plain


def _chatml(key: str, turns: Any, images: list[Any], videos: list[Any]) -> tuple[str, str]:
    """The conversation without its answer, and that, empty where there is none; what its parts hold of images and videos is added
    to the lists."""
    who, what = ("from", "value") if key == "conversations" else ("role", "content")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{key} must be a list of turns, each with {who} and {what}, not {described(turns)}")
    said = []
    for number, turn in enumerate(turns):
        role = _ROLES.get(turn.get(who)) if isinstance(turn.get(who), str) else None
        if role is None:
            raise InputError(
                f"turn {number} of {key} has {who} {described(turn.get(who))}; {', '.join(_ROLES)} are accepted"
            )
        said.append((role, _content(turn.get(what), f"turn {number} of {key}", images, videos)))
    _, answer = said.pop() if said[-1][0] == "assistant" and len(said) > 1 else ("", "")
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)
    return f"{turns}<|im_start|>assistant\n", answer.strip()


def _content(content: Any, where: str, images: list[Any], videos: list[Any]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [None]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(IMAGE_MARK)
            one = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key) is not None), None)
            if one is not None:
                images.append(one["url"] if isinstance(one, dict) and "url" in one else one)
        elif kind in ("video", "video_url"):
            texts.append(VIDEO_MARK)
            one = next((part[key] for key in ("video", "video_url", "url", "path") if part.get(key) is not None), None)
            if one is not None:
                videos.append(one["url"] if isinstance(one, dict) and "url" in one else one)
        else:
            raise InputError(
                f"{where} has a part that is neither text, image nor video: {described(content if part is None else kind)}"
            )
    return "".join(texts)


def _image(image: Any) -> Any:
    """A path, or a data: address for an image that the row holds itself; anything else as it is, to be refused."""
    if not isinstance(image, dict) or not {"bytes", "path"} & image.keys():
        return image
    data = image.get("bytes")
    if data is None:
        return image.get("path")
    if not isinstance(data, bytes) or len(data) > MAX_BYTES:
        raise InputError(f"an image's bytes must be bytes, at most {MAX_BYTES // 2**20} MiB of them; give it as a file")
    return f"data:image;base64,{base64.b64encode(data).decode('ascii')}"
