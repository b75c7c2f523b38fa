// The heat map of effects, layers by tokens or groups, with lines through cells in which another token becomes the most
// probable; and its legend.

import { colourBar } from "../shared/charts.js";
import { colourScale, cssColour, stops } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { extent, makeScale, TICKS } from "../shared/scales.js";
import { plotlyText, quoted } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { columnsOf, drawByColumns, drawOrMark, edgesOf, layOut } from "./column_chart.js";
import { columnLabel } from "./columns.js";
import {
  effectAt, effectColumns, effectFloor, effectLayers, groups, isChanged, isNone, isSink, strongestOf,
} from "./effect.js";
import { effectColumnTip, natsText } from "./effect_tips.js";
import { MEASURES } from "./file.js";
import { answerName } from "./names.js";
import { section } from "./sections.js";
import { state } from "./state.js";
import { signedColours, signedStops } from "./signed_colours.js";
import { view } from "./view.js";

const isKl = () => state.measure === "kl"; // and has no sign

function effectLabel(column) {
  if (!groups()) return columnLabel(column, isSink);
  const mark = column.positions.some(isSink) ? " ×" : "";
  return plotlyText(`${quoted(groups()[column.groups[0]][0], 18)}${mark}`);
}

// Levels from -1 to 1, null for what is no more than the floor. All layers have one scale: nats are the same in each.
function effectLevels(matrix) {
  const isEmpty = (value) => value === null || isNone(value);
  const sizes = matrix.flat().map((value) => (isEmpty(value) ? 0 : Math.abs(value)));
  const scale = makeScale(state.scale, ...extent(sizes));
  const levelOf = (value) => (isEmpty(value) ? null : Math.sign(value) * scale.level(Math.abs(value)));
  const ticks = isKl() ? TICKS : [-1, -0.5, 0, 0.5, 1];
  const text = (level) => {
    if (level === 0 && state.scale !== "log") return "0";
    return `${level < 0 ? "−" : ""}${natsText(scale.value(Math.abs(level)))}`;
  };
  const title = { text: "nats", side: "right", font: { size: 11 } };
  const colorbar = colourBar({ tickvals: ticks, ticktext: ticks.map(text), title });
  return { levels: matrix.map((row) => row.map(levelOf)), scale, colorbar };
}

// A line through each cell in which another token becomes the most probable, dark within light.
function changedShapes() {
  const [columns, edges] = [columnsOf("effect"), edgesOf("effect")];
  const parts = [];
  columns.forEach((column, index) => {
    const [left, wide] = [edges[index], edges[index + 1] - edges[index]];
    for (const layer of effectLayers()) {
      if (!column.groups.some((group) => isChanged(group, layer))) continue;
      parts.push(`M${left + 0.2 * wide},${layer - 0.3}L${left + 0.8 * wide},${layer + 0.3}`);
    }
  });
  if (!parts.length) return [];
  const shape = { type: "path", name: "changed", path: parts.join("") };
  const lines = [["--card", 3], ["--ink", 1.3]];
  return lines.map(([colour, width]) => ({ ...shape, line: { color: cssColour(colour), width } }));
}

async function drawEffectCells() {
  const columns = effectColumns();
  layOut("effect", columns, effectLabel, effectLayers().length);
  const valueOf = (group, layer) => (group < 0 ? null : effectAt(group, layer));
  const matrix = effectLayers().map((layer) => columns.map((column) => valueOf(strongestOf(column, layer), layer)));
  const { levels, scale, colorbar } = effectLevels(matrix);
  const colours = isKl()
    ? { zmin: 0, zmax: 1, colorscale: colourScale() }
    : { zmin: -1, zmax: 1, colorscale: signedColours() };
  const heat = { z: levels, customdata: matrix, colorbar, ...colours };
  await drawByColumns("effect", heat, effectColumnTip, changedShapes());
  const most = `${MEASURES[state.measure]}, at most ${natsText(scale.high)} nats`;
  const rows = effectLayers().length === view.nLayers ? `${view.nLayers} layers` : "all layers together";
  const size = `${rows} by ${columns.length} ${groups() ? "groups of tokens" : "tokens"}`;
  const label = `Heat map of the effect, ${most}, ${size}. Its numbers can be saved as CSV.`;
  $("effect").setAttribute("aria-label", label);
  drawLegendOfEffect();
}

async function drawEffect() {
  const { prompt: one, step, unfolded, scale, measure } = state;
  await drawOrMark("effect", [one, step, unfolded, scale, measure, theme()], drawEffectCells, changedShapes);
}

function signOf(colours, text) {
  const bar = element("i");
  bar.style.background = `linear-gradient(to right, ${colours.join(",")})`;
  return element("span", {}, bar, text);
}

function signs() {
  if (isKl()) return [signOf(stops(), "the whole distribution changes")];
  const { negative, positive } = signedStops();
  const name = answerName();
  return [signOf(negative, `${name} becomes less likely`), signOf(positive, `${name} becomes more likely`)];
}

function drawLegendOfEffect() {
  const rest = view.effect.top1.some((id) => id < 0) ? ", or not measured" : "";
  const floor = `no more than the noise floor, ${natsText(effectFloor())} nats`;
  const empty = (effectFloor() > 0 ? floor : "no effect at all") + rest;
  $("effect-legend").replaceChildren(
    ...signs(),
    element("span", {}, element("i", { className: "cell" }), empty),
    element("span", {}, element("i", { className: "cell struck" }), "another token becomes the most probable"),
  );
}

section("effect-part", ["effect"], { chart: drawEffect });
