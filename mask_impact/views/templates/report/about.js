// What was run, in the footer: model, dtype, date, size; and remarks on how the result was made, above everything.

import { $, element } from "../shared/elements.js";
import { visible } from "../shared/texts.js";
import { changed } from "./drawn.js";
import { notes } from "./file.js";
import { prompt, state } from "./state.js";

export function drawAbout() {
  if (!changed("about", state.prompt)) return;
  const { about, notices } = prompt();
  const makeAbout = ([name, text]) => [
    element("dt", { textContent: name }), element("dd", { textContent: visible(text) }),
  ];
  const makeNotice = (note) => element("li", { textContent: visible(note) });
  $("about").replaceChildren(...about.flatMap(makeAbout));
  $("notices").replaceChildren(...[...notes, ...notices].map(makeNotice));
}
