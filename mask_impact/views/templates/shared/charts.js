// Charts by plotly.js, which is packed in the page: when it is ready, and what the layouts of all charts have in
// common.

import { unzipped } from "./blocks.js";
import { cssColour } from "./colours.js";
import { $, element } from "./elements.js";

export const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };
// For a chart with several lines or bars, above it.
export const LEGEND = { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };

let plotlyReady = null;
async function unpackPlotly() {
  const source = new TextDecoder().decode(await unzipped($("plotly-source").textContent));
  $("plotly-source").remove();
  document.head.append(element("script", { textContent: source }));
}
// Unpacked for the first chart: to read it takes a while.
export const readPlotly = () => (plotlyReady ??= unpackPlotly());

// plotly looks for texts that reach out of a chart by measuring each once for each of them; none of ours do.
const TICKS_AS_THEY_ARE = { ticklabeloverflow: "allow", tickangle: 0 };

let family; // to read it, the browser works out the styles of the whole page
export function baseLayout(height, more) {
  const [ink, card, grid] = ["--ink", "--card", "--grid"].map(cssColour);
  const shown = { color: ink, gridcolor: grid, zeroline: false, fixedrange: false, automargin: true };
  const axis = { ...shown, ...TICKS_AS_THEY_ARE };
  const font = { family: (family ??= getComputedStyle(document.body).fontFamily), size: 12, color: ink };
  const layout = {
    height, font, paper_bgcolor: card, plot_bgcolor: card, margin: { l: 56, r: 12, t: 14, b: 46 },
    showlegend: false, hovermode: "closest", dragmode: "zoom", ...more,
  };
  layout.xaxis = { ...axis, ...more.xaxis };
  layout.yaxis = { ...axis, ...more.yaxis };
  return layout;
}

// The colour bar of a heat map; more: its ticks.
export const colourBar = (more) => {
  const shape = { thickness: 10, outlinewidth: 0, len: 1, lenmode: "fraction", y: 0.5, tickfont: { size: 11 } };
  return { ...shape, ...TICKS_AS_THEY_ARE, ...more };
};

// An axis of so many layers, with ticks at whole ones.
export function layerAxis(nLayers) {
  const every = [1, 2, 5, 10, 20, 50].find((one) => nLayers <= 16 * one) ?? 100;
  return { tickmode: "linear", tick0: 0, dtick: every, range: [-0.5, nLayers - 0.5] };
}

const raised = (kind, value) => (kind === "sqrt" ? Math.sqrt(Math.max(value, 0)) : value);

// Where a value is drawn under a scale, null: nowhere. Of the logarithmic one plotly itself takes the logarithm.
export function heightOn(kind, value) {
  return Number.isFinite(value) && (kind !== "log" || value > 0) ? raised(kind, value) : null;
}

// The axis of values from 0 to `high` under a scale, its ticks written by `text`.
export function valueAxis(kind, high, text) {
  if (kind === "log") return { type: "log", dtick: 1, exponentformat: "power" };
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => part * (high || 1));
  const range = [0, raised(kind, (high || 1) * 1.06)];
  return { type: "linear", tickvals: ticks.map((tick) => raised(kind, tick)), ticktext: ticks.map(text), range };
}
