"""From what the engine kept of a run to a Result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from mask_impact.analyses.prepared import Prepared, describe_run
from mask_impact.analyses.settings import RunSettings
from mask_impact.analyses.strongest import Chosen, judged
from mask_impact.engine.effects import StepEffects
from mask_impact.engine.kept import KeptPass
from mask_impact.engine.recording import RawStep
from mask_impact.engine.riding.engine import RidingEngine
from mask_impact.engine.riding.layers import Attending
from mask_impact.engine.riding.remeasuring import Verification
from mask_impact.models.layer_kinds import without_attention
from mask_impact.models.loading import LoadedModel
from mask_impact.prompts.encoding import token_texts
from mask_impact.prompts.groups import Group
from mask_impact.results.records import Candidate, EffectRecord, Estimated, Result, StepRecord, placed, variant_names
from mask_impact.results.sinks import find_sinks


@dataclass(frozen=True)
class Pass:
    """What one prompt has of a `generate()` with the engine riding; candidates: (ids, probabilities) of every step; chosen: of
    every step which effects were measured, empty where all were; kept: all states, where they were to be kept."""

    engine: RidingEngine
    steps: list[RawStep]
    produced: list[int]
    candidates: list[tuple[list[int], list[float]]]
    verification: Verification | None
    effects: list[StepEffects]
    chosen: list[Chosen]
    kept: KeptPass | None

    @property
    def attending(self) -> Attending | None:
        """Which layers have an attention; None where all have one."""
        found = self.engine.attending
        return found if found.others else None


def make_result(
    loaded: LoadedModel,
    prompt: Prepared,
    pass_: Pass,
    groups: Sequence[Group] | None,
    max_rows: int,
    seconds: float,
) -> Result:
    """The Result of one prompt; groups: what was hidden together for the effects; seconds: of the whole pass."""
    encoded = prompt.encoded
    texts, kinds = token_texts(loaded.tokenizer, pass_.produced)
    steps = tuple(
        _make_step(loaded, index, raw_step, token, text, candidates, pass_.attending)
        for index, (raw_step, token, text, candidates) in enumerate(
            zip(pass_.steps, pass_.produced, texts, pass_.candidates, strict=True)
        )
    )
    if prompt.settings.effect:
        steps = tuple(
            replace(step, effect=_effect_record(loaded, step, groups, effects, chosen))
            for step, effects, chosen in zip(steps, pass_.effects, pass_.chosen or [None] * len(steps), strict=True)
        )
    return Result(
        variants=variant_names(loaded.config.get_text_config().num_attention_heads, prompt.settings.variants),
        n_prompt=encoded.n_tokens,
        tokens=encoded.tokens.extended(pass_.produced, texts, kinds),
        steps=steps,
        generated_text=loaded.tokenizer.decode(pass_.produced, skip_special_tokens=True),
        sinks=find_sinks(pass_.steps[0].received.numpy()),
        images=encoded.images,
        meta=_described(loaded, prompt, pass_.attending)
        | {
            "mask_mode": prompt.settings.mask_mode,
            "effect": _effect_settings(prompt.settings),
            "verification": _verified(pass_.verification),
            "batch_size": max_rows,
            "seconds": seconds,
        },
    )


def _verified(found: Verification | None) -> dict[str, Any] | None:
    """As a meta file has it; None where nothing was measured again."""
    return asdict(found) if found is not None and found.triples else None


def _described(loaded: LoadedModel, prompt: Prepared, attending: Attending | None) -> dict[str, Any]:
    """What is said of every run, and of the layers in which nothing could be measured."""
    about = describe_run(loaded, prompt)
    if attending is not None:
        about["notices"].append(without_attention(loaded.config.get_text_config(), attending.other_numbers))
    return about


def _make_step(
    loaded: LoadedModel,
    index: int,
    step: RawStep,
    token: int,
    text: str,
    candidates: tuple[list[int], list[float]],
    attending: Attending | None,
) -> StepRecord:
    ids, probabilities = candidates
    names, _ = token_texts(loaded.tokenizer, ids)

    def by_layer(values: torch.Tensor) -> np.ndarray:
        """[L, ...], NaN in layers without an attention."""
        return values.numpy() if attending is None else placed(values.numpy(), attending.numbers, attending.n_layers)

    return StepRecord(
        step=index,
        token_id=token,
        token_text=text,
        candidates=tuple(Candidate(*entry) for entry in zip(ids, names, probabilities, strict=True)),
        positions=step.positions.numpy(),
        l2=by_layer(step.l2),
        cosine=by_layer(step.cosine),
        attention=step.attention.mean(0).numpy(),
        baseline_norm=by_layer(step.baseline_norm),
        self_check=by_layer(step.self_check),
        noise_floor=by_layer(step.noise_floor),
        seconds=step.seconds,
    )


def _effect_record(
    loaded: LoadedModel,
    step: StepRecord,
    groups: Sequence[Group] | None,
    effects: StepEffects,
    chosen: Chosen | None,
) -> EffectRecord:
    n_layers, n_hidden = len(step.l2), len(step.positions if groups is None else groups)
    ids = np.unique(effects.top1).tolist()
    texts, _ = token_texts(loaded.tokenizer, ids)

    def of_layers(values: np.ndarray) -> np.ndarray:
        """[L, hidden]; the only window of all layers is around each of them."""
        return np.broadcast_to(values.reshape(-1, n_hidden), (n_layers, n_hidden)).copy()

    def measured(values: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
        return of_layers(values if chosen is None else chosen.spread(values, otherwise))

    estimated = None
    if chosen is not None:
        agreement, reliable = judged(chosen, chosen.spread(effects.logprob_change, np.nan), effects.floor[1])
        change, control = of_layers(chosen.estimate.astype(np.float32)), of_layers(chosen.control)
        estimated = Estimated(change, control, agreement, reliable, chosen.forwards, chosen.all_forwards)
    return EffectRecord(
        measured(effects.logit_change),
        measured(effects.logprob_change),
        measured(effects.kl_divergence),
        measured(effects.top1, -1),
        dict(zip(ids, texts, strict=True)),
        effects.floor,
        None if groups is None else tuple((group.name, group.positions) for group in groups),
        effects.likeliest,
        effects.rounding,
        estimated,
    )


def _effect_settings(settings: RunSettings) -> dict[str, Any] | None:
    if not settings.effect:
        return None
    how = {"window": settings.window, "queries": settings.queries, "groups": settings.groups or "tokens"}
    return how if settings.top is None else how | {"top": settings.top}
