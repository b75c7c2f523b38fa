// How tokens, produced tokens and distances are called in texts.

import { float32Text } from "../shared/numbers.js";
import { quoted } from "../shared/texts.js";
import { prompt, rounded, state, step } from "./state.js";

export function tokenName(position, width = Infinity) {
  const cell = prompt().cellAt.get(position);
  return cell ? `image ${cell.image} [${cell.row}, ${cell.column}]` : quoted(prompt().texts[position], width);
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
