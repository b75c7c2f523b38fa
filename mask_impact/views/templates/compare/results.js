// The table of the results, what is compared of them, and what is remarked about that.

import { $, element } from "../shared/elements.js";
import { quoted, visible } from "../shared/texts.js";
import { about, sides } from "./file.js";
import { layersCounted, tokenTitle } from "./values.js";

function leftOutText(side) {
  const sign = (place) => (side.sinks.includes(side.positions[place]) ? " (attention sink)" : "");
  return side.left_out.map((place) => `${tokenTitle(side, place)}${sign(place)}`).join(", ") || "none";
}

function resultRow(side) {
  const letter = element("span", { className: "letter", "data-side": side.number, textContent: side.letter });
  const produced = side.produced ? quoted(side.produced) : "";
  const texts = [visible(side.name), visible(side.model), layersCounted(side), side.n, produced, leftOutText(side)];
  const isNumber = (i) => i === 2 || i === 3;
  const makeCell = (text, i) => element("td", { textContent: text, className: isNumber(i) ? "number" : "" });
  return element("tr", {}, element("td", {}, letter), ...texts.map(makeCell));
}

export function drawResults() {
  $("unit").textContent = `What is compared, for produced token ${about.step}: ${about.unit}.`;
  $("results").tBodies[0].replaceChildren(...sides.map(resultRow));
  $("notices").replaceChildren(...about.notes.map((note) => element("li", { textContent: visible(note) })));
}
