// The legend of shares: a bar of their colours between the least and the most.

import { stops } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { state } from "./state.js";

export function drawLegend(id, scale) {
  const bar = element("i");
  bar.style.background = `linear-gradient(to right, ${stops().join(",")})`;
  const low = scale.bottom ? `≤ ${percentText(scale.bottom)}`.replace("≤ <", "<") : "0 %";
  $(id).replaceChildren(low, bar, `${percentText(scale.high)} · ${SCALE_NAMES[state.scale]}`);
}
