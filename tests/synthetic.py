"""Small made-up results for tests of what comes after the measurement: seeded, any shape, any token texts."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from mask_impact.results.explanations import Agreement, Evidence, ExplainedTarget, Explanation, Route, TokenSet
from mask_impact.results.records import Candidate, EffectRecord, Result, StepRecord, variant_names
from mask_impact.results.tokens import ImageRecord, Moment, TokenTable

PAD = "<|image_pad|>"


def make_result(
    texts: Sequence[str] = ("The", " capital", " of", " France", " is"),
    n_steps: int = 1,
    n_layers: int = 3,
    n_heads: int = 2,
    groups: tuple[str, ...] = ("full", "attn", "heads"),
    produced: Sequence[str] = (" Paris", ".", " It", " has"),
    dtype: type = np.float32,
    seed: int = 0,
    grids: Sequence[tuple[int, int]] = (),
    mask_mode: str = "both",
    **changes: Any,
) -> Result:
    """A result whose prompt is `texts`, with images of `grids` (rows, columns) behind the first of them.

    Distances are log-normal over many decades. `changes` are Result fields.
    """
    rng = np.random.default_rng(seed)
    cells = [
        (image, row, column)
        for image, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    ]
    texts = [*texts[:1], *[PAD] * len(cells), *texts[1:]]
    variants, n_prompt = variant_names(n_heads, groups), len(texts)
    produced = [produced[step % len(produced)] for step in range(n_steps)]
    tokens = make_tokens([*texts, *produced], dict(enumerate(cells, start=1)))
    masked = tokens.masked(mask_mode)
    steps = tuple(
        make_step(rng, step, produced[step], n_layers, masked[: n_prompt + step], len(variants), dtype)
        for step in range(n_steps)
    )
    fields = {
        "variants": variants,
        "n_prompt": n_prompt,
        "tokens": tokens,
        "steps": steps,
        "generated_text": "".join(produced),
        "sinks": (0,) if n_prompt > 1 else (),
        "images": tuple(make_image(grid, number) for number, grid in enumerate(grids)),
        "meta": {"model": "tiny", "versions": {"numpy": "2"}, "command": ["--prompt", "x"], "revision": None},
    }
    return Result(**{**fields, **changes})


def without_layers(result: Result, layers: Sequence[int]) -> Result:
    """The result of a model of which these layers have no softmax attention: there is no number of them."""

    def emptied(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[list(layers)] = np.nan
        return values

    names = ("l2", "cosine", "baseline_norm", "self_check", "noise_floor")
    steps = (replace(step, **{name: emptied(getattr(step, name)) for name in names}) for step in result.steps)
    return replace(result, steps=tuple(steps))


def make_step(
    rng: np.random.Generator, step: int, text: str, n_layers: int, masked: np.ndarray, n_variants: int, dtype: type
) -> StepRecord:
    """masked: bool [S_t]."""
    l2 = np.exp(rng.normal(size=(n_layers, masked.sum(), n_variants)) * 3 - 4).astype(dtype)
    attention = rng.dirichlet(np.ones(len(masked)))
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
        positions=np.flatnonzero(masked),
        l2=l2,
        cosine=(l2 * l2 / 50).astype(dtype),
        attention=(attention / attention.sum()).astype(dtype),
        baseline_norm=np.exp(rng.normal(size=(n_layers, n_variants))).astype(dtype),
        self_check=rng.uniform(1e-8, 1e-6, size=n_layers),
        noise_floor=np.full(n_layers, np.nan),
        seconds=0.25,
    )


def make_image(grid: tuple[int, int], number: int = 0) -> ImageRecord:
    """An image of cells of 32 x 32 pixels, shrunk from one of 50 x 40 pixels to the cell; a grey ramp to look at."""
    rows, columns = grid
    ramp = np.linspace(0, 255, columns * 32, dtype=np.uint8)[None].repeat(rows * 32, axis=0)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG")
    return ImageRecord(
        source=f"picture{number}.png",
        size=(columns * 50, rows * 40),
        resized=(columns * 32, rows * 32),
        grid=grid,
        preview=file.getvalue(),
    )


def filmed(result: Result) -> Result:
    """The result whose images are the pairs of frames of a video, half a second each."""
    kinds = tuple("video" if kind == "image" else kind for kind in result.tokens.kinds)
    images = [
        replace(image, moment=Moment(0, (2 * at, 2 * at + 1), (0.5 * at, 0.5 * at + 0.25)))
        for at, image in enumerate(result.images)
    ]
    return replace(result, tokens=replace(result.tokens, kinds=kinds), images=tuple(images))


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


def with_effects(result: Result, seed: int = 0, floor: float = 1e-4, texts: Sequence[str] = ()) -> Result:
    """The result with effects on its produced tokens, log-normal over many decades and of both signs.

    Some cells are below the floors (0, `floor`, a tenth of it), some exactly 0; in some one of `texts` is the most probable.
    """
    rng = np.random.default_rng(seed)
    texts, steps = texts or (" other",), []
    for step in result.steps:
        shape = step.l2.shape[:2]
        size = np.exp(rng.normal(size=shape) * 3 - 7)
        size[rng.random(shape) < 0.05] = 0
        sign = np.where(rng.random(shape) < 0.3, 1, -1)
        ids = 900 + rng.integers(len(texts), size=shape)
        effect = EffectRecord(
            logit_change=(1.5 * sign * size + 0.0).astype(np.float32),
            logprob_change=(sign * size + 0.0).astype(np.float32),
            kl_divergence=(size * np.exp(rng.normal(size=shape)) / 10).astype(np.float32),
            top1=np.where(rng.random(shape) < 0.2, ids, step.token_id),
            top1_texts={step.token_id: step.token_text, **{900 + n: text for n, text in enumerate(texts)}},
            floor=(0.0, float(np.float32(floor)), float(np.float32(floor / 10))),
        )
        steps.append(replace(step, effect=effect))
    how = {"ablation": "mask", "effect": {"window": 3, "queries": "last"}}
    return replace(result, steps=tuple(steps), meta={**result.meta, **how})


def make_explanation(names=("the", " cat", "<|image_pad|>"), measured=(True, False, True), **changes):
    """Three tokens, the last a cell of an image; the second is only estimated. changes: of the target."""
    place = np.array([-1, -1, 0, -1], dtype=np.int32)
    tokens = TokenTable(np.arange(4), (*names, " mat"), ("text", "text", "image", "text"), place, place, place)
    there = np.array(measured)
    needed = TokenSet((2,), True, " <b>", True)
    target = ExplainedTarget(
        steps=(0,), token_ids=(7,), text=" mat", probability=0.75, instead=None, measure="log-prob",
        names=(names[0], names[1], "image 0 [0, 0]"), positions=((0,), (1,), (2,)), kinds=("text", "text", "image"),
        contribution=np.array([-0.5, 0.25, -3.0], dtype=np.float32),
        estimate_local=np.array([-0.25, 0.0, -1.0], dtype=np.float32),
        logprob_change=np.where(there, [-0.4, 0.0, -2.5], np.nan).astype(np.float32),
        kl_divergence=np.where(there, [0.1, 0.0, 2.0], np.nan).astype(np.float32),
        top1=np.where(there, [7, 7, 9], -1), top1_texts={7: " mat", 9: " <b>"},
        differs=np.array([False, False, True]), control=np.array([True, False, False]), content=np.ones(3, dtype=bool),
        agreement=Agreement(2, 1.0, 1.0, 1.2, 0.4), reliable=False, forwards=1.5,
        evidence=(Evidence("image", True, needed, replace(needed, text=" mat"), False, 2.5),),
        routes=(Route("image -> last", "image", "last", *[np.array([[-0.5, 0.25], [-1.0, 0.0]], dtype=np.float32)] * 2),),
    )  # fmt: skip
    image = ImageRecord("a.png", (32, 32), (32, 32), (1, 1))
    return Explanation((replace(target, **changes),), tokens, (image,), 3, " mat", meta={"model": "tiny", "budget": 12})
