// What the report's charts have in common: how one is drawn and told of the pointer, how it marks the layers shown,
// and its levels.

import { baseLayout, colourBar, CONFIG, layerAxis } from "../shared/charts.js";
import { colourScale, cssColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { shortText } from "../shared/numbers.js";
import { extent, makeScale, TICKS } from "../shared/scales.js";
import { hideTip, showTip } from "../shared/tip.js";
import { BY_PAGE, drawBar } from "./bar.js";
import { changed } from "./drawn.js";
import { METRIC_NAMES } from "./file.js";
import { prompt, state } from "./state.js";
import { layersShown, view } from "./view.js";

// ---- drawing ----

const handlers = new WeakMap(); // by element its { tip, click }
export const isDrawn = (id) => handlers.has($(id));

// Draws a chart and says whether it is the first time. `tip(point)` is the text for what the pointer is on,
// `click(point)` what a click there does.
export async function drawChart(id, data, layout, tip, click) {
  const chart = $(id);
  const isNew = !handlers.has(chart);
  handlers.set(chart, { tip, click });
  chart.style.height = `${layout.height}px`; // plotly takes the element's when the window changes
  await Plotly.react(chart, data, layout, CONFIG);
  if (data[0]?.colorbar) drawBar(chart, data[0], layout.margin);
  if (!isNew) return false;
  const showOwnTip = (point, { clientX, clientY }) => showTip(handlers.get(chart).tip(point), clientX, clientY);
  chart.on("plotly_hover", ({ points, event }) => showOwnTip(points[0], event));
  chart.on("plotly_unhover", hideTip);
  chart.on("plotly_click", ({ points }) => handlers.get(chart).click(points[0]));
  return true;
}

// Whether a chart was drawn for something else before. Where it was not, but other layers were shown, these are marked.
export async function changedOrMark(id, what, shapes) {
  const isOther = changed(id, ...what);
  if (changed(`${id}-marks`, layersShown(), what) && !isOther) await Plotly.relayout(id, { shapes: shapes() });
  return isOther;
}

export function describe(id, text) {
  const label = `${text}. ${METRIC_NAMES[state.metric]} of ${state.variant}. Its numbers can be saved as CSV.`;
  $(id).setAttribute("aria-label", label);
}

// ---- marks of the layers shown ----

const allAreShown = (layers) => layers.length === view.nLayers && layers.length > 1;

// In charts that have layers from bottom to top.
export function bandShapes() {
  const layers = layersShown();
  if (allAreShown(layers)) return [];
  const line = { color: cssColour("--accent"), width: 2 };
  const [y0, y1] = [layers[0] - 0.5, layers.at(-1) + 0.5];
  return [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0, y1, line, fillcolor: "rgba(0,0,0,0)" }];
}

// In charts that have layers from left to right.
export function layerShapes() {
  const layers = layersShown();
  if (allAreShown(layers)) return [];
  const [x0, x1] = [layers[0] - 0.5, layers.at(-1) + 0.5];
  const look = { line: { width: 0 }, fillcolor: cssColour("--accent"), opacity: 0.14 };
  return [{ type: "rect", yref: "paper", y0: 0, y1: 1, x0, x1, ...look }];
}

// ---- axes and levels ----

export const axisOfLayers = () => layerAxis(prompt().n_layers);
export const layerTitle = (standoff) => ({ text: "layer", standoff });
export const chartHeight = (least) => Math.min(Math.max(11 * prompt().n_layers, least), 620);

// The layout of a chart that has layers from left to right.
export function layoutOverLayers(height, more) {
  const xaxis = { ...axisOfLayers(), title: layerTitle(6), automargin: false, ...more.xaxis };
  return baseLayout(height, { ...more, xaxis });
}

const hasValue = (value) => value !== null;

// Levels of a matrix [layer][column] of distances (null: none) under the scale, each layer's own or one for all; and
// the colour bar: as a part of a heat map's trace.
export function matrixLevels(matrix) {
  const perLayer = state.colours === "layer";
  const whole = makeScale(state.scale, ...extent(matrix.flat().filter(hasValue)));
  const scales = matrix.map((row) => (perLayer ? makeScale(state.scale, ...extent(row.filter(hasValue))) : whole));
  const ends = { tickvals: [0, 1], ticktext: [state.scale === "log" ? "least" : "0", "most"] };
  const ticks = { tickvals: TICKS, ticktext: TICKS.map((level) => shortText(whole.value(level))) };
  const title = { text: perLayer ? "of each layer" : METRIC_NAMES[state.metric], side: "right", font: { size: 11 } };
  const levels = matrix.map((row, layer) => row.map((value) => (value === null ? null : scales[layer].level(value))));
  const colorbar = colourBar({ ...(perLayer ? ends : ticks), title });
  return { z: levels, zmin: 0, zmax: 1, colorscale: colourScale(), colorbar, ...BY_PAGE };
}
