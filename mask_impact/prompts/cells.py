"""Where the tokens of a prompt's images lie in their pictures: grids of cells, in the order of the tokens.

A picture becomes one grid (Qwen, Gemma, LLaVA, PaliGemma, Mistral), or is cut into tiles with a thumbnail of the whole
(InternVL, Idefics, SmolVLM, Aya), or is seen small and in detail (LLaVA-OneVision). Which of these shows in the inputs that the
model takes. Knows the config, the processor's inputs and the pictures; no model. All sizes are (width, height), all boxes
(left, top, right, bottom), in pixels where nothing else is said.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.image_processing_utils import select_best_resolution

from mask_impact.errors import InputError
from mask_impact.models.loading import Reader
from mask_impact.results.tokens import Box

# Whose cells were held against what their own vision towers make of a picture, or that share the code of one of these.
KNOWN = frozenset({
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe", "gemma3", "gemma4",
    "llava", "llava_onevision", "internvl", "idefics3", "smolvlm", "mistral3", "paligemma", "aya_vision",
})  # fmt: skip
_TAG = re.compile(r"<row_(\d+)_col_(\d+)>\s*\Z")
_WHOLE = (0, 0, 1, 1)
_TAG_TOKENS = 16  # before the tokens of a tile, within which its tag is


@dataclass(frozen=True)
class Grid:
    """Cells in reading order, each an image token.

    picture: its number. shape: (rows, columns). resized: as the vision tower saw it. part: what of the picture this is, empty for
    the whole. region: where that lies in the picture, in shares of its width and height; None for the whole. before, in_row,
    behind: image tokens that are no cells, before the first cell, behind each row, behind the last.
    """

    picture: int
    shape: tuple[int, int]
    resized: tuple[int, int]
    part: str = ""
    region: Box | None = None
    before: int = 0
    in_row: int = 0
    behind: int = 0

    @property
    def n_tokens(self) -> int:
        """All image tokens of it."""
        rows, columns = self.shape
        return self.before + rows * (columns + self.in_row) + self.behind

    def places(self) -> list[tuple[int, int] | None]:
        """The cell (row, column) of each of the tokens; None for those that are none."""
        rows, columns = self.shape
        found: list[tuple[int, int] | None] = [None] * self.before
        for row in range(rows):
            found += [(row, column) for column in range(columns)] + [None] * self.in_row
        return found + [None] * self.behind


@dataclass(frozen=True)
class Given:
    """What a prompt's images are known by. runs: of image tokens that stand side by side, what is written before them and how
    many they are; sizes: of the pictures, None for ready inputs."""

    reader: Reader
    inputs: Mapping[str, Any]
    runs: Sequence[tuple[str, int]]
    sizes: Sequence[tuple[int, int]] | None

    @property
    def pixels(self) -> torch.Tensor:
        """The pixel values, as the model takes them."""
        return self.inputs["pixel_values"]

    @property
    def n_tokens(self) -> int:
        """All image tokens of the prompt."""
        return sum(n for _, n in self.runs)

    def setting(self, name: str, default: Any = None) -> Any:
        """One of the image processor."""
        return getattr(getattr(self.reader.processor, "image_processor", None), name, default)


def has_images(inputs: Mapping[str, Any]) -> bool:
    """Whether a model's inputs hold images."""
    return any(inputs.get(name) is not None for name in ("pixel_values", "image_grid_thw"))


def find_grids(
    reader: Reader,
    inputs: Mapping[str, Any],
    ids: Sequence[int],
    texts: Sequence[str],
    sizes: Sequence[tuple[int, int]] | None,
) -> list[Grid]:
    """The grids of the prompt's image tokens, in their order. ids, texts: of all tokens; sizes: of the pictures, if known.

    InputError where they are not known, or there are more or fewer cells than image tokens.
    """
    given = Given(reader, inputs, _runs(ids, texts, reader.config.image_token_id), sizes)
    grids = [replace(grid, region=None) if grid.region == _WHOLE else grid for grid in _rule(given)(given)]
    n_pictures = 1 + max((grid.picture for grid in grids), default=-1)
    if sizes is not None and n_pictures != len(sizes):
        raise InputError(
            f"{len(sizes)} images became {n_pictures} in the model's processor, which needs to be another one"
        )
    n_cells = sum(grid.n_tokens for grid in grids)
    if n_cells != given.n_tokens or 0 in [grid.n_tokens for grid in grids]:
        raise InputError(
            f"the images have {n_cells} cells but the prompt has {given.n_tokens} image tokens; "
            f"prepare text and images together with the model's processor, without truncation"
        )
    return grids


def _runs(ids: Sequence[int], texts: Sequence[str], image_token: int) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for position, token in enumerate(ids):
        if token != image_token:
            continue
        if position and ids[position - 1] == image_token:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append(("".join(texts[max(0, position - _TAG_TOKENS) : position]), 1))
    return runs


