// The page of a result. Here it is opened, and drawn whenever the state changes: first what is quick, then the charts
// that are in sight, then the others, one at a time between what the reader does.

import { showInAddress } from "../shared/address.js";
import { readPlotly } from "../shared/charts.js";
import { $ } from "../shared/elements.js";
import { openPage } from "../shared/opening.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { visible } from "../shared/texts.js";
import { applyTheme } from "../shared/theme.js";
import { drawAbout } from "./about.js";
import { connect } from "./actions.js";
import "./agreement.js";
import "./answer.js";
import "./card.js";
import "./chips.js";
import "./controls.js";
import { block, effectBlocks, estimateBlocks, norms, unpackAhead } from "./distances.js";
import "./effect_chart.js";
import "./effect_text.js";
import "./estimate_chart.js";
import { MEASURES, METRIC_NAMES, QUANTITIES } from "./file.js";
import "./folds.js";
import "./heads.js";
import "./heat.js";
import "./images.js";
import "./looked.js";
import "./overview.js";
import { openParts } from "./parts.js";
import { isPlaying } from "./play.js";
import "./profile.js";
import { shown } from "./quantity.js";
import "./routes.js";
import "./scatter.js";
import { drawSections, has, shownCharts, takeInSight, takeNearest } from "./sections.js";
import "./split.js";
import { prompt, set, state, stateInAddress, takeFromAddress, whenSet } from "./state.js";
import "./strongest.js";
import "./text.js";
import "./totals.js";
import { takeReadings } from "./tower.js";
import { look } from "./view.js";

// What is shown, said to those who can't see it.
function sayState() {
  const { layer, step, metric, variant, scale, measure } = state;
  const effect = has("effect") ? `, effect as ${MEASURES[measure]}` : "";
  const local = () => `, ${QUANTITIES[shown()]}, ${METRIC_NAMES[metric]}, ${variant}, ${SCALE_NAMES[scale]}${effect}`;
  const numbers = has("distances") ? local() : "";
  const where = has("distances") ? `Layer ${layer}, produced` : "Produced";
  const said = `${where} token ${step}${numbers}`;
  if (!isPlaying() && $("live").textContent !== said) $("live").textContent = said;
}

function drawPage() {
  document.querySelector("h1").textContent = visible(prompt().title);
  drawSections();
  drawAbout();
  sayState();
}

// When something was there for the first time, for measurements; true where it was there before.
function firstMark(name) {
  if (performance.getEntriesByName(name).length) return true;
  performance.mark(name);
  return false;
}

const nextFrame = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });

const AT_ONCE_MS = 8; // of work that nobody waits for, before the reader may do something
let lastPause = 0;
async function pause() {
  if (performance.now() - lastPause < AT_ONCE_MS) return;
  await nextFrame();
  lastPause = performance.now();
}

let latest = 0;

async function takeNumbers(ticket) {
  if (!has("distances")) return;
  const nth = prompt().variants.indexOf(state.variant);
  const wanted = [block("l2", nth), block("cosine", nth), norms(), effectBlocks(), estimateBlocks()];
  const [l2, cosine, norm, effect, estimates] = await Promise.all(wanted);
  if (ticket === latest) look({ l2, cosine }, norm, effect, estimates);
}

// For whoever drives the page: "false", "seen" where all that is in sight is there, "true" where everything is.
function sayDrawn(much) {
  document.documentElement.dataset.drawn = much;
}

// True where the state has not changed meanwhile.
async function drawCharts(isWanted) {
  const left = shownCharts();
  for (let some; (some = takeInSight(left)).length;) { // what is drawn may move others into sight
    for (const chart of some) {
      await readPlotly();
      if (!isWanted()) return false;
      await chart();
    }
  }
  if (!isWanted()) return false;
  sayDrawn("seen");
  firstMark("seen");
  await nextFrame();
  lastPause = performance.now();
  if (!isWanted()) return false;
  showInAddress(stateInAddress());
  for (let chart; (chart = takeNearest(left));) {
    await pause();
    await readPlotly();
    if (!isWanted()) return false;
    await chart();
  }
  return isWanted();
}

// Draws the state; gives up where it has changed meanwhile.
async function draw() {
  const ticket = ++latest;
  const isWanted = () => ticket === latest;
  sayDrawn("false");
  applyTheme(state.theme);
  await Promise.all([openParts().then(takeReadings), takeNumbers(ticket)]);
  if (!isWanted()) return;
  drawPage();
  if (!firstMark("text")) await nextFrame();
  if (!(await drawCharts(isWanted))) return;
  firstMark("charts");
  sayDrawn("true");
  if (has("distances")) unpackAhead(isWanted);
}

openPage(async () => {
  whenSet(draw);
  takeFromAddress();
  connect();
  await set({});
});
