"""Made-up results of `pixels`, `deepstack` and `tower`: a picture whose regions lie in each other, features of three parts, a
vision tower of three layers."""

import numpy as np
from synthetic import make_result

from mask_impact.results.deepstack import DeepstackEffects, DeepstackTarget, FeaturePart
from mask_impact.results.patches import HIDDEN, OTHERS, OWN, TOTAL, PatchEffects, PatchTarget, PictureRegion
from mask_impact.results.tower import TowerEffects, TowerReading, TowerTarget

META = {"model": "tiny", "prompt": "Where?", "images": ["picture0.png"]}
TEXTS = {900: " <b>", 700: " Paris", 901: "\u202eevil"}
PRODUCED = (" Paris", ".")
FILLS = ("blur", "gray")
MASK = np.zeros((4, 4), dtype=bool)  # the patches of the region that is no rectangle
MASK[0, 2:] = MASK[1, 3] = True


def regions():
    """The halves of an image of 2 x 2 cells (100 x 80 pixels), two tokens of the left one, two patches of a token, and a mask."""
    return (
        PictureRegion("block", "[0-1, 0-0]", 0, 0, 0, (0.0, 0.0, 50.0, 80.0), (32, 64), (1, 3)),
        PictureRegion("block", "[0-1, 1-1]", 0, 0, 1, (50.0, 0.0, 100.0, 80.0), (32, 64), (2, 4)),
        PictureRegion("token", "[0, 0]", 0, 0, 0, (0.0, 0.0, 50.0, 40.0), (32, 32), (1,)),
        PictureRegion("token", "[1, 0]", 0, 1, 0, (0.0, 40.0, 50.0, 80.0), (32, 32), (3,)),
        PictureRegion("patch", "patch [2, 0]", 0, 2, 0, (0.0, 40.0, 25.0, 60.0), (16, 16), (3,)),
        PictureRegion("patch", "patch [2, 1]", 0, 2, 1, (25.0, 40.0, 50.0, 60.0), (16, 16), (3,)),
        PictureRegion("region", "</script><img src=x>.png", 0, -1, -1, (60.0, 10.0, 90.0, 30.0), (19, 16), (2,)),
    )


def make_patches(meta=META, **changes):
    """Two targets; the token [1, 0] matters most, and its effect is split. The other fill has measured it and two others."""
    result = make_result(n_steps=2, grids=((2, 2),), produced=PRODUCED)
    rows = [(place, FILLS[0], TOTAL) for place in range(7)]
    rows[4:4] = [(3, FILLS[0], OWN), (3, FILLS[0], OTHERS), (3, FILLS[1], TOTAL), (3, "", HIDDEN)]
    rows += [(6, FILLS[1], TOTAL), (5, FILLS[1], TOTAL)]

    def target(step, seed):
        rng, n = np.random.default_rng(seed), len(rows)
        change = (rng.normal(size=n) * 0.5 - 0.3).astype(np.float32)
        change[3], change[6] = np.float32(-4.25), np.float32(-3.5)
        differs = change < -0.6
        top1 = np.where(differs, np.where(np.arange(n) % 2 == 0, 900, 901), 700)
        place, fill, route = zip(*rows, strict=True)
        return PatchTarget(
            np.array(place), fill, route, found=3, steps=(step,), text=PRODUCED[step], probability=0.75,
            logprob_change=change, kl_divergence=np.abs(change) / 2, top1=top1, top1_texts=TEXTS, differs=differs,
        )  # fmt: skip

    fields = {
        "regions": regions(), "targets": (target(0, 0), target(1, 1)), "fills": FILLS, "tokens": result.tokens,
        "images": result.images, "n_prompt": result.n_prompt, "generated_text": "".join(PRODUCED), "floor": 1e-6,
        "forwards": 12.5, "meta": meta,
    }  # fmt: skip
    return PatchEffects(**fields | changes)


