// The state: which depth, numbers and token are shown. It is changed by `set` and `adopt` only, and whatever is asked
// for, it is one that the file has. Knows the file; not what is drawn.

import { askedFor } from "../shared/address.js";
import { clamp, oneOf } from "../shared/numbers.js";
import { scaleOr } from "../shared/scales.js";
import { isKey, keyOf } from "./alignment.js";
import { about, pairs, sides } from "./file.js";

const START = { depth: 50, range: "all", number: "share", scale: "sqrt", token: "", pair: 0, theme: "auto" };

export let state = { ...START };
export const pair = () => pairs[state.pair];
export const second = () => sides[pair().second];

function normalise(wanted) {
  const next = { ...START, ...wanted };
  next.depth = clamp(Math.round(Number(next.depth)), 0, 100);
  next.pair = clamp(Number(next.pair), 0, pairs.length - 1);
  next.range = oneOf(next.range, ["depth", "all"], START.range);
  next.number = about.scale === "share" ? "share" : oneOf(next.number, ["share", "value"], START.number);
  next.scale = scaleOr(next.scale, START.scale);
  next.theme = oneOf(next.theme, ["auto", "light", "dark"], START.theme);
  next.token = isKey(next.token) ? next.token : "";
  return next;
}

// What differs from the state in which the page opens, as pairs.
export const stateInAddress = () => Object.entries(state).filter(([name, value]) => value !== START[name]);

// Takes the state that the address asks for.
export function takeFromAddress() {
  state = normalise(Object.fromEntries(askedFor().filter(([name]) => name in START)));
}

let redraw = async () => {};
// What is done after each change by `set`.
export function whenSet(draw) {
  redraw = draw;
}

// Changes the state and draws nothing: for a change that another one follows.
export function adopt(changes) {
  state = normalise({ ...state, ...changes });
}

export function set(changes) {
  adopt(changes);
  return redraw();
}

// Chooses a token in all results; lets it go where it was chosen.
export function choose(side, place) {
  const key = keyOf(side, place);
  set({ token: state.token === key ? "" : key });
}

// The token whose profile is shown: the chosen one, else the one that differs most, else the first.
export function shownKey() {
  const [first] = pair().differing;
  return state.token || (first ? String(first[0]) : keyOf(sides[0], 0));
}
