// The chosen tokens as chips above the profile, and the list to choose others from.

import { $, element } from "../shared/elements.js";
import { chosenColour, chosenTokens, focusToken } from "./chosen.js";
import { replaceContent } from "./content.js";
import { changed } from "./drawn.js";
import { tokenTitle } from "./names.js";
import { section } from "./sections.js";
import { set, state } from "./state.js";
import { view } from "./view.js";

function makeChip(position, _, chosen) {
  const title = tokenTitle(position);
  const isFocused = position === focusToken();
  const about = { title: "Show its layers and heads", "aria-pressed": isFocused };
  const name = element("button", { type: "button", textContent: title, ...about });
  name.addEventListener("click", () => set({ tokens: chosen, focus: position }));
  const remove = element("button", { type: "button", textContent: "×", "aria-label": `Remove ${title}` });
  remove.addEventListener("click", () => set({ tokens: chosen.filter((one) => one !== position), focus: -1 }));
  const chip = element("span", { className: "chip" }, name, remove);
  chip.style.setProperty("--chosen", chosenColour(position));
  return chip;
}

function drawChips() {
  replaceContent($("chips"), chosenTokens().map(makeChip));
}

// May be a thousand, which nobody sees before the list is opened.
function drawChoice() {
  if (changed("add-token", state.prompt, state.step)) {
    const makeOption = (position) => element("option", { value: position, textContent: tokenTitle(position) });
    const first = element("option", { value: "", textContent: "a token …" });
    $("add-token").replaceChildren(first, ...view.positions.map(makeOption));
  }
  $("add-token").value = "";
}

section("distances", ["distances"], { draw: drawChips, chart: drawChoice, into: null });
