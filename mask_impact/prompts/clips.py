"""A video's frames as a model's inputs: pixel values, their grid, and the text that stands for them, without torchvision.

Two frames become one layer of patches. Qwen3-VL and Qwen3.5 have each pair between marks of its own, with its time in front;
Qwen2-VL and Qwen2.5-VL have all of a video in one piece, and the latter is told how many seconds a pair takes; GLM-V has each
pair as an image, with the whole second of its first frame behind it, between marks of the video. Numbers are
those of the library's own video processors, but for the resizing, which Pillow does: within one of 255 levels of grey. P:
patches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask_impact.errors import InputError
from mask_impact.models.loading import Reader
from mask_impact.models.processing import video_settings
from mask_impact.prompts.images import preview
from mask_impact.prompts.limits import tokenizing
from mask_impact.prompts.marks import VIDEO_MARK
from mask_impact.prompts.placeholders import image_placeholder, taken_inputs
from mask_impact.prompts.videos import Clip
from mask_impact.results.tokens import ImageRecord, Moment

TIMED = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")  # a time before each pair
WHOLE = ("qwen2_vl", "qwen2_5_vl")  # all of a video in one piece
AS_IMAGES = ("glm4v", "glm4v_moe")  # each pair written as an image, a time behind it
TAKING = TIMED + WHOLE + AS_IMAGES
IMAGE_TYPE, VIDEO_TYPE = 1, 2  # of a token in mm_token_type_ids
PREVIEW = 448  # the longest edge of a kept pair's picture


@dataclass(frozen=True)
class ClipInputs:
    """One video, ready for a model. pixels: float32 [P, d]; grid: (pairs, height, width) in patches; images: its pairs, with
    (rows, columns) of tokens; seconds_per_pair: on average."""

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    images: tuple[ImageRecord, ...]
    seconds_per_pair: float


def takes_videos(reader: Reader) -> bool:
    """Whether videos of this architecture can be measured."""
    return reader.config.model_type in TAKING


def images_apart(model_type: str) -> bool:
    """Whether one forward pass of the architecture takes images or videos, and not both: it counts their cells together."""
    return model_type in AS_IMAGES


def check_takes_videos(reader: Reader, with_images: bool = False) -> None:
    """InputError for a model whose videos can't be prepared or measured. with_images: whether the prompt has images, too."""
    if not takes_videos(reader):
        raise InputError(
            f"model '{reader.name}' is {reader.config.model_type}, and videos are taken by {', '.join(TAKING)} only; "
            f"give frames as images"
        )
    if reader.processor is None:
        raise InputError(f"videos need the processor of model '{reader.name}', and it was given a tokenizer only")
    if with_images and images_apart(reader.config.model_type):
        raise InputError(
            f"model '{reader.name}' ({reader.config.model_type}) takes images or videos in a prompt, not both: give the video's "
            "frames as images, or leave the images out"
        )


def cell_token(reader: Reader) -> int:
    """The id of what stands for a cell of a video."""
    config = reader.config
    return config.image_token_id if config.model_type in AS_IMAGES else config.video_token_id


def _marks_of(reader: Reader, of: str) -> tuple[str, str]:
    """What stands before and behind something. of: vision, image or video, as the configuration calls it."""
    ids = [getattr(reader.config, f"{of}_{side}_token_id") for side in ("start", "end")]
    return tuple(reader.tokenizer.convert_ids_to_tokens(ids))


def video_text(reader: Reader) -> str:
    """What a template writes for a video, before its cells are known."""
    start, end = _marks_of(reader, "video" if reader.config.model_type in AS_IMAGES else "vision")
    return f"{start}{reader.tokenizer.convert_ids_to_tokens(reader.config.video_token_id)}{end}"


def prepare_clip(reader: Reader, clip: Clip, number: int) -> ClipInputs:
    """The inputs of a video. number: which of the prompt's videos it is."""
    vision = reader.config.vision_config
    pair, merged = vision.temporal_patch_size, vision.spatial_merge_size
    settings = video_settings(reader.processor)
    height, width = _resized(reader, clip, settings, vision.patch_size * merged, pair)
    pixels = np.stack([_normal(frame, (width, height), settings) for frame in clip.frames])
    missing = -len(clip.frames) % pair
    pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    last = len(clip.frames) - 1
    frames = [(min(at, last), min(at + pair - 1, last)) for at in range(0, len(pixels), pair)]
    patches, grid = patched(pixels, vision.patch_size, merged, pair)
    shape = height // vision.patch_size // merged, width // vision.patch_size // merged
    images = []
    for first, end in frames:
        moment = Moment(number, (first, end), (clip.seconds[first], clip.seconds[end]))
        source = f"{clip.source}, {moment.time_s:.1f} s"
        seen = preview(clip.frames[first], PREVIEW)
        images.append(ImageRecord(source, clip.size, (width, height), shape, seen, moment=moment))
    apart = (clip.seconds[-1] - clip.seconds[0]) / last if last else 0.0
    return ClipInputs(torch.from_numpy(patches), grid, tuple(images), pair * (apart or 1.0))


