// Columns of a chart: tokens one by one, those of a word as one, and those of a folded image.

import { plotlyText } from "../shared/texts.js";
import { tokenName, wordName } from "./names.js";
import { prompt, state } from "./state.js";
import { view } from "./view.js";

// For hints.
export const FOLDED = "A folded image, or a word of several tokens, shows its strongest token.";
export const isJoined = ({ positions }) => positions.length > 1;

// What a token is joined with: a folded image or a word, null for neither.
function joinedWith(position) {
  const cell = prompt().cellAt.get(position);
  if (cell) return state.unfolded.includes(cell.image) ? null : cell.image;
  return prompt().wordAt.get(position) ?? null;
}

// { positions, image (null for words and single tokens) }, in the order of first positions.
export function makeColumns() {
  const made = [];
  const joined = new Map();
  for (const position of view.positions) {
    const whole = joinedWith(position);
    if (joined.has(whole)) joined.get(whole).positions.push(position);
    else {
      made.push({ positions: [position], image: typeof whole === "number" ? whole : null });
      if (whole !== null) joined.set(whole, made.at(-1));
    }
  }
  return made;
}

// What a column shows in a layer: its token's distance, of several the largest; null where there is none.
export function columnValue(values, column, layer) {
  let found = null;
  for (const position of column.positions) {
    const i = view.at.get(position);
    const value = values[layer * view.n + i];
    if (view.counted[i] && Number.isFinite(value) && (found === null || value > found)) found = value;
  }
  return found;
}

// For hints of maps that leave sinks out.
export const leftOutHint = () => (view.leftOut.size ? " Grey columns marked × are attention sinks, left out." : "");

// The text for a column; where it has a token that is marked, that is said.
export function columnLabel({ positions, image }, isMarked) {
  if (image !== null) return plotlyText(`${positions[0]}–${positions.at(-1)} image ${image}`);
  const name = positions.length > 1 ? wordName(positions) : tokenName(positions[0], 14);
  return plotlyText(`${positions[0]} ${name}${positions.some(isMarked) ? " ×" : ""}`);
}

export const leftOutLabel = (column) => columnLabel(column, (position) => view.leftOut.has(position));
