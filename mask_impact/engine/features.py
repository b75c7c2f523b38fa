"""What the vision tower gives the decoder, and the decoder with other such features in their place.

Of each image token there are `parts`: the main features, which stand where the token's embedding would, and DeepStack's levels,
each of which is added behind a decoder layer. The model runs as it is; what stands before the first image token does so once.
A pair of a video's frames is an image, behind all others: the tower sees each by itself.
Shapes: n variants, M image tokens, N positions, T logits. Knows Qwen3-VL's interface; nothing of what was changed, and why.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from mask_impact.prompts.patches import GRIDS, PIXELS, grids_in

ROWS_AT_ONCE = 4096  # through a layer, of all variants of a batch
GIVEN = "mm_encoder_outputs"  # by which the model takes features


@dataclass(frozen=True)
class Features:
    """parts: main features, then DeepStack's levels in order, each [n, M, hidden]."""

    parts: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, which: Any) -> "Features":
        """Some of the variants."""
        return Features(tuple(part[which] for part in self.parts))

    def of_tokens(self, which: slice) -> "Features":
        """Of some of the M image tokens."""
        return Features(tuple(part[:, which] for part in self.parts))

    def taking(self, others: "Features", tokens: torch.Tensor, parts: torch.Tensor | None = None) -> "Features":
        """With the others' features at some tokens. tokens: bool [M] or [n, M]; parts: bool [n, number of parts], of which parts
        (None: of all)."""
        tokens = tokens if tokens.dim() == 2 else tokens.unsqueeze(0)
        taken = []
        for place, (own, other) in enumerate(zip(self.parts, others.parts, strict=True)):
            where = tokens if parts is None else tokens & parts[:, place : place + 1]
            taken.append(torch.where(where.unsqueeze(-1).to(own.device), other, own))
        return Features(tuple(taken))

    @classmethod
    def joined(cls, several: Sequence["Features"]) -> "Features":
        """The variants of several, one behind the other."""
        return cls(tuple(torch.cat(parts) for parts in zip(*(one.parts for one in several), strict=True)))

    def as_outputs(self, joined: bool = False) -> BaseModelOutputWithDeepstackFeatures:
        """As the model takes them, or, with DeepStack's of all images in one, as its tower gives them in older versions."""
        main, *levels = self.parts
        taken = [level.flatten(0, 1) if joined else tuple(level) for level in levels]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=tuple(main), deepstack_features=taken)