def with_clips(reader: Reader, text: str, clips: Sequence[ClipInputs], each_cell: bool = True) -> str:
    """The templated text with what stands for each video in place of what the template has for it. each_cell: as the model reads
    it; otherwise the cells of a pair as one. InputError where the template leaves out a video."""
    parts = text.split(video_text(reader))
    if len(parts) != len(clips) + 1:
        raise InputError(
            f"the model's chat template leaves out videos: it keeps {len(parts) - 1} of {len(clips)}; put {VIDEO_MARK} into a "
            f"user's turn"
        )
    return parts[0] + "".join(
        _text_of(reader, clip, each_cell) + part for clip, part in zip(clips, parts[1:], strict=True)
    )


def _text_of(reader: Reader, clip: ClipInputs, each_cell: bool) -> str:
    cell = reader.tokenizer.convert_ids_to_tokens(cell_token(reader))
    counts = [one.n_tokens if each_cell else 1 for one in clip.images]
    if reader.config.model_type in AS_IMAGES:
        (start, end), (before, behind) = _marks_of(reader, "image"), _marks_of(reader, "video")
        pairs = zip(clip.images, counts, strict=True)
        return before + "".join(f"{start}{cell * n}{end}{int(one.moment.seconds[0])}" for one, n in pairs) + behind
    start, end = _marks_of(reader, "vision")
    if reader.config.model_type in WHOLE:
        return f"{start}{cell * (sum(counts) if each_cell else 1)}{end}"
    return "".join(
        f"<{one.moment.time_s:.1f} seconds>{start}{cell * n}{end}" for one, n in zip(clip.images, counts, strict=True)
    )


def inputs_with(
    reader: Reader, text: str, clips: Sequence[ClipInputs], images: Mapping[str, torch.Tensor], special: bool
) -> dict[str, torch.Tensor]:
    """The inputs of a templated text with videos. images: what the processor made of its images, nothing where it has none;
    special: whether the tokenizer adds special tokens."""
    text = with_clips(reader, text, clips)
    if images:
        merged = reader.config.vision_config.spatial_merge_size**2
        n_cells = iter((images["image_grid_thw"].prod(dim=1) // merged).tolist())
        cell = image_placeholder(reader.processor, text)
        first, *rest = text.split(cell)
        text = first + "".join(cell * next(n_cells) + part for part in rest)
    with tokenizing(reader.name):
        ids = reader.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
    types = torch.zeros_like(ids)
    for type, token in ((IMAGE_TYPE, reader.config.image_token_id), (VIDEO_TYPE, cell_token(reader))):
        types[ids == token] = type
    found = dict(images) | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
    found["pixel_values_videos"] = torch.cat([one.pixels for one in clips])
    found["video_grid_thw"] = torch.tensor([one.grid for one in clips])
    if "second_per_grid_ts" in taken_inputs(reader):
        found["second_per_grid_ts"] = torch.tensor([one.seconds_per_pair for one in clips])
    return found


def cells_of(reader: Reader, clips: Sequence[ClipInputs], ids: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(position, number of the pair among all, row, column) of each cell. InputError where there are more or fewer than
    tokens."""
    pairs = [one for clip in clips for one in clip.images]
    cell = cell_token(reader)
    positions = [position for position, token in enumerate(ids) if token == cell]
    n_cells = sum(one.n_tokens for one in pairs)
    if n_cells != len(positions):
        raise InputError(f"the videos have {n_cells} cells but the prompt has {len(positions)} tokens of a video")
    of_pairs = ((number, *divmod(at, one.grid[1])) for number, one in enumerate(pairs) for at in range(one.n_tokens))
    for position, place in zip(positions, of_pairs, strict=True):
        yield position, *place


def patched(pixels: np.ndarray, patch: int, merged: int, pair: int) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(float32 [P, d], (pairs, height, width) in patches) of frames [n, height, width, channels]: the patches of a token stand
    together, the tokens of a pair in reading order, pair after pair; a patch is channel, time, row, column."""
    n, high, wide, channels = pixels.shape
    times, rows, columns = n // pair, high // patch, wide // patch
    blocks = pixels.reshape(times, pair, rows // merged, merged, patch, columns // merged, merged, patch, channels)
    blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(blocks.reshape(times * rows * columns, -1)), (times, rows, columns)


def _resized(reader: Reader, clip: Clip, settings: dict[str, Any], factor: int, pair: int) -> tuple[int, int]:
    """(height, width) that the processor of the family resizes frames to."""
    width, height = clip.frames[0].size
    size = settings["size"]
    try:
        if reader.config.model_type in TIMED:
            from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

            n = max(len(clip.frames), pair)
            return smart_resize(n, height, width, pair, factor, size["shortest_edge"], size["longest_edge"])
        if reader.config.model_type in AS_IMAGES:
            from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

            n = len(clip.frames) + -len(clip.frames) % pair
            return smart_resize(n, height, width, pair, factor, size["shortest_edge"], size["longest_edge"])
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        return smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])
    except ValueError as error:
        raise InputError(
            f"video '{clip.source}', {width} x {height} pixels, is beyond what the model's processor takes: {error}; crop it"
        ) from error


def _normal(frame: Image.Image, size: tuple[int, int], settings: dict[str, Any]) -> np.ndarray:
    """float32 [height, width, 3], as the vision tower takes them."""
    pixels = np.asarray(frame.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean, std = (np.float32(settings[name]) for name in ("image_mean", "image_std"))
    return (pixels - mean) / std
