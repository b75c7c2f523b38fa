// The results side by side: of each its title, text, pictures, heat map and buttons.

import { $, element } from "../shared/elements.js";
import { visible } from "../shared/texts.js";
import { heatButtons } from "./exports.js";
import { sides } from "./file.js";
import { makePictures } from "./pictures.js";
import { makeText } from "./running_text.js";
import { layersCounted } from "./values.js";

function makeSide(side) {
  const title = element(
    "h3", {},
    element("b", { textContent: side.letter }),
    element("span", { textContent: visible(side.name) }),
    element("small", { textContent: `${layersCounted(side)} layers · ${side.n} tokens` }),
  );
  const heat = element("div", { className: "chart", id: `heat-${side.number}`, role: "img" });
  const buttons = element("div", { className: "exports" }, ...heatButtons(side, heat));
  const parts = [title, makeText(side), makePictures(side), heat, buttons];
  return element("div", { className: "side", "data-side": side.number }, ...parts);
}

export function makeSides() {
  $("sides").replaceChildren(...sides.map(makeSide));
}
