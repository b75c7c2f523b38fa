// The prompt as running text, its tokens shaded by their shares and each image one of them.

import { inkOn, rgbText } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { makeRoving } from "../shared/roving.js";
import { visible } from "../shared/texts.js";
import { hideTip, showTip } from "../shared/tip.js";
import { chosenColour, chosenTokens, toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { drawLegend } from "./legend.js";
import { answerName, imageName, tokenTitle } from "./names.js";
import { furthest, imageText, shadedText, shading } from "./quantity.js";
import { section } from "./sections.js";
import { prompt, state, step } from "./state.js";
import { scoreTip } from "./tips.js";
import { tokenElement } from "./tokens.js";
import { toggleImage, view } from "./view.js";

// ---- the tokens' elements ----

// With a line break behind a token that has one.
function textParts(file, position) {
  const text = file.texts[position];
  const made = tokenElement(text, tokenTitle(position), () => toggleToken(position));
  made.dataset.position = position;
  if (file.specialAt.has(position)) made.classList.add("special");
  if (visible(text) !== text) made.classList.add("mark");
  return text.includes("\n") ? [made, "\n"] : [made];
}

function imageChip(image) {
  const made = tokenElement(imageName(image), "", () => toggleImage(image));
  made.classList.add("image");
  made.dataset.image = image;
  return made;
}

function makeText(file) {
  const parts = [];
  let image = -1;
  for (let position = 0; position < step().n_positions; position++) {
    if (position === file.n_prompt) {
      parts.push(element("br"), element("span", { className: "hint", textContent: "answer so far " }));
    }
    const cell = file.cellAt.get(position);
    if (!cell) parts.push(...textParts(file, position));
    else if (cell.image !== image) {
      ({ image } = cell);
      parts.push(imageChip(image));
    }
  }
  $("text").replaceChildren(...parts);
  const first = $("text").querySelector(".token");
  if (first) first.tabIndex = 0;
}

// ---- their shades ----

// Level of each token of the prompt by position, and of each image by name: its strongest patch.
function textLevels() {
  const { scores, levelOf } = shading();
  const best = new Map();
  view.positions.forEach((position, i) => {
    const cell = prompt().cellAt.get(position);
    const key = cell ? `image ${cell.image}` : position;
    best.set(key, furthest([best.get(key) ?? NaN, scores[i]]));
  });
  return new Map([...best].map(([key, score]) => [key, levelOf(score)]));
}

function drawImageChip(made) {
  const image = Number(made.dataset.image);
  const [rows, columns] = prompt().images[image].grid;
  made.textContent = `${imageName(image)} · ${rows} × ${columns} patches · ${imageText(image)}`;
  made.setAttribute("aria-expanded", state.unfolded.includes(image));
  made.setAttribute("aria-label", `${made.textContent}, unfolds in the chart of layers and tokens`);
}

function drawToken(made, position, isShaded) {
  made.classList.toggle("none", !isShaded && view.leftOut.has(position));
  made.classList.toggle("chosen", chosenTokens().includes(position));
  made.style.setProperty("--chosen", chosenColour(position) ?? "");
  made.setAttribute("aria-pressed", state.tokens.includes(position));
  made.setAttribute("aria-label", scoreTip(position).replaceAll("\n", ", "));
}

function drawText() {
  if (changed("text", state.prompt, state.step)) makeText(prompt());
  const struck = view.leftOut.size ? " Attention sinks are struck out." : "";
  $("text-hint").textContent = `${shadedText(answerName())}${struck} Choose tokens for their profiles.`;
  drawLegend("text-legend");
}

function shadeText() {
  const levels = textLevels();
  for (const made of $("text").querySelectorAll(".token")) {
    const isImage = made.dataset.image !== undefined;
    const key = isImage ? `image ${made.dataset.image}` : Number(made.dataset.position);
    const level = levels.get(key);
    const isShaded = level !== undefined && !Number.isNaN(level);
    const rgb = isShaded ? shading().rgbOf(level) : null;
    made.style.background = isShaded ? rgbText(rgb) : "";
    made.style.color = isShaded ? inkOn(rgb) : "";
    if (isImage) drawImageChip(made);
    else drawToken(made, key, isShaded);
  }
}

export function connectText() {
  makeRoving($("text"));
  $("text").addEventListener("mousemove", (event) => {
    const token = event.target.closest(".token");
    if (!token) hideTip();
    else {
      const { image, position } = token.dataset;
      showTip(image === undefined ? scoreTip(Number(position)) : token.textContent, event.clientX, event.clientY);
    }
  });
  $("text").addEventListener("mouseleave", hideTip);
}

section("distances", ["distances"], { draw: drawText, chart: shadeText, into: "text" });
