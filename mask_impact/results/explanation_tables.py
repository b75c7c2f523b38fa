"""The tables of what an answer used: its units, its routes, and every produced token by every token of the prompt.

pyarrow is imported only where it is used.
"""

from collections.abc import Sequence

import numpy as np

from mask_impact.results.explanations import ExplainedTarget, Explanation
from mask_impact.results.table_files import clean_text

COLUMNS = (
    "step", "target", "token", "positions", "kind", "image", "row", "column", "contribution", "estimate_local",
    "logprob_change", "kl_divergence", "top1_token", "control", "content", "necessary", "sufficient",
)  # fmt: skip
NUMBERS = ("contribution", "estimate_local", "logprob_change", "kl_divergence")
ROUTES = (
    "step", "target", "flow", "layer", "head", "estimate_local", "contribution", "cut", "logprob_change", "whole_change",
)  # fmt: skip
CUTS = ("step", "target", "flow", "cut", "first_layer", "last_layer", "logprob_change")  # of a study's table of flows
ALL_LAYERS, FEW_LAYERS = "all layers", "few layers"  # in which a flow was cut
ESTIMATES = (
    "step", "target", "layer", "position", "token", "kind", "image", "row", "column", "contribution", "estimate_local",
)  # fmt: skip
MATRIX = ("step", "target", "position", "token", "kind", "image", "row", "column", "contribution")


def explanation_table(found: Explanation):
    """A pyarrow.Table with COLUMNS: a row for each target and unit. Image, row and column are null where the unit is no cell
    of an image; the measured columns where nothing was measured. necessary, sufficient: whether the unit is part of these sets of
    the evidence."""
    import pyarrow as pa

    return pa.concat_tables([_of_target(found, target) for target in found.targets])


def _of_target(found: Explanation, target: ExplainedTarget):
    import pyarrow as pa

    n = len(target.names)
    single = np.array([len(positions) == 1 for positions in target.positions])
    measured = target.measured
    tops = [
        clean_text(target.top1_texts[int(one)]) if there else None
        for one, there in zip(target.top1, measured, strict=True)
    ]

    def in_set(name: str):
        places = {place for one in target.evidence if getattr(one, name) for place in getattr(one, name).places}
        return pa.array([place in places for place in range(n)])

    columns = (
        np.full(n, target.step, dtype=np.int32),
        _repeated([target.text], n),
        _repeated(target.names, 1),
        pa.array([" ".join(map(str, positions)) for positions in target.positions], pa.string()),
        pa.array(target.kinds, pa.string()),
        *_cells(found, np.array([positions[0] for positions in target.positions], dtype=np.int64), single),
        *(_numbers(getattr(target, name)) for name in NUMBERS),
        pa.array(tops, pa.string()),
        pa.array(target.control),
        pa.array(target.content),
        in_set("necessary"),
        in_set("sufficient"),
    )
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def _numbers(values: np.ndarray):
    import pyarrow as pa

    return pa.array(values.astype(np.float32) + np.float32(0), mask=~np.isfinite(values))  # -0.0 becomes 0.0


def _repeated(texts: Sequence[str], n: int):
    """All of the texts n times, one after the other."""
    import pyarrow as pa

    return pa.array([clean_text(text) for text in texts] * n, pa.string())


def _cells(found: Explanation, positions: np.ndarray, single: np.ndarray | bool = True) -> list:
    """Image, row and column of positions, null where they are no cells."""
    import pyarrow as pa

    tokens = found.tokens
    outside = ~(np.asarray(single) & (tokens.image[positions] >= 0))
    return [
        pa.array(values[positions].astype(np.int32), mask=outside)
        for values in (tokens.image, tokens.row, tokens.column)
    ]


