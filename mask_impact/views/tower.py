"""What the vision tower's layers read and what matters to the answer, as text for a terminal and as JSON."""

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import numpy as np

from mask_impact.errors import ranges
from mask_impact.findings.looked import matters
from mask_impact.results.tower import TowerEffects, TowerTarget
from mask_impact.views.text import escape, fitted, model_lines, padded, percent, quoted, saved_lines, wrapped
from mask_impact.views.tower_words import TowerWords

MOST_ROWS, MOST_LAYERS = 12, 12  # regions and layers that are named
NAME, LAYERS, BECOMES = 20, 12, 16  # columns


def render_tower(found: TowerEffects, paths: Iterable[str | PathLike] = (), verbose: bool = False) -> str:
    """The page of text: whether what is hidden matters to the answer, then what the layers read. verbose: all regions and layers;
    paths: the files that were written."""
    lines = [*model_lines(found.meta), *wrapped(f"Generated text: {escape(found.generated_text)}", "", "  "), ""]
    for target in found.targets if found.regions else ():
        lines += [*fitted(_of_target(found, target, verbose)), ""]
    lines += [*fitted(_readings(found, verbose)), ""]
    lines += [*fitted(_verdicts(found)), ""]
    lines.append(f"Measured in {found.forwards:.1f} forward passes of the prompt, beside the answer's own.")
    return "\n".join([*lines, "", *saved_lines(paths)]).rstrip()


def _of_target(found: TowerEffects, target: TowerTarget, verbose: bool) -> Iterator[str]:
    asked = f"{quoted(target.text, 24)} ({percent(target.probability)}), regions hidden in {_layers(found.layers)}"
    yield f"{asked}. {_words(found, target).most}"
    yield ""
    yield f"  {padded('hidden in the tower', NAME)}  {padded('layers', LAYERS)} {'change':>9}  becomes"
    order = sorted(range(len(target.place)), key=lambda row: float(target.logprob_change[row]))
    for row in order if verbose else order[:MOST_ROWS]:
        name = padded(escape(found.regions[target.place[row]].called)[:NAME], NAME)
        becomes = _becomes(target, row) if target.differs[row] else ""
        layers = padded(ranges(target.layers[row])[:LAYERS], LAYERS)
        yield f"  {name}  {layers} {target.logprob_change[row] + 0.0:>9.3g}  {becomes}".rstrip()
    if len(order) > MOST_ROWS and not verbose:
        yield f"  ... and {len(order) - MOST_ROWS} more (--verbose)"
    yield "  (change of the log-probability in nats)"


def _becomes(target: TowerTarget, row: int) -> str:
    return quoted(target.top1_texts[int(target.top1[row])], BECOMES)


def _words(found: TowerEffects, target: TowerTarget) -> TowerWords:
    return TowerWords(
        found,
        target,
        quote=lambda text: quoted(text, 24),
        nats=lambda change: f"{change + 0.0:.2g}",
        name=escape,
    )


def _layers(layers: tuple[int, ...]) -> str:
    return f"tower layer{'s' * (len(layers) > 1)} {ranges(layers)}"


def _readings(found: TowerEffects, verbose: bool) -> Iterator[str]:
    """Of each image and layer the unit that is read most."""
    for image, one in found.readings.items():
        which = f" of image {image}" if len(found.images) > 1 else ""
        yield f"What the layers read{which}: how much a layer's attention output changes with a"
        yield f"{found.unit} hidden from all others, as a share of it"
        full = "" if one.full is None else f"{'whole update':>16}"
        yield f"  {padded('layer', 8)}{padded('read most', NAME)}{'share':>9}{'median':>9}{full}"
        for layer, numbers in enumerate(one.attention[: None if verbose else MOST_LAYERS]):
            row, column = np.unravel_index(int(numbers.argmax()), numbers.shape)
            name = f"{found.unit} [{row}, {column}]"
            of_all = "" if one.full is None else f"{one.full[layer, row, column]:>10.3f}"
            if one.error is not None:
                of_all += f" ± {one.error[layer, row, column]:.3f}"
            yield f"  {padded(str(layer), 8)}{padded(name, NAME)}{numbers.max():>9.3f}{np.median(numbers):>9.3f}{of_all}"
        if len(one.attention) > MOST_LAYERS and not verbose:
            yield f"  ... and {len(one.attention) - MOST_LAYERS} more layers (--verbose)"


def _verdicts(found: TowerEffects) -> Iterator[str]:
    """Whether what is read most matters."""
    yield from dict.fromkeys(_words(found, target).read for target in found.targets)
    yield "Reads is one question, matters another: the map alone does not explain the answer."


def tower_entry(found: TowerEffects, paths: Iterable[str | PathLike] = ()) -> dict[str, Any]:
    """What --json prints: of each target all regions, and of each image and layer the unit that is read most."""
    most = found.regions[found.most_read].name if found.most_read >= 0 else None
    return {
        "model": found.meta.get("model"),
        "prompt": found.meta.get("prompt"),
        "generated_text": found.generated_text,
        "unit": found.unit,
        "probes": found.probes,
        "layers": list(found.layers),
        "reads": [
            {
                "image": image,
                "layer": layer,
                "row": int(row),
                "column": int(column),
                "attn_relative": float(numbers.max()),
            }
            for image, one in found.readings.items()
            for layer, numbers in enumerate(one.attention)
            for row, column in [np.unravel_index(int(numbers.argmax()), numbers.shape)]
        ],
        "most_read": most,
        "forwards": found.forwards,
        "floor": found.floor,
        "targets": [
            {
                "steps": list(one.steps),
                "text": one.text,
                "probability": float(one.probability),
                "found": found.regions[one.found].name if one.found >= 0 else None,
                "regions": [
                    {
                        "level": found.regions[place].level,
                        "region": found.regions[place].name,
                        "image": found.regions[place].image,
                        "layers": list(one.layers[row]),
                        "logprob_change": float(one.logprob_change[row]),
                        "kl_divergence": float(one.kl_divergence[row]),
                        "becomes": one.top1_texts[int(one.top1[row])],
                        "matters": matters(one, row),
                    }
                    for row, place in enumerate(one.place.tolist())
                ],
            }
            for one in found.targets
        ],
        "files": [str(path) for path in paths],
    }
