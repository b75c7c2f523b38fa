"""Broken versions of what effects are made of: what is left out must not go unnoticed.

Each takes monkeypatch and the model whose states were kept before.
"""

from dataclasses import replace

import torch

from mask_impact.engine import masked_attention, replay
from mask_impact.engine.tail import Tail


def without_sinks(monkeypatch, model):
    monkeypatch.setattr(masked_attention, "softmax_beside", lambda logits, sinks: torch.softmax(logits, dim=-1))


def without_softcap(monkeypatch, model):
    own = masked_attention._attend_rows
    monkeypatch.setattr(
        masked_attention, "_attend_rows", lambda *given: own(*given[:6], replace(given[6], softcap=None), given[7])
    )


def without_scale(monkeypatch, model):
    """The factor of the logits."""
    monkeypatch.setattr(Tail, "scale", property(lambda self: 1.0))


def without_a_cap(monkeypatch, model):
    """Of the logits."""
    monkeypatch.setattr(Tail, "cap", property(lambda self: None))


def without_a_multiplier(monkeypatch, model):
    """Of what a layer adds to the residual stream, while it runs again."""
    own = replay._through_layer

    def through(*given, **more):
        held = [(layer, layer.residual_multiplier) for layer in model.model.layers]
        try:
            for layer, _ in held:
                layer.residual_multiplier = 1.0
            return own(*given, **more)
        finally:
            for layer, multiplier in held:
                layer.residual_multiplier = multiplier

    monkeypatch.setattr(replay, "_through_layer", through)


def without_the_end_of_values(monkeypatch, model):
    """As if values were as wide as a query's part without a position."""
    own = masked_attention._attend

    def attend(query, key, value, *rest):
        output = own(query, key, value, *rest).clone()
        output[..., model.config.qk_nope_head_dim :] = 0
        return output

    monkeypatch.setattr(masked_attention, "_attend", attend)


BROKEN = [
    ("gpt_oss", without_sinks),
    ("gemma2", without_softcap),
    ("gemma2", without_a_cap),
    ("granite", without_scale),
    ("cohere", without_scale),
    ("granite", without_a_multiplier),
    ("deepseek_v3", without_the_end_of_values),
]
