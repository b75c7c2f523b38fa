"""From a prompt to the text that the model's own chat template makes of it, with every turn's text in it.

Templates take a turn's content as text, as a list of parts, or as either, and say nothing of what they leave out: so what comes
out is held against what went in. Knows no tokens.
"""

import re
from typing import Any

from mask_impact.errors import InputError, shown
from mask_impact.prompts.marks import IMAGE_MARK

_CHATML_TURN = re.compile(r"<\|im_start\|>(\w+)\n?(.*?)(?:<\|im_end\|>\n?|(?=<\|im_start\|>)|\Z)", re.DOTALL)
_LIST = re.compile(r"""['"]text['"]\s*:\s*['"]""")  # a list of parts, written as Python or JSON writes it
_TURNS = ("user", "assistant")  # those that have an order; a system's text may stand in one of them
_AS_IT_IS = "change its turns, or use it as it is (`raw`)"

Turn = dict[str, Any]


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
            f"<|im_start|>role, a line break, text, <|im_end|>, or use the prompt as it is (`raw`)"
        )
    return [{"role": role, "content": content} for role, content in _CHATML_TURN.findall(prompt)]


def templated(templater: Any, prompt: str, marked: bool) -> str:
    """The prompt as the template of a tokenizer or processor writes it; marked: whether image marks in it stand for images.

    InputError where the template fails, or leaves out a turn's text whichever way it is given.
    """
    messages = parse_chatml(prompt) or [{"role": "user", "content": prompt}]
    # A last turn of the assistant is a beginning to be continued; an empty one only asks for the answer.
    opened = messages[-1]["role"] == "assistant"
    if opened and not messages[-1]["content"].strip():
        messages, opened = messages[:-1], False
    if not messages:
        raise InputError("the conversation has no turn with text")
    in_parts = [turn | {"content": _parts(turn["content"], marked)} for turn in messages]
    plain = [
        parts if marked and IMAGE_MARK in turn["content"] else turn
        for parts, turn in zip(in_parts, messages, strict=True)
    ]
    problems = []
    for form in (plain, in_parts):
        probe = [
            _probe(number, turn) for number, turn in enumerate(form)
        ]  # a short text stands in a template's own words, too
        try:
            text = _applied(templater, form, opened)
            lost = _lost(text, form)
            lost = _lost(_applied(templater, probe, opened), probe) if lost is None else lost
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may fail in every way
            reason = " ".join(str(error).split())[:300]
            kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
            problems.append(f"the model's chat template refuses the prompt: {kind}{reason}; {_AS_IT_IS}")
            continue
        if lost is None:
            return text
        whose = f"turn {lost} ({messages[lost]['role']}), {shown(messages[lost]['content'].strip())}"
        problems.append(f"the model's chat template leaves out the text of {whose}; {_AS_IT_IS}")
    raise InputError(problems[0])


def _applied(templater: Any, messages: list[Turn], opened: bool) -> str:
    # Qwen3's text models would otherwise think before every answer. Text models' templates that don't know the switch
    # ignore it; a processor (vision-language models) warns of it, and has no use for it.
    switches = {} if hasattr(templater, "tokenizer") else {"enable_thinking": False}
    return templater.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not opened, continue_final_message=opened, **switches
    )


def _parts(content: str, marked: bool) -> list[dict[str, str]]:
    """A turn's content as the text and image parts that a template knows."""
    parts: list[dict[str, str]] = []
    for index, text in enumerate(content.split(IMAGE_MARK) if marked else [content]):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _texts(turn: Turn) -> list[str]:
    content = turn["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _probe(number: int, turn: Turn) -> Turn:
    """The turn with other texts, that stand in no template."""
    content = turn["content"]
    if isinstance(content, str):
        return turn | {"content": content and f"mask-impact-{number}"}
    parts = [
        part | {"text": f"mask-impact-{number}-{at}"} if "text" in part else part for at, part in enumerate(content)
    ]
    return turn | {"content": parts}


def _lost(text: str, turns: list[Turn]) -> int | None:
    """The first turn whose own text is not in the templated text, in order; None where all are. Lists that a template writes as
    they are, are no text."""
    at, beside = 0, list(text)
    for number, turn in enumerate(turns):
        for own in map(str.strip, _texts(turn)):  # templates cut spaces at the ends
            if turn["role"] == "assistant":
                own = own.rpartition("</think>")[2].strip()  # and what an earlier answer was thought out by
            ordered = turn["role"] in _TURNS
            found = text.find(own, at if ordered else 0)
            if found < 0:
                return number
            at = found + len(own) if ordered else at
            beside[found : found + len(own)] = len(own) * [""]
    in_lists = (number for number, turn in enumerate(turns) if not isinstance(turn["content"], str))
    return next(in_lists, None) if _LIST.search("".join(beside)) else None
