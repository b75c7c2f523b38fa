// What keys do, and what else of the page as a whole is listened to: buttons, its address, and the window.

import { copyLink } from "../shared/address.js";
import { $ } from "../shared/elements.js";
import { connectKeys } from "../shared/keys.js";
import { makeRoving } from "../shared/roving.js";
import { scaleAfter } from "../shared/scales.js";
import { nextTheme } from "../shared/theme.js";
import { hideTip } from "../shared/tip.js";
import { relabelColumns } from "./column_chart.js";
import { connectCard } from "./card.js";
import { connectControls } from "./controls.js";
import { connectOverview } from "./overview.js";
import { makeReportExports } from "./exports.js";
import { connectFilms, playInSight, spacePlays } from "./films.js";
import { drawImages } from "./images.js";
import { connectLooked } from "./looked.js";
import { togglePlay } from "./play.js";
import { connectCut } from "./routes.js";
import { has } from "./sections.js";
import { prompt, set, state, takeFromAddress } from "./state.js";
import { connectText } from "./text.js";
import { arrowsAreOfTower, connectTower, moveTower } from "./tower.js";
import { nextLayer, view } from "./view.js";

const RESIZE_MS = 150; // after the last change of the window's size

function moveLayer(by) {
  if (arrowsAreOfTower()) moveTower(by);
  else set({ layer: nextLayer(by) ?? state.layer, range: "layer" });
}

const KEYS = {
  ArrowLeft: () => moveLayer(-1),
  ArrowRight: () => moveLayer(1),
  ArrowUp: () => set({ step: state.step + 1 }),
  ArrowDown: () => set({ step: state.step - 1 }),
  m: () => set({ metric: state.metric === "l2" ? "cosine" : "l2" }),
  s: () => set({ scale: scaleAfter(state.scale) }),
  p: togglePlay,
  " ": playInSight,
  e: () => { if (has("effect")) set({ measure: state.measure === "logprob" ? "kl" : "logprob" }); },
};

// With one step, the page scrolls.
const isStep = (name) => name === "ArrowUp" || name === "ArrowDown";
const isLayer = (name) => name === "ArrowLeft" || name === "ArrowRight";
function applies(name) {
  if (isStep(name)) return prompt().steps.length > 1;
  if (name === " ") return spacePlays();
  return has("distances") || (isLayer(name) && arrowsAreOfTower());
}

function fitWindow() {
  if (view) drawImages();
  relabelColumns();
}

function connectWindow() {
  const redraw = () => set({});
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("hashchange", () => { takeFromAddress(); set({}); });
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(fitWindow, RESIZE_MS);
  });
  addEventListener("scroll", hideTip, { passive: true });
}

export function connect() {
  connectCard();
  connectCut();
  connectFilms();
  connectLooked();
  connectTower();
  connectOverview();
  connectControls();
  $("play").addEventListener("click", togglePlay);
  $("theme").addEventListener("click", () => set({ theme: nextTheme(state.theme) }));
  $("copy-link").addEventListener("click", copyLink);
  connectKeys(KEYS, applies);
  connectWindow();
  makeRoving($("steps"));
  connectText();
  makeReportExports();
}
