"""`NAME.whatif.json`: answers with tokens hidden, there and back. Knows answers and files; nothing is printed."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.files import without_suffix
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes, read_meta
from mask_impact.results.names import WHATIF
from mask_impact.results.siblings import asked, write_kinds
from mask_impact.results.table_files import beside
from mask_impact.results.token_meta import token_entries, tokens_from


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


def save_whatif(
    found: WhatIf, path: str | os.PathLike, command: str = "", on_removed: Callable[[Iterable[Path]], Any] = tuple
) -> Path:
    """Writes `path`.whatif.json, and returns its path. on_removed: is told what was removed, see `write_kinds`. Errors as in
    `store.save`."""

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
    stem = path.parent / without_suffix(path.name)
    content = {
        "schema_version": SCHEMA_VERSION,
        "run": found.meta | {"command": command},
        "layers": found.layers,
        "n_layers": found.n_layers,
        "answer": entry(found.answer),
        "others": [entry(one) for one in found.others],
        "tokens": [line(entry) for entry in token_entries(found.tokens)],
    }
    text = meta_bytes(content)
    on_removed(write_kinds(stem, [WHATIF], {WHATIF.main: lambda file: file.write(text)}, asked(found.meta)))
    return beside(stem, WHATIF.main)


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_whatif(path: str | os.PathLike) -> WhatIf:
    """The answers of a run called `path`, as they were saved. OutputError where the file is not there or does not fit."""
    path = Path(path)
    stem = path.parent / without_suffix(path.name)
    where = stem.with_name(f"{stem.name}.whatif.json")
    content = read_meta(where, "whatif")
    return WhatIf(
        answer=_answer_from(content["answer"]),
        others=tuple(map(_answer_from, content["others"])),
        layers=tuple(content["layers"]),
        tokens=tokens_from(content["tokens"]),
        n_layers=content["n_layers"],
        meta=content["run"],
    )


def _answer_from(entry: dict[str, Any]) -> Answer:
    tokens = entry["tokens"]
    return Answer(
        spec=entry["without"],
        positions=tuple(entry["positions"]),
        token_ids=tuple(token["id"] for token in tokens),
        token_texts=tuple(token["text"] for token in tokens),
        probabilities=tuple(token["probability"] for token in tokens),
        text=entry["text"],
        probability=entry["probability_of_first_token"],
        differs_at=entry["differs_at"],
    )
