"""A result's meta file: everything of a Result but its distances, there and back. Knows records; reads no tables."""

from dataclasses import asdict
from typing import Any

import numpy as np

from mask_impact.results.effect_tables import rest_checksum
from mask_impact.results.explanation_files import answer_checksum
from mask_impact.results.meta import SCHEMA_VERSION, line, meta_bytes
from mask_impact.results.records import Candidate, EffectRecord, Estimated, Result, StepRecord, placed
from mask_impact.results.table_files import changes_checksum, checksum, clean_text
from mask_impact.results.token_meta import image_entry, image_from, token_entries, tokens_from


def result_meta(result: Result, formats: tuple[str, ...]) -> bytes:
    """The meta file: strict JSON (what is not finite is null), indented, but a token or an array on one line."""
    layers = result.layers
    steps = [
        {
            "step": step.step,
            "token_id": int(step.token_id),
            "token_text": step.token_text,
            "candidates": [
                line({"id": int(one.id), "text": clean_text(one.text), "probability": float(one.probability)})
                for one in step.candidates
            ],
            "seconds": float(step.seconds),
            "self_check_max": _largest(step.self_check),
            "noise_floor_max": _largest(step.noise_floor),
            "self_check": line(step.self_check),
            "noise_floor": line(step.noise_floor),
            "positions": line(step.positions) if len(step.positions) < step.n_positions else None,
            "attention": line(step.attention),
            "baseline_norm": [line(layer) for layer in step.baseline_norm],
            "distances_crc32": checksum(*step.of_layers(layers)),
            "effect": step.effect and _effect_entry(step.effect),
        }
        for step in result.steps
    ]
    meta = {
        "schema_version": SCHEMA_VERSION,
        "run": result.meta,
        "generated_text": result.generated_text,
        "n_prompt": result.n_prompt,
        "n_layers": result.n_layers,
        "layers": line(layers) if len(layers) < result.n_layers else None,
        "n_rows": result.n_rows,
        "variants": list(result.variants),
        "formats": list(formats),
        "distance_dtype": str(result.steps[0].l2.dtype),
        "sinks": [int(position) for position in result.sinks],
        "answer_crc32": None if result.answer is None else answer_checksum(result.answer),
        **({} if result.patches is None else {"patches_crc32": changes_checksum(result.patches.targets)}),
        "steps": steps,
        "images": [image_entry(image) for image in result.images],
        "tokens": [line(entry) for entry in token_entries(result.tokens, result.images)],
    }
    return meta_bytes(meta)


def _effect_entry(effect: EffectRecord) -> dict[str, Any]:
    """What the meta file says of a step's effects besides their table."""
    return {
        "floor": line(effect.floor),
        "top1_texts": line({str(token): clean_text(text) for token, text in effect.top1_texts.items()}),
        "groups": effect.groups and [line([clean_text(name), list(positions)]) for name, positions in effect.groups],
        "likeliest": effect.likeliest,
        "rounding": effect.rounding and line(effect.rounding),
        "estimated": effect.estimated and line(_estimated_entry(effect.estimated)),
        "crc32": checksum(*(getattr(effect, name) for name in ("logit_change", "logprob_change", "kl_divergence"))),
        "rest_crc32": rest_checksum(effect),
    }


def _estimated_entry(one: Estimated) -> dict[str, Any]:
    numbers = {name: getattr(one, name) for name in ("reliable", "forwards", "all_forwards")}
    return {"agreement": asdict(one.agreement)} | numbers


def _largest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else None


def result_from(meta: dict[str, Any], l2: np.ndarray, cosine: np.ndarray) -> Result:
    """The Result that a meta file describes; l2, cosine: its distances, [rows], as the table has them."""
    n_layers, layers, n_variants = meta["n_layers"], meta.get("layers"), len(meta["variants"])
    steps, first = [], 0
    for stored in meta["steps"]:
        positions = stored["positions"]
        positions = np.arange(len(stored["attention"])) if positions is None else np.array(positions, dtype=np.int64)
        shape = (n_layers if layers is None else len(layers), len(positions), n_variants)
        rows = slice(first, first + int(np.prod(shape)))
        first = rows.stop
        steps.append(
            StepRecord(
                step=stored["step"],
                token_id=stored["token_id"],
                token_text=stored["token_text"],
                candidates=tuple(Candidate(**candidate) for candidate in stored["candidates"]),
                positions=positions,
                l2=placed(l2[rows].reshape(shape), layers, n_layers),
                cosine=placed(cosine[rows].reshape(shape), layers, n_layers),
                attention=np.array(stored["attention"], dtype=l2.dtype),
                baseline_norm=np.array(stored["baseline_norm"], dtype=l2.dtype),
                self_check=np.array(stored["self_check"], dtype=np.float64),
                noise_floor=np.array(stored["noise_floor"], dtype=np.float64),
                seconds=stored["seconds"],
            )
        )
    return Result(
        variants=tuple(meta["variants"]),
        n_prompt=meta["n_prompt"],
        tokens=tokens_from(meta["tokens"]),
        steps=tuple(steps),
        generated_text=meta["generated_text"],
        sinks=tuple(meta["sinks"]),
        images=tuple(image_from(entry) for entry in meta["images"]),
        meta=meta["run"],
    )
