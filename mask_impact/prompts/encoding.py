"""From a prompt to model inputs and the token table. Knows nothing of what is measured.

A prompt is taken as a user's turn in the model's chat template, or, written in ChatML, as the conversation it spells, or as
it is (`raw`). Pictures go where the prompt marks them, or before its text. Ready model inputs are taken as they are.
"""

import codecs
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from mask_impact.errors import InputError, shown
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.cells import Grid, find_grids, has_images
from mask_impact.prompts.clips import (
    ClipInputs,
    cells_of,
    check_takes_videos,
    inputs_with,
    prepare_clip,
    video_text,
    with_clips,
)
from mask_impact.prompts.groups import Layout
from mask_impact.prompts.images import Picture, part_of, preview
from mask_impact.prompts.limits import rehearse, tokenizing
from mask_impact.prompts.marks import IMAGE_MARK, VIDEO_MARK, check_prompt, marked
from mask_impact.prompts.placeholders import image_placeholder, image_text, refuse_placeholders, taken_inputs
from mask_impact.prompts.templating import templated
from mask_impact.prompts.videos import Clip
from mask_impact.results.tokens import UNKNOWN, ImageRecord, TokenTable

_TYPES = ("mm_token_type_ids", "token_type_ids")  # 0: text
PADDED = ("input_ids", "attention_mask", *_TYPES)  # [1, n]; other inputs have a row for each image or patch
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# Byte-level vocabularies write a byte as the character of its number, those that can't be seen as characters from 256 on.
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNSEEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTES = {chr(byte): byte for byte in _SEEN} | {chr(256 + at): byte for at, byte in enumerate(_UNSEEN)}
_NOT_GIVEN = (
    "past_key_values",
    "inputs_embeds",
    "labels",
    "use_cache",
    "logits_to_keep",
)  # arguments that are no prompt
_TRIED = 1000  # tokens that are decoded on trial


@dataclass(frozen=True)
class EncodedPrompt:
    """inputs: keyword arguments for `generate`, batch of one; text: the prompt as templated (None for ready inputs); notes: what
    was left out of videos."""

    inputs: dict[str, torch.Tensor]
    tokens: TokenTable
    text: str | None
    images: tuple[ImageRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.tokens)


def layout_of(loaded: Reader, encoded: EncodedPrompt) -> Layout:
    """Where everything stands in the prompt."""

    def decode(ids: list[int]) -> str:
        return loaded.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return Layout(encoded.tokens, encoded.images, encoded.n_tokens, decode)


def encode(
    loaded: Reader, prompt: str, seen: Sequence[Picture | Clip] = (), *, raw: bool | None = None
) -> EncodedPrompt:
    """Model inputs and token table of a prompt with pictures and videos; raw None means: as it is where the model has no chat
    template.

    Each `<image>` in the prompt marks where a picture goes, each `<video>` where a video does; without a mark all of them go
    before the (first user's) text.
    """
    check_prompt(prompt)
    clips = [one for one in seen if isinstance(one, Clip)]
    pictures = [one for one in seen if not isinstance(one, Clip)]
    templater = loaded.processor or loaded.tokenizer
    if raw is None:
        raw = not templater.chat_template
    if loaded.kind == "vl":
        prompt = marked(prompt, len(pictures), len(clips))
        refuse_placeholders(loaded.processor, prompt)
        if pictures and loaded.processor is None:
            raise InputError(f"images need the processor of model '{loaded.name}', and it was given a tokenizer only")
        if clips:
            check_takes_videos(loaded, bool(pictures))
            prompt = prompt.replace(VIDEO_MARK, video_text(loaded))
    elif seen:
        what = "images" if pictures else "videos"
        raise InputError(
            f"model '{loaded.name}' is a text model and takes no {what}; leave them out or use another model"
        )
    if not raw and not templater.chat_template:
        raise InputError(f"model '{loaded.name}' has no chat template; use the prompt as it is (`raw`)")
    text = _spelled(loaded, templater, prompt, bool(pictures), raw)
    begun = _begins(loaded, text, raw)
    films = [prepare_clip(loaded, clip, number) for number, clip in enumerate(clips)]
    if pictures:
        n_kept = text.count(image_placeholder(loaded.processor, text))
        if n_kept != len(pictures):
            raise InputError(
                f"the model's chat template leaves out images: it keeps {n_kept} of {len(pictures)}; "
                f"put {IMAGE_MARK} into a user's turn"
            )
    if films:
        alone = len(pictures) * image_placeholder(loaded.processor, text)  # the processor refuses a text with videos
        images = _process(loaded, alone, pictures, True) if pictures else {}
        encoded = inputs_with(loaded, text, films, images, not begun)
        text = with_clips(loaded, text, films, each_cell=False)
    elif pictures:
        encoded = _process(loaded, text, pictures, begun)
    else:
        with tokenizing(loaded.name):
            ids = loaded.tokenizer(text, add_special_tokens=not begun, return_tensors="pt")["input_ids"]
        if ids.shape[1] == 0:
            raise InputError("the prompt has no tokens; give some text")
        encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if loaded.kind == "vl":
            encoded |= {name: torch.zeros_like(ids) for name in _TYPES if name in taken_inputs(loaded)}
    notes = tuple(clip.note for clip in clips if clip.note)
    return replace(_with_tables(loaded, encoded, text, pictures, films), notes=notes)


