// Tokens in running text under the keyboard. Within a group one of them takes part in the tab order; arrows move from
// token to token, and Enter chooses.

import { clamp } from "./numbers.js";

function moveFocus(tokens, at, key) {
  const ends = { Home: 0, End: tokens.length - 1 };
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowDown: at + 1, ...ends }[key];
  if (to === undefined) return false;
  const next = tokens[clamp(to, 0, tokens.length - 1)];
  tokens.forEach((token) => { token.tabIndex = token === next ? 0 : -1; });
  next.focus();
  return true;
}

export function makeRoving(group) {
  group.addEventListener("keydown", (event) => {
    const tokens = [...group.querySelectorAll(".token")];
    const at = tokens.indexOf(document.activeElement);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") tokens[at].click();
    else if (!moveFocus(tokens, at, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
  });
  // A click leaves the keys to the page.
  group.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    document.activeElement?.blur();
  });
}
