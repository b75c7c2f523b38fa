"""Small made-up results for tests of what comes after the measurement: seeded, any shape, any token texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mask_impact.records import Candidate, Result, StepRecord, TokenTable, variant_names


def make_result(
    texts: Sequence[str] = ("The", " capital", " of", " France", " is"),
    n_steps: int = 1,
    n_layers: int = 3,
    n_heads: int = 2,
    groups: tuple[str, ...] = ("full", "attn", "heads"),
    produced: Sequence[str] = (" Paris", ".", " It", " has"),
    dtype: type = np.float32,
    seed: int = 0,
    **changes: Any,
) -> Result:
    """A result whose prompt is `texts`; distances are log-normal over many decades. `changes` are Result fields."""
    rng = np.random.default_rng(seed)
    variants, n_prompt = variant_names(n_heads, groups), len(texts)
    produced = [produced[step % len(produced)] for step in range(n_steps)]
    steps = tuple(
        make_step(rng, step, produced[step], n_layers, n_prompt + step, len(variants), dtype) for step in range(n_steps)
    )
    fields = {
        "variants": variants,
        "n_prompt": n_prompt,
        "tokens": make_tokens([*texts, *produced]),
        "steps": steps,
        "generated_text": "".join(produced),
        "sinks": (0,) if n_prompt > 1 else (),
        "meta": {"model": "tiny", "versions": {"numpy": "2"}, "command": ["--prompt", "x"], "revision": None},
    }
    return Result(**{**fields, **changes})


def make_step(
    rng: np.random.Generator, step: int, text: str, n_layers: int, n_positions: int, n_variants: int, dtype: type
) -> StepRecord:
    l2 = np.exp(rng.normal(size=(n_layers, n_positions, n_variants)) * 3 - 4).astype(dtype)
    attention = rng.dirichlet(np.ones(n_positions))
    attention[0] += 1.5  # a sink at position 0, as trained models have
    probabilities = np.sort(rng.dirichlet(np.ones(9)))[::-1]
    return StepRecord(
        step=step,
        token_id=700 + step,
        token_text=text,
        candidates=tuple(
            Candidate(id=700 + step + rank, text=text if rank == 0 else f" other{rank}", probability=float(p))
            for rank, p in enumerate(probabilities[:5])
        ),
        l2=l2,
        cosine=(l2 * l2 / 50).astype(dtype),
        attention=(attention / attention.sum()).astype(dtype),
        baseline_norm=np.exp(rng.normal(size=(n_layers, n_variants))).astype(dtype),
        self_check=rng.uniform(1e-8, 1e-6, size=n_layers),
        noise_floor=np.full(n_layers, np.nan),
        seconds=0.25,
    )


def make_tokens(texts: Sequence[str], image_cells: dict[int, tuple[int, int, int]] | None = None) -> TokenTable:
    """Text tokens with ids from 100; `image_cells` makes positions image tokens: position -> image, row, column."""
    cells = np.full((len(texts), 3), -1, dtype=np.int32)
    kinds = ["text"] * len(texts)
    for position, cell in (image_cells or {}).items():
        cells[position], kinds[position] = cell, "image"
    return TokenTable(
        ids=np.arange(100, 100 + len(texts), dtype=np.int64),
        texts=tuple(texts),
        kinds=tuple(kinds),
        image=cells[:, 0].copy(),
        row=cells[:, 1].copy(),
        column=cells[:, 2].copy(),
    )
