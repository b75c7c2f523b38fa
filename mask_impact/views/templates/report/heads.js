// The heat map of layers by heads, for the token that has the focus.

import { baseLayout } from "../shared/charts.js";
import { cssColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { plotlyText, visible } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import {
  axisOfLayers, bandShapes, changedOrMark, chartHeight, describe, drawChart, layerTitle, matrixLevels,
} from "./chart.js";
import { focusToken } from "./chosen.js";
import { block } from "./distances.js";
import { headsAreRounded, METRIC_NAMES } from "./file.js";
import { distanceText, tokenTitle } from "./names.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";
import { everyLayer, view } from "./view.js";

const MOST_TICKS = 16;

// Distances [layer][head], null where there is none.
async function headMatrix() {
  const i = view.at.get(focusToken());
  const all = await Promise.all(prompt().heads.map(({ index }) => block(state.metric, index)));
  const valueIn = (values, layer) => values[layer * view.n + i];
  const orNull = (value) => (Number.isFinite(value) ? value : null);
  return everyLayer().map((layer) => all.map((values) => orNull(valueIn(values, layer))));
}

function headsLayout(heads) {
  const places = heads.map((_, nth) => nth);
  const ticks = places.filter((nth) => heads.length <= MOST_TICKS || nth % Math.ceil(heads.length / MOST_TICKS) === 0);
  const ticktext = ticks.map((nth) => plotlyText(visible(heads[nth].name.slice(5, 17))));
  return baseLayout(chartHeight(270) + 30, {
    plot_bgcolor: cssColour("--none"), shapes: bandShapes(), margin: { l: 48, r: 86, t: 16, b: 50 },
    xaxis: { tickvals: ticks, ticktext, title: { text: "head", standoff: 4 }, showgrid: false, automargin: false },
    yaxis: { ...axisOfLayers(), showgrid: false, title: layerTitle(4), automargin: false },
  });
}

async function drawHeadCells(heads, position) {
  const matrix = await headMatrix();
  const rounding = headsAreRounded ? ", rounded" : "";
  const metric = METRIC_NAMES[state.metric];
  $("heads-hint").textContent = `${metric} distance of each head when ${tokenTitle(position)} is hidden${rounding}`;
  const cells = {
    type: "heatmap", x: heads.map((_, nth) => nth), y: everyLayer(), ...matrixLevels(matrix), customdata: matrix,
    hoverinfo: "none", hoverongaps: true,
  };
  const tip = ({ pointNumber: [layer, nth] }) => {
    const distance = distanceText(matrix[layer][nth] ?? NaN, headsAreRounded);
    return `layer ${layer} · ${heads[nth].name} · ${tokenTitle(position)}\n${METRIC_NAMES[state.metric]} ${distance}`;
  };
  const choose = ({ pointNumber: [layer, nth] }) => set({ layer, range: "layer", variant: heads[nth].name });
  await drawChart("heads", [cells], headsLayout(heads), tip, choose);
  describe("heads", `Heat map of ${view.nLayers} layers by ${heads.length} heads for ${tokenTitle(position)}`);
}

async function drawHeads() {
  const { heads } = prompt();
  const position = focusToken();
  $("heads-card").hidden = !heads.length || position === undefined;
  if ($("heads-card").hidden) return;
  const { prompt: one, step, metric, scale, colours } = state;
  const what = [one, step, metric, scale, colours, theme(), position];
  if (await changedOrMark("heads", what, bandShapes)) await drawHeadCells(heads, position);
}

section("distances", ["distances"], { chart: drawHeads, into: "heads" });
