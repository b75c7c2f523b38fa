// The prompt as running text, its tokens shaded by their shares and each image one of them.

import { colourAt, inkOn, rgbAt } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { makeRoving } from "../shared/roving.js";
import { visible } from "../shared/texts.js";
import { hideTip, showTip } from "../shared/tip.js";
import { changed } from "./drawn.js";
import { drawLegend } from "./legend.js";
import { answerName, tokenTitle } from "./names.js";
import { section } from "./sections.js";
import { prompt, state, step } from "./state.js";
import { scoreTip } from "./tips.js";
import { tokenElement } from "./tokens.js";
import {
  chosenColour, chosenTokens, imageShare, layersText, shareScale, toggleImage, toggleToken, view,
} from "./view.js";

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
  const made = tokenElement(`image ${image}`, "", () => toggleImage(image));
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

// Level of each token of the prompt by position, of each image by name (its strongest patch), and their scale.
function textShades() {
  const best = new Map();
  view.positions.forEach((position, i) => {
    const cell = prompt().cellAt.get(position);
    const key = cell ? `image ${cell.image}` : position;
    const score = view.scores[i];
    if (!best.has(key) || !(best.get(key) >= score)) best.set(key, Number.isNaN(score) ? best.get(key) ?? NaN : score);
  });
  const scale = shareScale(view.positions.map((_, i) => i));
  const levels = new Map([...best].map(([key, score]) => [key, Number.isNaN(score) ? NaN : scale.level(score)]));
  return { levels, scale };
}

function drawImageChip(made) {
  const image = Number(made.dataset.image);
  const [rows, columns] = prompt().images[image].grid;
  made.textContent = `image ${image} · ${rows} × ${columns} patches · ${percentText(imageShare(image))}`;
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
  const { levels, scale } = textShades();
  for (const made of $("text").querySelectorAll(".token")) {
    const isImage = made.dataset.image !== undefined;
    const key = isImage ? `image ${made.dataset.image}` : Number(made.dataset.position);
    const level = levels.get(key);
    const isShaded = level !== undefined && !Number.isNaN(level);
    made.style.background = isShaded ? colourAt(level) : "";
    made.style.color = isShaded ? inkOn(rgbAt(level)) : "";
    if (isImage) drawImageChip(made);
    else drawToken(made, key, isShaded);
  }
  const struck = view.leftOut.size ? " Attention sinks are struck out." : "";
  const shaded = `Shaded by the share of the impact in ${layersText()} on ${answerName()}.`;
  $("text-hint").textContent = `${shaded}${struck} Choose tokens for their profiles.`;
  drawLegend("text-legend", scale);
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

section("distances", ["distances"], { draw: drawText });
