// Effects on the produced token as numbers: what was hidden at once, how much that changed, and which token then is the
// most probable. What was hidden at once is a group; without other groups each position is one, at its own place.

import { makeColumns } from "./columns.js";
import { prompt, state, step } from "./state.js";
import { everyLayer, view } from "./view.js";

export const isSink = (position) => prompt().sinks.some((sink) => sink.position === position);
export const effectFloor = () => step().effect.floors[state.measure];
export const isNone = (value) => Math.abs(value) <= effectFloor();
export const isMeasured = (group, layer) => view.effect.top1[effectPlace(group, layer)] >= 0;

export const groups = () => step().effect.groups;
export const nGroups = () => (groups() ?? view.positions).length;
export const hiddenIn = (group) => (groups() ? groups()[group][1] : [view.positions[group]]);

// Layers that effects are shown of: one for all where tokens were hidden in all of them at once.
export const effectLayers = () => (prompt().effect.window === "all" ? [0] : everyLayer());

export const effectPlace = (group, layer) => layer * nGroups() + group;
export const effectAt = (group, layer) => view.effect[state.measure][effectPlace(group, layer)];
export const effectOf = (position, layer) => effectAt(view.at.get(position), layer);
export const isOther = (top1) => top1 >= 0 && top1 !== step().effect.likeliest;
export const isChanged = (group, layer) => isOther(view.effect.top1[effectPlace(group, layer)]);

// The columns of the chart: those of the other one, or a group each; `groups` are the effects' columns within one.
export function effectColumns() {
  if (groups()) return groups().map(([, positions], group) => ({ positions, image: null, groups: [group] }));
  const withGroups = (column) => ({ ...column, groups: column.positions.map((position) => view.at.get(position)) });
  return makeColumns().map(withGroups);
}

// Of a column in a layer the group with the largest effect, -1 where none has a value.
export function strongestOf(column, layer) {
  let [best, most] = [-1, -1];
  for (const group of column.groups) {
    const size = Math.abs(effectAt(group, layer));
    if (Number.isFinite(size) && size > most) [best, most] = [group, size];
  }
  return best;
}
