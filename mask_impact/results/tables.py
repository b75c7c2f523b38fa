"""A result's distances as a table of seven columns, a row for each step, measured layer, hidden position and variant.

Knows records and pyarrow; no files.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mask_impact.results.records import Result
from mask_impact.results.table_files import clean_text, flat, texts_column
from mask_impact.results.tokens import TOKEN_KINDS

KIND, CONTENT = "kind", "content"  # further columns of a dataset's distances
PROMPT_COLUMNS = (
    "prompt_name", "digest", "settings", "generated_text", "correct", "carried", "n_prompt", "n_produced", "left_out",
    "seconds",
)  # fmt: skip
COLUMNS = ("generation_step", "layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance")


def to_table(result: Result):
    """The result as a pyarrow.Table: COLUMNS, a row for each step, measured layer, masked position and
    variant, in that order."""
    import pyarrow as pa

    return pa.concat_tables(step_tables(result))


def step_tables(result: Result) -> Iterator:
    """One pyarrow.Table for each step; tokens and variants are codes into dictionaries that all steps share."""
    import pyarrow as pa

    texts = [clean_text(text) for text in result.tokens.texts]
    distinct = list(dict.fromkeys(texts))
    code_of = {text: code for code, text in enumerate(distinct)}
    token_codes = np.array([code_of[text] for text in texts], dtype=np.int32)
    tokens, variants = pa.array(distinct, pa.string()), pa.array(result.variants, pa.string())
    layers = np.array(result.layers, dtype=np.int32)
    for step in result.steps:
        l2, cosine = step.of_layers(result.layers)
        n_layers, n_masked, n_variants = l2.shape
        positions = np.tile(np.repeat(step.positions.astype(np.int32), n_variants), n_layers)
        variant_codes = np.tile(np.arange(n_variants, dtype=np.int32), n_layers * n_masked)
        columns = (
            np.full(l2.size, step.step, dtype=np.int32),
            np.repeat(layers, n_masked * n_variants),
            pa.DictionaryArray.from_arrays(token_codes[positions], tokens),
            positions,
            pa.DictionaryArray.from_arrays(variant_codes, variants),
            flat(l2),
            flat(cosine),
        )
        yield pa.table(dict(zip(COLUMNS, columns, strict=True)))


def distances_table(result: Result, reduce: str):
    """The distances of one prompt of a dataset, with COLUMNS.

    reduce: `none` for all variants; `summary` for Full, Attn and, for each token and layer, the head with the largest L2.
    """
    import pyarrow as pa

    return pa.concat_tables(step_tables(result)) if reduce == "none" else _summary_table(result)


def to_dataset_table(result: Result, name: str, carried: str, reduce: str):
    """The distances of one prompt of a dataset, as its parts have them: with each token's kind, and whether it is of content,
    neither special nor an attention sink."""
    import pyarrow as pa

    table = distances_table(result, reduce).unify_dictionaries()
    positions = table["token_position"].to_numpy()
    codes = np.array([TOKEN_KINDS.index(kind) for kind in result.tokens.kinds], dtype=np.int32)
    content = codes != TOKEN_KINDS.index("special")
    content[list(result.sinks)] = False
    kinds = pa.DictionaryArray.from_arrays(codes[positions], pa.array(TOKEN_KINDS, pa.string()))
    table = table.append_column(KIND, kinds).append_column(CONTENT, pa.array(content[positions]))
    return with_prompt(table, name, result.generated_text, carried)


def with_prompt(table, name: str, generated_text: str, carried: str):
    """Any table of one prompt of a dataset, with `prompt_name` before its columns, `generated_text` and `carried` behind them."""
    import pyarrow as pa

    def constant(text: str):
        codes = pa.array(np.zeros(len(table), dtype=np.int32))
        return pa.DictionaryArray.from_arrays(codes, pa.array([clean_text(text)], pa.string()))

    table = table.unify_dictionaries().add_column(0, "prompt_name", constant(name))
    return table.append_column("generated_text", constant(generated_text)).append_column("carried", constant(carried))


def prompts_table(rows: Sequence[Mapping[str, Any]]):
    """The table of a dataset's prompts, a row for each, with PROMPT_COLUMNS."""
    import pyarrow as pa

    kinds = {"correct": pa.bool_(), "n_prompt": pa.int32(), "n_produced": pa.int32(), "seconds": pa.float32()}
    columns = {
        name: pa.array(
            [clean_text(row[name]) if isinstance(row[name], str) else row[name] for row in rows],
            kinds.get(name, pa.string()),
        )
        for name in PROMPT_COLUMNS
    }
    return pa.table(columns)


def _summary_table(result: Result):
    import pyarrow as pa

    first_head = sum(name in result.variants for name in ("Full", "Attn"))
    texts = texts_column(result.tokens.texts)
    tables, layers = [], np.array(result.layers, dtype=np.int32)
    for step in result.steps:
        l2, cosine = step.of_layers(result.layers)
        n_layers, n_masked, n_variants = l2.shape
        kept = [np.full((n_layers, n_masked), variant) for variant in range(first_head)]
        if first_head < n_variants:
            kept.append(first_head + l2[:, :, first_head:].argmax(axis=2))
        variants = np.stack(kept, axis=2)  # [L, P, kept]
        n_kept = variants.shape[2]
        positions = np.tile(np.repeat(step.positions.astype(np.int32), n_kept), n_layers)
        columns = (
            np.full(variants.size, step.step, dtype=np.int32),
            np.repeat(layers, n_masked * n_kept),
            texts.take(pa.array(positions)),
            positions,
            pa.DictionaryArray.from_arrays(
                variants.reshape(-1).astype(np.int32), pa.array(result.variants, pa.string())
            ),
            flat(np.take_along_axis(l2, variants, axis=2)),
            flat(np.take_along_axis(cosine, variants, axis=2)),
        )
        tables.append(pa.table(dict(zip(COLUMNS, columns, strict=True))))
    return pa.concat_tables(tables)
