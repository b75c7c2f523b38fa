// How effects are written: their sizes go over many decades.

import { shortText } from "../shared/numbers.js";

export function natsText(size) {
  if (!(size > 0 && size < 0.001)) return shortText(size);
  return size.toExponential(2).replace(/\.?0*e/, "e").replace("-", "−");
}

export function signedNats(value) {
  if (!Number.isFinite(value)) return "no value";
  return `${value < 0 ? "−" : value > 0 ? "+" : ""}${natsText(Math.abs(value))} nats`;
}
