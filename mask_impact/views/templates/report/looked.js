// What pixels, parts of an image's features and hiding in the vision tower do. It stands in the page as it is; of
// pixels one fill and one route are shown at a time.

import { $, checkRadio, element } from "../shared/elements.js";
import { quoted, visible } from "../shared/texts.js";
import { changed } from "./drawn.js";
import { connectLight } from "./light.js";
import { drawOwn } from "./routes.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";

const targetsOf = (kind) => prompt().looked[kind].targets;
const targetOf = (kind) => Math.min(state.looked, targetsOf(kind).length - 1);

export function drawTargets(kind) {
  const texts = targetsOf(kind);
  $(`${kind}-chooser`).hidden = texts.length < 2;
  if (changed(`${kind}-target`, state.prompt)) {
    const options = texts.map((text, value) => element("option", { value, textContent: quoted(text, 30) }));
    $(`${kind}-target`).replaceChildren(...options);
  }
  $(`${kind}-target`).value = targetOf(kind);
  drawOwn(kind, ({ target }) => Number(target) === targetOf(kind));
}

function radio(group, value, text) {
  const input = element("input", { type: "radio", name: group, value });
  return element("label", {}, input, element("span", { textContent: text }));
}

const viewsShown = () => [...$("patches").querySelectorAll(":scope > :not([hidden]) [data-route]")];

// The one that is asked for; where there is none, another one of the route, or the first.
function viewOf(views) {
  const ofRoute = views.filter(({ dataset }) => dataset.route === (state.route || "total"));
  return ofRoute.find(({ dataset }) => dataset.fill === state.fill) ?? ofRoute[0] ?? views[0];
}

function drawPatches() {
  drawTargets("patches");
  const views = viewsShown();
  const own = viewOf(views);
  for (const one of views) one.hidden = one !== own;
  const { fill, route } = own.dataset;
  if (changed("routes-there", state.prompt, targetOf("patches"))) {
    const routes = new Map(views.map(({ dataset }) => [dataset.route, dataset.label]));
    $("route").replaceChildren(...[...routes].map(([name, label]) => radio("route", name, label)));
  }
  if (changed("fills-there", state.prompt, targetOf("patches"), route)) {
    const fills = views.filter(({ dataset }) => dataset.route === route).map(({ dataset }) => dataset.fill);
    $("fill").replaceChildren(...fills.filter(Boolean).map((name) => radio("fill", name, visible(name))));
  }
  $("fill").parentElement.hidden = fill === "";
  checkRadio("fill", fill);
  checkRadio("route", route);
}

export function connectLooked() {
  for (const kind of ["patches", "deepstack", "tower"]) {
    $(`${kind}-target`).addEventListener("change", ({ target }) => set({ looked: Number(target.value) }));
  }
  for (const name of ["fill", "route"]) {
    $(name).addEventListener("change", ({ target }) => set({ [name]: target.value }));
  }
  for (const kind of ["patches", "tower"]) connectLight($(kind));
}

const rowsOf = (kind) => [prompt().looked[kind].columns, prompt().looked[kind].rows];

// By card its [header, rows].
export const LOOKED_FILES = {
  patches: () => rowsOf("patches"), deepstack: () => rowsOf("deepstack"), tower: () => rowsOf("tower"),
};

section("patches-card", ["patches"], { draw: drawPatches });
section("deepstack-card", ["deepstack"], { draw: () => drawTargets("deepstack") });
