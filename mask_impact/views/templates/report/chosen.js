// The chosen tokens: those that were clicked, else the three that matter most by what is shown.

import { lineColour } from "../shared/colours.js";
import { strongestPositions } from "./quantity.js";
import { prompt, set, state } from "./state.js";
import { view } from "./view.js";

const N_SHOWN = 3; // where none was clicked

export const chosenTokens = () => (state.tokens.length ? state.tokens : strongestPositions(N_SHOWN));

// The chosen token whose heads are shown.
export function focusToken() {
  const chosen = chosenTokens();
  if (chosen.includes(state.focus)) return state.focus;
  return state.tokens.length ? chosen.at(-1) : chosen[0];
}

export const chosenColour = (position) => lineColour(chosenTokens().indexOf(position));

// With the other tokens of its word.
export function toggleToken(position) {
  if (!view.at.has(position)) return;
  const word = prompt().wordAt.get(position) ?? [position];
  const present = state.tokens.includes(position);
  const others = state.tokens.filter((one) => !word.includes(one));
  set({ tokens: present ? others : [...others, ...word], focus: present ? -1 : position });
}
