// The view: the numbers of the current step, metric and variant, as shares and scores, and which layers and tokens are
// shown. Every panel is drawn from it and from the state. Knows no element of the page.

import { lineColour } from "../shared/colours.js";
import { extent, makeScale } from "../shared/scales.js";
import { prompt, set, state, step } from "./state.js";

export let view = null;

// ---- layers ----

const upTo = (n) => Array.from({ length: n }, (_, i) => i);
export const everyLayer = () => upTo(prompt().n_layers);

export function layersShown() {
  if (state.range === "layer") return [state.layer];
  return state.range === "band" ? everyLayer().slice(state.from, state.to + 1) : everyLayer();
}

export function layersText() {
  const layers = layersShown();
  return layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers[0]}–${layers.at(-1)}`;
}

// ---- the view ----

// Of each layer's sum, NaN where a token is left out or has no value; a layer in which nothing had an impact has none.
function sharesOf(values, counted, nLayers) {
  const n = counted.length;
  const shares = new Float64Array(n * nLayers).fill(NaN);
  for (let layer = 0; layer < nLayers; layer++) {
    let total = 0;
    for (let i = 0; i < n; i++) if (counted[i] && values[layer * n + i] > 0) total += values[layer * n + i];
    if (!(total > 0)) continue;
    for (let i = 0; i < n; i++) if (counted[i]) shares[layer * n + i] = Math.max(values[layer * n + i], 0) / total;
  }
  return shares;
}

// Of each position's shares in the layers, NaN where it has none.
function meanShares(shares, n, layers) {
  return upTo(n).map((i) => {
    let [sum, number] = [0, 0];
    for (const layer of layers) {
      const share = shares[layer * n + i];
      if (Number.isNaN(share)) continue;
      sum += share;
      number++;
    }
    return number ? sum / number : NaN;
  });
}

// Takes the numbers of the state. positions[i] of the sequence has its distances at [layer * n + i]. at: i by position.
// scores: mean share over the layers shown. ranked: positions by their mean share over all layers, the largest first.
export function look(distances, norm, effect) {
  const { positions } = step();
  const [n, nLayers] = [positions.length, prompt().n_layers];
  const values = distances[state.metric];
  const sinks = prompt().sinks.map((sink) => sink.position);
  const leftOut = new Set(sinks.filter((position) => !state.kept.includes(position)));
  const counted = positions.map((position) => !leftOut.has(position));
  const shares = sharesOf(values, counted, nLayers);
  const overall = meanShares(shares, n, everyLayer());
  const ranked = upTo(n).filter((i) => overall[i] > 0).sort((a, b) => overall[b] - overall[a] || a - b);
  view = {
    positions, n, nLayers, distances, norm, effect, values, leftOut, counted, shares,
    at: new Map(positions.map((position, i) => [position, i])),
    scores: meanShares(shares, n, layersShown()),
    ranked: ranked.map((i) => positions[i]),
  };
}

// ---- tokens ----

export const chosenTokens = () => (state.tokens.length ? state.tokens : view.ranked.slice(0, 3));

// The chosen token whose heads are shown.
export function focusToken() {
  const chosen = chosenTokens();
  if (chosen.includes(state.focus)) return state.focus;
  return state.tokens.length ? chosen.at(-1) : chosen[0];
}

export const chosenColour = (position) => lineColour(chosenTokens().indexOf(position));

export function toggleToken(position) {
  if (!view.at.has(position)) return;
  const present = state.tokens.includes(position);
  const others = state.tokens.filter((one) => one !== position);
  set({ tokens: present ? others : [...state.tokens, position], focus: present ? -1 : position });
}

export function toggleImage(image) {
  const others = state.unfolded.filter((one) => one !== image);
  set({ unfolded: others.length < state.unfolded.length ? others : [...others, image].sort((a, b) => a - b) });
}

// The scale of shares for some of the positions (places i): of the layers shown, or with colours over all layers of any
// layer.
export function shareScale(places) {
  if (state.range !== "layer" || state.colours === "layer") {
    return makeScale(state.scale, ...extent(places.map((i) => view.scores[i])));
  }
  const all = [];
  for (let layer = 0; layer < view.nLayers; layer++) for (const i of places) all.push(view.shares[layer * view.n + i]);
  return makeScale(state.scale, ...extent(all));
}

// Of an image's tokens together.
export function imageShare(image) {
  let share = 0;
  view.positions.forEach((position, i) => {
    if (prompt().cellAt.get(position)?.image === image) share += view.scores[i] || 0;
  });
  return share;
}
