"""From a prompt to model inputs and the token table. Knows nothing of what is measured.

A prompt is taken as a user's turn in the model's chat template, or, written in ChatML, as the conversation it spells, or as
it is (`raw`). Ready model inputs are taken as they are.
"""

import re
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch

from mask_impact.errors import InputError
from mask_impact.loading import LoadedModel
from mask_impact.records import TokenTable
from mask_impact.settings import check_prompt

_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n?(.*?)(?:<\|im_end\|>\n?|(?=<\|im_start\|>)|\Z)", re.DOTALL)
IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class EncodedPrompt:
    """inputs: keyword arguments for `generate`, batch of one; text: the prompt as templated (None for ready inputs)."""

    inputs: dict[str, torch.Tensor]
    tokens: TokenTable
    text: str | None

    @property
    def n_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.tokens)


def parse_chatml(prompt: str) -> list[dict[str, str]] | None:
    """The conversation that a ChatML prompt spells, as [{role, content}, ...]; None where the prompt is not ChatML.

    InputError where something stands outside of its turns: it would be lost.
    """
    if not prompt.lstrip().startswith("<|im_start|>"):
        return None
    outside = _CHATML_TURN.sub("", prompt).strip()
    if outside:
        raise InputError(
            f"the ChatML prompt has text outside of its turns: {outside[:40]!r}; write each turn as "
            f"<|im_start|>role, a line break, text, <|im_end|>, or use the prompt as it is (--raw)"
        )
    return [{"role": role, "content": content} for role, content in _CHATML_TURN.findall(prompt)]


def encode(loaded: LoadedModel, prompt: str, *, raw: bool | None = None) -> EncodedPrompt:
    """Model inputs and token table of a prompt; raw None means: as it is where the model has no chat template."""
    check_prompt(prompt)
    templater = loaded.processor or loaded.tokenizer
    if raw is None:
        raw = not templater.chat_template
    if raw:
        text = prompt
    elif not templater.chat_template:
        raise InputError(f"model '{loaded.name}' has no chat template; use the prompt as it is (--raw)")
    else:
        text = _apply_template(templater, prompt)
    if loaded.kind == "vl" and IMAGE_MARK in text:
        raise InputError(f"the prompt has an image mark {IMAGE_MARK}, and images cannot be analysed yet; leave it out")
    # A template writes the special tokens itself, a beginning-of-sequence token too.
    inputs = loaded.tokenizer(text, add_special_tokens=raw, return_tensors="pt")
    ids = inputs["input_ids"]
    if ids.shape[1] == 0:
        raise InputError("the prompt has no tokens; give some text")
    encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if loaded.kind == "vl":
        encoded["mm_token_type_ids"] = torch.zeros_like(ids)
    return EncodedPrompt(encoded, token_table(loaded, encoded), text)


def encode_inputs(loaded: LoadedModel, inputs: dict[str, Any]) -> EncodedPrompt:
    """The same for ready model inputs (`input_ids` [1, n] and whatever else the model takes)."""
    if "input_ids" not in inputs:
        raise InputError("ready model inputs need input_ids")
    ids = torch.as_tensor(inputs["input_ids"])
    if ids.dim() != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
        raise InputError(f"input_ids must have shape [1, n] with n >= 1, not {list(ids.shape)}")
    encoded = {"attention_mask": torch.ones_like(ids), **inputs, "input_ids": ids}
    if not bool(torch.as_tensor(encoded["attention_mask"]).bool().all()):
        raise InputError("attention_mask hides tokens; analyse the sequence without padding")
    return EncodedPrompt(encoded, token_table(loaded, encoded), None)


def _apply_template(templater: Any, prompt: str) -> str:
    messages = parse_chatml(prompt) or [{"role": "user", "content": prompt}]
    # A last turn of the assistant is a beginning to be continued; an empty one only asks for the answer.
    opened = messages[-1]["role"] == "assistant"
    if opened and not messages[-1]["content"].strip():
        messages, opened = messages[:-1], False
    if not messages:
        raise InputError("the conversation has no turn with text")
    # Qwen3's text models would otherwise think before every answer. Text models' templates that don't know the switch
    # ignore it; a processor (vision-language models) warns of it, and has no use for it.
    switches = {} if hasattr(templater, "tokenizer") else {"enable_thinking": False}
    try:
        return templater.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not opened,
            continue_final_message=opened,
            **switches,
        )
    except (jinja2.TemplateError, ValueError) as error:  # a role that the template refuses, for one
        raise InputError(
            f"the model's chat template refuses the prompt: {error}; change its turns, or use it as it is (--raw)"
        ) from error


def token_table(loaded: LoadedModel, inputs: dict[str, Any]) -> TokenTable:
    """What stands at each position: text, special token, or cell (row, column) of image k."""
    ids = torch.as_tensor(inputs["input_ids"])[0].tolist()
    texts, kinds = token_texts(loaded.tokenizer, ids)
    n = len(ids)
    image, row, column = (np.full(n, -1, dtype=np.int32) for _ in range(3))
    grids = inputs.get("image_grid_thw")
    if grids is not None:
        merge = loaded.model.config.vision_config.spatial_merge_size
        positions = [position for position, token in enumerate(ids) if token == loaded.model.config.image_token_id]
        cells = [
            (number, r, c)
            for number, (t, h, w) in enumerate(torch.as_tensor(grids).tolist())
            for _ in range(t)
            for r in range(h // merge)
            for c in range(w // merge)
        ]
        if len(cells) != len(positions):
            raise InputError(
                f"the images have {len(cells)} cells but the prompt has {len(positions)} image tokens; "
                f"prepare text and images together with the model's processor, without truncation"
            )
        for position, cell in zip(positions, cells, strict=True):
            image[position], row[position], column[position] = cell
            kinds[position] = "image"
    return TokenTable(np.asarray(ids, dtype=np.int64), tuple(texts), tuple(kinds), image, row, column)


def token_texts(tokenizer: Any, ids: list[int]) -> tuple[list[str], list[str]]:
    """Each token decoded on its own, and its kind (`text` or `special`)."""
    special = set(tokenizer.all_special_ids)
    special.update(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    texts = []
    for id in ids:
        text = tokenizer.decode([id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # SentencePiece tokenizers drop the space before a word that is decoded alone.
        if str(tokenizer.convert_ids_to_tokens(id)).startswith("▁") and not text.startswith(" "):
            text = " " + text
        texts.append(text)
    return texts, ["special" if id in special else "text" for id in ids]
