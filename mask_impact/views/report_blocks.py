"""The blocks of a report: distances and effects of results by name, as many binary digits of them as a size allows.

Knows records, what is counted from them and the blocks' format; not the page. Distances are blocks of [layer, position], one
for each prompt, step, metric and variant. Where they would take more room than there is, the heads (not Full and Attn) are
rounded to as many binary digits as fit. Effects on produced tokens are blocks of the same format, never rounded (see
`effect_values`).
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from mask_impact.findings.agreement import MEASURES, layer_agreement, step_effect
from mask_impact.findings.impact import METRICS, step_impact
from mask_impact.results.explanations import Explanation
from mask_impact.results.records import Result
from mask_impact.views.blocks import EXACT, FEWEST, encode
from mask_impact.views.card_html import MOST_TARGETS


def norm_values(results: Mapping[int, Result]) -> Iterator[tuple[str, np.ndarray]]:
    """(block's name, norms of the unmasked quantities [layer, variant]) of each step, of results by their place in the page."""
    for number, result in results.items():
        for record in result.steps:
            yield f"n-{number}-{record.step}", record.baseline_norm


def estimate_values(answers: Mapping[int, Explanation]) -> Iterator[tuple[str, np.ndarray]]:
    """(block's name, values [layer, position]) of the estimates of each target that has a card, of answers by their place in
    the page."""
    for number, answer in answers.items():
        for nth, target in enumerate(answer.targets[:MOST_TARGETS]):
            if target.by_layer is not None:
                yield f"t-{number}-{nth}-contribution", target.by_layer.contribution
                yield f"t-{number}-{nth}-estimate", target.by_layer.estimate


def effect_values(results: Mapping[int, Result]) -> Iterator[tuple[str, np.ndarray]]:
    """(block's name, values) of each step that has effects, of results by their place in the page: those of each measure and the
    most probable token's id, [layer, group]; and where each position was hidden by itself the
    rank correlations and how many tokens they are of, [measure, metric, variant, layer].

    All are float32, which holds an id exactly: a vocabulary has fewer than 2^24 tokens.
    """
    for number, result in results.items():
        if not result.has_effects:
            continue
        for record in result.steps:
            effect = step_effect(result, record.step)
            name = f"e-{number}-{record.step}"
            for measure in MEASURES:
                yield f"{name}-{measure}", effect.values[measure]
            yield f"{name}-top1", effect.top1
            if not effect.by_position:
                continue
            found = [
                layer_agreement(step_impact(result, record.step, variant, metric), effect, measure)
                for measure in MEASURES
                for metric in METRICS
                for variant in result.variants
            ]
            yield f"{name}-rho", np.array([rho for rho, _ in found])
            yield f"{name}-n", np.array([n for _, n in found])


def fitting_blocks(results: Mapping[int, Result], room: float) -> tuple[int, list[tuple[str, str]]]:
    """(digits of the heads, blocks as (name, text)) with the most digits whose blocks take no more than `room` bytes."""
    exact = dict(_blocks(results, EXACT))
    if _size(exact) <= room:
        return EXACT, list(exact.items())
    whole = {name: text for name, text in exact.items() if name not in _head_names(results)}
    fitting = room - _size(whole)
    # Digits cost the same in every block: a sample tells which number comes near, and the whole then decides.
    every = max(1, len(list(_head_blocks(results))) // 24)
    low, high = FEWEST, EXACT - 1
    while low < high:
        middle = (low + high + 1) // 2
        sample = [len(encode(values, middle)) for _, values in islice(_head_blocks(results), 0, None, every)]
        low, high = (middle, high) if every * sum(sample) <= fitting else (low, middle - 1)
    for digits in range(low, FEWEST - 1, -1):
        rounded = {name: encode(values, digits) for name, values in _head_blocks(results)}
        if _size(rounded) <= fitting or digits == FEWEST:
            return digits, list((whole | rounded).items())
    raise AssertionError("the loop ends with FEWEST")


def _size(blocks: Mapping[str, str]) -> int:
    markup = len('<script type="text/plain" id=""></script>\n')
    return sum(len(name) + len(text) + markup for name, text in blocks.items())


def _named_values(results: Mapping[int, Result]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(block's name, variant, float [L, P]) of each block."""
    for number, result in results.items():
        for step in result.steps:
            for metric in METRICS:
                distances = getattr(step, metric)
                for index, variant in enumerate(result.variants):
                    yield f"b-{number}-{step.step}-{metric}-{index}", variant, distances[:, :, index]


def _head_blocks(results: Mapping[int, Result]) -> Iterator[tuple[str, np.ndarray]]:
    return ((name, values) for name, variant, values in _named_values(results) if variant.startswith("Head_"))


def _head_names(results: Mapping[int, Result]) -> set[str]:
    return {name for name, _ in _head_blocks(results)}


def _blocks(results: Mapping[int, Result], digits: int) -> Iterator[tuple[str, str]]:
    return ((name, encode(values, digits)) for name, _, values in _named_values(results))
