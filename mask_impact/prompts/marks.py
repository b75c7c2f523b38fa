"""The marks in a prompt where images and videos go, and what makes a text a prompt at all. Light: checked before a model is
loaded."""

import re

from mask_impact.errors import InputError
from mask_impact.results.tokens import IMAGE_PAD, VIDEO_PAD

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


IMAGE_TEXT = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"  # what templates write for an image, taken as a mark too
VIDEO_TEXT = f"<|vision_start|>{VIDEO_PAD}<|vision_end|>"  # and for a video


_USER_TURN = re.compile(r"<\|im_start\|>user\n?")
_FIRST_TURN = re.compile(r"\s*<\|im_start\|>\w+\n?")
_DATA = re.compile("data:[^,]{0,200};base64,", re.IGNORECASE)


def is_data(image: str) -> bool:
    """Whether an image is written out in its address."""
    return _DATA.match(image) is not None


def with_marks(prompt: str) -> str:
    """The prompt with what templates write for images and videos as their marks."""
    return prompt.replace(IMAGE_TEXT, IMAGE_MARK).replace(VIDEO_TEXT, VIDEO_MARK)


def check_image_marks(prompt: str, n_images: int, n_videos: int = 0) -> None:
    """InputError where the marks in a vision-language model's prompt are not as many as its images and videos, or none at all."""
    prompt = with_marks(prompt)
    strange = next((token for token in (IMAGE_PAD, VIDEO_PAD) if token in prompt), None)
    if strange:
        raise InputError(
            f"the prompt has the model's own token {strange}; write {IMAGE_MARK} where an image goes"
            + f", {VIDEO_MARK} where a video goes" * (strange == VIDEO_PAD)
        )
    n_marks = prompt.count(IMAGE_MARK)
    if n_marks not in (0, n_images):
        raise InputError(
            f"the prompt marks {n_marks} place{'s' * (n_marks > 1)} for an image ({IMAGE_MARK}), and the number of images given "
            f"is {n_images}: give one (`image`) for each mark, or leave the marks out to have all images before the text"
        )
    n_marks = prompt.count(VIDEO_MARK)
    if n_marks not in (0, n_videos):
        raise InputError(
            f"the prompt marks {n_marks} place{'s' * (n_marks > 1)} for a video ({VIDEO_MARK}), and the number of videos given "
            f"is {n_videos}: give one (`video`) for each mark, or leave the marks out to have all videos before the text"
        )


def marked(prompt: str, n_images: int, n_videos: int) -> str:
    """The prompt with a mark for each image and video; those without one go before the text of the first user's turn, or before
    everything where the prompt spells no turns. Errors of `check_image_marks`."""
    check_image_marks(prompt, n_images, n_videos)
    prompt = with_marks(prompt)
    marks = "".join(n * mark for mark, n in ((IMAGE_MARK, n_images), (VIDEO_MARK, n_videos)) if mark not in prompt)
    turn = _USER_TURN.search(prompt) or _FIRST_TURN.match(prompt)
    start = turn.end() if turn else 0
    return prompt[:start] + marks + prompt[start:]


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