def make_deepstack(meta=META, **changes):
    """Three parts, every set of them measured for two targets, some answers generated."""
    result = make_result(n_steps=2, grids=((2, 2),), produced=PRODUCED)
    parts = (FeaturePart("main", None, None), FeaturePart("level 0", 5, 0), FeaturePart("level 1", 11, 1))

    def target(step, seed):
        rng = np.random.default_rng(seed)
        change = -np.abs(rng.normal(size=8) * 2).astype(np.float32)
        change[7] = 0
        differs = change < -2
        interaction = rng.normal(size=(3, 3))
        return DeepstackTarget(
            rng.normal(size=3) * 3, (interaction + interaction.T) * (1 - np.eye(3)), steps=(step,), text=PRODUCED[step],
            probability=0.5, logprob_change=change, kl_divergence=np.abs(change) / 3, top1=np.where(differs, 900, 700),
            top1_texts=TEXTS, differs=differs,
        )  # fmt: skip

    answers = {
        7: "".join(PRODUCED),
        0: " <i>none",
        1: " Rome",
        2: "",
        4: " Paris.",
        6: "\u202eevil",
        5: " Paris.",
        3: " x",
    }
    fields = {
        "parts": parts, "region": "image 0 rows 0 columns 1", "positions": (2, 4), "baseline": "blank",
        "targets": (target(0, 0), target(1, 1)), "norm_share": np.array([0.5, 0.25, 0.25]), "answers": answers,
        "tokens": result.tokens, "images": result.images, "n_prompt": result.n_prompt,
        "generated_text": "".join(PRODUCED), "floor": 1e-6, "forwards": 8.0, "meta": meta,
    }  # fmt: skip
    return DeepstackEffects(**fields | changes)


def make_tower(meta=META, effects=True, probes=4, **changes):
    """Patches in three layers, the whole update from probes. The token [1, 0] matters most, and is hidden in windows, too; the
    patch [2, 1] is read most and matters little."""
    result = make_result(n_steps=2, grids=((2, 2),), produced=PRODUCED)
    rng, shape = np.random.default_rng(5), (3, 4, 4)
    attention = rng.lognormal(-4, 1, size=shape).astype(np.float32)
    attention[:, 2, 1] = np.float32([0.5, 0.25, 0.375])
    full, error = (2 * attention).astype(np.float32), (0.1 * attention).astype(np.float32)
    reading = TowerReading(attention, full if probes else None, error if probes > 1 else None)
    whole, windows = (0, 1, 2), ((0, 1), (1, 2), (2,))
    rows = [(place, whole) for place in range(7)] + [(3, one) for one in windows]

    def target(step, seed):
        if not effects:
            rows.clear()
        draw, n = np.random.default_rng(seed), len(rows)
        change = (0.02 * draw.normal(size=n)).astype(np.float32)
        if effects:
            change[3], change[5], change[7:] = np.float32(-1.25), np.float32(-0.002), np.float32([-0.5, 0.125, -0.25])
        differs = change < -0.4
        return TowerTarget(
            np.array([place for place, _ in rows], dtype=np.int64), tuple(layers for _, layers in rows),
            found=3 if effects else -1, steps=(step,), text=PRODUCED[step], probability=0.75, logprob_change=change,
            kl_divergence=np.abs(change) / 2, top1=np.where(differs, 900, 700), top1_texts=TEXTS, differs=differs,
        )  # fmt: skip

    fields = {
        "readings": {0: reading}, "unit": "patch", "probes": probes, "n_layers": 3, "layers": whole,
        "regions": regions() if effects else (), "targets": (target(0, 0), target(1, 1)),
        "patches": {6: MASK} if effects else {},
        "most_read": 5 if effects else -1, "tokens": result.tokens, "images": result.images, "n_prompt": result.n_prompt,
        "generated_text": "".join(PRODUCED), "floor": 1e-6, "forwards": 9.0, "meta": meta,
    }  # fmt: skip
    return TowerEffects(**fields | changes)
