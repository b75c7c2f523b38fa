// The rows of CSV files of distances and shares: what the cards of text, images and layers show, as numbers.

import { float32Text } from "../shared/numbers.js";
import { chosenTokens, focusToken } from "./chosen.js";
import { block } from "./distances.js";
import { shading, shown } from "./quantity.js";
import { prompt, state } from "./state.js";
import { imageShares } from "./split.js";
import { everyLayer, layersShown, measuredLayers, view } from "./view.js";

const DISTANCES = [
  "generation_step", "layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance",
];
const SCORES = [
  "generation_step", "first_layer", "last_layer", "token_masked", "token_position", "image", "row", "column",
  "quantity", "variant", "metric", "score",
];
const ESTIMATES = ["generation_step", "layer", "token_masked", "token_position", "contribution", "estimate_local"];
const TOTALS = ["generation_step", "layer", "variant", "metric", "impact_over_norm"];
const SPLIT = ["generation_step", "layer", "variant", "metric", "image_share", "text_share"];

export const orNull = (value) => (Number.isFinite(value) ? value : null);

// A float32 with its shortest digits, which a CSV file has without quotation marks.
export function float32Cell(value) {
  if (!Number.isFinite(value)) return null;
  const text = float32Text(value);
  return { toString: () => text };
}

function distanceRows(positions, variant = state.variant, { l2, cosine } = view.distances) {
  const rowOf = (layer, position) => {
    const place = layer * view.n + view.at.get(position);
    const numbers = [float32Cell(l2[place]), float32Cell(cosine[place])];
    return [state.step, layer, prompt().texts[position], position, variant, ...numbers];
  };
  return measuredLayers().flatMap((layer) => positions.map((position) => rowOf(layer, position)));
}

async function headRows() {
  const found = [];
  for (const { name, index } of prompt().heads) {
    const [l2, cosine] = await Promise.all([block("l2", index), block("cosine", index)]);
    found.push(...distanceRows([focusToken()], name, { l2, cosine }));
  }
  return found;
}

function scoreRow(position) {
  const { image = null, row = null, column = null } = prompt().cellAt.get(position) ?? {};
  const layers = layersShown();
  const token = [prompt().texts[position], position, image, row, column];
  const score = shading().alone[view.at.get(position)];
  const of = { impact: [state.variant, state.metric], effect: [null, state.measure] }[shown()] ?? [null, null];
  return [state.step, layers[0], layers.at(-1), ...token, shown(), ...of, orNull(score)];
}

function estimateRows() {
  const { n, contribution, estimate } = view.estimates;
  const positions = Array.from({ length: n }, (_, position) => position);
  const rowOf = (layer, position) => {
    const numbers = [contribution, estimate].map((values) => float32Cell(values[layer * n + position]));
    return [state.step, layer, prompt().texts[position], position, ...numbers];
  };
  return everyLayer().flatMap((layer) => positions.map((position) => rowOf(layer, position)));
}

function splitRow(share, layer) {
  return [state.step, layer, state.variant, state.metric, orNull(share), orNull(1 - share)];
}

const totalRow = (total, layer) => [state.step, layer, state.variant, state.metric, orNull(total)];

const isPatch = (position) => prompt().cellAt.has(position);
const isCounted = (position) => !view.leftOut.has(position);

// By card its [header, rows], or a promise of them.
export const DISTANCE_FILES = {
  estimates: () => [ESTIMATES, estimateRows()],
  heat: () => [DISTANCES, distanceRows(view.positions.filter(isCounted))],
  profile: () => [DISTANCES, chosenTokens().flatMap((position) => distanceRows([position]))],
  heads: async () => [DISTANCES, await headRows()],
  text: () => [SCORES, view.positions.filter((position) => !isPatch(position)).map(scoreRow)],
  images: () => [SCORES, view.positions.filter(isPatch).map(scoreRow)],
  split: () => [SPLIT, measuredLayers().map((layer) => splitRow(imageShares()[layer], layer))],
  totals: () => [TOTALS, measuredLayers().map((layer) => totalRow(view.weights[layer], layer))],
};
