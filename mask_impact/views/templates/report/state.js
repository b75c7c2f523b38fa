// The state: which prompt, step, layers, numbers and tokens are shown. It is changed by `set` and `adopt` only, and
// whatever is asked for, it is one that the file has. Knows the file; not what is drawn.

import { askedFor } from "../shared/address.js";
import { clamp, nearest, oneOf } from "../shared/numbers.js";
import { scaleOr } from "../shared/scales.js";
import { headsAreRounded, isHead, MEASURES, METRIC_NAMES, prompts, QUANTITIES } from "./file.js";

const MOST_TOKENS = 8; // in the profile

const empty = () => ({
  prompt: 0, target: 0, step: 0, layer: 0, range: "all", from: 0, to: Infinity, metric: "l2", variant: "",
  scale: "sqrt", colours: "layer", kept: [], tokens: [], focus: -1, unfolded: [], opacity: 70, unit: "share",
  measure: "logprob", shown: "", theme: "auto", looked: 0, fill: "", route: "",
  tower: -1, reads: "attention", frame: -1,
});

export let state = empty();
export const prompt = () => prompts[state.prompt];
export const step = () => prompt().steps[state.step];
export const rounded = () => headsAreRounded && isHead(state.variant);

const picked = (all, names) => Object.fromEntries(names.map((name) => [name, all[name]]));

function normalise(wanted) {
  const start = empty();
  const next = { ...start, ...wanted };
  next.prompt = clamp(next.prompt, 0, prompts.length - 1);
  const file = prompts[next.prompt];
  next.theme = oneOf(next.theme, ["auto", "light", "dark"], start.theme);
  next.target = clamp(next.target, 0, Math.max(file.targets.length - 1, 0));
  next.step = clamp(next.step, 0, Math.max(file.steps.length - 1, 0));
  const mostLooked = Math.max(1, ...Object.values(file.looked).map(({ targets }) => targets.length));
  next.looked = clamp(next.looked, 0, mostLooked - 1);
  next.tower = clamp(next.tower, -1, (file.looked.tower?.reading.n_layers ?? 0) - 1); // -1: the mean of all layers
  next.reads = oneOf(next.reads, file.looked.tower?.reading.probes ? ["attention", "full"] : [], start.reads);
  if (!file.films.flat().includes(next.frame)) next.frame = start.frame;
  const beside = ["prompt", "target", "step", "theme", "looked", "fill", "route", "tower", "reads", "frame"];
  if (!file.tables.includes("distances")) return { ...start, ...picked(next, beside) };
  const lastLayer = file.n_layers - 1;
  next.layer = nearest(file.layers, clamp(next.layer, 0, lastLayer)); // others have no numbers
  next.from = clamp(next.from, 0, lastLayer);
  next.to = next.to === Infinity ? lastLayer : clamp(next.to, next.from, lastLayer);
  next.opacity = clamp(next.opacity, 0, 100);
  next.range = oneOf(next.range, ["layer", "band", "all"], start.range);
  next.metric = oneOf(next.metric, Object.keys(METRIC_NAMES), start.metric);
  next.variant = oneOf(next.variant, file.variants, file.variants[0]);
  next.scale = scaleOr(next.scale, start.scale);
  next.colours = oneOf(next.colours, ["layer", "global"], start.colours);
  next.measure = oneOf(next.measure, Object.keys(MEASURES), start.measure);
  next.shown = oneOf(next.shown, ["", ...Object.keys(QUANTITIES)], start.shown);
  next.unit = oneOf(next.unit, ["share", "distance"], start.unit);
  const masked = new Set(file.steps[next.step].positions);
  next.tokens = [...new Set(next.tokens)].filter((position) => masked.has(position)).slice(-MOST_TOKENS);
  const sinks = file.sinks.map((sink) => sink.position);
  next.kept = next.kept.filter((position) => sinks.includes(position));
  next.unfolded = next.unfolded.filter((image) => image >= 0 && image < file.images.length);
  if (!masked.has(next.focus)) next.focus = -1;
  return next;
}

// ---- in the address ----

// What differs from the state in which the prompt opens, as pairs of texts.
export function stateInAddress() {
  const start = normalise({ prompt: state.prompt });
  const differs = ([name, value]) => (name === "prompt" ? value > 0 : String(value) !== String(start[name]));
  return Object.entries(state).filter(differs).map(([name, value]) => [name, String(value)]);
}

const numbersIn = (text) => text.split(",").filter(Boolean).map(Number).filter(Number.isInteger);

// Takes the state that the address asks for.
export function takeFromAddress() {
  const wanted = {};
  for (const [name, text] of askedFor()) {
    const like = empty()[name];
    if (like === undefined) continue;
    if (Array.isArray(like)) wanted[name] = numbersIn(text);
    else wanted[name] = typeof like === "number" ? Number(text) : text;
  }
  state = normalise(wanted);
}

// ---- changes ----

let redraw = async () => {};
// What is done after each change by `set`.
export function whenSet(draw) {
  redraw = draw;
}

// Changes the state and draws nothing: for a change that another one follows.
export function adopt(changes) {
  state = normalise({ ...state, ...changes });
}

// Another prompt opens as it is, with how numbers are shown.
function ofAnotherPrompt(changes) {
  const { metric, scale, colours, opacity, unit, measure, shown, theme } = state;
  return { metric, scale, colours, opacity, unit, measure, shown, theme, ...changes };
}

export function set(changes) {
  if ("prompt" in changes && changes.prompt !== state.prompt) state = normalise(ofAnotherPrompt(changes));
  else adopt(changes);
  return redraw();
}
