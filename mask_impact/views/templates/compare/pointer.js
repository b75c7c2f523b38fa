// What the pointer is on. It is apart from the state, since it changes marks only: of texts, pictures and charts.

import { float32Text, percentText, shortText } from "../shared/numbers.js";
import { hideTip, showTip } from "../shared/tip.js";
import { keyOf, partners } from "./alignment.js";
import { about, sides } from "./file.js";
import { depthOf, layerAt, numberText, score, tokenName } from "./values.js";
import { state } from "./state.js";

let pointed = null; // { side, place, layer } under the pointer; place or layer may be -1
const isOnToken = () => pointed !== null && pointed.place >= 0;
const isOnLayer = () => pointed !== null && pointed.layer >= 0;

// ---- tips ----

function valueText(one, place, layer) {
  const at = layer * one.n + place;
  const distance = Number.isFinite(one.distance[at]) ? float32Text(one.distance[at]) : "no value";
  const scaled = about.scale === "relative" ? `, ${shortText(one.value[at])} of the norm` : "";
  const text = `layer ${layer}: ${about.metric} ${distance}${scaled}, ${percentText(one.share[at])} of the layer`;
  return text.replace("NaN %", "no share").replace(", NaN of the norm", "");
}

// Of a token in every result that has it: at the depth of a layer of one of them, or of the layers shown (layer -1).
function tipOf({ side, place, layer }) {
  const depth = layer < 0 ? state.depth : depthOf(side, layer);
  const lineOf = (partner, number) => {
    const one = sides[number];
    if (partner < 0) return `${one.letter}: not there`;
    const start = `${one.letter} · position ${one.positions[partner]} · ${tokenName(one, partner)}`;
    if (one.leftOut.has(partner)) return `${start}\nleft out as an attention sink`;
    if (layer < 0 && state.range === "all") return `${start}\n${numberText(score(one, partner))}, mean of all layers`;
    return `${start}\n${valueText(one, partner, one === side && layer >= 0 ? layer : layerAt(one, depth))}`;
  };
  return partners(keyOf(side, place)).map(lineOf).join("\n");
}

// ---- what is pointed at ----

let redrawMarks = () => {};
// What is done where the pointer is on something else.
export function whenPointed(draw) {
  redrawMarks = draw;
}

// null where the pointer is on nothing.
export function point(what, x = 0, y = 0) {
  const before = pointed;
  pointed = what;
  if (isOnToken()) showTip(tipOf(what), x, y);
  else hideTip();
  if (before?.side === what?.side && before?.place === what?.place && before?.layer === what?.layer) return;
  redrawMarks();
}

// ---- what is marked ----

// The chosen token's, and that of the one under the pointer.
export function markedKeys() {
  return [state.token, isOnToken() ? keyOf(pointed.side, pointed.place) : ""].filter(Boolean);
}

// The layer of a result at the depth that is marked, null where none is.
export function markedLayer(side) {
  if (isOnLayer()) return pointed.side === side ? pointed.layer : layerAt(side, depthOf(pointed.side, pointed.layer));
  return state.range === "depth" ? layerAt(side) : null;
}
