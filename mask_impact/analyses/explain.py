"""What the answer used: every token's contribution estimated at once, the strongest really hidden, and what decides the answer.

Hiding means here: from every query, in all layers. The prompt and what was produced are run once as one sequence; two backward
passes rank all of its tokens (`engine.backward`). What is measured within the budget says `candidates`; the smallest sets that
decide the answer `evidence`; by which flows and heads it came `routes`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mask_impact.analyses import evidence, routes
from mask_impact.analyses.candidates import (
    EVERYTHING,
    MEASURED,
    REFINED,
    WITH_NOTHING_HIDDEN,
    agreement_of,
    choose,
    costs,
    is_reliable,
    unsettled,
)
from mask_impact.analyses.evidence import Searched
from mask_impact.analyses.generation import on_input_device
from mask_impact.analyses.hiding import Hiding
from mask_impact.analyses.measured import Measured
from mask_impact.analyses.observer import Observer
from mask_impact.analyses.prepared import Prepared, describe_run, prepare
from mask_impact.analyses.settings import RunSettings
from mask_impact.analyses.targets import resolve
from mask_impact.analyses.units import Unit, answer_units, coarse_units, produced_units, summed
from mask_impact.analyses.without import generate
from mask_impact.engine.backward import Estimates, estimate, estimates
from mask_impact.engine.kept import KeptPass, keep, keeper_of, keeping
from mask_impact.engine.ownership import owned
from mask_impact.engine.riding.layers import decoder_of
from mask_impact.engine.targets import Target
from mask_impact.errors import DeviceError, UsageError, is_out_of_memory, ranges
from mask_impact.models.layer_kinds import BETWEEN, without_attention
from mask_impact.models.loading import LoadedModel, Reader
from mask_impact.prompts.content import content_positions
from mask_impact.prompts.encoding import token_texts
from mask_impact.results.explanations import Evidence, ExplainedTarget, Explanation, LayerEstimates, TokenSet
from mask_impact.results.sinks import find_sinks
from mask_impact.results.tokens import TokenTable

N_CONFIRMED = 2  # answers of evidence that generate() gives, each a forward pass or somewhat more
PREFIXED = ("paligemma",)
DEEP = 40  # forward passes from which on small sets are tried for evidence, and all kinds of tokens


def check(reader: Reader, prepared: Prepared) -> None:
    """Refuses what can't be, by the tokenizer alone."""
    answer_units(reader, prepared)
    routes.placed_flows(reader, prepared)


def run(
    loaded: LoadedModel,
    prompt: str | Mapping[str, Any],
    settings: RunSettings,
    pictures: Sequence[Any] = (),
    *,
    seed: int = 0,
    observer: Observer | None = None,
) -> Explanation:
    """Explain what the model answers to a prompt; the images are already read. seed: of the units that are drawn at random."""
    observer = observer or Observer()
    prepared = prepare(loaded, prompt, settings, pictures)
    check(loaded, prepared)
    with owned(decoder_of(loaded.model)):
        with keeping(keeper_of(loaded.model)) as kept:
            produced = generate(loaded, prepared.encoded.inputs, (), (), settings.num_tokens)
        return explain(loaded, prepared, produced, kept[0], seed=seed, observer=observer)


def explain(
    loaded: LoadedModel,
    prepared: Prepared,
    produced: Sequence[int],
    kept: KeptPass | None = None,
    *,
    seed: int = 0,
    observer: Observer | None = None,
) -> Explanation:
    """What the model used for tokens that it has produced. kept: the pass that produced them; without it, the sequence runs
    again."""
    with owned(decoder_of(loaded.model)):
        if kept is None:
            inputs = on_input_device(loaded.model, prepared.encoded.inputs)
            inputs = extended(inputs, produced[:-1], loaded.config.model_type)
            kept = keep(loaded.model, inputs, len(produced))
        return _Explained(loaded, prepared, list(produced), kept, seed, observer or Observer()).all_targets()


