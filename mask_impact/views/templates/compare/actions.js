// What keys do, and what else of the page as a whole is listened to: buttons, its address, and the window.

import { copyLink } from "../shared/address.js";
import { $ } from "../shared/elements.js";
import { connectKeys } from "../shared/keys.js";
import { clamp } from "../shared/numbers.js";
import { scaleAfter } from "../shared/scales.js";
import { nextTheme } from "../shared/theme.js";
import { hideTip } from "../shared/tip.js";
import { connectControls } from "./controls.js";
import { makeComparisonExports } from "./exports.js";
import { sides } from "./file.js";
import { set, state, takeFromAddress } from "./state.js";
import { depthOf, layerAt } from "./values.js";

const RESIZE_MS = 150; // after the last change of the window's size

const flip = (name, one, other) => set({ [name]: state[name] === one ? other : one });

// From layer to layer of the result that has most of them.
function moveDepth(by) {
  const most = sides.reduce((one, other) => (other.measured.length > one.measured.length ? other : one));
  const nth = most.measured.indexOf(layerAt(most)) + (state.range === "depth" ? by : 0);
  const layer = most.measured[clamp(nth, 0, most.measured.length - 1)];
  set({ depth: Math.floor(depthOf(most, layer)), range: "depth" });
}

const KEYS = {
  ArrowLeft: () => moveDepth(-1),
  ArrowRight: () => moveDepth(1),
  a: () => flip("range", "all", "depth"),
  v: () => flip("number", "share", "value"),
  s: () => set({ scale: scaleAfter(state.scale) }),
  Escape: () => set({ token: "" }),
};

function connectWindow() {
  const redraw = () => set({});
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("hashchange", () => { takeFromAddress(); set({}); });
  addEventListener("scroll", hideTip, { passive: true });
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(redraw, RESIZE_MS);
  });
}

export function connect() {
  connectControls();
  $("theme").addEventListener("click", () => set({ theme: nextTheme(state.theme) }));
  $("copy-link").addEventListener("click", copyLink);
  connectKeys(KEYS);
  connectWindow();
  makeComparisonExports();
}
