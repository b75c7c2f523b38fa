"""What the pixels of a region are replaced by: `border`, `mean`, `blur` or `grey`. Knows pictures as arrays; no model.

Colours are rounded to whole steps of brightness, so that a picture with a region replaced is a picture that a file can hold.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter

RING = 8  # pixels around a region, whose median `border` takes
GREY = 128.0


def filled(picture: torch.Tensor, mask: torch.Tensor, fill: str) -> torch.Tensor:
    """[C, H, W], what stands at the pixels of the mask then; what it has elsewhere is not used. picture: [C, H, W], brightness
    from 0 to 255; mask: bool [H, W].

    `border`: the median colour of the pixels around the region; `mean`: the mean colour of the picture; `blur`: the picture,
    blurred so far that a region of this size has no parts; `grey`: 128 of 255.
    """
    if fill == "blur":
        return _blurred(picture, mask)
    if fill == "border":
        ring = _ring(mask)
        colour = picture[:, ring if ring.any() else torch.ones_like(mask)].median(dim=1).values
    elif fill == "mean":
        colour = picture.flatten(1).mean(dim=1)
    elif fill == "grey":
        colour = torch.full_like(picture[:, 0, 0], GREY)
    else:
        raise ValueError(f"no fill is called {fill!r}")
    return colour.round().view(-1, 1, 1).expand_as(picture)


def _ring(mask: torch.Tensor) -> torch.Tensor:
    """bool [H, W], the pixels that are at most RING from the mask, and not of it."""
    wide = torch.nn.functional.max_pool2d(mask[None, None].float(), 2 * RING + 1, stride=1, padding=RING)
    return (wide[0, 0] > 0) & ~mask


def _blurred(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The whole picture blurred by half the region's shorter side."""
    high, wide = (int(mask.any(dim=axis).sum()) for axis in (1, 0))
    pixels = picture.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(max(1, min(high, wide) / 2)))
    return torch.from_numpy(np.asarray(blurred).copy()).permute(2, 0, 1).to(picture)
