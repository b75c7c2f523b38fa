// What stands in the page as it is beside the card, routes, cut flows and answers without something: which of it is
// shown.

import { $, element } from "../shared/elements.js";
import { quoted } from "../shared/texts.js";
import { changed } from "./drawn.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";

// Of cut flows those of the produced token, of answers without something all.
export function drawOwn(id, belongs) {
  for (const one of $(id).children) one.hidden = Number(one.dataset.prompt) !== state.prompt || !belongs(one.dataset);
}

function drawKnockouts() {
  drawOwn("knockouts", ({ step }) => Number(step) === state.step);
  const n = prompt().n_cut;
  $("cut-chooser").hidden = n < 2;
  if (changed("cut", state.prompt)) {
    const options = prompt().steps.slice(0, n).map(({ text }, value) => (
      element("option", { value, textContent: `${value} ${quoted(text, 20)}` })
    ));
    $("cut").replaceChildren(...options);
  }
  $("cut").value = state.step;
}

export function connectCut() {
  $("cut").addEventListener("change", ({ target }) => set({ step: Number(target.value) }));
}
const drawWhatif = () => drawOwn("whatif", () => true);
const drawMatrix = () => drawOwn("matrix", () => true);

function drawRoutes() {
  drawOwn("routes", ({ target }) => Number(target) === state.target);
}

section("knockouts-card", ["flows"], { draw: drawKnockouts });
section("matrix-card", ["matrix"], { draw: drawMatrix });
section("whatif-card", ["whatif"], { draw: drawWhatif });
section("routes-card", ["routes"], { draw: drawRoutes });
