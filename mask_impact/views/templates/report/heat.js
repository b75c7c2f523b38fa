// The heat map of distances, layers by tokens, and the buttons that fold its images.

import { $ } from "../shared/elements.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { theme } from "../shared/theme.js";
import { describe, matrixLevels } from "./chart.js";
import { columnsOf, drawByColumns, drawOrMark, layOut } from "./column_chart.js";
import { columnValue, FOLDED, isJoined, leftOutHint, leftOutLabel, makeColumns } from "./columns.js";
import { METRIC_NAMES } from "./file.js";
import { answerName } from "./names.js";
import { shown } from "./quantity.js";
import { section } from "./sections.js";
import { state } from "./state.js";
import { columnTip } from "./tips.js";
import { everyLayer, view } from "./view.js";

async function drawHeatCells() {
  const columns = makeColumns();
  layOut("heat", columns, leftOutLabel);
  const matrix = everyLayer().map((layer) => columns.map((column) => columnValue(view.values, column, layer)));
  await drawByColumns("heat", { ...matrixLevels(matrix), customdata: matrix }, columnTip);
  describe("heat", `Heat map of ${view.nLayers} layers by ${columns.length} tokens`);
  writeHintOfHeat();
}

async function drawHeat() {
  const { prompt: one, step, variant, metric, kept, unfolded, scale, colours } = state;
  await drawOrMark("heat", [one, step, variant, metric, kept, unfolded, scale, colours, theme()], drawHeatCells);
}

function writeHintOfHeat() {
  const folded = columnsOf("heat").some(isJoined) ? ` ${FOLDED}` : "";
  const what = `${METRIC_NAMES[state.metric]} distance of ${state.variant}, ${SCALE_NAMES[state.scale]}`;
  $("heat-hint").textContent = `${what}, for ${answerName()}.${folded}${leftOutHint()}`;
}

section("heat-card", ["distances"], { chart: drawHeat, into: "heat", when: () => shown() === "impact" });
