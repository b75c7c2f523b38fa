"""What a study is going to take, without a model's weights: how many prompts, forward passes and bytes.

From the first prompts, as the tokenizer makes them; the others are taken to be like these. The numbers are to tell minutes from
days, not more.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mask_impact.analyses import pixels
from mask_impact.analyses.prepared import Prepared, prepare
from mask_impact.errors import MaskImpactError
from mask_impact.models.loading import Reader
from mask_impact.prompts.videos import read_visuals
from mask_impact.studies.jobs import Job, Problem

SAMPLE = 64  # prompts that are looked at
BYTES = {"parquet": 9, "csv": 70, "json": 130}  # of a row: one distance of a token in a layer
FORWARDS_TO_ESTIMATE = 3.0  # one forward and one backward pass, layer by layer
AT_RANDOM = 16  # effects that are measured beside the strongest


@dataclass
class Forecast:
    """n_prompts, n_images: of the whole study; n_wrong: rows that are no prompts, or can't be run, among those that were looked
    at; n_tokens, forwards: of a prompt, on average, the latter in forward passes of it; n_bytes: of all distances; n_free: bytes
    that are free there; n_sampled: how many prompts tokens, forwards and bytes are from; problems: the first of what is wrong."""

    n_prompts: int
    n_images: int
    n_wrong: int
    n_tokens: float
    forwards: float
    n_bytes: int
    n_free: int
    n_sampled: int
    problems: list[str]

    def entry(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"all_forwards": self.forwards * self.n_prompts}


def forecast(
    reader: Reader, rows: Iterable[Job | Problem], folder: Path, formats: Sequence[str], n_variants: int | None
) -> Forecast:
    """Of the rows that are to be run. formats: of the tables; n_variants: that are kept of each token and layer (None: all)."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    found = Forecast(0, 0, 0, 0.0, 0.0, 0, shutil.disk_usage(there).free, 0, [])
    for row in rows:
        if isinstance(row, Problem):
            _count_wrong(found, row.name or f"row {row.row}", row.message)
            continue
        found.n_prompts += 1
        found.n_images += len(row.images)
        if found.n_sampled == SAMPLE:
            continue
        try:
            prepared = _prepared(reader, row)
        except MaskImpactError as error:
            _count_wrong(found, row.name, str(error))
            continue
        found.n_sampled += 1
        found.n_tokens += prepared.encoded.n_tokens
        found.forwards += forwards_of(prepared, reader)
        found.n_bytes += rows_of(prepared, reader, n_variants) * sum(BYTES[one] for one in formats)
    if found.n_sampled:
        found.n_tokens /= found.n_sampled
        found.forwards /= found.n_sampled
        found.n_bytes = round(found.n_bytes * found.n_prompts / found.n_sampled)
    return found


def _count_wrong(found: Forecast, name: str, message: str) -> None:
    found.n_wrong += 1
    if len(found.problems) < 10:
        found.problems.append(f"{name}: {message}")


def _prepared(reader: Reader, job: Job) -> Prepared:
    return prepare(reader, job.prompt, job.settings, read_visuals(job.images, job.videos, job.settings))


def rows_of(prepared: Prepared, reader: Reader, n_variants: int | None) -> int:
    """Of the tables of distances, if all tokens that are asked for are produced."""
    text, settings = reader.config.get_text_config(), prepared.settings
    kept = len({*settings.variants} - {"heads"}) + ("heads" in settings.variants) * text.num_attention_heads
    n_hidden = int(prepared.encoded.tokens.masked(settings.mask_mode).sum())
    n_positions = sum(n_hidden + step for step in range(settings.num_tokens))
    return n_positions * text.num_hidden_layers * min(kept, n_variants or kept)


def forwards_of(prepared: Prepared, reader: Reader) -> float:
    """What a prompt takes, in forward passes of it: one to read it; the distances of each produced token, whose rows are about as
    many as in one more; estimates and the budget of what the answer used, for each target; each search of pixels; and the
    effects of each produced token: from each hidden token's layer on, one row for the last query, or all rows for all queries."""
    settings, n_layers = prepared.settings, reader.config.get_text_config().num_hidden_layers
    n_tokens = prepared.encoded.n_tokens
    forwards = 1.0 + settings.num_tokens
    if settings.answer:
        n_targets = settings.num_tokens if settings.target == "each" else 1
        forwards += n_targets * (FORWARDS_TO_ESTIMATE + settings.budget)
    if settings.pixels:
        plan = pixels.plan(reader, prepared, pixels.Question())
        forwards += plan.most_runs() * (settings.num_tokens if settings.target == "each" else 1)
    if settings.effect:
        n_all = n_tokens * (1 if settings.window == "all" else n_layers)
        share = 1.0 if settings.top is None else min(1.0, (2 * settings.top + AT_RANDOM) / n_all)
        each = 1.0 if settings.window == "all" else (n_layers + 1) / 2 / n_layers  # of the layers run again
        rows = 1.0 if settings.queries == "last" else n_tokens / 2
        forwards += settings.num_tokens * share * n_all * each * rows / n_tokens
    return forwards
