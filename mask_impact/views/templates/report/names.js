// How tokens, produced tokens and distances are called in texts.

import { float32Text } from "../shared/numbers.js";
import { quoted } from "../shared/texts.js";
import { prompt, rounded, state, step } from "./state.js";

// Of a pair of a video's frames: frames 2-3.
export const imageName = (number) => prompt().images[number].name ?? `image ${number}`;

export function tokenName(position, width = Infinity) {
  const cell = prompt().cellAt.get(position);
  return cell ? `${imageName(cell.image)} [${cell.row}, ${cell.column}]` : quoted(prompt().texts[position], width);
}

export const wordName = (positions) => quoted(positions.map((position) => prompt().texts[position]).join(""), 14);

// Of the tokens of a column.
export function joinedName({ image, positions }) {
  if (image === null) return `positions ${positions[0]}–${positions.at(-1)} · ${wordName(positions)}`;
  const [rows, columns] = prompt().images[image].grid;
  return `${imageName(image)}, ${rows} × ${columns} patches`;
}

export const tokenTitle = (position) => `${position} ${tokenName(position, 40)}`;

export function stepName(index) {
  const { text } = prompt().steps[index];
  return text === "" ? `token ${index}` : text;
}

// The produced token that everything is about.
export const answerName = () => (step().text === "" ? `produced token ${state.step}` : quoted(step().text, 30));

export function distanceText(value, isRounded = rounded()) {
  if (!Number.isFinite(value)) return "no value";
  return isRounded ? `≈ ${Number(value.toPrecision(4))}` : float32Text(value);
}
