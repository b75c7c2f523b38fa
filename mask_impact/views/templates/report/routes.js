// What stands in the page as it is beside the card, routes, cut flows and answers without something: which of it is
// shown.

import { $ } from "../shared/elements.js";
import { section } from "./sections.js";
import { state } from "./state.js";

// Of cut flows those of the produced token, of answers without something all.
function drawOwn(id, belongs) {
  for (const one of $(id).children) one.hidden = Number(one.dataset.prompt) !== state.prompt || !belongs(one.dataset);
}

const drawKnockouts = () => drawOwn("knockouts", ({ step }) => Number(step) === state.step);
const drawWhatif = () => drawOwn("whatif", () => true);
const drawMatrix = () => drawOwn("matrix", () => true);

function drawRoutes() {
  drawOwn("routes", ({ target }) => Number(target) === state.target);
}

section("knockouts-card", ["flows"], { draw: drawKnockouts });
section("matrix-card", ["matrix"], { draw: drawMatrix });
section("whatif-card", ["whatif"], { draw: drawWhatif });
section("routes-card", ["routes"], { draw: drawRoutes });
