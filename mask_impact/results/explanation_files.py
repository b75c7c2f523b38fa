"""`NAME.answer.*`: what an answer used, as table and meta file. Knows explanations and files; nothing is printed."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mask_impact.results.explanations import ExplainedStep, Explanation
from mask_impact.results.files import check_output, write_files
from mask_impact.results.meta import SCHEMA_VERSION, meta_bytes
from mask_impact.results.table_files import beside, clean_text, parse_formats, write_table

DEFAULT_FORMATS = ("csv", "json")
COLUMNS = (
    "step", "target", "token", "positions", "kind", "image", "row", "column", "contribution", "estimate_local",
    "logprob_change", "kl_divergence", "top1_token", "control",
)  # fmt: skip


def explanation_table(found: Explanation):
    """A pyarrow.Table with COLUMNS: a row for each step and group. Image, row and column are null where the group is
    not a cell of an image; the measured columns where nothing was measured."""
    import pyarrow as pa

    return pa.concat_tables([_of_step(found, step) for step in found.steps])


def _of_step(found: Explanation, step: ExplainedStep):
    import pyarrow as pa

    tokens, n = found.tokens, len(step.names)
    first = np.array([positions[0] for positions in step.positions], dtype=np.int64)
    single = np.array([len(positions) == 1 for positions in step.positions])
    in_image = single & (tokens.image[first] >= 0)
    measured = step.measured
    texts = [clean_text(name) for name in step.names]
    tops = [
        clean_text(step.top1_texts[int(one)]) if there else None for one, there in zip(step.top1, measured, strict=True)
    ]

    def cells(values: np.ndarray):
        return pa.array(values[first].astype(np.int32), mask=~in_image)

    def numbers(values: np.ndarray):
        return pa.array(values.astype(np.float32) + np.float32(0), mask=~np.isfinite(values))  # -0.0 becomes 0.0

    columns = (
        np.full(n, step.step, dtype=np.int32),
        pa.array([clean_text(step.token_text)] * n, pa.string()),
        pa.array(texts, pa.string()),
        pa.array([" ".join(map(str, positions)) for positions in step.positions], pa.string()),
        pa.array([tokens.kinds[one] if alone else "group" for one, alone in zip(first, single, strict=True)], pa.string()),
        cells(tokens.image), cells(tokens.row), cells(tokens.column),
        numbers(step.contribution), numbers(step.estimate_local), numbers(step.logprob_change), numbers(step.kl_divergence),
        pa.array(tops, pa.string()),
        pa.array(step.control),
    )  # fmt: skip
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def save_explanation(
    found: Explanation, path: str | os.PathLike, formats: str | Iterable[str] = DEFAULT_FORMATS, command: str = ""
) -> tuple[Path, ...]:
    """Writes `path`.answer.csv, .json and/or .parquet and `path`.answer.meta.json, all or none; returns the paths."""
    path = Path(path)
    stem, table = check_output(path.parent, path.name), explanation_table(found)
    meta = meta_bytes(
        {
            "schema_version": SCHEMA_VERSION,
            "run": found.meta | {"command": command},
            "generated_text": found.generated_text,
            "n_prompt": found.n_prompt,
            "steps": [
                {
                    "step": step.step,
                    "token_id": step.token_id,
                    "token": step.token_text,
                    "probability": step.probability,
                    "groups": len(step.names),
                    "measured": int(step.measured.sum()),
                    "forwards": step.forwards,
                    "agreement": asdict(step.agreement),
                    "reliable": step.reliable,
                }
                for step in found.steps
            ],
            "tokens": list(found.tokens.texts),
        }
    )
    writers = {
        beside(stem, f"answer.{form}"): lambda file, form=form: write_table(table, form, file)
        for form in parse_formats(formats)
    }
    writers[beside(stem, "answer.meta.json")] = lambda file: file.write(meta)
    write_files(writers)
    return tuple(writers)