def _rule(given: Given) -> Callable[[Given], list[Grid]]:
    inputs, known = given.inputs, given.reader.config.model_type in KNOWN
    if known and inputs.get("image_grid_thw") is not None:
        return _merged_patches
    n_dims = given.pixels.dim() if known else 0
    if inputs.get("image_position_ids") is not None and n_dims == 3:
        return _pooled_patches
    if inputs.get("image_sizes") is not None and n_dims == 5 and hasattr(given.reader.config, "image_grid_pinpoints"):
        return _small_and_in_detail
    if inputs.get("image_sizes") is not None and n_dims == 4:
        return _rows_of_patches
    if inputs.get("image_sizes") is None and n_dims == 5:
        return _tagged_tiles
    if inputs.get("image_sizes") is None and n_dims == 4:
        return _squares
    raise InputError(
        f"where the image tokens of architecture '{given.reader.config.model_type}' lie in their picture is not known yet; "
        f"use the model with text alone"
    )


# --- one grid for each picture --------------------------------------------------------------------------------------------------


def _merged_patches(given: Given) -> list[Grid]:
    """Qwen-VL, GLM-V: the grid of patches is an input, and some of them become one token."""
    vision = given.reader.config.vision_config
    merged = vision.spatial_merge_size
    grids = torch.as_tensor(given.inputs["image_grid_thw"]).tolist()  # [n_images, 3]: time, height, width in patches
    if any(time != 1 or height % merged or width % merged for time, height, width in grids):
        raise InputError(f"image_grid_thw must be [1, height, width] with even sides for each image, not {grids}")
    n_patches = sum(time * height * width for time, height, width in grids)
    pixel_values = given.inputs.get("pixel_values")
    if pixel_values is None or len(pixel_values) != n_patches:
        raise InputError(
            f"image_grid_thw has {n_patches} patches and pixel_values {0 if pixel_values is None else len(pixel_values)}; "
            f"give both as the model's processor made them"
        )
    return [
        Grid(number, (height // merged, width // merged), (width * vision.patch_size, height * vision.patch_size))
        for number, (_, height, width) in enumerate(grids)
    ]


def _pooled_patches(given: Given) -> list[Grid]:
    """Gemma 4: each patch has its (x, y), and squares of patches become one token."""
    vision = given.reader.config.vision_config
    sides = 1 + torch.as_tensor(given.inputs["image_position_ids"]).amax(dim=1)  # [n_images, 2]: columns, rows
    pooled, patch = vision.pooling_kernel_size, vision.patch_size
    return [
        Grid(number, (rows // pooled, columns // pooled), (columns * patch, rows * patch))
        for number, (columns, rows) in enumerate(sides.tolist())
    ]


def _rows_of_patches(given: Given) -> list[Grid]:
    """Pixtral, Mistral 3: a token for each patch, or each square of some, and one that breaks the line."""
    config = given.reader.config
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    sizes = torch.as_tensor(given.inputs["image_sizes"]).tolist()  # [n_images, 2]: height, width
    return [
        Grid(number, (height // side, width // side), (width, height)) for number, (height, width) in enumerate(sizes)
    ]


# --- squares --------------------------------------------------------------------------------------------------------------------


def _squares(given: Given) -> list[Grid]:
    """Each of the tensors [n, channels, height, width] is a picture, or with InternVL and Aya a tile; as many tokens for each."""
    n_tensors, _, height, width = given.pixels.shape
    n_each, rest = divmod(given.n_tokens, max(n_tensors, 1))
    side = math.isqrt(n_each)
    before = n_each - side**2  # a token of the whole picture (CLIP's class token), where the model keeps it
    if rest or side == 0 or before not in (0, 1):
        raise InputError(
            f"the prompt has {given.n_tokens} image tokens for {n_tensors} squares of pixels; "
            f"prepare text and images together with the model's processor, without truncation"
        )
    one = Grid(0, (side, side), (width, height), before=before)
    if given.sizes is None or n_tensors == len(given.sizes):
        regions = [_cropped(given, size, (width, height)) for size in given.sizes or [None] * n_tensors]
        return [replace(one, picture=number, region=region) for number, region in enumerate(regions)]
    if given.setting("min_patches") is None:
        raise InputError(
            f"the model's processor made {n_tensors} squares of {len(given.sizes)} image{'s' * (len(given.sizes) > 1)}, and "
            f"where they lie in their picture is not known (pan and scan, for example): switch that off in its settings"
        )
    return [
        replace(one, picture=number, part=part, region=region)
        for number, size in enumerate(given.sizes)
        for part, region in _tiles(*_canvas(given, size, (height, width)))
    ]


def _cropped(given: Given, size: tuple[int, int] | None, seen: tuple[int, int]) -> Box | None:
    """What of a picture is left where its sides are cut or a border is added, so that it becomes a square."""
    if size is None:
        return None
    width, height = size
    if given.setting("do_pad") and given.setting("crop_size"):  # padded before everything
        return _around_centre((max(size) / width, max(size) / height))
    shortest = (given.setting("size") or {}).get("shortest_edge")
    if not given.setting("do_center_crop") or not shortest:
        return None
    scale = shortest / min(size)
    return _around_centre((seen[0] / scale / width, seen[1] / scale / height))


def _around_centre(share: tuple[float, float]) -> Box:
    across, down = share
    return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2


def _canvas(given: Given, size: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the tiles that the processor cuts a picture into; tile: (height, width)."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    width, height = size
    columns, rows = get_optimal_tiled_canvas(
        (height, width), tile, given.setting("min_patches"), given.setting("max_patches")
    )
    return rows, columns


def _tiles(rows: int, columns: int) -> list[tuple[str, Box | None]]:
    """Name and region of the tiles, and of the thumbnail behind them where there is more than one."""
    if rows * columns == 1:
        return [("", None)]
    tiles = [_tile(row, column, rows, columns) for row in range(rows) for column in range(columns)]
    return [*tiles, ("thumbnail", None)]


def _tile(row: int, column: int, rows: int, columns: int) -> tuple[str, Box]:
    region = column / columns, row / rows, (column + 1) / columns, (row + 1) / rows
    return f"tile {row * columns + column} (row {row}, column {column} of {rows} x {columns})", region


def _tagged_tiles(given: Given) -> list[Grid]:
    """Idefics 3, SmolVLM: the text before each tile says its row and column; the thumbnail has another tag."""
    n_tensors, _, height, width = given.pixels.shape[-4:]
    if len(given.runs) != given.pixels.shape[0] * n_tensors:
        raise InputError(
            f"the images have {n_tensors} tiles but the prompt has {len(given.runs)} rows of image tokens; "
            f"prepare text and images together with the model's processor, without truncation"
        )
    grids: list[Grid] = []
    tiles: list[tuple[int, int]] = []
    picture = 0
    for before, n in given.runs:
        side = math.isqrt(n)
        if side**2 != n:
            raise InputError(f"a tile of image {picture} has {n} tokens, which is no square of cells")
        grids.append(Grid(picture, (side, side), (width, height)))
        if tag := _TAG.search(before):
            tiles.append((int(tag[1]) - 1, int(tag[2]) - 1))
            continue
        if tiles:  # the thumbnail ends a picture
            rows, columns = (1 + max(sides) for sides in zip(*tiles, strict=True))
            named = [*(_tile(row, column, rows, columns) for row, column in tiles), ("thumbnail", None)]
            first = len(grids) - len(named)
            grids[first:] = [
                replace(grid, part=part, region=region)
                for grid, (part, region) in zip(grids[first:], named, strict=True)
            ]
        tiles, picture = [], picture + 1
    if tiles:
        raise InputError(f"image {picture} has tiles without a thumbnail behind them, so how many is not known")
    return grids


# --- small and in detail --------------------------------------------------------------------------------------------------------


def _small_and_in_detail(given: Given) -> list[Grid]:
    """LLaVA-OneVision: the whole picture small, then all of its tiles as one grid, of which each row ends with a token."""
    config = given.reader.config
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    tile = vision.image_size
    sizes = torch.as_tensor(given.inputs["image_sizes"]).tolist()  # [n_images, 2]: height, width
    of_samples = given.inputs.get("batch_num_images")
    counts = [1] * len(sizes) if of_samples is None else torch.as_tensor(of_samples).tolist()
    alone = [n == 1 for n in counts for _ in range(n)]
    grids = []
    for number, ((height, width), is_alone) in enumerate(zip(sizes, alone, strict=True)):
        if not is_alone:  # one of several in a conversation is seen once, with a border that makes it square
            region = _around_centre((max(height, width) / width, max(height, width) / height))
            grids.append(Grid(number, (side, side), (tile, tile), region=region, behind=1))
            continue
        shape, resized, region = _detail((height, width), config)
        grids.append(Grid(number, (side, side), (tile, tile), part="thumbnail"))
        grids.append(Grid(number, shape, resized, part="in detail", region=region, in_row=1))
    return grids


def _detail(size: tuple[int, int], config: Any) -> tuple[tuple[int, int], tuple[int, int], Box]:
    """(rows, columns), size in pixels and region of a picture in detail; size: (height, width).

    The picture is resized into the best of some sizes, centred in it; of the grid of that the rows or columns that lie in the
    border are left out, as far as whole ones do, and what is more than `anyres_max_N` allows is interpolated.
    """
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    best = select_best_resolution(size, config.image_grid_pinpoints)
    scale = min(best[0] / size[0], best[1] / size[1])
    kept, share = [], []
    for edge, room in zip(size, best, strict=True):
        cells = room // tile * (tile // patch)
        inside = min(math.ceil(edge * scale), room)
        outside = (cells - min(int(round(edge * scale * cells / room, 7)), cells)) // 2
        start = (room - inside) // 2
        first, last = outside * room / cells, (cells - outside) * room / cells
        kept.append(cells - 2 * outside)
        share.append(((first - start) / inside, (last - start) / inside))
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * (tile // patch) ** 2
    ratio = math.sqrt(kept[0] * kept[1] / most)
    shape = tuple(int(n // ratio) for n in kept) if ratio > 1.1 else tuple(kept)
    (top, bottom), (left, right) = share
    return shape, (kept[1] * patch, kept[0] * patch), (left, top, right, bottom)
