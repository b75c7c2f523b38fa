"""The vision tower learns to tell a figure that is larger than a cell in each of its cells, before the decoder is asked about it.

A decoder that sees all four cells can put their corners together by itself, and then the tower's attention has nothing to
learn. So the tower is trained alone first: a linear reading of each of the figure's cells has to tell the whole figure's shape,
which takes attention between patches, while the features of all other pictures stay what they were, so that the decoder
goes on reading them. The same goes for pictures of easy-VQA, whose figures stand across the four tokens.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import torch

from mask_impact.demo import moving, pictures, wholes

from . import easy, sequences
from .models import multiply_patches

N_KEPT = 12  # pictures of a batch that are to keep their features
N_LARGE = 16
KEEP_WEIGHT = 3.0
SHAPES = tuple(wholes.ROUND_CORNERS)


class TowerLesson:
    """What lessons of the vision tower alone share: `loss(rng)` of a batch, in which `readers`, for the main features and the
    last level of DeepStack a linear map to `n_told` words, are to tell what they are shown, and the features of other pictures
    are to stay those of `teacher`, the tower as it was. spread: by how much these differ, which drift is measured in.
    """

    n_told: int

    def __init__(self, model, processor, device: str) -> None:
        self.tower, self.processor, self.device = model.model.visual, processor, device
        self.teacher = copy.deepcopy(self.tower).eval().requires_grad_(False)
        for tower in (self.tower, self.teacher):
            multiply_patches(tower)
        width = self.tower.config.out_hidden_size
        self.readers = torch.nn.ModuleList(torch.nn.Linear(width, self.n_told) for _ in range(2)).to(device)
        self.last: dict[str, float] = {}
        with torch.no_grad():
            self.spread = self._spread()

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.tower.parameters(), *self.readers.parameters()]

    def state_dict(self) -> dict:
        """What a stage that goes on needs beside the model."""
        return {"readers": self.readers.state_dict(), "teacher": self.teacher.state_dict(), "spread": self.spread}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`."""
        self.readers.load_state_dict(state["readers"])
        self.teacher.load_state_dict(state["teacher"])
        self.spread = state["spread"].to(self.device)


