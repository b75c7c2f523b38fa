// The table of rank correlations between two results: over all layers, and in each part of the depth.

import { $, element } from "../shared/elements.js";
import { about, sides } from "./file.js";
import { pair, second, set, state } from "./state.js";
import { layersCounted } from "./values.js";

export const rhoText = (rho) => (rho === null ? "none" : rho.toFixed(3));

// All of a result's layers, or how many of them were measured.
function wholeOf(side) {
  return side.measured.length < side.n_layers ? layersCounted(side) : `0-${side.n_layers - 1}`;
}

// [name, layers of the first, of the second, { n, rho, p }, part of the depth or null].
export function agreementRows() {
  const { overall, text, image, bands } = pair();
  const whole = [sides[0], second()].map(wholeOf);
  const kinds = [["all", overall], ["all, text only", text], ["all, images only", image]].filter(([, one]) => one);
  const bandRow = (one, band) => [about.bands[band], sides[0].layers[band], second().layers[band], one, band];
  return [...kinds.map(([name, one]) => [name, ...whole, one, null]), ...bands.map(bandRow)];
}

const cell = (textContent) => element("td", { textContent });
const numberCell = (textContent, className = "number") => element("td", { textContent, className });

function bandButton(name, band) {
  const button = element("button", { type: "button", className: "link", textContent: name, title: "Show this depth" });
  const depth = Math.floor((100 * (band + 0.5)) / about.bands.length);
  button.addEventListener("click", () => set({ depth, range: "depth" }));
  return button;
}

function agreementRow([name, one, other, { n, rho, p }, band]) {
  const current = Math.min(Math.floor((state.depth / 100) * about.bands.length), about.bands.length - 1);
  const isCurrent = state.range === "depth" ? band === current : name === "all";
  const start = element("td", {}, band === null ? name : bandButton(name, band));
  const bar = numberCell(rhoText(rho), "number bar");
  bar.style.setProperty("--bar", `${100 * Math.max(rho ?? 0, 0)}%`);
  const chance = p === null ? "" : String(Number(p.toPrecision(2)));
  const cells = [start, cell(one), cell(other), numberCell(n), bar, numberCell(chance)];
  return element("tr", { className: isCurrent ? "current" : "" }, ...cells);
}

export function drawAgreement() {
  const letters = `${sides[0].letter} and ${second().letter}`;
  $("layers-first").textContent = `layers ${sides[0].letter}`;
  $("layers-second").textContent = `layers ${second().letter}`;
  $("agreement").tBodies[0].replaceChildren(...agreementRows().map(agreementRow));
  const { overall, chance } = pair();
  $("agreement-hint").textContent = `Importance of the ${overall.n} tokens that ${letters} share and that count.`;
  $("chance").textContent = `p: the chance of one so large. ${chance.join(" ")}`;
}
