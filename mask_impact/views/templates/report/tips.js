// What the tip says of a cell, of one of several tokens that are joined, and of a token.

import { percentText, shortText } from "../shared/numbers.js";
import { METRIC_NAMES } from "./file.js";
import { distanceText, joinedName, tokenName } from "./names.js";
import { scoreText, shading, shown } from "./quantity.js";
import { prompt, state } from "./state.js";
import { view } from "./view.js";

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

export function columnTip(column, layer) {
  const { image, positions } = column;
  if (positions.length === 1) return cellTip(positions[0], layer);
  const placeOf = (position) => layer * view.n + view.at.get(position);
  const valueOf = (position) => view.values[placeOf(position)];
  const counts = (position) => Number.isFinite(valueOf(position)) && !view.leftOut.has(position);
  const counted = positions.filter(counts);
  const lines = [`layer ${layer} · ${joinedName(column)}`];
  if (!counted.length) return [...lines, "no value"].join("\n");
  const best = counted.reduce((one, other) => (valueOf(other) > valueOf(one) ? other : one));
  const share = counted.reduce((sum, position) => sum + (view.shares[placeOf(position)] || 0), 0);
  const mean = counted.reduce((sum, position) => sum + valueOf(position), 0) / counted.length;
  const [one, many] = image === null ? ["token", "tokens"] : ["patch", "patches"];
  lines.push(
    `strongest ${one} ${tokenName(best)}: ${METRIC_NAMES[state.metric]} ${distanceText(valueOf(best))}`,
    `mean of ${counted.length} ${many} ${shortText(mean)}`,
    `together ${percentText(share)} of the layer`,
  );
  return lines.join("\n");
}

export function scoreTip(position) {
  const word = prompt().wordAt.get(position);
  const start = word ? joinedName({ image: null, positions: word }) : `position ${position} · ${tokenName(position)}`;
  if (!view.at.has(position)) return `${start}\nnot masked`;
  if (shown() === "impact" && state.range === "layer" && !word) return cellTip(position, state.layer);
  const isLeftOut = view.leftOut.has(position) && shown() !== "effect";
  const score = shading().scores[view.at.get(position)];
  return `${start}\n${isLeftOut ? "attention sink, left out" : scoreText(score)}`;
}