def routes_table(found: Explanation):
    """A pyarrow.Table with ROUTES: a row for each target, flow, layer and head. cut: whether the flow was really cut in this and
    the other layers that have it, in all heads at once; logprob_change: what that did, null elsewhere; whole_change: what
    cutting it in all layers did."""
    import pyarrow as pa

    rows: dict[str, list] = {name: [] for name in ROUTES}
    for target in found.targets:
        for one in target.routes:
            for (layer, head), estimate in np.ndenumerate(one.estimate):
                cut = one.layers is not None and one.layers[0] <= layer <= one.layers[1]
                change = one.logprob_change if cut else None
                numbers = (float(estimate), float(one.contribution[layer, head]), cut, change, one.whole_change)
                values = (target.step, clean_text(target.text), clean_text(one.name), layer, head, *numbers)
                for name, value in zip(ROUTES, values, strict=True):
                    rows[name].append(value)
    number, count, text = pa.float32(), pa.int32(), pa.string()
    types = (count, text, text, count, count, number, number, pa.bool_(), number, number)
    return pa.table({name: pa.array(rows[name], kind) for name, kind in zip(ROUTES, types, strict=True)})


def carried_table(found: Explanation):
    """A pyarrow.Table with the columns of ROUTES that are estimated, a row for each target, flow, layer and head."""
    return routes_table(found).drop_columns(["cut", "logprob_change", "whole_change"])


def cuts_table(found: Explanation):
    """A pyarrow.Table with CUTS, of what was measured alone: a row for each target, flow and range of layers in which it was cut,
    ALL_LAYERS or FEW_LAYERS, those that by estimate carry most."""
    import pyarrow as pa

    rows: list[tuple] = []
    for target in found.targets:
        for one in target.routes:
            every = (0, len(one.estimate) - 1)
            for cut, layers, change in (
                (ALL_LAYERS, every, one.whole_change),
                (FEW_LAYERS, one.layers, one.logprob_change),
            ):
                if layers is not None and change is not None:
                    rows.append((target.step, clean_text(target.text), clean_text(one.name), cut, *layers, change))
    count, text = pa.int32(), pa.string()
    types = (count, text, text, text, count, count, pa.float32())
    return pa.table(
        {
            name: pa.array([row[at] for row in rows], kind)
            for at, (name, kind) in enumerate(zip(CUTS, types, strict=True))
        }
    )


def estimates_table(found: Explanation):
    """A pyarrow.Table with ESTIMATES: a row for each target that has them, layer and position up to the target."""
    import pyarrow as pa

    return pa.concat_tables([_by_layer(found, target) for target in found.targets if target.by_layer is not None])


def _by_layer(found: Explanation, target: ExplainedTarget):
    import pyarrow as pa

    n_layers, n = target.by_layer.contribution.shape
    positions, tokens = np.tile(np.arange(n), n_layers), found.tokens
    columns = (
        np.full(len(positions), target.step, dtype=np.int32),
        _repeated([target.text], len(positions)),
        np.repeat(np.arange(n_layers, dtype=np.int32), n),
        positions.astype(np.int32),
        _repeated(tokens.texts[:n], n_layers),
        _repeated(tokens.kinds[:n], n_layers),
        *_cells(found, positions),
        _numbers(target.by_layer.contribution.reshape(-1)),
        _numbers(target.by_layer.estimate.reshape(-1)),
    )
    return pa.table(dict(zip(ESTIMATES, columns, strict=True)))


def matrix_table(found: Explanation):
    """A pyarrow.Table with MATRIX: a row for each produced token and position of the prompt."""
    import pyarrow as pa

    n_steps, n_prompt = found.matrix.shape
    tokens = found.tokens
    positions = np.tile(np.arange(n_prompt), n_steps)
    columns = (
        np.repeat(np.arange(n_steps, dtype=np.int32), n_prompt),
        pa.array(
            [clean_text(text) for text in tokens.texts[n_prompt:][:n_steps] for _ in range(n_prompt)], pa.string()
        ),
        positions.astype(np.int32),
        _repeated(tokens.texts[:n_prompt], n_steps),
        _repeated(tokens.kinds[:n_prompt], n_steps),
        *_cells(found, positions),
        _numbers(found.matrix.reshape(-1)),
    )
    return pa.table(dict(zip(MATRIX, columns, strict=True)))
