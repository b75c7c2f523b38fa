// The heat maps, one of each result, with the marked layer and tokens in all of them.

import { baseLayout, colourBar, layerAxis } from "../shared/charts.js";
import { colourScale, cssColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { extent, makeScale, TICKS } from "../shared/scales.js";
import { plotlyText } from "../shared/texts.js";
import { placeOf } from "./alignment.js";
import { drawChart } from "./chart.js";
import { sides } from "./file.js";
import { markedKeys, markedLayer, point } from "./pointer.js";
import { adopt, choose, state } from "./state.js";
import { depthOf, layersOf, numberAt, placesOf, tokenName, unitText } from "./values.js";

// ---- marks ----

// The layer at the marked depth, and the columns of the marked tokens; lines right across, so that they are seen among
// hundreds.
function shapesOf(side) {
  const line = { color: cssColour("--accent"), width: 2 };
  const [shapes, layer] = [[], markedLayer(side)];
  if (layer !== null) {
    shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: layer - 0.5, y1: layer + 0.5, line, name: "layer" });
  }
  for (const key of new Set(markedKeys())) {
    const place = placeOf(side, key);
    if (place === undefined) continue;
    shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0: place - 0.5, x1: place + 0.5, line, name: "token" });
  }
  return shapes;
}

export function markHeat(side) {
  const chart = $(`heat-${side.number}`);
  if (chart.layout) Plotly.relayout(chart, { shapes: shapesOf(side) });
}

// ---- the chart ----

function heatCells(side) {
  const rows = layersOf(side).map((layer) => placesOf(side).map((place) => numberAt(side, place, layer)));
  const finite = rows.map((row) => row.map((value) => (Number.isFinite(value) ? value : null)));
  const scale = makeScale(state.scale, ...extent(rows.flat()));
  const z = finite.map((row) => row.map((value) => (value === null ? null : scale.level(value))));
  const colorbar = colourBar({ tickvals: TICKS, ticktext: TICKS.map((level) => unitText(scale.value(level))) });
  const gap = side.n < 120 ? 1 : 0;
  return {
    type: "heatmap", x: placesOf(side), y: layersOf(side), z, customdata: finite, zmin: 0, zmax: 1,
    colorscale: colourScale(), colorbar, xgap: gap, ygap: gap, hoverinfo: "none", hoverongaps: true,
  };
}

const heatHeight = () => Math.min(Math.max(9 * Math.max(...sides.map((side) => side.n_layers)), 260), 460) + 120;

function tickText(side, place) {
  return plotlyText(`${side.positions[place]} ${tokenName(side, place, 12)}${side.leftOut.has(place) ? " ×" : ""}`);
}

function heatLayout(side) {
  const { width } = $(`heat-${side.number}`).getBoundingClientRect();
  const room = Math.max(Math.floor((width - 120) / 13), 4);
  const ticks = placesOf(side).filter((place) => place % Math.ceil(side.n / room) === 0);
  const across = { showgrid: false, tickangle: -90, tickfont: { size: 11 }, automargin: false };
  const ticktext = ticks.map((place) => tickText(side, place));
  return baseLayout(heatHeight(), {
    plot_bgcolor: cssColour("--none"), margin: { l: 44, r: 10, t: 10, b: 120 }, shapes: shapesOf(side),
    xaxis: { range: [-0.5, side.n - 0.5], ...across, tickvals: ticks, ticktext },
    yaxis: { ...layerAxis(side.n_layers), showgrid: false, fixedrange: true, title: { text: "layer", standoff: 4 } },
  });
}

function listen(chart, side) {
  chart.on("plotly_hover", ({ points: [{ x, y }], event }) => {
    point({ side, place: x, layer: y }, event.clientX, event.clientY);
  });
  chart.on("plotly_unhover", () => point(null));
  chart.on("plotly_click", ({ points: [{ x, y }] }) => {
    adopt({ depth: Math.floor(depthOf(side, y)) });
    choose(side, x);
  });
}

export async function drawHeat(side) {
  const id = `heat-${side.number}`;
  await drawChart(id, [heatCells(side)], heatLayout(side), (chart) => listen(chart, side));
  const size = `${side.n_layers} layers by ${side.n} tokens`;
  $(id).setAttribute("aria-label", `Heat map of ${side.letter}, ${size}. Its numbers can be saved as CSV.`);
}
