// The page of a comparison. Here it is opened, drawn whenever the state changes (first what is quick, then the charts),
// and marked whenever the pointer is on something else.

import { showInAddress } from "../shared/address.js";
import { readPlotly } from "../shared/charts.js";
import { $ } from "../shared/elements.js";
import { openPage } from "../shared/opening.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { applyTheme } from "../shared/theme.js";
import { connect } from "./actions.js";
import { drawAgreement } from "./agreement.js";
import { drawControls } from "./controls.js";
import { drawDepths } from "./depths.js";
import { drawDifference } from "./difference.js";
import { drawDiffering } from "./differing.js";
import { drawEffect } from "./effect.js";
import { about, readDistances, sides } from "./file.js";
import { drawHeat, markHeat } from "./heat.js";
import { drawPictures } from "./pictures.js";
import { whenPointed } from "./pointer.js";
import { drawProfile } from "./profile.js";
import { drawResults } from "./results.js";
import { drawText, markText } from "./running_text.js";
import { makeSides } from "./sides.js";
import { set, state, stateInAddress, takeFromAddress, whenSet } from "./state.js";
import { drawVerdict } from "./verdict.js";
import { colourOf, isShare, layersText } from "./values.js";

function showTheme() {
  applyTheme(state.theme);
  const parts = document.querySelectorAll("[data-side]");
  for (const part of parts) part.style.setProperty("--side", colourOf(sides[part.dataset.side]));
}

function mark() {
  for (const side of sides) {
    markText(side);
    drawPictures(side);
    markHeat(side);
  }
}

// What is shown, said to those who can't see it.
function sayState() {
  const number = isShare() ? "share of layer" : about.unit;
  $("live").textContent = `${layersText()}, ${number}, ${SCALE_NAMES[state.scale]}`;
}

function drawPage() {
  drawVerdict();
  drawControls();
  sides.forEach(drawText);
  drawAgreement();
  drawEffect();
  drawDiffering();
  mark();
  showInAddress(stateInAddress());
  sayState();
}

async function drawCharts() {
  await drawDifference();
  for (const side of sides) await drawHeat(side);
  await drawProfile();
  await drawDepths();
}

let latest = 0;
// Draws the state; gives up where it has changed meanwhile.
async function draw() {
  const ticket = ++latest;
  document.documentElement.dataset.drawn = "false"; // for whoever drives the page
  showTheme();
  drawPage();
  await readPlotly();
  if (ticket !== latest) return;
  await drawCharts();
  if (ticket === latest) document.documentElement.dataset.drawn = "true";
}

openPage(async () => {
  whenSet(draw);
  whenPointed(mark);
  takeFromAddress();
  await readDistances();
  makeSides();
  drawResults();
  connect();
  await set({});
});
