// What stands in the page as it is: cards, routes and the like. Those of the first prompt are there from the start,
// those of another one are packed until it is opened.

import { unzipped } from "../shared/blocks.js";
import { $, element } from "../shared/elements.js";
import { takePreviews } from "./file.js";
import { prompt, state } from "./state.js";

// Jinja2 has escaped every text in it, and the page's policy runs nothing of it.
const parsed = (html) => element("template", { innerHTML: html }).content;

// Images stand once in the page, whichever prompts have them.
function bringImages(content) {
  for (const use of content.querySelectorAll("use")) {
    const kept = $(`i-${use.getAttribute("href").slice(1)}`);
    if (!kept) continue;
    $("cards").append(parsed(kept.textContent));
    kept.remove();
  }
}

async function unpack({ textContent }) {
  const content = parsed(new TextDecoder().decode(await unzipped(textContent)));
  bringImages(content);
  for (const part of content.querySelectorAll("[data-for]")) $(part.dataset.for).append(...part.children);
}

const opened = [];

// A promise that the parts of the current prompt are in the page.
export function openParts() {
  const [one, packed] = [prompt(), $(`c-${state.prompt}`)];
  opened[state.prompt] ??= (packed ? unpack(packed) : Promise.resolve()).then(() => takePreviews(one));
  return opened[state.prompt];
}
