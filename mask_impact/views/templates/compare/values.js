// Numbers of the results' tokens at a depth or over all layers, and how tokens and numbers are called in texts.

import { lineColour } from "../shared/colours.js";
import { nearest, percentText, shortText } from "../shared/numbers.js";
import { plotlyText, quoted, visible } from "../shared/texts.js";
import { sides } from "./file.js";
import { state } from "./state.js";

export const layersOf = (side) => Array.from({ length: side.n_layers }, (_, layer) => layer);
export const placesOf = (side) => side.positions.map((_, place) => place);

// Of the middle of a layer, in percent.
export const depthOf = (side, layer) => (100 * (layer + 0.5)) / side.n_layers;

// The layer at a depth, or the nearest that was measured.
export function layerAt(side, depth = state.depth) {
  const layer = Math.min(Math.floor((depth / 100) * side.n_layers), side.n_layers - 1);
  return nearest(side.measured, layer);
}

export function numberAt(side, place, layer) {
  return side.leftOut.has(place) ? NaN : side[state.number][layer * side.n + place];
}

// The mean over the layers shown of what has a value.
export function score(side, place) {
  if (state.range === "depth") return numberAt(side, place, layerAt(side));
  let [sum, n] = [0, 0];
  for (let layer = 0; layer < side.n_layers; layer++) {
    const value = numberAt(side, place, layer);
    if (!Number.isNaN(value)) { sum += value; n++; }
  }
  return n ? sum / n : NaN;
}

export function layersCounted(side) {
  const n = side.measured.length;
  return n < side.n_layers ? `${n} of ${side.n_layers}` : `${n}`;
}

export const colourOf = (side) => lineColour(side.number);

// ---- in texts ----

// For plotly.
export const sideTitle = (side) => plotlyText(`${side.letter} ${visible(side.name)}`);

export const isShare = () => state.number === "share";
export const unitText = (value) => (isShare() ? percentText(value) : shortText(value));
export const numberText = (value) => (Number.isFinite(value) ? unitText(value) : "no value");

export function tokenName(side, place, width = Infinity) {
  const cell = side.cellAt.get(place);
  return cell ? `image ${cell.image} [${cell.row}, ${cell.column}]` : quoted(side.texts[place], width);
}

export const tokenTitle = (side, place) => `${side.positions[place]} ${tokenName(side, place, 24)}`;

export function layersText() {
  if (state.range === "all") return "all layers";
  return `depth ${state.depth} %: ${sides.map((side) => `layer ${layerAt(side)} of ${side.letter}`).join(", ")}`;
}
