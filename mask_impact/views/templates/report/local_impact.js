// Local impact as it is compared between layers: a distance over the norm of what it is a distance of, where norms are
// known.

import { visible } from "../shared/texts.js";
import { METRIC_NAMES } from "./file.js";
import { prompt, state } from "./state.js";
import { areKnown, view } from "./view.js";

export const hasNorms = () => areKnown(view.norm);

// Whether it can't be compared between layers.
export const lacksNorms = () => state.metric === "l2" && !hasNorms();
export const localDistance = (position, layer) => view.values[layer * view.n + view.at.get(position)];

// Cosine distance stays as it is.
export function localImpact(position, layer) {
  const value = localDistance(position, layer);
  if (state.metric !== "l2" || !hasNorms()) return value;
  const { variants } = prompt();
  const norm = view.norm[layer * variants.length + variants.indexOf(state.variant)];
  return norm > 0 ? value / norm : NaN;
}

export function localName() {
  const over = state.metric === "l2" && hasNorms() ? ", over the norm" : "";
  return `${METRIC_NAMES[state.metric]} of ${visible(state.variant)}${over}`;
}
