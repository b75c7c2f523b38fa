"""The pixels of an image as the vision tower takes them (`pixel_values`), as a picture, and back.

Knows the order of the patches of Qwen's processors: the 2x2 patches of an image token stand together, the tokens in reading
order, and each patch is channel, time, row, column. Knows nothing of what is done to the pixels. Shapes: P patches of d numbers,
a resized picture of H x W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch

from mask_impact.models.loading import Reader
from mask_impact.prompts.encoding import EncodedPrompt

WHITE = 255.0


@dataclass(frozen=True)
class PatchGrid:
    """How the pixels of one image lie in pixel_values. rows, columns: of patches; patch: their edge in pixels; merge: how many
    of them an image token has along an edge; times: how often each pixel stands there; mean, std: of each channel."""

    rows: int
    columns: int
    patch: int
    merge: int
    times: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        """[n, P, d] of pixels [n, C, H, W]."""
        n, channels = pixels.shape[:2]
        m, p = self.merge, self.patch
        blocks = pixels.reshape(n, channels, self.rows // m, m, p, self.columns // m, m, p)
        blocks = blocks.permute(
            0, 2, 5, 3, 6, 1, 4, 7
        )  # [n, token row, token column, patch row, patch column, C, p, p]
        blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], self.times, p, p)
        return blocks.reshape(n, self.rows * self.columns, channels * self.times * p * p)

    def picture(self, values: torch.Tensor) -> torch.Tensor:
        """[C, H, W], brightness from 0 to 255, of one image's pixel_values [P, d]."""
        m, p, channels = self.merge, self.patch, len(self.mean)
        blocks = values.reshape(self.rows // m, self.columns // m, m, m, channels, self.times, p, p)[:, :, :, :, :, 0]
        pixels = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(channels, self.height, self.width)
        return (pixels * self._each(self.std, values) + self._each(self.mean, values)) * WHITE

    def changed(self, values: torch.Tensor, masks: torch.Tensor, fills: torch.Tensor) -> torch.Tensor:
        """[n, P, d], the image's pixel_values [P, d] with the pixels of a mask replaced; all others stay to the bit. masks: bool
        [n, H, W]; fills: [n, C, H, W], brightness from 0 to 255."""
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
    """Of each image of a prompt."""
    vision, images = reader.config.vision_config, getattr(reader.processor, "image_processor", None)
    mean, std = (_of_channels(images, name, vision.in_channels) for name in ("image_mean", "image_std"))
    return tuple(
        PatchGrid(height, width, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std)
        for _, height, width in torch.as_tensor(encoded.inputs["image_grid_thw"]).tolist()
    )


def _of_channels(images: Any, name: str, n: int) -> tuple[float, ...]:
    """A processor's own numbers for each channel; 0.5, which Qwen3-VL's has, where there is no processor."""
    found = getattr(images, name, None)
    return tuple(found) if isinstance(found, list | tuple) and len(found) == n else (0.5,) * n
