// How effects are written: their sizes go over many decades.

import { shortText } from "../shared/numbers.js";

export function natsText(size) {
  if (!(size > 0 && size < 0.001)) return shortText(size);
  return size.toExponential(2).replace(/\.?0*e/, "e").replace("-", "−");
}

// With its sign; text: how its size is written.
export function signed(value, text) {
  if (!Number.isFinite(value)) return "no value";
  return `${value < 0 ? "−" : value > 0 ? "+" : ""}${text(Math.abs(value))}`;
}

export const signedNats = (value) => signed(value, (size) => `${natsText(size)} nats`);
