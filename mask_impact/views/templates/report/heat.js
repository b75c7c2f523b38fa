// The heat map of distances, layers by tokens, and the buttons that fold its images.

import { colourScale } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { theme } from "../shared/theme.js";
import { describe, matrixLevels } from "./chart.js";
import { columnsOf, drawByColumns, drawOrMark, layOut } from "./column_chart.js";
import { columnLabel, columnValue, makeColumns } from "./columns.js";
import { replaceContent } from "./content.js";
import { METRIC_NAMES } from "./file.js";
import { answerName } from "./names.js";
import { section } from "./sections.js";
import { prompt, state } from "./state.js";
import { cellTip, imageTip } from "./tips.js";
import { everyLayer, toggleImage, view } from "./view.js";

const heatLabel = (column) => columnLabel(column, (position) => view.leftOut.has(position));

function heatTip(column, layer) {
  return column.image === null ? cellTip(column.positions[0], layer) : imageTip(column, layer);
}

async function drawHeatCells() {
  const columns = makeColumns();
  layOut("heat", columns, heatLabel);
  const matrix = everyLayer().map((layer) => columns.map((column) => columnValue(view.values, column, layer)));
  const { levels, colorbar } = matrixLevels(matrix);
  const heat = { z: levels, customdata: matrix, zmin: 0, zmax: 1, colorscale: colourScale(), colorbar };
  await drawByColumns("heat", heat, heatTip);
  describe("heat", `Heat map of ${view.nLayers} layers by ${columns.length} tokens`);
  drawFolds();
}

async function drawHeat() {
  const { prompt: one, step, variant, metric, kept, unfolded, scale, colours } = state;
  await drawOrMark("heat", [one, step, variant, metric, kept, unfolded, scale, colours, theme()], drawHeatCells);
}

function foldButton(_, number) {
  const isOpen = state.unfolded.includes(number);
  const textContent = `${isOpen ? "Fold" : "Unfold"} image ${number}`;
  const made = element("button", { type: "button", textContent, "aria-expanded": isOpen });
  made.addEventListener("click", () => toggleImage(number));
  return made;
}

function drawFolds() {
  replaceContent($("folds"), prompt().images.map(foldButton));
  const isFolded = columnsOf("heat").some((column) => column.image !== null);
  const folded = isFolded ? " A folded image shows its strongest patch." : "";
  const grey = view.leftOut.size ? " Grey columns marked × are attention sinks, left out." : "";
  const what = `${METRIC_NAMES[state.metric]} distance of ${state.variant}, ${SCALE_NAMES[state.scale]}`;
  $("heat-hint").textContent = `${what}, for ${answerName()}.${folded}${grey}`;
}

section("distances", ["distances"], { chart: drawHeat });