def _begins(loaded: Reader, text: str, raw: bool) -> bool:
    """Whether the text has the special tokens that it needs. A text model's template writes them itself, a beginning-of-sequence
    token too; those of vision-language models leave that to the tokenizer as often as not."""
    if raw or loaded.kind == "text":
        return not raw
    begin = loaded.tokenizer.bos_token
    return begin is None or text.startswith(begin)


def _spelled(loaded: Reader, templater: Any, prompt: str, marked: bool, raw: bool) -> str:
    """The prompt as the model reads it, from a template and for a tokenizer that keep within limits."""

    def spell() -> str:
        if raw:
            return prompt.replace(IMAGE_MARK, image_text(loaded.config, loaded.processor)) if marked else prompt
        return templated(templater, prompt, marked)

    spelled: list[str] = []

    def tokenize() -> None:
        ids = loaded.tokenizer(spelled[0], add_special_tokens=raw)["input_ids"]
        token_texts(loaded.tokenizer, ids[:_TRIED])

    steps = (("chat template", lambda: spelled.append(spell())), ("tokenizer", tokenize))
    named = [(f"{part} of model '{loaded.name}'", step) for part, step in steps]
    rehearse(loaded.tokenizer, (str(templater.chat_template), raw), len(prompt), named)
    return spell()


def _process(loaded: Reader, text: str, pictures: Sequence[Picture], begun: bool) -> dict[str, torch.Tensor]:
    """The processor's inputs for the text, whose image tokens it repeats as often as each picture has cells. begun: whether the
    text has its special tokens."""
    images = [[picture.image for picture in pictures]]  # of one conversation, as the library's templates hand them on
    try:
        with tokenizing(loaded.name):
            encoded = loaded.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=not begun)
    except ValueError as error:
        for number, picture in enumerate(pictures):
            try:
                loaded.processor.image_processor(images=[picture.image], return_tensors="pt")
            except ValueError as reason:
                width, height = picture.image.size
                raise InputError(
                    f"image {number} ('{picture.source}', {width} x {height} pixels) is beyond what the model's processor "
                    f"takes: {reason}; crop it, or make it smaller with `max_image_resolution`"
                ) from error
        raise
    taken = taken_inputs(loaded)
    return {name: value for name, value in encoded.items() if name in taken and name not in _NOT_GIVEN}


def encode_inputs(loaded: Reader, inputs: Mapping[str, Any]) -> EncodedPrompt:
    """The same for ready model inputs (`input_ids` [1, n] and whatever else the model takes)."""
    if "input_ids" not in inputs:
        raise InputError("ready model inputs need input_ids")
    given = {name: _tensor(name, value) for name, value in inputs.items()}
    _check_names(loaded, given)
    ids = given["input_ids"]
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.dim() != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
        kind = "" if ids.dtype in (torch.int64, torch.int32) else f" of {str(ids.dtype).removeprefix('torch.')}"
        raise InputError(f"input_ids must be whole numbers, of shape [1, n] with n >= 1, not {list(ids.shape)}{kind}")
    encoded = {"attention_mask": torch.ones_like(ids), **given}
    for name in PADDED:
        if name in encoded and encoded[name].shape != ids.shape:
            raise InputError(
                f"{name} must have the shape {list(ids.shape)} of input_ids, not {list(encoded[name].shape)}"
            )
    if not bool(encoded["attention_mask"].bool().all()):
        raise InputError("attention_mask hides tokens; analyse the sequence without padding")
    return _with_tables(loaded, encoded, None)


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(
            f"{name} of ready model inputs must be a tensor of numbers, not {type(value).__name__}"
        ) from None


