// What the tip says of an effect, and how its numbers are written.

import { float32Text } from "../shared/numbers.js";
import { quoted } from "../shared/texts.js";
import {
  effectAt, effectFloor, effectPlace, groups, hiddenIn, isChanged, isMeasured, isNone, isSink, strongestOf,
} from "./effect.js";
import { distanceText, joinedName, tokenName } from "./names.js";
import { natsText, signed } from "./nats.js";
import { prompt, step } from "./state.js";
import { view } from "./view.js";

function groupName(group) {
  if (!groups()) return `position ${view.positions[group]} · ${tokenName(view.positions[group])}`;
  const [name, positions] = groups()[group];
  const [first, last] = [Math.min(...positions), Math.max(...positions)];
  const where = first === last ? `position ${first}` : `${positions.length} tokens within ${first}–${last}`;
  return `${quoted(name)} · ${where}`;
}

// The layers around this one that hid it as well.
function windowText(layer) {
  const { window: width } = prompt().effect;
  if (width === null || width === 1) return "";
  const [first, last] = [layer - ((width - 1) >> 1), layer + (width >> 1)];
  return ` (hidden in ${Math.max(first, 0)}–${Math.min(last, view.nLayers - 1)})`;
}

export function effectTip(group, layer) {
  const place = effectPlace(group, layer);
  const { logprob, kl, top1 } = view.effect;
  const where = prompt().effect.window === "all" ? "in all layers" : `layer ${layer}${windowText(layer)}`;
  const lines = [`${where} · ${groupName(group)}`];
  if (!isMeasured(group, layer)) return [...lines, "not measured"].join("\n");
  if (Number.isNaN(logprob[place]) && Number.isNaN(kl[place])) return [...lines, "no value"].join("\n");
  lines.push(`log-probability ${signed(logprob[place], float32Text)} nats, KL ${distanceText(kl[place], false)} nats`);
  const most = quoted(step().effect.top1_texts[top1[place]] ?? "", 40);
  const becomes = `the most probable token becomes ${most}`;
  lines.push(isChanged(group, layer) ? becomes : `${most} stays the most probable token`);
  if (isNone(effectAt(group, layer))) lines.push(`no more than the noise floor, ${natsText(effectFloor())} nats`);
  if (hiddenIn(group).some(isSink)) lines.push(groups() ? "with an attention sink" : "attention sink");
  return lines.join("\n");
}

export function effectColumnTip(column, layer) {
  if (column.groups.length === 1) return effectTip(column.groups[0], layer);
  const best = strongestOf(column, layer);
  const lines = [joinedName(column)];
  if (best < 0) return [...lines, "no value"].join("\n");
  const nChanged = column.groups.filter((group) => isChanged(group, layer)).length;
  const changes = `of ${nChanged} the most probable token changes`;
  const what = column.image === null ? "token" : "patch";
  return [...lines, changes, `the ${what} with the largest effect:`, effectTip(best, layer)].join("\n");
}
