// The page of a result. Here it is opened, and drawn whenever the state changes: first what is quick, then the charts.

import { showInAddress } from "../shared/address.js";
import { plotlyReady } from "../shared/charts.js";
import { $ } from "../shared/elements.js";
import { openPage } from "../shared/opening.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { applyTheme } from "../shared/theme.js";
import { connect } from "./actions.js";
import { drawAgreement } from "./agreement.js";
import { drawAnswer } from "./answer.js";
import { drawChips } from "./chips.js";
import { drawControls } from "./controls.js";
import { block, effectBlocks } from "./distances.js";
import { drawEffect } from "./effect_chart.js";
import { drawEffectText } from "./effect_text.js";
import { MEASURES, METRIC_NAMES } from "./file.js";
import { drawHeads } from "./heads.js";
import { drawHeat } from "./heat.js";
import { drawImages } from "./images.js";
import { isPlaying } from "./play.js";
import { drawProfile } from "./profile.js";
import { drawScatter } from "./scatter.js";
import { drawSplit } from "./split.js";
import { prompt, set, state, stateInAddress, takeFromAddress, whenSet } from "./state.js";
import { drawStrongest } from "./strongest.js";
import { drawText } from "./text.js";
import { look } from "./view.js";

// What is shown, said to those who can't see it.
function sayState() {
  const { layer, step, metric, variant, scale, measure } = state;
  const effect = prompt().effect ? `, effect as ${MEASURES[measure]}` : "";
  const numbers = `${METRIC_NAMES[metric]}, ${variant}, ${SCALE_NAMES[scale]}${effect}`;
  const said = `Layer ${layer}, produced token ${step}, ${numbers}`;
  if (!isPlaying() && $("live").textContent !== said) $("live").textContent = said;
}

function drawPage() {
  drawControls();
  drawAnswer();
  drawText();
  drawImages();
  drawChips();
  drawStrongest();
  drawEffectText();
  showInAddress(stateInAddress());
  sayState();
}

async function drawCharts() {
  await drawHeat();
  await drawProfile();
  await drawHeads();
  await drawSplit();
  await drawEffect();
  await drawScatter();
  await drawAgreement();
}

// When something was there for the first time, for measurements; true where it was there before.
function firstMark(name) {
  if (performance.getEntriesByName(name).length) return true;
  performance.mark(name);
  return false;
}

const nextFrame = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });

let latest = 0;
// Draws the state; gives up where it has changed meanwhile.
async function draw() {
  const ticket = ++latest;
  document.documentElement.dataset.drawn = "false"; // for whoever drives the page
  applyTheme(state.theme);
  const nth = prompt().variants.indexOf(state.variant);
  const [l2, cosine, effect] = await Promise.all([block("l2", nth), block("cosine", nth), effectBlocks()]);
  if (ticket !== latest) return;
  look({ l2, cosine }, effect);
  drawPage();
  if (!firstMark("text")) await nextFrame();
  await plotlyReady;
  if (ticket !== latest) return;
  await drawCharts();
  if (ticket !== latest) return;
  firstMark("charts");
  document.documentElement.dataset.drawn = "true";
}

openPage(async () => {
  whenSet(draw);
  takeFromAddress();
  connect();
  await set({});
});