def _check_names(loaded: Reader, inputs: Mapping[str, Any]) -> None:
    """InputError for inputs that the model does not take, and for videos."""
    if video := next((name for name in inputs if "video" in name), None):
        raise InputError(
            f"ready model inputs hold a video ({video}), which is not known by its times then; give text and `videos`"
        )
    taken = inspect.signature(loaded.model.forward).parameters if isinstance(loaded, LoadedModel) else inputs
    if unknown := [name for name in inputs if name not in taken or name in _NOT_GIVEN]:
        known = [
            name for name in taken if name not in _NOT_GIVEN and taken[name].kind is not inspect.Parameter.VAR_KEYWORD
        ]
        raise InputError(f"the model takes no input {shown(str(unknown[0]))}; it takes {', '.join(known)}")


def join(prompts: Sequence[EncodedPrompt], pad_id: int) -> tuple[dict[str, Any], list[int]]:
    """Inputs for one `generate` of several prompts, padded on the left, and how many positions of padding each has.

    Images follow one another in the order of the prompts, those with fewer tiles or pixels padded with zeros as the library's
    processors pad them. A single prompt's inputs stay as they are.
    """
    if len(prompts) == 1:
        return prompts[0].inputs, [0]
    n_positions = max(prompt.n_tokens for prompt in prompts)
    paddings = [n_positions - prompt.n_tokens for prompt in prompts]
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.inputs):
        parts = [prompt.inputs.get(name) for prompt in prompts]
        if name in PADDED:
            value = pad_id if name == "input_ids" else 0
            parts = [one.inputs.get(name, torch.zeros_like(one.inputs["input_ids"])) for one in prompts]
            joined[name] = torch.cat(
                [torch.nn.functional.pad(part, (n, 0), value=value) for part, n in zip(parts, paddings, strict=True)]
            )
        else:
            joined[name] = _joined_images(name, [part for part in parts if part is not None])
    return joined, paddings


