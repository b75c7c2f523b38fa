"""The second table of a result, `NAME.effect.*`: the effect of each hidden token on the produced one, there and back.

Knows records; no files. pyarrow is imported only where it is used.
"""

from collections.abc import Sequence

import numpy as np

from mask_impact.results.explanations import Agreement
from mask_impact.results.records import EffectRecord, Estimated, Result, StepRecord
from mask_impact.results.table_files import checksum

EFFECT_COLUMNS = (
    "generation_step", "layer", "token_masked", "token_position", "n_tokens", "variant",
    "logit_change", "logprob_change", "kl_divergence", "below_floor", "top1_changed", "top1_id", "top1_token",
)  # fmt: skip
NUMBERS = ("logit_change", "logprob_change", "kl_divergence")
ESTIMATED = ("estimate", "control")  # further columns, where only the strongest were measured


def effect_table(result: Result, texts: Sequence[str]):
    """A pyarrow.Table with EFFECT_COLUMNS: a row for each step, layer and masked position, or group of positions, which is
    called by its name and stands at its first position. Where only the strongest were measured there are the columns ESTIMATED,
    too, and what was not measured is null. texts: of each position, UTF-8."""
    import pyarrow as pa

    return pa.concat_tables([_of_step(record, texts) for record in result.steps]).unify_dictionaries()


def _of_step(record: StepRecord, texts: Sequence[str]):
    import pyarrow as pa

    effect = record.effect
    n_layers, n_hidden = effect.top1.shape
    groups = effect.groups or [(texts[position], (position,)) for position in record.positions.tolist()]
    top1 = effect.top1.reshape(-1)
    absent = ~effect.measured.reshape(-1)

    def where_measured(values: np.ndarray, kind=None):
        return pa.array(values, kind, mask=absent) if absent.any() else pa.array(values, kind)

    tops = np.array([effect.top1_texts.get(int(token), "") for token in top1], dtype=object)
    columns = (
        np.full(top1.size, record.step, dtype=np.int32),
        np.repeat(np.arange(n_layers, dtype=np.int32), n_hidden),
        pa.array([name for name, _ in groups] * n_layers, pa.string()).dictionary_encode(),
        np.tile(np.array([positions[0] for _, positions in groups], dtype=np.int32), n_layers),
        np.tile(np.array([len(positions) for _, positions in groups], dtype=np.int32), n_layers),
        pa.array(["Full"] * top1.size, pa.string()).dictionary_encode(),
        *(where_measured(getattr(effect, name).reshape(-1) + np.float32(0)) for name in NUMBERS),  # -0.0 becomes 0.0
        where_measured(effect.below_floor.reshape(-1)),
        where_measured(effect.top1_changed(record.token_id).reshape(-1)),
        where_measured(top1),
        where_measured(tops, pa.string()).dictionary_encode(),
    )
    table = pa.table(dict(zip(EFFECT_COLUMNS, columns, strict=True)))
    if effect.estimated is None:
        return table
    change, control = effect.estimated.change.reshape(-1), effect.estimated.control.reshape(-1)
    for name, values in zip(ESTIMATED, (change + np.float32(0), control), strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def columns_to_read(estimated: bool) -> dict[str, type]:
    """The dtype of each column that a record is made of. Ids are read as float64, which has them exactly, since they may be
    null."""
    names = dict.fromkeys(NUMBERS, np.float32) | {"top1_id": np.float64}
    return names | (dict(zip(ESTIMATED, (np.float32, bool), strict=True)) if estimated else {})


def make_record(columns: dict[str, np.ndarray], first: int, shape: tuple[int, int], about: dict) -> EffectRecord:
    """The record of one step out of its `columns_to_read`; first: its first row; about: its entry in the meta file."""
    part = {name: values[first : first + shape[0] * shape[1]].reshape(shape) for name, values in columns.items()}
    return EffectRecord(
        **{name: part[name] for name in NUMBERS},
        top1=np.nan_to_num(part["top1_id"], nan=-1).astype(np.int64),
        top1_texts={int(token): text for token, text in about["top1_texts"].items()},
        floor=tuple(about["floor"]),
        groups=about.get("groups") and tuple((name, tuple(positions)) for name, positions in about["groups"]),
        likeliest=about.get("likeliest"),
        rounding=about.get("rounding") and tuple(about["rounding"]),
        estimated=about.get("estimated") and _estimated(part, dict(about["estimated"])),
    )


def rest_checksum(effect: EffectRecord) -> int:
    """Of what the table has besides NUMBERS."""
    estimated = effect.estimated and (effect.estimated.change, effect.estimated.control.astype(np.int64))
    return checksum(effect.top1.astype(np.int64), *(estimated or ()))


def _estimated(part: dict[str, np.ndarray], about: dict) -> Estimated:
    agreement = Agreement(
        **{name: np.nan if value is None else value for name, value in about.pop("agreement").items()}
    )
    return Estimated(*(part[name] for name in ESTIMATED), agreement, **about)
