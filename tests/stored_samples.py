"""Made-up files of every kind that is stored under a name, and all that is shown of what is read back of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from looked import make_deepstack, make_patches, make_tower
from synthetic import make_result, with_effects

from mask_impact.findings.comparison import Settings, compare_results
from mask_impact.results.answer_files import save_whatif
from mask_impact.results.answers import Answer, WhatIf
from mask_impact.results.deepstack_files import save_deepstack
from mask_impact.results.explanations import (
    Agreement,
    Evidence,
    ExplainedTarget,
    Explanation,
    HeadCut,
    LayerEstimates,
    Route,
    TokenSet,
)
from mask_impact.results.flow_files import save_flows
from mask_impact.results.flows import Flow, FlowPositions, FlowStep, Knockouts
from mask_impact.results.patch_files import save_patches
from mask_impact.results.records import Estimated, Result
from mask_impact.results.store import save
from mask_impact.results.stored import Stored, read_stored
from mask_impact.results.tower_files import save_tower
from mask_impact.views.answers import render_whatif
from mask_impact.views.comparison_json import as_json
from mask_impact.views.comparison_page import build_page
from mask_impact.views.comparison_text import render
from mask_impact.views.deepstack import render_deepstack
from mask_impact.views.explanation import render_explanation
from mask_impact.views.flows import render_flows
from mask_impact.views.pixels import render_patches
from mask_impact.views.report import build_report
from mask_impact.views.summary import render_summary
from mask_impact.views.summary_json import (
    deepstack_entry,
    explanation_entry,
    knockouts_entry,
    patches_entry,
    result_entry,
    to_text,
    whatif_entry,
)
from mask_impact.views.tables import effect_table, top_table
from mask_impact.views.tables import render as render_table
from mask_impact.views.tower import render_tower, tower_entry

META = {"model": "tiny", "prompt": "Where?", "window": 1, "ablation": "mask"}
RUN = META | {
    "command": "as typed",
    "notices": ["a remark"],
    "images": ["picture0.png"],
    "verification": {"triples": [[0, 1, 2]], "error": 1e-7},
    "effect": {"window": 3, "queries": "last", "groups": "tokens"},
    "digest": "0123",
    "budget": 12,
}


def make_knockouts(n_steps: int = 2, **meta) -> Knockouts:
    """Two flows, one of them in two heads, of three layers."""
    rng = np.random.default_rng(0)
    flows = (
        FlowPositions(Flow("a -> last", "a", "last"), (1, 2), None),
        FlowPositions(Flow("a -> b", "a", "b", (0, 3)), (1,), (3, 4)),
    )
    steps = tuple(
        FlowStep(
            step, 7 + step, f" t{step}\n", 0.25, rng.normal(size=(2, 3)).astype(np.float32),
            np.abs(rng.normal(size=(2, 3))).astype(np.float32), np.array([[7, 8, 7], [8, 8, 7]]) + step,
            {7 + step: " t", 8 + step: "u"}, (0.0, 1e-4, 1e-5), 7 + step,
        )
        for step in range(n_steps)
    )  # fmt: skip
    return Knockouts(flows, steps, np.array([0, 0, 1]), np.array([1, 2, 2]), " t0", make_result().tokens, META | meta)


def make_whatif(**meta) -> WhatIf:
    """An answer of two tokens, and two others of one."""
    own = Answer(None, (), (7, 2), (" up", "<end>"), (0.5, 0.75), " up", 0.5, None)
    other = Answer("a word", (1, 2), (9,), (" down",), (0.25,), " down", 0.125, 0)
    return WhatIf(own, (other, replace(other, differs_at=None)), (0, 2), make_result().tokens, 4, META | meta)


def rich_result() -> Result:
    """Two steps, an image of two cells, effects, and all that an answer may have."""
    result = make_result(
        ("<s>", " what", " colour", "?"), n_steps=2, n_heads=2, grids=((1, 2),), meta=RUN, generated_text=" Paris."
    )
    result = with_effects(result)
    return replace(result, meta=RUN, answer=_explanation(result))


def grouped_result() -> Result:
    """Effects of groups, of which the strongest were measured."""
    result = with_effects(make_result(n_steps=2, meta=RUN))
    groups = (("the start", (0, 1)), ("rest", (2, 3, 4)))
    measured = np.array([[True, False], [True, True], [False, False]])
    steps = []
    for step in result.steps:
        effect, agreement = step.effect, Agreement(3, 0.5, 1.0, 1.25, np.nan)
        numbers = {
            name: np.where(measured, getattr(effect, name)[:, :2], np.float32(np.nan))
            for name in ("logit_change", "logprob_change", "kl_divergence")
        }
        estimated = Estimated(effect.logprob_change[:, :2].copy(), measured.copy(), agreement, False, 2.5, 9.0)
        about = {"groups": groups, "likeliest": 900, "rounding": (0.125, 1e-3), "estimated": estimated}
        effect = replace(effect, **numbers, top1=np.where(measured, effect.top1[:, :2], -1), **about)
        steps.append(replace(step, effect=effect))
    return replace(result, steps=tuple(steps), meta=RUN)


def _explanation(result: Result) -> Explanation:
    rng, n = np.random.default_rng(1), 4
    single, nan = (1, 2, 3, 4), np.float32(np.nan)
    needed, enough = TokenSet((0,), True, " other", True), TokenSet((0, 3), False, " Paris", False)
    route = Route("image -> last", "image", "last", *rng.normal(size=(2, 3, 2)).astype(np.float32), -0.75, (1, 2), -0.5)

    def target(steps, n_positions):
        return ExplainedTarget(
            steps=steps, token_ids=tuple(700 + step for step in steps), text=" Paris.", probability=0.75,
            instead=(901, " Rome"), measure="log-prob",
            names=("image 0 [0, 0]", "image 0 [0, 1]", " what", " colour"),
            positions=tuple((at,) for at in single), kinds=("image", "image", "text", "text"),
            contribution=rng.normal(size=n).astype(np.float32), estimate_local=rng.normal(size=n).astype(np.float32),
            logprob_change=np.array([-2.5, nan, -0.25, 0.125], dtype=np.float32),
            kl_divergence=np.array([1.5, nan, 0.25, 0.0], dtype=np.float32),
            top1=np.array([900, -1, 700, 700]), top1_texts={700: " Paris", 900: " <b>"},
            differs=np.array([True, False, False, False]), control=np.array([False, False, True, False]),
            content=np.ones(n, dtype=bool), agreement=Agreement(3, 0.5, 1.0, 1.25, np.nan), reliable=True, forwards=3.5,
            evidence=(
                Evidence("image", True, needed, enough, True, 2.5, (0,)), Evidence("text", False, None, None, False, 1.0),
            ),
            routes=(route,), heads=HeadCut(((0, 1), (2, 0)), -1.0, " <b>", -0.25),
            by_layer=LayerEstimates(*rng.normal(size=(2, 3, n_positions)).astype(np.float32)),
        )  # fmt: skip

    matrix = rng.normal(size=(2, result.n_prompt)).astype(np.float32)
    targets = (target((0,), 6), target((1,), 7))
    return Explanation(targets, result.tokens, result.images, result.n_prompt, " Paris.", matrix, RUN)


# Of each kind of meta file: the file that a mutation changes, and the name that is opened.
KINDS = {
    "result": ("run.meta.json", "run"),
    "grouped": ("grouped.meta.json", "grouped"),
    "answer": ("run.answer.meta.json", "run.answer"),
    "flows": ("cut.flows.meta.json", "cut.flows"),
    "whatif": ("cut.whatif.json", "cut.whatif.json"),
    "patches": ("look.patches.meta.json", "look.patches"),
    "deepstack": ("look.deepstack.meta.json", "look.deepstack"),
    "tower": ("look.tower.meta.json", "look.tower"),
}


def write_all(folder: Path, form: str = "csv") -> Path:
    """Files of all KINDS in a folder, which is returned."""
    save(rich_result(), folder / "run", [form])
    save(grouped_result(), folder / "grouped", [form])
    save_flows(make_knockouts(images=["picture0.png"]), folder / "cut", [form])
    save_whatif(make_whatif(images=["picture0.png"]), folder / "cut")
    save_patches(make_patches(), folder / "look", [form])
    save_deepstack(make_deepstack(), folder / "look", [form])
    save_tower(make_tower(), folder / "look", [form])
    return folder


def read(path: Path) -> Stored:
    """What a name stands for."""
    (stored,) = read_stored(path).values()
    return stored


def show(stored: Stored, compared: bool = True) -> int:
    """What commands show of it, as text, JSON and pages, compared with itself too; returns how many bytes."""
    texts = [build_report(stored).html.decode()]
    if (result := stored.result) is not None:
        texts += [render_summary(result), render_summary(result, verbose=True), to_text(result_entry(result))]
        texts += [render_table(top_table(result, kind), "text") for kind in ("token", "layer", "head")]
        if result.has_effects:
            texts.append(render_table(effect_table(result), "text"))
        if compared:
            comparison = compare_results({"a": result, "b": result}, Settings(n_permutations=9))
            texts += [render(comparison), to_text(as_json(comparison)), build_page(comparison).decode()]
    if stored.answer is not None:
        texts += [render_explanation(stored.answer, verbose=True), to_text(explanation_entry(stored.answer))]
    if stored.flows is not None:
        texts += [render_flows(stored.flows), to_text(knockouts_entry(stored.flows))]
    if stored.whatif is not None:
        texts += [render_whatif(stored.whatif), to_text(whatif_entry(stored.whatif))]
    if stored.patches is not None:
        texts += [render_patches(stored.patches, verbose=True), to_text(patches_entry(stored.patches))]
    if stored.deepstack is not None:
        texts += [render_deepstack(stored.deepstack, verbose=True), to_text(deepstack_entry(stored.deepstack))]
    if stored.tower is not None:
        texts += [render_tower(stored.tower, verbose=True), to_text(tower_entry(stored.tower))]
    return sum(len(text.encode()) for text in texts)
