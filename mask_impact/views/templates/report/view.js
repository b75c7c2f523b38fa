// The view: the numbers of the current step, metric and variant, as shares and scores, and which layers and tokens are
// shown. Every panel is drawn from it and from the state. Knows no element of the page.

import { prompt, set, state, step } from "./state.js";

export let view = null;

// ---- layers ----

const upTo = (n) => Array.from({ length: n }, (_, i) => i);
export const everyLayer = () => upTo(prompt().n_layers);

// The layers that have numbers: all but those without a softmax attention.
export const measuredLayers = () => prompt().layers;

// The measured layer behind the one of the state, or before it (by: 1 or -1); undefined at the ends.
export const nextLayer = (by) => measuredLayers()[measuredLayers().indexOf(state.layer) + by];

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

// Of each layer what it reads at all: the sum over its tokens of their impact over the norm of what they change. Where
// norms are not known, 1 for each layer in which anything had an impact.
function weightsOf(values, counted, norms) {
  return norms.map((norm, layer) => {
    let total = 0;
    counted.forEach((counts, i) => { if (counts) total += Math.max(values[layer * counted.length + i], 0) || 0; });
    if (norm === null) return Number(total > 0);
    return norm > 0 ? total / norm : 0;
  });
}

// Whether every measured layer has the norms of what was not hidden, [layer * number of variants + variant].
export function areKnown(norm) {
  const { layers, variants } = prompt();
  return layers.every((layer) => variants.every((_, nth) => Number.isFinite(norm[layer * variants.length + nth])));
}

// What distances are divided by in each layer, null where it is not known.
function normsOf(norm) {
  if (state.metric !== "l2") return everyLayer().map(() => 1);
  const { variants } = prompt();
  const [nth, known] = [variants.indexOf(state.variant), areKnown(norm)];
  return everyLayer().map((layer) => (known ? norm[layer * variants.length + nth] : null));
}

// Takes the numbers of the state. positions[i] of the sequence has its distances at [layer * n + i]. at: i by
// position. weights: by layer, what it reads at all. estimates: null where there are none.
export function look(distances, norm, effect, estimates) {
  const { positions } = step();
  const [n, nLayers] = [positions.length, prompt().n_layers];
  const values = distances[state.metric];
  const sinks = prompt().sinks.map((sink) => sink.position);
  const leftOut = new Set(sinks.filter((position) => !state.kept.includes(position)));
  const counted = positions.map((position) => !leftOut.has(position));
  const shares = sharesOf(values, counted, nLayers);
  view = {
    positions, n, nLayers, distances, norm, effect, estimates, values, leftOut, counted, shares,
    weights: weightsOf(values, counted, normsOf(norm)),
    at: new Map(positions.map((position, i) => [position, i])),
  };
}

// Of each place its mean share of the layers, by their weights; NaN where it has none.
export function impactScores(layers) {
  const { n, shares, weights } = view;
  const all = layers.reduce((sum, layer) => sum + weights[layer], 0);
  return upTo(n).map((i) => {
    let [sum, any] = [0, false];
    for (const layer of layers) {
      const share = shares[layer * n + i];
      if (Number.isNaN(share)) continue;
      sum += share * weights[layer];
      any = true;
    }
    return any && all > 0 ? sum / all : NaN;
  });
}

export function toggleImage(image) {
  const others = state.unfolded.filter((one) => one !== image);
  set({ unfolded: others.length < state.unfolded.length ? others : [...others, image].sort((a, b) => a - b) });
}
