"""Made-up results whose answers are explained: each token of the prompt is a unit, with the effects that a test asks for."""

import dataclasses

import numpy as np

from mask_impact.results.explanations import Agreement, Evidence, ExplainedTarget, Explanation, TokenSet


def explained(
    result,
    effects,
    estimated=None,
    becomes=None,
    needed=(),
    answer=None,
    steps=(0,),
    extra=(),
    confirmed=True,
    **changes,
):
    """The result with an answer. effects: {position: measured change}; estimated: {position: estimate}, of what was not measured;
    becomes: {position: most probable token without it}; needed: positions of a necessary set; extra: units of several positions,
    as (name, positions, measured change or None, estimate)."""
    estimated, becomes = estimated or {}, becomes or {}
    texts, n = result.tokens.texts, result.n_prompt
    is_image = [at >= 0 for at in result.tokens.image]
    units = [
        (
            f"image 0 [{result.tokens.row[at]}, {result.tokens.column[at]}]" if is_image[at] else texts[at],
            (at,),
            effects.get(at),
            estimated.get(at, 0.0),
        )
        for at in range(n)
    ] + list(extra)
    answer = result.generated_text if answer is None else answer
    others = {text: 900 + number for number, text in enumerate(dict.fromkeys(becomes.values()))}
    measured = np.array([np.nan if change is None else change for _, _, change, _ in units], dtype=np.float32)
    differs = np.array([at[0] in becomes and len(at) == 1 for _, at, _, _ in units])
    top1 = np.where(np.isnan(measured), -1, 7)
    for place in np.flatnonzero(differs):
        top1[place] = others[becomes[units[place][1][0]]]
    evidence = ()
    if needed:
        chosen = TokenSet(tuple(needed), True, " else", confirmed)
        evidence = (Evidence("text", True, chosen, dataclasses.replace(chosen, text=answer), False, 2.0),)
    target = ExplainedTarget(
        steps=steps, token_ids=(7,) * len(steps), text=answer, probability=0.75, instead=None, measure="log-prob",
        names=tuple(name for name, *_ in units), positions=tuple(at for _, at, _, _ in units),
        kinds=tuple("word" if len(at) > 1 else "image" if is_image[at[0]] else "text" for _, at, _, _ in units),
        contribution=np.array([estimate for *_, estimate in units], dtype=np.float32),
        estimate_local=np.zeros(len(units), dtype=np.float32),
        logprob_change=measured, kl_divergence=np.abs(measured),
        top1=top1, top1_texts={7: answer} | {number: text for text, number in others.items()},
        differs=differs, control=np.zeros(len(units), dtype=bool), content=np.ones(len(units), dtype=bool),
        agreement=Agreement(2, 1.0, 1.0, 1.2, 0.4), reliable=None, forwards=1.5, evidence=evidence,
    )  # fmt: skip
    found = Explanation(
        (dataclasses.replace(target, **changes),),
        result.tokens,
        result.images,
        n,
        result.generated_text,
        meta={"model": "tiny"},
    )
    return dataclasses.replace(result, answer=found)


def read_at(result, layers, step=0):
    """The result with local impact only where a test asks for it. layers: {position: {layer: value}}; norms are 1."""
    record = result.steps[step]
    l2 = np.zeros_like(record.l2)
    for position, values in layers.items():
        place = record.positions.tolist().index(position)
        for layer, value in values.items():
            l2[layer, place, :] = value
    changed = dataclasses.replace(record, l2=l2, baseline_norm=np.ones_like(record.baseline_norm))
    steps = tuple(changed if one.step == step else one for one in result.steps)
    return dataclasses.replace(result, steps=steps)
