// The controls show the state, and change it.

import { checkRadio, $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { visible } from "../shared/texts.js";
import { toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { prompts, QUANTITIES } from "./file.js";
import { tokenTitle } from "./names.js";
import { quantities, shown } from "./quantity.js";
import { has, section } from "./sections.js";
import { prompt, set, state } from "./state.js";

const RADIOS = ["range", "metric", "scale", "colours"];

function makeSinkBox({ position, share }) {
  const box = element("input", { type: "checkbox", value: position });
  box.addEventListener("change", () => {
    set({ kept: box.checked ? state.kept.filter((one) => one !== position) : [...state.kept, position] });
  });
  const about = share === null ? "" : `, ${percentText(share)} of attention`;
  return element("label", {}, box, ` leave out ${tokenTitle(position)}${about}`);
}

function makeChoices(file) {
  const made = file.variants.map((name) => element("option", { value: name, textContent: name }));
  $("variant").replaceChildren(...made);
  $("layer").max = file.layers.length - 1; // its value is a place among the measured ones
  for (const name of ["from", "to"]) $(name).max = file.n_layers - 1;
  $("sinks-part").hidden = !file.sinks.length;
  $("sinks").replaceChildren(...file.sinks.map(makeSinkBox));
}

// What can be shown is another matter for each produced token.
function drawQuantities() {
  const there = quantities();
  $("shown-part").hidden = there.length < 2;
  for (const name of Object.keys(QUANTITIES)) {
    $("shown").querySelector(`[value=${name}]`).closest("label").hidden = !there.includes(name);
  }
  checkRadio("shown", shown());
  $("measure-part").hidden = !has("effect");
}

function drawControls() {
  const file = prompt();
  if (changed("controls", state.prompt)) makeChoices(file);
  for (const box of $("sinks").querySelectorAll("input")) box.checked = !state.kept.includes(Number(box.value));
  $("layer").value = file.layers.indexOf(state.layer);
  $("layer").setAttribute("aria-valuetext", `layer ${state.layer} of 0 to ${file.n_layers - 1}`);
  $("layer-value").textContent = `${state.layer} / ${file.n_layers - 1}`;
  $("from").value = state.from;
  $("to").value = state.to;
  $("band").hidden = state.range !== "band";
  $("variant").value = state.variant;
  for (const name of RADIOS) checkRadio(name, state[name]);
  drawQuantities();
  checkRadio("profile-unit", state.unit);
  checkRadio("measure", state.measure);
  $("opacity").value = state.opacity;
  $("opacity-value").textContent = `${state.opacity} %`;
}

function connectPrompts() {
  if (prompts.length < 2) return;
  const makeOption = ({ name }, value) => element("option", { value, textContent: visible(name) });
  $("prompt-chooser").hidden = false;
  $("prompt").replaceChildren(...prompts.map(makeOption));
  $("prompt").addEventListener("change", (event) => set({ prompt: Number(event.target.value) }));
}

export function connectControls() {
  // What an event of the element changes.
  const connect = (id, event, changes) => $(id).addEventListener(event, ({ target }) => set(changes(target.value)));
  connectPrompts();
  connect("layer", "input", (value) => ({ layer: prompt().layers[value], range: "layer" }));
  connect("opacity", "input", (value) => ({ opacity: Number(value) }));
  connect("variant", "change", (value) => ({ variant: value }));
  connect("from", "change", (value) => ({ from: Number(value), to: Math.max(state.to, Number(value)) }));
  connect("to", "change", (value) => ({ to: Number(value), from: Math.min(state.from, Number(value)) }));
  for (const name of RADIOS) connect(name, "change", (value) => ({ [name]: value }));
  connect("shown", "change", (value) => ({ shown: value }));
  connect("measure", "change", (value) => ({ measure: value }));
  connect("profile-unit", "change", (value) => ({ unit: value }));
  $("add-token").addEventListener("change", ({ target }) => {
    if (target.value !== "") toggleToken(Number(target.value));
  });
}

section("distances", ["distances"], { draw: drawControls });
