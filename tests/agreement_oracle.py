"""How far distances and effects agree, from the rows of the files alone, in plain loops."""

import numpy as np
import pandas as pd
import scipy.stats


def distances_of(frame, step, metric, variant):
    rows = frame[(frame.generation_step == step) & (frame.variant == variant)]
    name = {"l2": "l2_distance", "cosine": "cosine_distance"}[metric]
    return rows.pivot(index="layer", columns="token_position", values=name).to_numpy(float)


def correlations_of(distances, sizes, left_out=(0,)):
    """(rho, n) of each layer, by scipy; NaN where there is none."""
    found = []
    for local, size in zip(distances, sizes, strict=True):
        places = [j for j in range(len(local)) if j not in left_out and size[j] > 0 and np.isfinite(local[j])]
        x, y = local[places], size[places]
        exists = len(places) >= 3 and len(set(x)) > 1 and len(set(y)) > 1
        found.append((scipy.stats.spearmanr(x, y).statistic if exists else np.nan, len(places)))
    return np.array(found).T


def norms_of(result, step, metric, variant):
    """What distances are divided by in each layer."""
    norms = result.steps[step].baseline_norm[:, result.variants.index(variant)].astype(float)
    return norms if metric == "l2" else np.ones_like(norms)


def apart_of(distances, norms, sizes, left_out=(0,), k=5):
    """The two lists as (position, share, rank, size, rank), by pandas, of positions 0, 1, ..."""
    values = pd.DataFrame(distances).drop(columns=list(left_out)).div(norms, axis=0)
    share = values.sum() / values.to_numpy().sum()
    size = pd.DataFrame(sizes).drop(columns=list(left_out)).mean()
    frame = pd.DataFrame({"share": share, "share_rank": share.rank(ascending=False), "size": size})
    frame["size_rank"] = size.rank(ascending=False)
    lists = []
    for ahead, behind in (("share_rank", "size_rank"), ("size_rank", "share_rank")):
        half = frame[frame[ahead] <= (len(frame) + 1) / 2]
        difference = (half[behind] - half[ahead]).sort_values(ascending=False, kind="stable")
        chosen = difference[difference > 0].index[:k]
        lists.append([(int(j), *frame.loc[j]) for j in chosen])
    return lists
