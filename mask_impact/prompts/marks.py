"""The marks in a prompt where images go, and what makes a text a prompt at all. Light: checked before a model is loaded."""

import re

from mask_impact.errors import InputError
from mask_impact.results.tokens import IMAGE_PAD, VIDEO_PAD

IMAGE_MARK = "<image>"


IMAGE_TEXT = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"  # what templates write for an image, taken as a mark too


_DATA = re.compile("data:[^,]{0,200};base64,", re.IGNORECASE)


def is_data(image: str) -> bool:
    """Whether an image is written out in its address."""
    return _DATA.match(image) is not None


def check_image_marks(prompt: str, n_images: int) -> None:
    """InputError where the marks in a vision-language model's prompt are not as many as its images (or none at all)."""
    prompt = prompt.replace(IMAGE_TEXT, IMAGE_MARK)
    strange = next((token for token in (IMAGE_PAD, VIDEO_PAD) if token in prompt), None)
    if strange:
        raise InputError(f"the prompt has the model's own token {strange}; write {IMAGE_MARK} where an image goes")
    n_marks = prompt.count(IMAGE_MARK)
    if n_marks not in (0, n_images):
        raise InputError(
            f"the prompt marks {n_marks} place{'s' * (n_marks > 1)} for an image ({IMAGE_MARK}), and the number of images given "
            f"is {n_images}: give one (`image`) for each mark, or leave the marks out to have all images before the text"
        )


def check_prompt(prompt: str) -> None:
    """InputError where a prompt has nothing in it or is not text."""
    if not isinstance(prompt, str):
        raise InputError(f"a prompt is text (or ready model inputs), not {type(prompt).__name__}")
    if not prompt.strip():
        raise InputError("the prompt is empty; give some text")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"character {error.start} of the prompt is not valid Unicode; give it as UTF-8") from None
