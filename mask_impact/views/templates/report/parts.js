// What stands in the page as it is: cards, routes and the like. Those of the first prompt are there from the start, those
// of another one are packed until it is opened.

import { unzipped } from "../shared/blocks.js";
import { $, element } from "../shared/elements.js";
import { takePreviews } from "./file.js";
import { prompt, state } from "./state.js";

async function unpack({ textContent }) {
  // Jinja2 has escaped every text in it, and the page's policy runs nothing of it.
  const { content } = element("template", { innerHTML: new TextDecoder().decode(await unzipped(textContent)) });
  for (const image of content.querySelectorAll(".mi-images image")) if ($(image.id)) image.remove(); // another prompt's
  for (const part of content.querySelectorAll("[data-for]")) $(part.dataset.for).append(...part.children);
}

const opened = [];

// A promise that the parts of the current prompt are in the page.
export function openParts() {
  const [one, packed] = [prompt(), $(`c-${state.prompt}`)];
  opened[state.prompt] ??= (packed ? unpack(packed) : Promise.resolve()).then(() => takePreviews(one));
  return opened[state.prompt];
}
