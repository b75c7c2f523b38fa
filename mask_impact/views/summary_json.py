"""What each command prints with --json: the summary as data, with the same words as the files. Writes nothing itself."""

import json
from collections.abc import Iterable
from os import PathLike, fspath
from typing import Any

import numpy as np

from mask_impact.findings.agreement import step_effect
from mask_impact.findings.ranking import token_importance
from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.deepstack import DeepstackEffects
from mask_impact.results.explanations import Evidence, ExplainedTarget, Explanation, TokenSet
from mask_impact.results.flows import FlowStep, Knockouts
from mask_impact.results.meta import jsonable
from mask_impact.results.patches import PatchEffects, PatchTarget
from mask_impact.results.records import Result, StepRecord
from mask_impact.results.table_files import clean_text
from mask_impact.results.tokens import original_box_of

TOP = 20  # tokens of a ranking


def to_text(entry: Any) -> str:
    """JSON in one line: strict, ASCII, so that no terminal acts on it."""
    return json.dumps(jsonable(entry), allow_nan=False)


def result_entry(result: Result, paths: Iterable[str | PathLike] = (), top: int = TOP) -> dict[str, Any]:
    """The answer, its candidates, the tokens that matter, the effects where they were measured, and how exact it all is."""
    meta = result.meta
    return {
        "model": meta.get("model"),
        "prompt": meta.get("prompt"),
        "generated_text": result.generated_text,
        "answer": None
        if result.answer is None
        else [_target_entry(result.answer, target, top) for target in result.answer.targets],
        "pixels": None
        if result.patches is None
        else [_patch_target(result.patches, one) for one in result.patches.targets],
        "steps": [_step_entry(result, step, top) for step in result.steps],
        "sinks": [_token_entry(result, position) for position in result.sinks],
        "self_check": _largest(step.self_check for step in result.steps),
        "noise_floor": _largest(step.noise_floor for step in result.steps),
        "verification": meta.get("verification"),
        "notices": list(meta.get("notices") or ()),
        "files": [fspath(path) for path in paths],
    }


def _step_entry(result: Result, step: StepRecord, top: int) -> dict[str, Any]:
    importance = token_importance(result, step.step)
    entry = {
        "step": step.step,
        "token_id": int(step.token_id),
        "token": step.token_text,
        "candidates": [
            {"id": int(one.id), "token": one.text, "probability": float(one.probability)} for one in step.candidates
        ],
        "measure": importance.measure,
        "tokens": [
            _token_entry(result, position)
            | {"share": float(importance.scores[position]), "layers": importance.top_layers(position)}
            for position in importance.ranked(top)
        ],
    }
    effect = step_effect(result, step.step)
    if effect is not None:
        changes, kl = effect.values["logprob"], effect.values["kl"]
        sizes = np.abs(np.nan_to_num(changes))
        layers = sizes.argmax(axis=0)
        order = np.argsort(-sizes.max(axis=0), kind="stable")[:top]
        order = order[effect.top1[layers[order], order] >= 0]
        entry["effects"] = [
            {
                "name": effect.names[place] if effect.names else result.tokens.texts[effect.hidden[place][0]],
                "positions": [int(position) for position in effect.hidden[place]],
                "layer": int(layers[place]),
                "logprob_change": float(changes[layers[place], place]),
                "kl_divergence": float(kl[layers[place], place]),
                "becomes": effect.top1_texts[int(effect.top1[layers[place], place])],
            }
            for place in order.tolist()
        ]
        estimated = step.effect.estimated
        if estimated is not None:
            entry["effects_estimated"] = {
                "measured": int(step.effect.measured.sum()),
                "of": step.effect.measured.size,
                "rank_correlation": _plain(estimated.agreement.rho),
                "reliable": estimated.reliable,
            }
    return entry


