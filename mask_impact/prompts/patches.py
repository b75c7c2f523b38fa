"""The pixels of an image as the vision tower takes them (`pixel_values`), as a picture, and back.

Knows the order of the patches of Qwen's processors: the 2x2 patches of an image token stand together, the tokens in reading
order, and each patch is channel, time, row, column. A pair of a video's frames is an image with a picture for each time. Knows
nothing of what is done to the pixels. Shapes: P patches of d numbers, a resized picture of H x W pixels, F pictures: one, or one
for each time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mask_impact.models.loading import Reader
from mask_impact.models.processing import video_settings
from mask_impact.prompts.encoding import EncodedPrompt

WHITE = 255.0
PIXELS, GRIDS = ("pixel_values", "pixel_values_videos"), ("image_grid_thw", "video_grid_thw")  # of images, of videos


@dataclass(frozen=True)
class PatchGrid:
    """How the pixels of one image lie in pixel_values. rows, columns: of patches; patch: their edge in pixels; merge: how many
    of them an image token has along an edge; times: how many pictures a patch has, which are the same for an image and a pair
    of frames for a video; mean, std: of each channel; moving: whether it is of a video."""

    rows: int
    columns: int
    patch: int
    merge: int
    times: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    moving: bool = False

    @property
    def height(self) -> int:
        """H, of the resized picture in pixels."""
        return self.rows * self.patch

    @property
    def width(self) -> int:
        """W"""
        return self.columns * self.patch

    @property
    def token(self) -> int:
        """The edge of an image token in pixels."""
        return self.patch * self.merge

    @property
    def tokens(self) -> tuple[int, int]:
        """(rows, columns) of image tokens."""
        return self.rows // self.merge, self.columns // self.merge

    def patched(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, P, d] of pixels [n, C, H, W], the same at each time, or [n, F, C, H, W]."""
        pixels = pixels if pixels.dim() == 5 else pixels.unsqueeze(1)
        n, _, channels = pixels.shape[:3]
        m, p = self.merge, self.patch
        pixels = pixels.expand(n, self.times, *pixels.shape[2:])
        blocks = pixels.reshape(n, self.times, channels, self.rows // m, m, p, self.columns // m, m, p)
        blocks = blocks.permute(
            0, 3, 6, 4, 7, 2, 1, 5, 8
        )  # [n, token row and column, patch row and column, C, time, p, p]
        return blocks.reshape(n, self.rows * self.columns, channels * self.times * p * p)

    def pictures(self, values: torch.Tensor) -> torch.Tensor:
        """[F, C, H, W], brightness from 0 to 255, of one image's pixel_values [P, d]: one picture, or that of each time."""
        m, p, channels = self.merge, self.patch, len(self.mean)
        blocks = values.reshape(self.rows // m, self.columns // m, m, m, channels, self.times, p, p)
        pixels = blocks.permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(self.times, channels, self.height, self.width)
        pixels = pixels if self.moving else pixels[:1]
        return (pixels * self._each(self.std, values) + self._each(self.mean, values)) * WHITE

    def picture(self, values: torch.Tensor) -> torch.Tensor:
        """[C, H, W], the first of these pictures."""
        return self.pictures(values)[0]

    def changed(self, values: torch.Tensor, masks: torch.Tensor, fills: torch.Tensor) -> torch.Tensor:
        """[n, P, d], the image's pixel_values [P, d] with the pixels of a mask replaced; all others stay to the bit. masks: bool
        [n, H, W]; fills: [n, C, H, W] or [n, F, C, H, W], brightness from 0 to 255."""
        new = (fills.to(values) / WHITE - self._each(self.mean, values)) / self._each(self.std, values)
        where = self.patched(masks.unsqueeze(1).expand(-1, len(self.mean), -1, -1))
        return torch.where(where, self.patched(new), values)

    def ordered(self, patches: torch.Tensor) -> torch.Tensor:
        """[..., P], in the order of pixel_values, of something of each patch in its place [..., rows, columns]."""
        m = self.merge
        blocks = patches.reshape(*patches.shape[:-2], self.rows // m, m, self.columns // m, m)
        return blocks.transpose(-3, -2).flatten(-4)

    def placed(self, values: torch.Tensor) -> torch.Tensor:
        """[..., rows, columns], in its place, of something of each patch in the order of pixel_values [..., P]."""
        m = self.merge
        blocks = values.reshape(*values.shape[:-1], self.rows // m, self.columns // m, m, m)
        return blocks.transpose(-3, -2).reshape(*values.shape[:-1], self.rows, self.columns)

    def patches_with(self, mask: torch.Tensor) -> torch.Tensor:
        """bool [rows, columns], the patches that have a pixel of the mask [H, W]."""
        return mask.reshape(self.rows, self.patch, self.columns, self.patch).any(dim=3).any(dim=1)

    def _each(self, numbers: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def grids_of(reader: Reader, encoded: EncodedPrompt) -> tuple[PatchGrid, ...]:
    """Of each image of a prompt and, behind them, of each pair of its videos' frames."""
    vision, processor = reader.config.vision_config, reader.processor
    settings = {
        False: getattr(processor, "image_processor", None),
        True: None if processor is None else video_settings(processor),
    }
    found = []
    for moving, name in enumerate(GRIDS):
        mean, std = (
            _of_channels(settings[bool(moving)], one, vision.in_channels) for one in ("image_mean", "image_std")
        )
        for _, height, width in grids_in({name: encoded.inputs.get(name)}).tolist():
            found.append(
                PatchGrid(
                    height,
                    width,
                    vision.patch_size,
                    vision.spatial_merge_size,
                    vision.temporal_patch_size,
                    mean,
                    std,
                    bool(moving),
                )
            )
    return tuple(found)


def grids_in(inputs: Mapping[str, Any]) -> torch.Tensor:
    """int [images, 3], (1, height, width) in patches of each image and, behind them, of each pair of a video's frames."""
    found = []
    for grids in (torch.as_tensor(inputs[name]) for name in GRIDS if inputs.get(name) is not None):
        found.append(grids.repeat_interleave(grids[:, 0], dim=0))
        found[-1][:, 0] = 1
    return torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.long)


def _of_channels(settings: Any, name: str, n: int) -> tuple[float, ...]:
    """A processor's own numbers for each channel; 0.5, which Qwen3-VL's has, where there is no processor."""
    found = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
    return tuple(found) if isinstance(found, list | tuple) and len(found) == n else (0.5,) * n
