// The heat map of effects, layers by tokens or groups, with lines through cells in which another token becomes the most
// probable; and its legend.

import { cssColour } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { plotlyText, quoted } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { columnsOf, drawByColumns, drawOrMark, edgesOf, layOut } from "./column_chart.js";
import { columnLabel } from "./columns.js";
import {
  effectAt, effectColumns, effectFloor, effectLayers, groups, isChanged, isNone, isSink, strongestOf,
} from "./effect.js";
import { effectColumnTip } from "./effect_tips.js";
import { MEASURES } from "./file.js";
import { answerName } from "./names.js";
import { natsText } from "./nats.js";
import { shown } from "./quantity.js";
import { section } from "./sections.js";
import { signedHeat, signs } from "./signed_chart.js";
import { state } from "./state.js";
import { view } from "./view.js";

function effectLabel(column) {
  if (!groups()) return columnLabel(column, isSink);
  const mark = column.positions.some(isSink) ? " ×" : "";
  return plotlyText(`${quoted(groups()[column.groups[0]][0], 18)}${mark}`);
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
  const { heat, scale } = signedHeat(matrix, (value) => value === null || isNone(value));
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

function drawLegendOfEffect() {
  const rest = view.effect.top1.some((id) => id < 0) ? ", or not measured" : "";
  const floor = `no more than the noise floor, ${natsText(effectFloor())} nats`;
  const empty = (effectFloor() > 0 ? floor : "no effect at all") + rest;
  const name = answerName();
  const meanings = [`${name} becomes less likely`, `${name} becomes more likely`];
  $("effect-legend").replaceChildren(
    ...(state.measure === "kl" ? signs("the whole distribution changes") : signs(...meanings)),
    element("span", {}, element("i", { className: "cell" }), empty),
    element("span", {}, element("i", { className: "cell struck" }), "another token becomes the most probable"),
  );
}

section("effect-card", ["effect"], { chart: drawEffect, into: "effect", when: () => shown() === "effect" });
