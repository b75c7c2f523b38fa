// The rows of CSV files of effects, and of what is found by putting local impact beside them.

import { layerAgreement } from "./agreement.js";
import {
  effectAt, effectPlace, groups, hiddenIn, isChanged, isMeasured, isNone, isSink, nGroups,
} from "./effect.js";
import { apartLists } from "./effect_text.js";
import { localDistance, localImpact } from "./local_impact.js";
import { float32Cell, orNull } from "./rows.js";
import { prompt, state, step } from "./state.js";
import { everyLayer, layersShown, view } from "./view.js";

const TOKEN = ["generation_step", "layer", "token_masked", "token_position"];
const CHANGES = ["logprob_change", "kl_divergence", "top1_changed", "top1_id", "top1_token", "above_floor"];
const EFFECTS = [...TOKEN, "n_tokens", ...CHANGES];
const POINTS = [...TOKEN, "variant", "metric", "distance", "local_impact", ...CHANGES, "attention_sink"];
const CORRELATIONS = ["generation_step", "layer", "variant", "metric", "effect", "rank_correlation", "tokens"];
const APART = [
  "generation_step", "list", "token_masked", "token_position", "variant", "metric", "mean_share", "share_rank",
  "effect", "mean_size", "size_rank",
];

function changesOf(group, layer) {
  if (!isMeasured(group, layer)) return CHANGES.map(() => null);
  const place = effectPlace(group, layer);
  const { logprob, kl, top1 } = view.effect;
  const token = [top1[place], step().effect.top1_texts[top1[place]] ?? ""];
  const numbers = [float32Cell(logprob[place]), float32Cell(kl[place])];
  return [...numbers, isChanged(group, layer), ...token, !isNone(effectAt(group, layer))];
}

function effectRow(group, layer) {
  const [first] = hiddenIn(group);
  const name = groups() ? groups()[group][0] : prompt().texts[first];
  return [state.step, layer, name, first, hiddenIn(group).length, ...changesOf(group, layer)];
}

function pointRow(position, layer) {
  const numbers = [float32Cell(localDistance(position, layer)), orNull(localImpact(position, layer))];
  const changes = changesOf(view.at.get(position), layer);
  const token = [state.step, layer, prompt().texts[position], position];
  return [...token, state.variant, state.metric, ...numbers, ...changes, isSink(position)];
}

function correlationRow({ rho, n }, layer) {
  return [state.step, layer, state.variant, state.metric, state.measure, float32Cell(rho), n];
}

function rowsOfList([name, rows]) {
  return rows.map(([position, share, shareRank, size, sizeRank]) => {
    const token = [state.step, `large ${name}`, prompt().texts[position], position];
    return [...token, state.variant, state.metric, share, shareRank, state.measure, size, sizeRank];
  });
}

const everyGroup = () => Array.from({ length: nGroups() }, (_, group) => group);
// A row of each of some things in each of some layers.
const rowsIn = (layers, things, rowOf) => layers.flatMap((layer) => things.map((thing) => rowOf(thing, layer)));

// By card its [header, rows].
export const EFFECT_FILES = {
  effect: () => [EFFECTS, rowsIn(everyLayer(), everyGroup(), effectRow)],
  scatter: () => [POINTS, rowsIn(layersShown(), view.positions, pointRow)],
  agreement: () => [CORRELATIONS, layerAgreement().map(correlationRow)],
  apart: () => [APART, Object.entries(apartLists()).flatMap(rowsOfList)],
};
