// What maps of effects have in common, measured or estimated: levels between speaking for the answer and against it,
// their colours, and the legend's signs.

import { colourBar } from "../shared/charts.js";
import { colourScale, stops } from "../shared/colours.js";
import { element } from "../shared/elements.js";
import { extent, makeScale, TICKS } from "../shared/scales.js";
import { BY_PAGE } from "./bar.js";
import { gradientBar } from "./legend.js";
import { natsText } from "./nats.js";
import { isSigned } from "./quantity.js";
import { signedColours, signedStops } from "./signed_colours.js";
import { state } from "./state.js";

// The heat map of a matrix [layer][column] in nats, and its scale. isEmpty(value): whether it shows nothing. All
// layers have one scale: nats are the same in each.
export function signedHeat(matrix, isEmpty) {
  const sizes = matrix.flat().map((value) => (isEmpty(value) ? 0 : Math.abs(value)));
  const scale = makeScale(state.scale, ...extent(sizes));
  const levelOf = (value) => (isEmpty(value) ? null : Math.sign(value) * scale.level(Math.abs(value)));
  const ticks = isSigned() ? [-1, -0.5, 0, 0.5, 1] : TICKS;
  const text = (level) => {
    if (level === 0 && state.scale !== "log") return "0";
    return `${level < 0 ? "−" : ""}${natsText(scale.value(Math.abs(level)))}`;
  };
  const title = { text: "nats", side: "right", font: { size: 11 } };
  const colorbar = colourBar({ tickvals: ticks, ticktext: ticks.map(text), title });
  const colours = isSigned()
    ? { zmin: -1, zmax: 1, colorscale: signedColours() }
    : { zmin: 0, zmax: 1, colorscale: colourScale() };
  const levels = matrix.map((row) => row.map(levelOf));
  return { heat: { z: levels, customdata: matrix, colorbar, ...BY_PAGE, ...colours }, scale };
}

const signOf = (colours, text) => element("span", {}, gradientBar(colours), text);

// The legend's first entries; texts: what an unsigned number means, or a negative and a positive one.
export function signs(...texts) {
  if (!isSigned()) return [signOf(stops(), texts[0])];
  const { negative, positive } = signedStops();
  return [signOf(negative, texts[0]), signOf(positive, texts[1])];
}
