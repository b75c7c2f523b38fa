"""Verification of effects: some tokens are really hidden in whole passes of the model, from every query in all layers.

The attention of each layer is a softmax in float64 there (`plain_attention`). Nothing is kept, nothing runs again in part, and
logits are the model's own.
"""

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mask_impact.engine.kept import KeptPass
from mask_impact.engine.ownership import Block
from mask_impact.engine.plain_attention import PlainAttention
from mask_impact.engine.taps import tapped
from mask_impact.engine.targets import Target, measure_targets
from mask_impact.engine.variants import each_window_and_group
from mask_impact.errors import UnsupportedArchitecture

SMALL = 0.1  # nats: a change counts as much at least


@dataclass(frozen=True)
class EffectVerification:
    """positions: those that were hidden; errors: of each how far the effect on the most probable token's log-probability is from
    the one in a whole pass, relative to it, or to SMALL where it is smaller."""

    positions: tuple[int, ...]
    errors: tuple[float, ...]


@torch.no_grad()
def verify_effects(kept: KeptPass, inputs: Mapping[str, Any], n: int, seed: int = 0) -> EffectVerification:
    """Of n positions of the sequence that was kept; inputs: of its pass. UnsupportedArchitecture for an attention that is not
    known here; ExactnessError where the replayed model is not the model."""
    positions = sorted(random.Random(seed).sample(range(kept.n_positions), min(n, kept.n_positions)))
    token = int(kept.logits[-1].argmax())
    variants = each_window_and_group([(one,) for one in positions], kept.n_positions, len(kept.states), "all", "all")
    found = measure_targets(kept, variants, [Target(kept.n_positions - 1, token)], kept.logits[-1:]).logprob_change
    before = _logprob(kept, inputs, token, None)
    changes = [_logprob(kept, inputs, token, one) - before for one in positions]
    errors = [abs(float(one) - change) / max(abs(change), SMALL) for one, change in zip(found, changes, strict=True)]
    return EffectVerification(tuple(positions), tuple(errors))


def _logprob(kept: KeptPass, inputs: Mapping[str, Any], token: int, hidden: int | None) -> float:
    """Of a token behind the whole sequence, with one position hidden."""
    with _hiding(kept, hidden):
        logits = kept.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    return float(torch.log_softmax(logits.double(), dim=-1)[token])


def _hiding(kept: KeptPass, hidden: int | None) -> AbstractContextManager[Block]:
    """A block in which the model hides a position."""

    def attend(own, module, query, key, value, mask, *rest: Any, **options: Any) -> tuple:
        asked = PlainAttention(query[0], key[0], value[0], mask, options)
        given = own(query, key, value, mask, *rest, **options)[0]
        plain = asked.like(given[0].transpose(0, 1))
        if plain is None:
            raise UnsupportedArchitecture(f"`verify` can't form the attention of {_name(kept.model, module)}")
        return plain.output(hidden).transpose(0, 1).unsqueeze(0).contiguous().to(given), None

    return tapped(kept.decoder, attend)


def _name(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, one in model.named_modules() if one is module)
