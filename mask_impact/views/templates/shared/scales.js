// Scales: linear, square-root and logarithmic, from values to levels 0..1 and back.

import { oneOf } from "./numbers.js";

const SCALES = ["linear", "sqrt", "log"];
export const SCALE_NAMES = { linear: "linear scale", sqrt: "square-root scale", log: "logarithmic scale" };
export const TICKS = [0, 0.25, 0.5, 0.75, 1];
const DECADES = 6; // that a logarithmic scale has at most

export const scaleOr = (value, otherwise) => oneOf(value, SCALES, otherwise);
export const scaleAfter = (kind) => SCALES[(SCALES.indexOf(kind) + 1) % SCALES.length];

// Values from 0 to `high` to levels 0..1, and back; `low` is the smallest positive value.
export function makeScale(kind, high, low) {
  if (!(high > 0)) return { level: () => 0, value: () => 0, high: 0 };
  if (kind === "linear") return { level: (v) => Math.max(v, 0) / high, value: (t) => t * high, high };
  if (kind === "sqrt") return { level: (v) => Math.sqrt(Math.max(v, 0) / high), value: (t) => t * t * high, high };
  const bottom = Math.min(Math.max(low, high / 10 ** DECADES), high / 10);
  const span = Math.log(high / bottom);
  const level = (v) => (v > bottom ? Math.log(v / bottom) / span : 0);
  return { level, value: (t) => bottom * Math.exp(t * span), high, bottom };
}

// The largest and the smallest positive number among the values.
export function extent(values) {
  let [high, low] = [0, Infinity];
  for (const value of values) {
    if (value > high) high = value;
    if (value > 0 && value < low) low = value;
  }
  return [high, low];
}
