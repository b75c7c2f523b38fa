"""What a report's script gets of pixels, parts of features and the vision tower: targets, and tables to save as CSV.

Knows records and their tables; the page's markup is in `patches_html`, `deepstack_html` and `tower_html`, which has the maps.
"""

from typing import Any

import numpy as np

from mask_impact.results.deepstack_files import deepstack_table
from mask_impact.results.patch_files import patch_table
from mask_impact.results.stored import Stored
from mask_impact.results.tower import TowerEffects
from mask_impact.results.tower_files import EFFECT_COLUMNS, READING_COLUMNS, effect_table
from mask_impact.views.page import clean


def looked_entry(stored: Stored) -> dict[str, Any]:
    """Of each kind that there is: targets, the text of each; columns; rows, those of the table."""
    found = {}
    if stored.patches is not None:
        found["patches"] = _entry(stored.patches, patch_table(stored.patches))
    if stored.deepstack is not None:
        found["deepstack"] = _entry(stored.deepstack, deepstack_table(stored.deepstack))
    if stored.tower is not None:
        found["tower"] = _tower_entry(stored.tower)
    return found


def _tower_entry(found: TowerEffects) -> dict[str, Any]:
    """The table of effects; of readings all but the numbers."""
    if found.regions:
        entry = _entry(found, effect_table(found))
    else:
        entry = {"targets": [clean(one.text) for one in found.targets], "columns": list(EFFECT_COLUMNS), "rows": []}
    about = {"columns": list(READING_COLUMNS), "unit": found.unit, "probes": found.probes, "n_layers": found.n_layers}
    return entry | {"reading": about}


def _entry(found: Any, table: Any) -> dict[str, Any]:
    columns = [[_plain(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"targets": [clean(one.text) for one in found.targets], "columns": table.column_names, "rows": rows}


def _plain(value: Any) -> Any:
    """A float32 with no more digits than it has."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
