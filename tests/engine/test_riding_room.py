"""What does not fit into memory is refused before it rides, in one line; the estimate is that of what was measured."""

import pytest
import torch
from family_models import family_model

from mask_impact.engine.plans import Masked, SequencePlan
from mask_impact.engine.riding import room
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.errors import DeviceError

N = 300


def measured(**settings):
    model = family_model("gpt_neox", max_position_embeddings=N)
    with torch.no_grad(), RidingEngine(model, groups=("full",), **settings) as engine:
        model(input_ids=torch.arange(N).remainder(140).unsqueeze(0), logits_to_keep=1)
    return engine


def test_more_tokens_than_there_is_room_for_are_refused(monkeypatch):
    """Seven tensors of 300 differences that are 192 wide, in float32: the map of queries, keys and values is the widest."""
    needed = 7 * N * 192 * 4
    monkeypatch.setattr(room, "available", lambda: needed - 1)
    said = r"^hiding 300 tokens at once takes about 0\.0 GiB in layers\.0, and 0\.0 GiB are free: lower `batch_size`, shorten"
    with pytest.raises(DeviceError, match=said):
        measured()
    monkeypatch.setattr(room, "available", lambda: needed)
    assert measured().steps[0].l2.shape[1] == N


def test_fewer_at_once_take_less_room(monkeypatch):
    """Of ten that are between two linear maps at once; the others are as wide as a state, 64."""
    needed = 7 * (10 * 192 + 290 * 64) * 4
    monkeypatch.setattr(room, "available", lambda: needed)
    assert measured(max_rows=10).steps[0].l2.shape[1] == N
    monkeypatch.setattr(room, "available", lambda: needed - 1)
    with pytest.raises(DeviceError, match="batch_size"):
        measured(max_rows=10)


def test_few_tokens_go_on(monkeypatch):
    monkeypatch.setattr(room, "available", lambda: 1)
    few = SequencePlan(masked=Masked(torch.arange(N) < room.FEW, produced=False))
    assert measured(plans=[few]).steps[0].l2.shape[1] == room.FEW