def _token_entry(result: Result, position: int) -> dict[str, Any]:
    tokens = result.tokens
    entry: dict[str, Any] = {"position": int(position), "token": tokens.texts[position]}
    if tokens.image[position] >= 0:
        image, row, column = (int(cells[position]) for cells in (tokens.image, tokens.row, tokens.column))
        box = original_box_of(tokens, result.images, [position])
        entry |= {"image": image, "row": row, "column": column, "box": list(box)}
    return entry


def _largest(values: Iterable[np.ndarray]) -> float | None:
    found = np.concatenate(list(values))
    found = found[np.isfinite(found)]
    return float(found.max()) if found.size else None


def knockouts_entry(found: Knockouts, paths: Iterable[str | PathLike] = ()) -> dict[str, Any]:
    """Of each produced token and flow the layer around which cutting it costs most."""
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "generated_text": found.generated_text,
        "window": found.meta["window"],
        "ablation": found.meta["ablation"],
        "steps": [
            {
                "step": step.step,
                "token_id": int(step.token_id),
                "token": step.token_text,
                "probability": float(step.probability),
                "flows": [_flow_entry(found, step, number) for number in range(len(found.flows))],
            }
            for step in found.steps
        ],
        "files": [fspath(path) for path in paths],
    }


def _flow_entry(found: Knockouts, step: FlowStep, number: int) -> dict[str, Any]:
    one, layer = found.flows[number], int(step.logprob_change[number].argmin())
    return {
        "flow": one.flow.name,
        "source": one.flow.source,
        "target": one.flow.target,
        "n_tokens": len(one.source),
        "layer": layer,
        "relative_change": float(step.relative_change[number, layer]),
        "logprob_change": float(step.logprob_change[number, layer]),
        "kl_divergence": float(step.kl_divergence[number, layer]),
        "becomes": step.top1_texts[int(step.top1[number, layer])],
    }


def patches_entry(found: PatchEffects, paths: Iterable[str | PathLike] = ()) -> dict[str, Any]:
    """Of each target every region that was asked about, and the one that matters most."""
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "generated_text": found.generated_text,
        "fills": list(found.fills),
        "forwards": found.forwards,
        "floor": found.floor,
        "targets": [_patch_target(found, target) for target in found.targets],
        "files": [fspath(path) for path in paths],
    }


def _patch_target(found: PatchEffects, target: PatchTarget) -> dict[str, Any]:
    return {
        "steps": list(target.steps),
        "text": target.text,
        "probability": float(target.probability),
        "found": found.regions[target.found].name,
        "regions": [
            {
                "level": found.regions[place].level,
                "region": found.regions[place].name,
                "image": found.regions[place].image,
                "box": list(found.regions[place].box),
                "fill": target.fill[number] or None,
                "route": target.route[number],
                "logprob_change": float(target.logprob_change[number]),
                "kl_divergence": float(target.kl_divergence[number]),
                "becomes": target.top1_texts[int(target.top1[number])],
            }
            for number, place in enumerate(target.place.tolist())
        ],
    }


def deepstack_entry(found: DeepstackEffects, paths: Iterable[str | PathLike] = ()) -> dict[str, Any]:
    """Of each target what each part adds and every set of parts; the answers."""
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "generated_text": found.generated_text,
        "region": found.region,
        "baseline": found.baseline,
        "parts": [vars(part) for part in found.parts],
        "norm_share": found.norm_share.tolist(),
        "forwards": found.forwards,
        "floor": found.floor,
        "targets": [
            {
                "steps": list(target.steps),
                "text": target.text,
                "probability": float(target.probability),
                "shapley": target.shapley.tolist(),
                "interaction": target.interaction.tolist(),
                "sets": [
                    {
                        "parts_kept": found.kept(number),
                        "logprob_change": float(target.logprob_change[number]),
                        "kl_divergence": float(target.kl_divergence[number]),
                        "becomes": target.top1_texts[int(target.top1[number])],
                    }
                    for number in range(len(target.top1))
                ],
            }
            for target in found.targets
        ],
        "answers": {found.kept(number): text for number, text in found.answers.items()},
        "files": [fspath(path) for path in paths],
    }