@dataclass
class _Explained:
    """One answer. produced: ids."""

    loaded: LoadedModel
    prepared: Prepared
    produced: list[int]
    kept: KeptPass
    seed: int
    observer: Observer

    def __post_init__(self) -> None:
        self.settings, self.encoded = self.prepared.settings, self.prepared.encoded
        self.texts, kinds = token_texts(self.loaded.tokenizer, self.produced)
        self.tokens: TokenTable = self.encoded.tokens.extended(self.produced, self.texts, kinds)
        self.n_prompt = self.encoded.n_tokens
        self.prompt_units = answer_units(self.loaded, self.prepared)
        self.flows = routes.placed_flows(self.loaded, self.prepared)

    def all_targets(self) -> Explanation:
        """Every target that was asked for."""
        tokenizer, settings = self.loaded.tokenizer, self.settings
        kinds = self.tokens.kinds[self.n_prompt :]
        asked = resolve(settings.target, self.produced, self.texts, kinds, tokenizer.decode)
        self.observer.explaining(len(asked), settings.budget)
        targets = [self._target(steps) for steps in asked]
        about = describe_run(self.loaded, self.prepared)
        self.observer.explained()
        return Explanation(
            targets=tuple(targets),
            tokens=self.tokens,
            images=self.encoded.images,
            n_prompt=self.n_prompt,
            generated_text=tokenizer.decode(self.produced, skip_special_tokens=True),
            matrix=self._matrix() if settings.matrix else None,
            meta=about
            | {
                "notices": [*about["notices"], *_of_layers(self.loaded, self.kept)],
                "budget": settings.budget,
                "groups": settings.groups or "words",
                "target": settings.target,
                "seed": self.seed,
                "images": [image.source for image in self.encoded.images],
            },
        )

    def _matrix(self) -> np.ndarray:
        """float32 [T, N], of each produced token by itself the contribution of each position of the prompt."""
        rows = []
        for step, token in enumerate(self.produced):
            found = estimate(self.kept, [Target(self.n_prompt + step - 1, token)])
            rows.append(_by_position(found)[: self.n_prompt])
        return np.stack(rows).astype(np.float32)

    def _target(self, steps: tuple[int, ...]) -> ExplainedTarget:
        """One target: estimated, measured, and what decides it."""
        settings = self.settings
        instead = None if settings.instead is None else self._instead(steps)
        targets = [Target(self.n_prompt + step - 1, self.produced[step], instead) for step in steps]
        kept = self.kept.until(self.n_prompt + steps[-1])
        estimates = self._estimates(kept, targets)
        by_position = _by_position(estimates["frozen"])
        content = self._content(self.n_prompt + steps[0], find_sinks(estimates["gradient"].received.numpy()))
        units, fine = coarse_units(self._units(steps, content), self.tokens, self.encoded.images, by_position)
        hiding = Hiding(kept, targets, self.observer)
        measured = Measured(units, hiding)
        controls = self._measure(measured, estimates, content, fine)
        measured.refine(by_position, self.tokens, REFINED * settings.budget)
        found = self._found(steps, measured, controls, estimates, content)
        searched = self._search(measured.units, content, found, hiding)
        found = self._with_routes(found, estimates, hiding)
        return replace(found, evidence=tuple(self._confirmed(one, measured.units, steps) for one in searched))

    def _units(self, steps: tuple[int, ...], content: np.ndarray) -> list[Unit]:
        """What may be hidden: of the prompt, and of what was produced before the target."""
        units = [*self.prompt_units, *produced_units(self.tokens, self.n_prompt, self.n_prompt + steps[0])]
        masked = self.tokens.masked(self.settings.mask_mode)
        units = [unit for unit in units if masked[list(unit.positions)].all()]
        if self.settings.content_only:
            units = [unit for unit in units if content[list(unit.positions)].any()] or units
        return units

    def _with_routes(
        self, found: ExplainedTarget, estimates: Mapping[str, Estimates], hiding: Hiding
    ) -> ExplainedTarget:
        """With the flows that the answer came by; cut, with the heads, where that was asked for."""
        rows = [one.row for one in hiding.targets]
        if self.settings.routes is None:
            return replace(found, routes=routes.routes_of(self.flows, estimates, None, rows))
        heads = routes.cut_heads(self.loaded, estimates["gradient"], hiding, rows, self.seed)
        return replace(found, routes=routes.routes_of(self.flows, estimates, hiding, rows), heads=heads)

    def _instead(self, steps: tuple[int, ...]) -> int:
        """The token that is held against the produced one: the word's first, spelled as the answer spells words."""
        if len(steps) > 1:
            raise UsageError(
                f"`instead` is held against one produced token, and the target has {len(steps)}: give one with `target` "
                f"({steps[0]} is {self.texts[steps[0]]!r})"
            )
        own, word = self.texts[steps[0]], self.settings.instead.strip()
        begin = own[: len(own) - len(own.lstrip())]
        ids = self.loaded.tokenizer.encode(begin + word, add_special_tokens=False)
        if not ids or ids[0] == self.produced[steps[0]]:
            raise UsageError(f"`instead` {word!r} begins with the token that was produced, {own!r}: give another word")
        return ids[0]

    def _estimates(self, kept: KeptPass, targets: Sequence[Target]) -> dict[str, Estimates]:
        """Of each rule, with the flows."""
        rows = [one.row for one in targets]
        masks = routes.masks_of(self.flows, kept.n_positions, rows)
        try:
            return estimates(kept, targets, flows=masks, measure=self.settings.measure)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                "out of memory in a backward pass: shorten the prompt, shrink its images (`max_image_resolution`), or leave "
                "out what the answer used (`answer`: no)"
            ) from error

    def _content(self, n_positions: int, sinks: Sequence[int]) -> np.ndarray:
        """bool [n_positions], what is neither template nor sink."""
        of_prompt = content_positions(self.tokens, self.n_prompt)
        behind = [kind != "special" for kind in self.tokens.kinds[self.n_prompt : n_positions]]
        content = np.concatenate([of_prompt, np.array(behind, dtype=bool)])
        content[[position for position in sinks if position < n_positions]] = False
        return content

    def _measure(
        self, measured: Measured, estimates: Mapping[str, Estimates], content: np.ndarray, fine: np.ndarray
    ) -> np.ndarray:
        """Hides what is chosen within the budget; returns which of it are controls."""
        units, hiding, budget = measured.units, measured.hiding, self.settings.budget
        by_rule = {rule: self._of_units(found, hiding.targets, units) for rule, found in estimates.items()}
        cost = costs([unit.positions for unit in units], hiding.n_positions)
        room = EVERYTHING * budget - WITH_NOTHING_HIDDEN
        if cost.sum() > room:
            room = MEASURED * budget - WITH_NOTHING_HIDDEN
        chosen, controls = choose(by_rule, cost, _any_of(units, content), fine, room, self.seed)
        measured.hide(chosen)
        return controls

    def _found(
        self,
        steps: tuple[int, ...],
        measured: Measured,
        controls: np.ndarray,
        estimates: Mapping[str, Estimates],
        content: np.ndarray,
    ) -> ExplainedTarget:
        """The target as a record: what was estimated and what was measured, and how far both agree."""
        targets, units, tokenizer = measured.hiding.targets, measured.units, self.loaded.tokenizer
        by_rule = {rule: self._of_units(found, targets, units) for rule, found in estimates.items()}
        of_content = _any_of(units, content)
        change, top1 = measured.column(0, np.nan, np.float32), measured.column(2, -1, np.int64)
        control = np.zeros(len(units), dtype=bool)
        control[controls] = True
        told = unsettled(change, of_content, _any_of(units, self.tokens.image >= 0))
        agreement = agreement_of(
            by_rule["frozen"], np.where(told if told.any() else of_content, change, np.nan), control
        )
        ids = [*{effect[2] for effect in measured.effects.values()}]
        instead = targets[0].instead
        return ExplainedTarget(
            steps=steps,
            token_ids=tuple(self.produced[step] for step in steps),
            text=tokenizer.decode([self.produced[step] for step in steps]),
            probability=measured.probability,
            instead=None if instead is None else (instead, token_texts(tokenizer, [instead])[0][0]),
            measure="log-prob" if len(steps) == 1 else self.settings.measure,
            names=tuple(unit.name for unit in units),
            positions=tuple(unit.positions for unit in units),
            kinds=tuple(unit.kind for unit in units),
            contribution=by_rule["frozen"].astype(np.float32),
            estimate_local=by_rule["gradient"].astype(np.float32),
            logprob_change=change,
            kl_divergence=measured.column(1, np.nan, np.float32),
            top1=top1,
            top1_texts=dict(zip(ids, token_texts(tokenizer, ids)[0], strict=True)),
            differs=measured.column(3, 0, bool),
            control=control,
            content=of_content,
            agreement=agreement,
            reliable=is_reliable(agreement, np.where(told, change, np.nan), control) if told.any() else None,
            forwards=measured.hiding.forwards,
            by_layer=LayerEstimates(
                contribution=estimates["frozen"].every.sum(dim=1).numpy(),
                estimate=estimates["gradient"].last.sum(dim=1).numpy(),
            ),
        )

    def _of_units(self, found: Estimates, targets: Sequence[Target], units: Sequence[Unit]) -> np.ndarray:
        """float64 [G]; of a single token's log-odds as changes of its log-probability."""
        changes = summed(_by_position(found), units)
        if len(targets) > 1 or targets[0].instead is not None or self.settings.measure == "log-prob":
            return changes
        (before,) = found.values  # ln p = -ln(1 + e^-odds)
        return np.logaddexp(0.0, -before) - np.logaddexp(0.0, -(before + changes))

    # --- evidence ---------------------------------------------------------------------------------------------------------

    def _search(
        self, units: Sequence[Unit], content: np.ndarray, found: ExplainedTarget, hiding: Hiding
    ) -> list[Searched]:
        """What decides the answer, among the cells of images and among words, within what is left of the budget."""
        budget, deep = self.settings.budget, self.settings.budget >= DEEP
        left = budget - hiding.forwards - N_CONFIRMED

        def ask(sets: list[tuple[int, ...]]) -> list[evidence.Asked]:
            effects = hiding.ask(sets)
            return list(zip((effects.differs >= 0).tolist(), effects.logprob_change.tolist(), strict=True))

        questions = evidence.Questions(ask, lambda positions: hiding.cost(positions[0]), left)
        for place in np.flatnonzero(found.measured).tolist():
            asked = bool(found.differs[place]), float(found.logprob_change[place])
            questions.known[frozenset(units[place].positions)] = asked
        searched: list[Searched] = []
        for kind in ("image", "text"):
            of_kind = [
                place
                for place in np.argsort(found.contribution, kind="stable").tolist()
                if _is(units[place], kind, content, self.tokens) and units[place].kind not in ("sentence", "block")
            ]
            regions = [place for place in of_kind if units[place].region is not None]
            if of_kind and (deep or all(one.needed.places is None for one in searched)):
                whole = {position for place in of_kind for position in units[place].positions}
                positions = [unit.positions for unit in units]
                one = evidence.search(kind, regions or of_kind, positions, whole, questions, deep)
                searched += [] if one is None else [one]
        return searched

    def _confirmed(self, searched: Searched, units: Sequence[Unit], steps: tuple[int, ...]) -> Evidence:
        """With the answers that the model's own generate() gives."""

        def confirmed(found: evidence.Found, keeps: bool) -> TokenSet | None:
            if found.places is None:
                return None
            chosen = {position for place in found.places for position in units[place].positions}
            hidden = sorted({*searched.whole} - chosen) if keeps else sorted(chosen)
            text, same = self._answer_without(hidden, steps)
            return TokenSet(tuple(found.places), found.minimal, text, same == keeps)

        needed, enough = confirmed(searched.needed, False), confirmed(searched.enough, True)
        exhausted = searched.needed.exhausted or searched.enough.exhausted
        forwards = searched.spent + (needed is not None) + (enough is not None)
        return Evidence(searched.kind, searched.matters, needed, enough, exhausted, forwards, searched.each)

    def _answer_without(self, hidden: Sequence[int], steps: tuple[int, ...]) -> tuple[str, bool]:
        """What generate() gives with positions hidden, and whether it is the same up to the target's end."""
        layers, n = range(len(self.kept.states)), steps[-1] + 1
        ids = generate(self.loaded, self.encoded.inputs, hidden, layers, max(len(self.produced), n))
        return self.loaded.tokenizer.decode(ids, skip_special_tokens=True), ids[:n] == self.produced[:n]


