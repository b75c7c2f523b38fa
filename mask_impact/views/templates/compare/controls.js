// The controls show the state, and change it.

import { checkRadio, $, element } from "../shared/elements.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { keyOf, placeOf } from "./alignment.js";
import { about, pairs, sides } from "./file.js";
import { set, state } from "./state.js";
import { isShare, layerAt, layersText, placesOf, tokenTitle } from "./values.js";

const RADIOS = ["range", "number", "scale"];

function heatsHint() {
  const unit = `${about.unit[0].toUpperCase()}${about.unit.slice(1)}`;
  const share = isShare() && about.scale !== "share" ? ", as share of the layer" : "";
  return `${unit}${share}; ${SCALE_NAMES[state.scale]}. The texts are shaded for ${layersText()}. `
    + "Point at a token or choose it to see it in all results.";
}

export function drawControls() {
  const layers = sides.map((side) => `${side.letter} ${layerAt(side)}`).join(" · ");
  $("depth").value = state.depth;
  $("depth").setAttribute("aria-valuetext", layersText());
  $("depth-value").textContent = `${state.depth} % · ${layers}`;
  for (const name of RADIOS) checkRadio(name, state[name]);
  $("token").value = state.token;
  $("pair").value = state.pair;
  $("heats-hint").textContent = heatsHint();
}

function makePairs() {
  if (pairs.length < 2) return;
  const titleOf = ({ second }) => `${sides[0].letter} and ${sides[second].letter}`;
  const options = pairs.map((pair, value) => element("option", { value, textContent: titleOf(pair) }));
  $("pair-chooser").hidden = false;
  $("pair").replaceChildren(...options);
  $("pair").addEventListener("change", (event) => set({ pair: Number(event.target.value) }));
}

// All tokens, those that belong together once.
function makeTokenOptions() {
  const isNew = (side, place) => side.number === 0 || placeOf(sides[0], keyOf(side, place)) === undefined;
  const makeOption = (side, place) => {
    const textContent = `${side.letter} ${tokenTitle(side, place)}`;
    return element("option", { value: keyOf(side, place), textContent });
  };
  const newPlaces = (side) => placesOf(side).filter((place) => isNew(side, place));
  const optionsOf = (side) => newPlaces(side).map((place) => makeOption(side, place));
  $("token").replaceChildren(element("option", { value: "", textContent: "none" }), ...sides.flatMap(optionsOf));
}

export function connectControls() {
  $("value-name").textContent = { relative: "Over the norm", cosine: "Distance", share: "Distance" }[about.scale];
  if (about.scale === "share") $("number").closest("fieldset").hidden = true;
  makePairs();
  makeTokenOptions();
  $("token").addEventListener("change", (event) => set({ token: event.target.value }));
  $("depth").addEventListener("input", (event) => set({ depth: Number(event.target.value), range: "depth" }));
  for (const name of RADIOS) $(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
}