def whatif_entry(found: WhatIf, path: str | PathLike | None = None) -> dict[str, Any]:
    """The answer with nothing hidden, and the others."""
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "layers": list(found.layers),
        "answer": _answer_entry(found.answer),
        "others": [_answer_entry(one) for one in found.others],
        "files": [] if path is None else [fspath(path)],
    }


def _answer_entry(one: Answer) -> dict[str, Any]:
    return {
        "without": one.spec,
        "positions": [int(position) for position in one.positions],
        "text": one.text,
        "probability_of_first_token": one.probability,
        "differs_at": one.differs_at,
    }


def explanation_entry(found: Explanation, paths: Iterable[str | PathLike] = (), top: int = TOP) -> dict[str, Any]:
    """What was asked and answered, and of each target what it used."""
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "generated_text": found.generated_text,
        "targets": [_target_entry(found, target, top) for target in found.targets],
        "files": [fspath(path) for path in paths],
    }


def _target_entry(found: Explanation, target: ExplainedTarget, top: int) -> dict[str, Any]:
    """What a target used, the strongest first, its evidence, and how far the estimates agree with what was measured."""
    return {
        "steps": list(target.steps),
        "token_ids": list(target.token_ids),
        "text": target.text,
        "probability": target.probability,
        "instead": target.instead and target.instead[1],
        "used": [_unit_entry(found, target, place) for place in target.used(top)],
        "evidence": [_evidence_entry(target, one) for one in target.evidence],
        "measured": int(target.measured.sum()),
        "units": len(target.names),
        "forwards": target.forwards,
        "rank_correlation": _plain(target.agreement.rho),
        "reliable": target.reliable,
    }


def _unit_entry(found: Explanation, target: ExplainedTarget, place: int) -> dict[str, Any]:
    box = original_box_of(found.tokens, found.images, target.positions[place])
    return {
        "token": target.names[place],
        "positions": list(target.positions[place]),
        "box": None if box is None else list(box),
        "contribution": _plain(target.contribution[place]),
        "estimate_local": _plain(target.estimate_local[place]),
        "logprob_change": _plain(target.logprob_change[place]),
        "becomes": target.top1_texts.get(int(target.top1[place])),
    }


def _evidence_entry(target: ExplainedTarget, one: Evidence) -> dict[str, Any]:
    def of_set(chosen: TokenSet | None) -> dict[str, Any] | None:
        if chosen is None:
            return None
        positions = sorted(position for place in chosen.places for position in target.positions[place])
        names = [target.names[place] for place in chosen.places]
        return {"tokens": names, "positions": positions, "answer": chosen.text, "confirmed": chosen.confirmed}

    return {
        "kind": one.kind,
        "matters": one.matters,
        "necessary": of_set(one.necessary),
        "sufficient": of_set(one.sufficient),
        "exhausted": one.exhausted,
        "each": [{"token": target.names[place], "positions": list(target.positions[place])} for place in one.each],
    }


def tally_entry(tally: Any) -> dict[str, Any]:
    """What became of the prompts of a study."""
    return {
        "prompts": tally.n_jobs,
        "written": tally.n_written,
        "were_there": tally.n_skipped,
        "failed": list(tally.failed),
        "stopped": tally.stopped,
        "errors": None if tally.errors_path is None else str(tally.errors_path),
        "seconds": tally.seconds,
    }


def table_entry(
    title: str, names: Iterable[str], rows: Iterable[Iterable[Any]], notes: Iterable[str]
) -> dict[str, Any]:
    """A table as a list of rows."""
    names = list(names)
    return {
        "title": title,
        "rows": [dict(zip(names, map(_plain, row), strict=True)) for row in rows],
        "notes": list(notes),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return clean_text(value) if isinstance(value, str) else value