def _joined_images(name: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of the parts, each padded to the largest in all dimensions but the first."""
    if len({part.dim() for part in parts}) > 1:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise InputError(f"{name} of these prompts can't be joined, their shapes are {shapes}; run them one by one")
    largest = [max(sides) for sides in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [most - side for most, side in zip(largest, part.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(part, [n for side in reversed(missing) for n in (0, side)]))
    return torch.cat(padded)


def _with_tables(
    loaded: Reader,
    inputs: dict[str, Any],
    text: str | None,
    pictures: Sequence[Picture] = (),
    clips: Sequence[ClipInputs] = (),
) -> EncodedPrompt:
    """The inputs with their table of tokens and records of images, which are held against each other.

    pictures: in the order of the images; none for ready inputs, whose images are known as the vision tower sees them. clips: of
    the videos, whose pairs of frames are the images behind all others.
    """
    ids = torch.as_tensor(inputs["input_ids"])[0].tolist()
    _check_ids(loaded, ids, bool(clips))
    with tokenizing(loaded.name):
        texts, kinds = token_texts(loaded.tokenizer, ids)
    image, row, column = (np.full(len(ids), -1, dtype=np.int32) for _ in range(3))
    images: list[ImageRecord] = []
    if has_images(inputs):
        grids = find_grids(loaded, inputs, ids, texts, [one.image.size for one in pictures] or None)
        images = [_image_record(grid, pictures) for grid in grids]
        end = 0
        for number, (grid, own) in enumerate(_with_positions(grids, ids, loaded.config.image_token_id)):
            if "image_grid_thw" in inputs and own[-1] - own[0] != grid.n_tokens - 1:
                raise InputError(
                    f"the {grid.n_tokens} tokens of image {number} do not stand in one piece; give the grids in the order "
                    f"of the images in the prompt"
                )
            # What breaks lines or stands before a tile is special, from the end of the part before it on.
            start = end if number and grids[number - 1].picture == grid.picture else own[0]
            end = own[-1] + 1
            kinds[start:end] = ["special"] * (end - start)
            for position, cell in zip(own, grid.places(), strict=True):
                if cell is not None:
                    kinds[position] = "image"
                    image[position], (row[position], column[position]) = number, cell
    for position, number, *cell in cells_of(loaded, clips, ids) if clips else ():
        kinds[position] = "video"
        image[position], (row[position], column[position]) = len(images) + number, cell
    images += [pair for clip in clips for pair in clip.images]
    tokens = TokenTable(np.asarray(ids, dtype=np.int64), tuple(texts), tuple(kinds), image, row, column)
    return EncodedPrompt(inputs, tokens, text, tuple(images))


def _with_positions(grids: Sequence[Grid], ids: Sequence[int], image_token: int) -> Iterator[tuple[Grid, list[int]]]:
    """Each grid with the positions of its image tokens, cells or not."""
    positions = (position for position, token in enumerate(ids) if token == image_token)
    for grid in grids:
        yield grid, list(islice(positions, grid.n_tokens))


def _check_ids(loaded: Reader, ids: list[int], has_videos: bool) -> None:
    """InputError for a token that the model has no embedding of, and for one of a video where there is none."""
    n_rows = loaded.config.get_text_config().vocab_size
    seen = ["image_token_id", *(["video_token_id"] if has_videos else [])]
    of_pictures = {getattr(loaded.config, name, None) for name in seen}  # whose embeddings come from the pictures
    for position, token in enumerate(ids):
        if token in of_pictures:
            continue
        if not 0 <= token < n_rows:
            text = loaded.tokenizer.convert_ids_to_tokens(token) if token >= 0 else None
            named = f"token {token}{f' ({text!r})' if text else ''}"
            raise InputError(
                f"{named} at position {position} has no embedding in model '{loaded.name}', which has {n_rows}; "
                f"take the model's own tokenizer, or resize the embeddings to the tokenizer"
            )
        if token == getattr(loaded.config, "video_token_id", None):
            raise InputError(
                f"the token at position {position} stands for a video, and none is given; give one (`videos`)"
            )


def _image_record(grid: Grid, pictures: Sequence[Picture]) -> ImageRecord:
    """The record of an image, or of the part of one that the grid covers."""
    if not pictures:
        source = ", ".join(filter(None, ("model inputs", grid.part)))
        return ImageRecord(source=source, size=grid.resized, resized=grid.resized, grid=grid.shape)
    picture = pictures[grid.picture]
    source = ", ".join(filter(None, (picture.source, grid.part)))
    if grid.region is None:
        return ImageRecord(source, picture.size, grid.resized, grid.shape, preview(picture.image))
    left, top, right, bottom = grid.region
    (width, height), seen = picture.size, part_of(picture.image, grid.region)
    region = left * width, top * height, right * width, bottom * height
    size = max(1, round(region[2] - region[0])), max(1, round(region[3] - region[1]))
    return ImageRecord(source, size, grid.resized, grid.shape, preview(seen), region)


def token_texts(tokenizer: Any, ids: list[int]) -> tuple[list[str], list[str]]:
    """Each token decoded on its own, and its kind (`text` or `special`). Bytes that are no text alone are shown as <0xF0>."""
    special = set(tokenizer.all_special_ids)
    special.update(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    texts = {id: _text_of(tokenizer, id) for id in dict.fromkeys(ids)}
    return [texts[id] for id in ids], ["special" if id in special else "text" for id in ids]


def _text_of(tokenizer: Any, id: int) -> str:
    text = tokenizer.decode([id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    token = str(tokenizer.convert_ids_to_tokens(id))
    if UNKNOWN in text and (own := _bytes_of(token)):
        return own.decode("utf-8", "mask_impact_bytes")
    # SentencePiece tokenizers drop the space before a word that is decoded alone.
    return f" {text}" if token.startswith("▁") and not text.startswith(" ") else text


def _bytes_of(token: str) -> bytes:
    """What a token of a byte-level vocabulary stands for, or one of SentencePiece for a single byte; nothing for others."""
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return bytes(_BYTES[char] for char in token) if _BYTES.keys() >= set(token) else b""


codecs.register_error(
    "mask_impact_bytes",
    lambda error: ("".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end),
)
