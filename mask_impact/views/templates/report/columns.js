// Columns of a chart: tokens one by one, a folded image as one.

import { plotlyText } from "../shared/texts.js";
import { tokenName } from "./names.js";
import { prompt, state } from "./state.js";
import { view } from "./view.js";

// { positions, image (null for one token) }, in the order of first positions.
export function makeColumns() {
  const made = [];
  const folded = new Map();
  for (const position of view.positions) {
    const cell = prompt().cellAt.get(position);
    if (!cell || state.unfolded.includes(cell.image)) made.push({ positions: [position], image: null });
    else if (folded.has(cell.image)) folded.get(cell.image).positions.push(position);
    else {
      folded.set(cell.image, { positions: [position], image: cell.image });
      made.push(folded.get(cell.image));
    }
  }
  return made;
}

// What a column shows in a layer: its token's distance, of a folded image the largest; null where there is none.
export function columnValue(values, column, layer) {
  let found = null;
  for (const position of column.positions) {
    const i = view.at.get(position);
    const value = values[layer * view.n + i];
    if (view.counted[i] && Number.isFinite(value) && (found === null || value > found)) found = value;
  }
  return found;
}

// The text for a column; where it has a token that is marked, that is said.
export function columnLabel({ positions, image }, isMarked) {
  if (image !== null) return plotlyText(`${positions[0]}–${positions.at(-1)} image ${image}`);
  return plotlyText(`${positions[0]} ${tokenName(positions[0], 14)}${positions.some(isMarked) ? " ×" : ""}`);
}
