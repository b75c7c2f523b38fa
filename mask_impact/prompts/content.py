"""What a user wrote, told from what a chat template puts around it. Knows tokens; no tokenizer and no template.

Template: special tokens; the name of a role and the line breaks behind a token that begins a turn (<|im_start|>user, and those of
Llama 3, Gemma and Phi); the line breaks behind a token that ends one; the marks of thinking. A system prompt counts as content,
whoever wrote it.
"""

import re

import numpy as np

from mask_impact.results.tokens import TokenTable

_BEGINS = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start\|>")
_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|end_header_id\|>|<\|end\|>|<\|(?:user|assistant|system)\|>"
)
_MARKS = ("<think>", "</think>", "[INST]", "[/INST]")
ROLES = ("system", "user", "assistant", "model", "tool", "developer")


def content_positions(tokens: TokenTable, n_prompt: int) -> np.ndarray:
    """bool [n_prompt], the positions of the prompt that are content; all of them where nothing would be left."""
    content = np.array([kind != "special" for kind in tokens.kinds[:n_prompt]], dtype=bool)
    texts = tokens.texts[:n_prompt]
    for at, text in enumerate(texts):
        if text.strip() in _MARKS:
            content[at] = False
        begins = _BEGINS.fullmatch(text.strip())
        if begins or _ENDS.fullmatch(text.strip()):
            content[at : _behind(texts, at + 1, bool(begins))] = False
    return content if content.any() else np.ones(n_prompt, dtype=bool)


def _behind(texts: tuple[str, ...], at: int, role: bool) -> int:
    """The first position that is neither the name of a role, where one is expected, nor a line break."""
    if role and at < len(texts):
        name = ""
        end = at
        while end < len(texts) and any(known.startswith(name + texts[end]) for known in ROLES):
            name += texts[end]
            end += 1
        at = end if name in ROLES else at
    while at < len(texts) and texts[at] and not texts[at].strip():
        at += 1
    return at