class FeaturePass:
    """A sequence with images that runs again and again with other features. inputs: of the model, one sequence; n_logits: T, of
    the last positions that are asked about. grids: (1, height, width) in patches of each image and, behind them, of each pair of
    a video's frames."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], n_logits: int) -> None:
        self.model, self.inputs, self.n_logits = model, inputs, n_logits
        self.grids = grids_in(inputs)
        self._pixels = torch.cat([inputs[name] for name in PIXELS if inputs.get(name) is not None])
        self._merged = model.config.vision_config.spatial_merge_size**2
        self.n_patches = self.grids.prod(-1).tolist()
        self.n_image_tokens = [n // self._merged for n in self.n_patches]
        ids = inputs["input_ids"][0]
        is_still, is_film = (ids == token for token in (model.config.image_token_id, model.config.video_token_id))
        self._n_still, self._n_film = int(is_still.sum()), int(is_film.sum())  # of the M tokens, in this order
        self.first = int((is_still | is_film).int().argmax())
        self.n_positions = len(ids)
        self._positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            **{name: inputs[name] for name in GRIDS if inputs.get(name) is not None},
            attention_mask=inputs["attention_mask"],
        )
        self._prefix: DynamicCache | None = None

    # --- cost, in rows through decoder layers ------------------------------------------------------------------------------

    def forward_rows(self) -> int:
        """Of the whole sequence, all its images through the tower included."""
        return sum(map(self.tower_rows, range(len(self.grids)))) + self.n_positions * self._n_layers

    def tower_rows(self, image: int) -> int:
        """Of one image through the tower, whose layers are smaller: as many rows of the decoder as have its multiplications."""
        return round(self.n_patches[image] * tower_rows_of_patch(self.model.config))

    def decoder_rows(self) -> int:
        """Of one variant through the decoder, from the first image token on."""
        return (self.n_positions - self.first) * self._n_layers

    @property
    def n_layers(self) -> int:
        """Of the decoder."""
        return self._n_layers

    @property
    def entering_share(self) -> float:
        """Which share of a decoder layer forms its queries, keys and values."""
        text = self.model.config.get_text_config()
        heads = text.num_attention_heads + 2 * text.num_key_value_heads
        return text.hidden_size * heads * _head_dim(text) / _decoder_layer(text)

    @property
    def positions(self) -> torch.Tensor:
        """int64 [3, 1, N], of time, height and width."""
        return self._positions

    @property
    def _n_layers(self) -> int:
        return self.model.config.get_text_config().num_hidden_layers

    # --- the tower ----------------------------------------------------------------------------------------------------------

    def pixel_values(self, image: int) -> torch.Tensor:
        """[P, d], of one image."""
        return self._pixels.split(self.n_patches)[image]

    def image_tokens(self, image: int) -> slice:
        """Which of the M image tokens are those of an image."""
        begin = sum(self.n_image_tokens[:image])
        return slice(begin, begin + self.n_image_tokens[image])

    @torch.no_grad()
    def own(self) -> Features:
        """The model's own features of all images, n = 1."""
        found = self._tower(self._pixels, self.grids)
        return Features(tuple(torch.cat(part).unsqueeze(0) for part in found))

    @torch.no_grad()
    def seen(self, own: Features, image: int, values: torch.Tensor) -> Features:
        """Those of n variants of one image, pixel_values [n, P, d]; own: the other images', of one variant or of n."""
        found = self._tower(values.flatten(0, 1), self.grids[image : image + 1].repeat(len(values), 1))
        where = self.image_tokens(image)
        parts = []
        for part, new in zip(own.parts, found, strict=True):
            parts.append(part.expand(len(values), -1, -1).clone())
            parts[-1][:, where] = torch.stack(new)
        return Features(tuple(parts))

    def _tower(self, values: torch.Tensor, grids: torch.Tensor) -> list[Sequence[torch.Tensor]]:
        """Of each part the features of each image."""
        output = self.model.model.get_image_features(values, grids, return_dict=True)
        of_images = (grids.prod(-1) // self._merged).tolist()
        # In transformers before 5.23 DeepStack's are those of all images in one.
        levels = [one.split(of_images) if isinstance(one, torch.Tensor) else one for one in output.deepstack_features]
        return [output.pooler_output, *levels]

    # --- the decoder --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, features: Features) -> torch.Tensor:
        """[n, T, vocabulary], with the variants' features in the place of the model's own."""
        n, first = len(features), self.first
        cache = None
        if first:
            cache = deepcopy(self._prefix_cache())
            cache.batch_repeat_interleave(n)
        with self.given(features) as given:
            output = self.model(
                input_ids=self.inputs["input_ids"][:, first:].expand(n, -1),
                attention_mask=self.inputs["attention_mask"].expand(n, -1),
                position_ids=self._positions[:, :, first:].expand(-1, n, -1),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=self.n_logits,
                **given,
            )
        return output.logits

    @contextmanager
    def given(self, features: Features) -> Iterator[dict[str, Any]]:
        """The arguments by which the model takes the features. It asks its tower where it has no argument for them (transformers
        before 5.23); while the block is open, these are what it is told then."""
        n = self._n_still
        kinds = {
            "image": (n, features.of_tokens(slice(n))),
            "video": (self._n_film, features.of_tokens(slice(n, None))),
        }
        of_kinds = {kind: one for kind, (n_tokens, one) in kinds.items() if n_tokens}
        if GIVEN in inspect.signature(self.model.forward).parameters:
            yield {GIVEN: {kind: one.as_outputs() for kind, one in of_kinds.items()}}
            return
        inner = self.model.model
        for kind, one in of_kinds.items():
            setattr(inner, f"get_{kind}_features", lambda *args, one=one, **kwargs: one.as_outputs(joined=True))
        try:
            yield {name: self.inputs[name] for name in (*PIXELS, *GRIDS) if self.inputs.get(name) is not None}
        finally:
            for kind in of_kinds:
                delattr(inner, f"get_{kind}_features")

    def _prefix_cache(self) -> DynamicCache:
        """Of what stands before the first image token, run once."""
        if self._prefix is None:
            first = self.first
            output = self.model(
                input_ids=self.inputs["input_ids"][:, :first],
                attention_mask=self.inputs["attention_mask"][:, :first],
                position_ids=self._positions[:, :, :first],
                past_key_values=DynamicCache(config=self.model.config.get_text_config()),
                use_cache=True,
                logits_to_keep=1,
            )
            self._prefix = output.past_key_values
        return self._prefix


def tower_rows_of_patch(config: Any) -> float:
    """As how many rows of a decoder layer a patch counts that goes through the whole tower."""
    vision = config.vision_config
    return vision.depth * _tower_layer(vision) / _decoder_layer(config.get_text_config())


def _tower_layer(vision: Any) -> int:
    """Weights that a patch meets in a layer of the tower."""
    return vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)


def _decoder_layer(text: Any) -> int:
    """Weights that a token meets in a layer of the decoder."""
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    experts = getattr(text, "num_experts_per_tok", 0) or 0
    inner = experts * text.moe_intermediate_size if experts else text.intermediate_size
    return text.hidden_size * (heads * _head_dim(text) + 3 * inner)


def _head_dim(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def in_batches(n: int, rows: int, run: Callable[[slice], None], smaller: Callable[[RuntimeError, int], int]) -> None:
    """Runs n variants, of `rows` rows each, in batches; smaller: asked for the next size when one was too large."""
    size, begin = max(1, ROWS_AT_ONCE // max(1, rows)), 0
    while begin < n:
        try:
            run(slice(begin, min(begin + size, n)))
        except RuntimeError as error:
            size = smaller(error, size)
            continue
        begin += size
