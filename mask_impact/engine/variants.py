"""Which attention edges are hidden: from which queries, in which layers and heads.

Shapes: m masks, n variants, S positions, L layers, H heads, W windows of layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mask_impact.engine.choices import ABLATIONS
from mask_impact.errors import UsageError


@dataclass(frozen=True)
class Masks:
    """m masks, each of which hides some keys from some queries.

    keys: bool [m, S]. queries: bool [m, S] (None: the last position alone). heads: bool [m, H], in which heads (None: in
    all), or [m, L, H], in which heads of which layer. ablation: `mask` (the logit is -inf), `zero-value` (the weight stays, the
    value is 0) or `mean-value` (the weight stays, the value is the mean over the keys that the query sees).
    """

    keys: torch.Tensor
    queries: torch.Tensor | None = None
    heads: torch.Tensor | None = None
    ablation: str = "mask"

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            raise ValueError(f"ablation {self.ablation!r} is not one of {', '.join(ABLATIONS)}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_positions(self) -> int:
        """S, the length of the sequence."""
        return self.keys.shape[1]

    @property
    def starts(self) -> torch.Tensor:
        """int64 [m], the first position that a mask can change; S where it changes none."""
        nowhere = self.n_positions
        if self.queries is None:
            return torch.where(self.keys.any(dim=1), nowhere - 1, nowhere)
        reached = self.queries & (self.keys.cumsum(dim=1) > 0)  # some hidden key is not behind the query
        return torch.where(reached.any(dim=1), reached.int().argmax(dim=1), nowhere)


@dataclass(frozen=True)
class Variants:
    """n variants of the model: mask `mask` (int64 [n], which of the masks) in the layers `first` to `last` (int64 [n])."""

    masks: Masks
    mask: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, which: torch.Tensor) -> "Variants":
        """Those of the variants; which: an index, bool [n] or int64 [k]."""
        return Variants(self.masks, self.mask[which], self.first[which], self.last[which])

    @property
    def starts(self) -> torch.Tensor:
        """int64 [n], the first position that a variant can change; S where it changes none."""
        return self.masks.starts[self.mask]

    def row_layers(self, n_layers: int) -> torch.Tensor:
        """int64 [n], how many rows of each variant go through how many layers."""
        return (self.masks.n_positions - self.starts) * (n_layers - self.first)


def windows(n_layers: int, width: int | str) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last layer, int64 [W] each: of the window of `width` layers around each layer, cut at the ends (W = L), or
    of the only window with `all` layers (W = 1)."""
    if width == "all":
        return torch.tensor([0]), torch.tensor([n_layers - 1])
    if type(width) is not int or not 1 <= width <= n_layers:
        raise UsageError(f"a window of {width} layers does not fit: the model has {n_layers}")
    centre = torch.arange(n_layers)
    return (centre - (width - 1) // 2).clamp_min(0), (centre + width // 2).clamp_max(n_layers - 1)


def each_window_and_group(
    groups: Sequence[Sequence[int]],
    n_positions: int,
    n_layers: int,
    width: int | str = 1,
    queries: str = "last",
    ablation: str = "mask",
) -> Variants:
    """Variant w * G + g hides the positions groups[g] in the w-th of `windows`, from the last query or from all."""
    keys = torch.zeros(len(groups), n_positions, dtype=torch.bool)
    for place, positions in enumerate(groups):
        keys[place, list(positions)] = True
    everyone = torch.ones_like(keys) if queries == "all" else None
    return in_each(Masks(keys, everyone, ablation=ablation), windows(n_layers, width))


def in_each(masks: Masks, layers: tuple[torch.Tensor, torch.Tensor]) -> Variants:
    """Variant w * m + i is mask i in the w-th of the layers' windows (first and last layer, int64 [W])."""
    first, last = (part.repeat_interleave(len(masks)) for part in layers)
    return Variants(masks, torch.arange(len(masks)).repeat(len(layers[0])), first, last)


def check_cost(variants: Variants, n_layers: int, n_steps: int, max_cost: int, n_most: int | None = None) -> None:
    """UsageError where the variants, at each of n_steps, take more than max_cost rows through layers; n_most: so many of them,
    whichever they are."""
    cost = int(variants.row_layers(n_layers).sort(descending=True).values[:n_most].sum()) * n_steps
    if cost > max_cost:
        forwards = cost / (variants.masks.n_positions * n_layers)
        raise UsageError(
            f"this takes {cost:,} rows through layers, as many as {forwards:,.0f} forward passes of this prompt, and "
            f"{max_cost:,} are allowed: hide fewer tokens or larger groups of them, produce fewer tokens, or allow it with "
            f"`max_cost` {cost}"
        )
