// Charts of layers by columns: their cells, the marks of chosen tokens above them, and the texts below that there is
// room for. What a column's text says is the chart's own business.

import { baseLayout } from "../shared/charts.js";
import { cssColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { fitBar } from "./bar.js";
import { axisOfLayers, bandShapes, chartHeight, drawChart, isDrawn, layerTitle } from "./chart.js";
import { chosenColour, chosenTokens, toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { adopt, prompt, set } from "./state.js";
import { layersShown } from "./view.js";

// By chart its { columns, edges, labelOf, nRows }: edges in columns of one token, labelOf(column) the text below it;
// nRows: of the layers, 1 where all of them are one row.
const laidOut = {};
export const columnsOf = (id) => laidOut[id].columns;
export const edgesOf = (id) => laidOut[id].edges;

export function layOut(id, columns, labelOf, nRows = prompt().n_layers) {
  const block = Math.max(2, Math.round(columns.length / 14)); // the width of a folded image
  const edges = [0];
  for (const column of columns) edges.push(edges.at(-1) + (column.image === null ? 1 : block));
  laidOut[id] = { columns, edges, labelOf, nRows };
}

const isOneRow = (id) => laidOut[id].nRows === 1 && prompt().n_layers > 1;
const marksOfLayers = (id) => (isOneRow(id) ? [] : bandShapes());

// Draws a chart where it was drawn for something else, else its marks where these have changed.
export async function drawOrMark(id, what, draw, shapes = () => []) {
  const isOther = changed(id, ...what);
  const areOtherTokens = changed(`${id}-tokens`, what, chosenTokens());
  const areOtherLayers = changed(`${id}-layers`, what, layersShown());
  const marks = () => ({ shapes: [...marksOfLayers(id), ...shapes()] });
  if (isOther) await draw();
  else if (areOtherTokens) await Plotly.update(id, markers(id), marks(), [1]);
  else if (areOtherLayers) await Plotly.relayout(id, marks()); // far quicker than an update
}

// `tip(column, layer)` is the text for a cell, `shapes` lie over the cells.
export async function drawByColumns(id, heat, tip, shapes = []) {
  const { columns, edges } = laidOut[id];
  const gap = edges.at(-1) < 120 ? 1 : 0;
  const y = heat.z.map((_, layer) => layer);
  const cells = { type: "heatmap", x: edges, y, xgap: gap, ygap: gap, hoverinfo: "none", hoverongaps: true, ...heat };
  const { bottom, ...ticks } = ticksOf(id, [0, edges.at(-1)]);
  const across = { showgrid: false, tickangle: -90, tickfont: { size: 11 }, automargin: false, ...ticks };
  const allLayers = { tickvals: [0], ticktext: ["all"], range: [-0.5, 0.5] };
  const rows = isOneRow(id) ? { height: 64, axis: allLayers } : { height: chartHeight(240), axis: axisOfLayers() };
  const layout = baseLayout(rows.height + 130, {
    plot_bgcolor: cssColour("--none"), margin: { l: 48, r: 92, t: 18, b: bottom },
    shapes: [...marksOfLayers(id), ...shapes],
    xaxis: { range: [0, edges.at(-1)], ...across },
    yaxis: { ...rows.axis, showgrid: false, title: layerTitle(4), fixedrange: true, automargin: false },
  });
  const marks = { type: "scatter", mode: "markers", hoverinfo: "skip", cliponaxis: false, ...only(markers(id)) };
  const tipOf = ({ pointNumber: [layer, index] }) => tip(columns[index], layer);
  const choose = ({ pointNumber: [layer, index] }) => chooseCell(columns[index], isOneRow(id) ? null : layer);
  const isNew = await drawChart(id, [cells, marks], layout, tipOf, choose);
  if (isNew) $(id).on("plotly_relayout", (what) => onRelayout(id, what));
}

// layer: null where the row is all of them.
function chooseCell({ image, positions }, layer) {
  const where = layer === null ? {} : { layer, range: "layer" };
  if (image === null && positions.length === 1) {
    adopt(where);
    toggleToken(positions[0]);
  } else if (image === null) set({ ...where, tokens: positions, focus: -1 });
  else set(where);
}

// ---- marks above the columns ----

// Of the chosen tokens, as plotly takes changes of one trace: a list for each value.
function markers(id) {
  const { columns, edges } = laidOut[id];
  const [x, color] = [[], []];
  for (const position of chosenTokens()) {
    columns.forEach((column, index) => {
      if (!column.positions.includes(position)) return;
      x.push((edges[index] + edges[index + 1]) / 2);
      color.push(chosenColour(position));
    });
  }
  const marker = { symbol: "triangle-down", size: 11, color, line: { width: 1, color: cssColour("--card") } };
  return { x: [x], y: [x.map(() => laidOut[id].nRows - 0.5)], marker: [marker] };
}

const only = (changes) => Object.fromEntries(Object.entries(changes).map(([name, [value]]) => [name, value]));

// ---- texts below them ----

// Of the columns that are in sight: all, or as many as there is room for. bottom: the room that the longest takes.
function ticksOf(id, [from, to]) {
  const { columns, edges, labelOf } = laidOut[id];
  const indices = columns.map((_, index) => index);
  const inSight = indices.filter((index) => edges[index + 1] > from && edges[index] < to);
  const room = Math.max(Math.floor(($(id).getBoundingClientRect().width - 130) / 13), 4);
  const every = Math.ceil(inSight.length / room);
  const labelled = inSight.filter((index, nth) => nth % every === 0 || columns[index].image !== null);
  const ticktext = labelled.map((index) => labelOf(columns[index]));
  const longest = Math.max(...ticktext.map((text) => [...text].length), 8);
  const tickvals = labelled.map((index) => (edges[index] + edges[index + 1]) / 2);
  return { bottom: Math.min(22 + 6.4 * longest, 150), tickvals, ticktext };
}

async function labelColumns(id) {
  const { bottom, tickvals, ticktext } = ticksOf(id, $(id).layout.xaxis.range ?? [0, laidOut[id].edges.at(-1)]);
  await Plotly.relayout(id, { "margin.b": bottom, "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext });
  fitBar($(id), bottom);
}

function onRelayout(id, what) {
  const isZoom = (name) => name.startsWith("xaxis.range") || name === "xaxis.autorange";
  if (Object.keys(what).some(isZoom)) labelColumns(id);
}

// For a window of another width.
export function relabelColumns() {
  for (const id of Object.keys(laidOut)) if (isDrawn(id) && $(id).clientWidth) labelColumns(id);
}
