// The legend of the shades of the prompt and the images: a bar of their colours between the least and the most.

import { stops } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { amountText, isSigned, shading } from "./quantity.js";
import { signedSpan } from "./signed_colours.js";
import { state } from "./state.js";

export function gradientBar(colours) {
  const made = element("i");
  made.style.background = `linear-gradient(to right, ${colours.join(",")})`;
  return made;
}

export function drawLegend(id) {
  const { scale } = shading();
  const most = amountText(scale.high);
  if (isSigned()) {
    const [low, high] = [`−${most}, for the answer`, `+${most}, against it · ${SCALE_NAMES[state.scale]}`];
    $(id).replaceChildren(low, gradientBar(signedSpan()), high);
    return;
  }
  const low = scale.bottom ? `≤ ${amountText(scale.bottom)}`.replace("≤ <", "<") : "0";
  $(id).replaceChildren(low, gradientBar(stops()), `${most} · ${SCALE_NAMES[state.scale]}`);
}
