// The results' tokens as running text: shaded, marked, and chosen by a click.

import { inkOn, rgbAt, rgbText } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { makeRoving } from "../shared/roving.js";
import { extent, makeScale } from "../shared/scales.js";
import { visible } from "../shared/texts.js";
import { isAlone, keyOf, placeOf } from "./alignment.js";
import { numberText, placesOf, score, tokenName } from "./values.js";
import { markedKeys, point } from "./pointer.js";
import { choose, state } from "./state.js";

// ---- the tokens' elements ----

function wordElement(side, text, place) {
  const made = element("span", { className: "token", role: "button", tabIndex: -1 });
  made.dataset.place = place;
  made.textContent = visible(text) || "\u2205";
  made.classList.toggle("special", side.specialAt.has(place));
  made.classList.toggle("mark", visible(text) !== text);
  made.classList.toggle("alone", isAlone(side, place));
  made.addEventListener("click", () => choose(side, place));
  return made;
}

function imageElement(side, image) {
  const [rows, columns] = side.images[image].grid;
  const textContent = `image ${image} · ${rows} × ${columns} patches`;
  const made = element("span", { className: "token image", role: "note", tabIndex: -1, textContent });
  made.dataset.image = image;
  return made;
}

// A line break is written out, and made.
function makeTokens(side) {
  const parts = [];
  let image = -1;
  side.texts.forEach((text, place) => {
    const cell = side.cellAt.get(place);
    if (cell && cell.image === image) return;
    image = cell ? cell.image : -1;
    parts.push(cell ? imageElement(side, image) : wordElement(side, text, place));
    if (!cell && text.includes("\n")) parts.push("\n");
  });
  return parts;
}

export function makeText(side) {
  const label = `Tokens of ${side.letter}`;
  const text = element("div", { className: "running", id: `text-${side.number}`, role: "group", "aria-label": label });
  makeRoving(text);
  text.addEventListener("mousemove", (event) => {
    const token = event.target.closest("[data-place]");
    point(token ? { side, place: Number(token.dataset.place), layer: -1 } : null, event.clientX, event.clientY);
  });
  text.addEventListener("mouseleave", () => point(null));
  text.append(...makeTokens(side));
  const first = text.querySelector(".token");
  if (first) first.tabIndex = 0;
  return text;
}

// ---- their shades and marks ----

function tokenLabel(side, place, value) {
  const number = side.leftOut.has(place) ? "left out as an attention sink" : numberText(value);
  const alone = isAlone(side, place) ? ", in no other result" : "";
  return `position ${side.positions[place]} ${tokenName(side, place)}, ${number}${alone}`;
}

export function drawText(side) {
  const scale = makeScale(state.scale, ...extent(placesOf(side).map((place) => score(side, place))));
  for (const made of $(`text-${side.number}`).querySelectorAll("[data-place]")) {
    const place = Number(made.dataset.place);
    const value = score(side, place);
    const level = Number.isNaN(value) ? null : scale.level(value);
    made.style.background = level === null ? "" : rgbText(rgbAt(level));
    made.style.color = level === null ? "" : inkOn(rgbAt(level));
    made.classList.toggle("none", side.leftOut.has(place));
    made.setAttribute("aria-pressed", keyOf(side, place) === state.token);
    made.setAttribute("aria-label", tokenLabel(side, place, value));
  }
}

// A token that is marked, or an image that has a marked patch.
export function markText(side) {
  const keys = markedKeys();
  const imageOf = (key) => side.cellAt.get(placeOf(side, key))?.image;
  for (const made of $(`text-${side.number}`).querySelectorAll(".token")) {
    const { place, image } = made.dataset;
    const isMarked = (key) => (image === undefined ? key === keyOf(side, place) : imageOf(key) === Number(image));
    made.classList.toggle("linked", keys.some(isMarked));
  }
}