def _by_position(found: Estimates) -> np.ndarray:
    """float64 [N], what hiding each position does, estimated."""
    return found.every.sum(dim=(0, 1)).double().numpy()


def _any_of(units: Sequence[Unit], flags: np.ndarray) -> np.ndarray:
    """bool [G], the units of which any position has a flag."""
    return np.array([bool(flags[list(unit.positions)].any()) for unit in units])


def _is(unit: Unit, kind: str, content: np.ndarray, tokens: TokenTable) -> bool:
    """Whether a unit is content of a kind: cells of images, or text."""
    positions = list(unit.positions)
    of_image = tokens.image[positions] >= 0
    return bool(content[positions].any() and (of_image.all() if kind == "image" else not of_image.any()))


def _of_layers(loaded: LoadedModel, kept: KeptPass) -> list[str]:
    """What is said of layers in which nothing can be hidden, and of those that a contribution goes through by another rule."""
    layers = range(len(kept.states))
    others = [layer for layer in layers if kept.states[layer].keys is None]
    plain = [layer for layer in layers if kept.decoder.readers(layer)]
    said = [without_attention(loaded.config.get_text_config(), others)] if others else []
    if plain:
        which = f"layer{'s' if len(plain) > 1 else ''} {ranges(plain, BETWEEN)}"
        said.append(
            f"Contributions go through what reads other positions in {which} by its true gradient: there are no softmax "
            "weights to hold constant"
        )
    return said


def extended(inputs: Mapping[str, Any], produced: Sequence[int], model_type: str = "") -> dict[str, Any]:
    """The inputs with tokens behind the prompt: what the model had seen when it produced the next one."""
    if not produced:
        return dict(inputs)
    ids = inputs["input_ids"]
    behind = torch.tensor([list(produced)], device=ids.device, dtype=ids.dtype)
    longer = dict(inputs) | {"input_ids": torch.cat([ids, behind], dim=1)}
    # A prompt of PaliGemma sees all of itself, and what it produces does not: of another type there.
    of_type = torch.ones_like if model_type in PREFIXED else torch.zeros_like
    fills = {"attention_mask": torch.ones_like, "mm_token_type_ids": torch.zeros_like, "token_type_ids": of_type}
    for name, fill in fills.items():
        if name in inputs:
            longer[name] = torch.cat([inputs[name], fill(behind).to(inputs[name].dtype)], dim=1)
    return longer
