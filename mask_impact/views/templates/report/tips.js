// What the tip says of a cell, of a folded image's cell, and of a token.

import { percentText, shortText } from "../shared/numbers.js";
import { METRIC_NAMES } from "./file.js";
import { distanceText, tokenName } from "./names.js";
import { prompt, state } from "./state.js";
import { layersText, view } from "./view.js";

export function cellTip(position, layer) {
  const place = layer * view.n + view.at.get(position);
  const lines = [`layer ${layer} · position ${position} · ${tokenName(position)}`];
  for (const [metric, name] of Object.entries(METRIC_NAMES)) {
    lines.push(`${name} ${distanceText(view.distances[metric][place])}`);
  }
  if (view.leftOut.has(position)) lines.push("attention sink, left out");
  else if (Number.isFinite(view.shares[place])) lines.push(`${percentText(view.shares[place])} of the layer`);
  return lines.join("\n");
}

export function imageTip(column, layer) {
  const { image } = column;
  const [rows, columns] = prompt().images[image].grid;
  const placeOf = (position) => layer * view.n + view.at.get(position);
  const valueOf = (position) => view.values[placeOf(position)];
  const counts = (position) => Number.isFinite(valueOf(position)) && !view.leftOut.has(position);
  const counted = column.positions.filter(counts);
  const lines = [`layer ${layer} · image ${image}, ${rows} × ${columns} patches`];
  if (!counted.length) return [...lines, "no value"].join("\n");
  const best = counted.reduce((one, other) => (valueOf(other) > valueOf(one) ? other : one));
  const share = counted.reduce((sum, position) => sum + (view.shares[placeOf(position)] || 0), 0);
  const mean = counted.reduce((sum, position) => sum + valueOf(position), 0) / counted.length;
  lines.push(
    `strongest patch ${tokenName(best)}: ${METRIC_NAMES[state.metric]} ${distanceText(valueOf(best))}`,
    `mean of ${counted.length} patches ${shortText(mean)}`,
    `together ${percentText(share)} of the layer`,
  );
  return lines.join("\n");
}

function scoreText(position) {
  if (view.leftOut.has(position)) return "attention sink, left out";
  const score = view.scores[view.at.get(position)];
  return Number.isFinite(score) ? `${percentText(score)} of the impact, mean of ${layersText()}` : "no value";
}

export function scoreTip(position) {
  const start = `position ${position} · ${tokenName(position)}`;
  if (!view.at.has(position)) return `${start}\nnot masked`;
  return state.range === "layer" ? cellTip(position, state.layer) : `${start}\n${scoreText(position)}`;
}
