// The table of the ten strongest (layer, token).

import { $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { changed } from "./drawn.js";
import { distanceText, tokenName } from "./names.js";
import { section } from "./sections.js";
import { state } from "./state.js";
import { view } from "./view.js";

const N_STRONGEST = 10;

function makeRow(place) {
  const position = view.positions[place % view.n];
  const layer = Math.floor(place / view.n);
  const numbers = [distanceText(view.values[place]), percentText(view.shares[place])];
  const texts = [layer, position, tokenName(position), ...numbers];
  const makeCell = (text, i) => element("td", { textContent: text, className: i > 2 ? "number" : "" });
  return element("tr", {}, ...texts.map(makeCell));
}

function drawStrongest() {
  if (!$("strongest").closest("details").open) return;
  const { prompt, step, variant, metric, kept, colours } = state;
  if (!changed("strongest", prompt, step, variant, metric, kept, colours)) return;
  const found = [];
  for (let place = 0; place < view.values.length; place++) {
    if (view.counted[place % view.n] && view.values[place] > 0) found.push(place);
  }
  const by = colours === "layer" ? view.shares : view.values;
  found.sort((a, b) => by[b] - by[a] || a - b);
  $("strongest").tBodies[0].replaceChildren(...found.slice(0, N_STRONGEST).map(makeRow));
}

$("strongest").closest("details").addEventListener("toggle", drawStrongest);

section("distances", ["distances"], { draw: drawStrongest });
