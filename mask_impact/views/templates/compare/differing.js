// The table of the tokens that differ most between two results, and which tokens only one of them has.

import { $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { keyOf } from "./alignment.js";
import { about, sides } from "./file.js";
import { choose, pair, second, state } from "./state.js";
import { layersOf, placesOf, tokenTitle } from "./values.js";

const N_DIFFERING = 15;
const N_ALONE = 40; // texts that are named

// Shares of the importance in all layers, as the table on the command line has them.
function importanceShares(side) {
  const meanOf = (place) => {
    const all = layersOf(side).map((layer) => side.value[layer * side.n + place]);
    const values = all.filter((value) => !Number.isNaN(value));
    if (side.leftOut.has(place) || !values.length) return NaN;
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const means = placesOf(side).map(meanOf);
  const total = means.reduce((sum, value) => sum + (value || 0), 0);
  return means.map((value) => value / total);
}

// [place in the first, in the second, share there, there, their difference or null, part of the depth or null].
export function differingRows() {
  const [ofFirst, ofSecond] = [sides[0], second()].map(importanceShares);
  return pair().differing.map(([one, other, ...more]) => [one, other, ofFirst[one], ofSecond[other], ...more]);
}

function pointsText(difference) {
  if (difference === null) return "";
  return `${difference < 0 ? "−" : "+"}${Math.abs(100 * difference).toFixed(1)}`;
}

function differingRow([one, , shareOne, shareOther, difference, band]) {
  const [side] = sides;
  const name = { textContent: tokenTitle(side, one), title: "Mark it in all results" };
  const button = element("button", { type: "button", className: "link", ...name });
  button.addEventListener("click", () => choose(side, one));
  const numbers = [percentText(shareOne), percentText(shareOther), pointsText(difference)];
  const cells = numbers.map((textContent) => element("td", { className: "number", textContent }));
  const depth = element("td", { textContent: band === null ? "" : about.bands[band] });
  const className = state.token === keyOf(side, one) ? "current" : "";
  return element("tr", { className }, element("td", {}, button), ...cells, depth);
}

function aloneText(side, places, other) {
  if (!places.length) return "";
  const texts = places.filter((place) => !side.cellAt.has(place)).map((place) => tokenTitle(side, place));
  const nPatches = places.length - texts.length;
  const more = texts.length > N_ALONE ? [`${texts.length - N_ALONE} more`] : [];
  const patches = nPatches ? [`${nPatches} patches`] : [];
  const shown = [...texts.slice(0, N_ALONE), ...more, ...patches];
  return `${side.letter} has and ${other.letter} has not: ${shown.join(", ")}.`;
}

export function drawDiffering() {
  const [first, other] = [sides[0], second()];
  $("share-first").textContent = first.letter;
  $("share-second").textContent = other.letter;
  const rows = differingRows().slice(0, N_DIFFERING).map(differingRow);
  $("differing").tBodies[0].replaceChildren(...rows);
  const [ofFirst, ofOther] = pair().unmatched;
  const alone = [aloneText(first, ofFirst, other), aloneText(other, ofOther, first)].filter(Boolean).join(" ");
  $("alone").textContent = alone || "Every token of one is in the other.";
}
