"""`NAME.whatif.json`: answers with tokens hidden. Knows answers and files; nothing is printed."""

import os
from pathlib import Path

from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.files import check_output, write_files
from mask_impact.results.meta import SCHEMA_VERSION, meta_bytes


def answer_table(found: WhatIf):
    """A pyarrow.Table with a row for each produced token of each answer; `without` is null where nothing was hidden."""
    import pyarrow as pa

    rows = [
        {"without": one.spec, "place": place, "token_id": token, "token": text, "probability": probability}
        for one in (found.answer, *found.others)
        for place, (token, text, probability) in enumerate(
            zip(one.token_ids, one.token_texts, one.probabilities, strict=True)
        )
    ]
    schema = pa.schema(
        [
            ("without", pa.string()),
            ("place", pa.int64()),
            ("token_id", pa.int64()),
            ("token", pa.string()),
            ("probability", pa.float64()),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def save_whatif(found: WhatIf, path: str | os.PathLike, command: str = "") -> Path:
    """Writes `path`.whatif.json, and returns its path. Errors as in `store.save`."""

    def entry(answer: Answer) -> dict:
        tokens = zip(answer.token_ids, answer.token_texts, answer.probabilities, strict=True)
        return {
            "without": answer.spec,
            "positions": answer.positions,
            "text": answer.text,
            "probability_of_first_token": answer.probability,
            "differs_at": answer.differs_at,
            "tokens": [{"id": token, "text": text, "probability": p} for token, text, p in tokens],
        }

    path = Path(path)
    stem = check_output(path.parent, path.name)
    content = {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "layers": found.layers,
        "answer": entry(found.answer),
        "others": [entry(one) for one in found.others],
        "tokens": list(found.tokens.texts),
    }
    text = meta_bytes(content)
    target = stem.with_name(f"{stem.name}.whatif.json")
    write_files({target: lambda file: file.write(text)})
    return target
