"""What the answer used: every token's contribution estimated at once, and the strongest ones really hidden.

Hiding means here: from every query, in all layers. Two backward passes rank all tokens (see `engine.backward`). The best of
both rankings are measured, and some others drawn at random as a control, as many as the budget of forward passes allows. Where
measuring everything fits into the budget, everything is measured.

The estimates of a run are not reliable where their rank correlation with what was measured is below MIN_RHO, or where a token
that was drawn at random turns out to matter more than the weakest of the LISTED strongest ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mask_impact.analyses.generation import greedy_config, on_input_device
from mask_impact.analyses.impact import groups_of
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import describe_run, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.engine.backward import RULES, estimate, keep_forward
from mask_impact.engine.effects import StepEffects, each_window_and_group, measure_effects
from mask_impact.engine.masking import MaskingEngine, SequencePlan
from mask_impact.findings.agreement import rank_correlation
from mask_impact.models.architectures import Decoder
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import token_texts
from mask_impact.prompts.groups import Group
from mask_impact.results.explanations import Agreement, ExplainedStep, Explanation
from mask_impact.results.records import TokenTable

MIN_RHO = 0.7
LISTED = 5  # the strongest ones that are shown first
FEWEST_CANDIDATES, FEWEST_CONTROLS, MOST_CONTROLS = 5, 3, 16
FOR_CANDIDATES = 0.75  # of the budget; the rest is for controls


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    settings: RunSettings,
    pictures: Sequence[Any] = (),
    *,
    seed: int = 0,
    observer: Observer | None = None,
) -> Explanation:
    """Explain each of up to num_tokens produced tokens; the images are already read. seed: of the controls."""
    observer = observer or Observer()
    prepared = prepare(loaded, prompt, settings, pictures)
    groups = groups_of(loaded, prepared, always=True)
    model, encoded = loaded.model, prepared.encoded
    inputs = on_input_device(model, encoded.inputs)
    observer.answers_begin(settings.num_tokens)
    with torch.no_grad():
        ids = model.generate(**inputs, generation_config=greedy_config(model, settings.num_tokens))
    produced = ids[0, encoded.n_tokens :].tolist()
    texts, kinds = token_texts(loaded.tokenizer, produced)
    tokens = encoded.tokens.extended(produced, texts, kinds)
    steps, decoder = [], None
    for number, (token, text) in enumerate(zip(produced, texts, strict=True)):
        sequence = _extended(inputs, produced[:number])
        hidden = _hidden(groups, tokens, encoded.n_tokens, encoded.n_tokens + number)
        step, decoder = _explain(loaded, sequence, (number, token, text), hidden, settings.budget, seed)
        steps.append(step)
        observer.answer_done()
    return Explanation(
        steps=tuple(steps),
        tokens=tokens,
        images=encoded.images,
        n_prompt=encoded.n_tokens,
        generated_text=loaded.tokenizer.decode(produced, skip_special_tokens=True),
        meta=describe_run(loaded, prepared, decoder)
        | {"budget": settings.budget, "groups": settings.groups, "images": [image.source for image in encoded.images]},
    )


def _extended(inputs: Mapping[str, Any], produced: Sequence[int]) -> dict[str, Any]:
    """The inputs with tokens behind the prompt: what the model had seen when it produced the next one."""
    if not produced:
        return dict(inputs)
    ids = inputs["input_ids"]
    behind = torch.tensor([produced], device=ids.device, dtype=ids.dtype)
    extended = dict(inputs) | {"input_ids": torch.cat([ids, behind], dim=1)}
    for name, fill in (("attention_mask", torch.ones_like), ("mm_token_type_ids", torch.zeros_like)):
        if name in inputs:
            extended[name] = torch.cat([inputs[name], fill(behind).to(inputs[name].dtype)], dim=1)
    return extended


def _hidden(groups: Sequence[Group] | None, tokens: TokenTable, n_prompt: int, n_positions: int) -> list[Group]:
    """What is hidden together at a step: the groups, or each position; and each token that was produced before the step."""
    places = range(n_prompt if groups is not None else 0, n_positions)
    names = {
        at: f"image {tokens.image[at]} [{tokens.row[at]}, {tokens.column[at]}]"
        if tokens.image[at] >= 0
        else tokens.texts[at]
        for at in places
    }
    return [*(groups or ()), *(Group(name, (at,)) for at, name in names.items())]


def _explain(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    produced: tuple[int, int, str],
    groups: Sequence[Group],
    budget: int,
    seed: int,
) -> tuple[ExplainedStep, Decoder]:
    """One produced token: (step, id, text)."""
    number, token, text = produced
    forward = keep_forward(loaded.model, inputs)
    n_positions, n_layers = forward.n_positions, len(forward.decoder.layers)
    of_tokens = {}
    for rule in RULES:
        found = estimate(forward, token, rule)
        of_tokens[rule] = found.every.sum(dim=(0, 1)).double().numpy()
    estimates = {
        rule: _as_logprob(found.target, np.array([values[list(group.positions)].sum() for group in groups]))
        for rule, values in of_tokens.items()
    }
    chosen, controls, forwards = choose(estimates, [group.positions[0] for group in groups], n_positions, budget, seed)
    effects = _measure(loaded, inputs, [groups[place].positions for place in chosen], n_layers, token)
    change, kl = (np.full(len(groups), np.nan, dtype=np.float32) for _ in range(2))
    top1 = np.full(len(groups), -1, dtype=np.int64)
    change[chosen], kl[chosen], top1[chosen] = effects.logprob_change, effects.kl_divergence, effects.top1
    control = np.zeros(len(groups), dtype=bool)
    control[controls] = True
    agreement = agreement_of(estimates["frozen"], change, control)
    ids = np.unique(effects.top1).tolist()
    step = ExplainedStep(
        step=number,
        token_id=token,
        token_text=text,
        probability=effects.probability,
        names=tuple(group.name for group in groups),
        positions=tuple(group.positions for group in groups),
        contribution=estimates["frozen"].astype(np.float32),
        estimate_local=estimates["gradient"].astype(np.float32),
        logprob_change=change,
        kl_divergence=kl,
        top1=top1,
        top1_texts=dict(zip(ids, token_texts(loaded.tokenizer, ids)[0], strict=True)),
        control=control,
        agreement=agreement,
        reliable=None if len(chosen) == len(groups) else is_reliable(agreement, change, control),
        forwards=forwards,
    )
    return step, forward.decoder


def _as_logprob(target: float, changes: np.ndarray) -> np.ndarray:
    """Changes of log-odds from `target` on, as changes of the log-probability: ln p = -ln(1 + e^-odds)."""
    return np.logaddexp(0.0, -target) - np.logaddexp(0.0, -(target + changes))


def _measure(loaded: LoadedModel, inputs, hidden: Sequence[Sequence[int]], n_layers: int, token: int) -> StepEffects:
    """What hiding really does, from every query in all layers."""
    engine = MaskingEngine(loaded.model, plans=[SequencePlan(n_steps=0)], keep_states="all")
    with torch.no_grad(), engine:
        logits = loaded.model(**inputs).logits[0, -1]
        variants = each_window_and_group(hidden, engine.n_positions, n_layers, "all", "all")
        return measure_effects(engine, variants, logits, token)


def choose(
    estimates: Mapping[str, np.ndarray], first: Sequence[int], n_positions: int, budget: float, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """(groups to measure, those of them that are controls, forward passes that it takes).

    estimates: float [G] by rule; first: where each group begins, since hiding it runs the positions from there on again. The
    rankings take turns, at least FEWEST_CANDIDATES and FEWEST_CONTROLS whatever the budget; all groups where that fits.
    """
    cost = 1 - np.asarray(first) / n_positions
    everything = np.arange(len(cost))
    if cost.sum() <= budget or len(cost) <= FEWEST_CANDIDATES + FEWEST_CONTROLS:
        return everything, everything[:0], float(cost.sum())
    rankings = [np.argsort(values, kind="stable").tolist() for values in estimates.values()]
    turns = dict.fromkeys(place for pair in zip(*rankings, strict=True) for place in pair)
    candidates, spent = [], 0.0
    for place in turns:
        if len(candidates) >= FEWEST_CANDIDATES and spent + cost[place] > FOR_CANDIDATES * budget:
            break
        candidates.append(place)
        spent += cost[place]
    others = np.setdiff1d(everything, candidates)
    controls = []
    for place in np.random.default_rng(seed).permutation(others)[:MOST_CONTROLS].tolist():
        if len(controls) >= FEWEST_CONTROLS and spent + cost[place] > budget:
            break
        controls.append(place)
        spent += cost[place]
    return np.array([*candidates, *controls]), np.array(controls, dtype=np.int64), float(spent)


def agreement_of(contribution: np.ndarray, measured: np.ndarray, control: np.ndarray) -> Agreement:
    """How far the contributions agree with what was measured (NaN where nothing was)."""
    there = np.isfinite(measured)
    one, other = contribution[there].astype(float), measured[there].astype(float)
    rho, _ = rank_correlation(one, other)
    at_all = other != 0
    ratios = one[at_all] / other[at_all]
    of_controls = np.abs(measured[there & control])
    return Agreement(
        n=int(there.sum()),
        rho=float(rho),
        same_sign=float((np.sign(one[at_all]) == np.sign(other[at_all])).mean()) if at_all.any() else float("nan"),
        ratio=float(np.median(ratios)) if at_all.any() else float("nan"),
        strongest_control=float(of_controls.max()) if of_controls.size else float("nan"),
    )


def is_reliable(agreement: Agreement, measured: np.ndarray, control: np.ndarray) -> bool:
    """By the rule of this module."""
    candidates = np.sort(measured[np.isfinite(measured) & ~control])[:LISTED]  # the most negative first
    weakest = abs(candidates[-1]) if len(candidates) else 0.0
    return bool(agreement.rho >= MIN_RHO and not agreement.strongest_control > weakest)
