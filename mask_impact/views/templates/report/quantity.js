// What the map, the prompt and the images show: local impact, what a token gives to the answer (estimated), or what
// hiding it does (measured). Each has a score of each token in the layers shown, and its colours.

import { rgbAt } from "../shared/colours.js";
import { percentText } from "../shared/numbers.js";
import { extent, makeScale } from "../shared/scales.js";
import { effectAt, effectLayers, hiddenIn, isNone, nGroups } from "./effect.js";
import { QUANTITIES } from "./file.js";
import { natsText, signedNats } from "./nats.js";
import { signedRgbAt } from "./signed_colours.js";
import { prompt, state } from "./state.js";
import { everyLayer, impactScores, layersShown, layersText, view } from "./view.js";

const isThere = {
  effect: () => view.effect !== null,
  contribution: () => view.estimates !== null,
  estimate: () => view.estimates !== null,
  impact: () => true,
};
export const quantities = () => Object.keys(QUANTITIES).filter((name) => isThere[name]());

// The chosen one, the first where that is not there.
export const shown = () => (isThere[state.shown]?.() ? state.shown : quantities()[0]);

// Whether it speaks for or against the answer.
export const isSigned = () => shown() !== "impact" && (shown() !== "effect" || state.measure === "logprob");

// ---- scores ----

export const isEstimate = () => shown() === "contribution" || shown() === "estimate";

// NaN for what is left out, and behind the target.
export function estimateAt(position, layer) {
  const { n } = view.estimates;
  const isCounted = position < n && view.counted[view.at.get(position)];
  return isCounted ? view.estimates[shown()][layer * n + position] : NaN;
}

// To first order the layers add up.
function estimateScores(layers) {
  return view.positions.map((position) => layers.reduce((total, layer) => total + estimateAt(position, layer), 0));
}

export const furthest = (values) => values.reduce(
  (most, value) => (Number.isFinite(value) && !(Math.abs(most) >= Math.abs(value)) ? value : most), NaN,
);

// Effects of layers do not add up: the strongest.
function effectScores(among) {
  const layers = effectLayers().length > 1 ? among : [0];
  const scores = view.positions.map(() => NaN);
  for (let group = 0; group < nGroups(); group++) {
    const values = layers.map((layer) => effectAt(group, layer));
    const strongest = furthest(values.map((value) => (isNone(value) ? 0 : value)));
    for (const position of hiddenIn(group)) {
      const i = view.at.get(position);
      if (i !== undefined) scores[i] = furthest([scores[i], strongest]);
    }
  }
  return scores;
}

const SCORES_OF = {
  effect: effectScores, contribution: estimateScores, estimate: estimateScores, impact: impactScores,
};

// Of each place in the layers.
const scoresIn = (layers) => SCORES_OF[shown()](layers);

// What is made of the view, once for each: it is another one whenever the state changes.
function oncePerView(make) {
  let [of, made] = [null, null];
  return () => {
    if (of !== view) [of, made] = [view, make()];
    return made;
  };
}

// Positions by what they matter in all layers, those that speak for the answer where there is a sign.
const ranking = oncePerView(() => {
  const sign = isSigned() ? -1 : 1;
  const sizes = scoresIn(everyLayer()).map((score) => sign * score);
  const ranked = sizes.map((_, i) => i).filter((i) => sizes[i] > 0).sort((a, b) => sizes[b] - sizes[a] || a - b);
  return ranked.map((i) => view.positions[i]);
});

export const strongestPositions = (n) => ranking().slice(0, n);

// ---- colours ----

// Of the layers shown, or with colours over all layers of any layer.
function scaleOf(scores) {
  const isOfAll = shown() === "impact" && state.range === "layer" && state.colours === "global";
  return makeScale(state.scale, ...extent(isOfAll ? view.shares : scores.map(Math.abs)));
}

// Of tokens that are joined, from the scores of all places; effects do not add up: the strongest.
function together(positions, scores) {
  const theirs = positions.map((position) => scores[view.at.get(position)]).filter(Number.isFinite);
  if (shown() === "effect" || !theirs.length) return furthest(theirs);
  return theirs.reduce((sum, score) => sum + score, 0);
}

// alone: scores by place; scores: the same with those of a word's tokens together; levelOf(score): -1 to 1, NaN where
// there is none; rgbOf(level).
export const shading = oncePerView(() => {
  const alone = scoresIn(layersShown());
  const ofWord = (position, i) => {
    const word = prompt().wordAt.get(position);
    return word ? together(word, alone) : alone[i];
  };
  const scores = view.positions.map(ofWord);
  const scale = scaleOf(scores);
  const levelOf = (score) => Math.sign(score) * scale.level(Math.abs(score));
  const rgbOf = isSigned() ? signedRgbAt : rgbAt;
  return { alone, scores, scale, levelOf, rgbOf };
});

// ---- texts ----

const SCORE_TEXTS = {
  contribution: (score) => `contribution ${signedNats(score)}, estimated, ${layersText()}`,
  estimate: (score) => `effect ${signedNats(score)}, estimated, ${layersText()} added up`,
  effect: (score) => `effect ${signedNats(score)}${effectLayers().length > 1 ? `, strongest of ${layersText()}` : ""}`,
  impact: (score) => `${percentText(score)} of the impact of ${layersText()}`,
};

export const scoreText = (score) => (Number.isFinite(score) ? SCORE_TEXTS[shown()](score) : "no value");

// How a score is written in a legend.
export const amountText = (value) => (shown() === "impact" ? percentText(value) : `${natsText(value)} nats`);

// Of an image's tokens together; of effects, which do not add up, the strongest.
export function imageScore(image) {
  const cells = view.positions.filter((position) => prompt().cellAt.get(position)?.image === image);
  return together(cells, shading().alone) || 0;
}

export function imageText(image) {
  const score = imageScore(image);
  if (shown() === "effect") return `strongest ${signedNats(score)}`;
  return shown() === "impact" ? percentText(score || 0) : signedNats(score);
}

// What the shades of the prompt and the images are, for a hint.
export function shadedText(answer) {
  const layers = layersText();
  if (shown() === "impact") return `Shaded by the share of the impact in ${layers} on ${answer}.`;
  if (shown() === "effect") return `Shaded by what hiding a token did to ${answer}, the strongest of ${layers}.`;
  const ways = {
    contribution: `Shaded by what each token gives to ${answer} in ${layers}, wherever it is read there.`,
    estimate: `Shaded by what hiding a token from the last position in ${layers} would do to ${answer}.`,
  };
  return `${ways[shown()]} Estimated.`;
}