class LargeTowerLesson(TowerLesson):
    """Each cell of a large figure is to tell its shape."""

    n_told = len(SHAPES)

    def _spread(self) -> torch.Tensor:
        """[1, 1, parts * width]"""
        known = self._features(self.teacher, self._inputs(kept_pictures(random.Random(0), 64)))
        return known.float().std(dim=(0, 1), keepdim=True)

    def told(self) -> str:
        """Of the last batch: how many cells told the shape, and how far the features of other pictures went."""
        return ", ".join(f"{name} {value:.1%}" for name, value in self.last.items())

    def loss(self, rng: random.Random) -> torch.Tensor:
        """The loss of a batch drawn by `rng`."""
        scenes = [wholes.random_large_scene(rng, held_out=False) for _ in range(N_LARGE)]
        kept = kept_pictures(rng, N_KEPT)
        found = self._features(self.tower, self._inputs([*(scene.image() for scene in scenes), *kept]))
        with torch.no_grad():
            before = self._features(self.teacher, self._inputs(kept))
        drift = ((found[N_LARGE:] - before) / self.spread).square().mean()
        columns = scenes[0].grid[1]
        cells = torch.tensor([[row * columns + column for row, column in scene.large.cells] for scene in scenes])
        wanted = (
            torch.tensor([SHAPES.index(scene.large.shape) for scene in scenes]).to(self.device)[:, None].expand(-1, 4)
        )
        own = found[:N_LARGE].gather(1, cells.to(self.device)[..., None].expand(-1, -1, found.shape[-1]))
        width = own.shape[-1] // 4
        logits = [
            reader(own[..., at * width : (at + 1) * width]) for at, reader in zip((0, 3), self.readers, strict=True)
        ]
        shape = sum(torch.nn.functional.cross_entropy(one.flatten(0, 1), wanted.flatten()) for one in logits)
        right = [(one.argmax(-1) == wanted).float().mean().item() for one in logits]
        self.last = {"main": right[0], "level 2": right[1], "drift": drift.item()}
        return shape + KEEP_WEIGHT * drift

    def _inputs(self, images: list) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=images, return_tensors="pt").to(self.device))

    def _features(self, tower, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(pictures, cells, main and DeepStack's levels side by side) of pictures of one size."""
        found = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        parts = torch.cat([found.pooler_output, *found.deepstack_features], dim=-1)
        return parts.unflatten(0, (len(inputs["image_grid_thw"]), -1))


def kept_pictures(rng: random.Random, n: int) -> list:
    """Pictures of small figures, of one to four and of two equal ones."""
    scenes = [pictures.random_scene(rng, held_out=False) for _ in range(n - n // 4)]
    scenes += [wholes.random_equal_scene(rng, held_out=False)[0] for _ in range(n // 4)]
    return [scene.image() for scene in scenes]


N_EASY = 96
N_EACH = 4  # pictures of each kind that are to keep their features
WATCHED = 181  # held-out pictures of easy-VQA


class EasyTowerLesson(TowerLesson):
    """Each of the four tokens of a picture of easy-VQA is to tell its shape and its color."""

    n_told = len(easy.SHAPES) + len(easy.COLORS)

    def _spread(self) -> torch.Tensor:
        """[parts * width]"""
        return self._features(self.teacher, *self._kept(random.Random(0))).std(dim=0)

    def loss(self, rng: random.Random) -> torch.Tensor:
        """The loss of a batch drawn by `rng`."""
        shown = [easy.random_shown(rng) for _ in range(N_EASY)]
        own = self._pictures([one.image() for one in shown])
        kept = self._kept(rng)
        found = self._features(self.tower, *(torch.cat(both) for both in zip(own, kept, strict=True)))
        n_tokens = N_EASY * easy.GRID[0] * easy.GRID[1]
        with torch.no_grad():
            before = self._features(self.teacher, *kept)
        drift = ((found[n_tokens:] - before) / self.spread).square().mean()
        losses, self.last = self._read(found[:n_tokens], [one.picture for one in shown])
        self.last["drift"] = drift.item()
        return losses + KEEP_WEIGHT * drift

    @torch.no_grad()
    def told(self) -> str:
        """How many tokens of held-out pictures tell the shape and the color, and how far the features of others went."""
        watched = easy.known(held_out=True)[:WATCHED]
        found = self._features(self.tower, *self._pictures([easy.Shown(one).image() for one in watched]))
        shares = self._read(found, list(watched))[1] | {"drift": self.last["drift"]}
        return ", ".join(f"{name} {value:.1%}" for name, value in shares.items())

    def _read(self, features: torch.Tensor, shown: list[easy.Known]) -> tuple[torch.Tensor, dict[str, float]]:
        """(the readers' loss, the shares of tokens that tell it) of the tokens of these pictures."""
        n_each, n_shapes, width = len(features) // len(shown), len(easy.SHAPES), features.shape[-1] // 4
        wanted = torch.tensor([[easy.SHAPES.index(one.shape), easy.COLORS.index(one.color)] for one in shown])
        wanted = wanted.to(self.device).repeat_interleave(n_each, dim=0)  # (tokens, 2)
        losses, shares = [], {}
        for level, at, reader in zip(("main", "level 2"), (0, 3), self.readers, strict=True):
            logits = reader(features[:, at * width : (at + 1) * width]).split([n_shapes, len(easy.COLORS)], dim=-1)
            for what, each, true in zip(("shape", "color"), logits, wanted.T, strict=True):
                losses.append(torch.nn.functional.cross_entropy(each, true))
                shares[f"{what} {level}"] = (each.argmax(-1) == true).float().mean().item()
        return sum(losses), shares

    def _kept(self, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """The patches and grids of pictures and films of the other tasks."""
        small = pictures.random_scene(rng, held_out=False, grid=(2, 2))
        scenes = [small, *(pictures.random_scene(rng, held_out=False) for _ in range(N_EACH))]
        scenes += [wholes.random_large_scene(rng, held_out=False) for _ in range(2 * N_EACH)]
        scenes += [wholes.random_unequal_scene(rng, held_out=False) for _ in range(N_EACH // 2)]
        scenes += [wholes.random_equal_scene(rng, held_out=False)[0] for _ in range(N_EACH // 2)]
        films = [moving.random_film(rng, task, held_out=False).film.frames() for task in moving.MOVING_TASKS * 2]
        return self._pictures([*((scene.image(),) for scene in scenes), *films])

    def _pictures(self, shown: list) -> tuple[torch.Tensor, torch.Tensor]:
        """(patches, grids) of pictures and of films."""
        frames = [one if isinstance(one, tuple) else (one,) for one in shown]
        pixels, grids = zip(*(sequences.film_pixels(each, self.processor) for each in frames), strict=True)
        return torch.from_numpy(np.concatenate(pixels)).to(self.device), torch.tensor(grids).to(self.device)

    def _features(self, tower, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """(tokens, main and DeepStack's levels side by side)."""
        found = tower(patches, grid_thw=grids)
        return torch.cat([found.pooler_output, *found.deepstack_features], dim=-1)
