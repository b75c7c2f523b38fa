// A token in running text. What can't be seen is written out, and a line break is made as well.

import { element } from "../shared/elements.js";
import { visible } from "../shared/texts.js";

export function tokenElement(text, label, onChoose) {
  const textContent = visible(text) || "\u2205";
  const made = element("span", { className: "token", role: "button", tabIndex: -1, textContent, "aria-label": label });
  made.addEventListener("click", onChoose);
  return made;
}
