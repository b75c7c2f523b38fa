// The buttons that fold and unfold images, in the head of each map.

import { element } from "../shared/elements.js";
import { replaceContent } from "./content.js";
import { section } from "./sections.js";
import { prompt, state } from "./state.js";
import { toggleImage } from "./view.js";

function foldButton(_, number) {
  const isOpen = state.unfolded.includes(number);
  const textContent = `${isOpen ? "Fold" : "Unfold"} image ${number}`;
  const made = element("button", { type: "button", textContent, "aria-expanded": isOpen });
  made.addEventListener("click", () => toggleImage(number));
  return made;
}

function drawFolds() {
  for (const head of document.querySelectorAll(".folds")) replaceContent(head, prompt().images.map(foldButton));
}

section("distances", ["distances"], { draw: drawFolds });
