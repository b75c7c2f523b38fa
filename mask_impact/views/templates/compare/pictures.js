// The results' images with their patches shaded over them, marked, and chosen by a click.

import { cssColour, rgbAt, rgbText } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { fitCanvas, makePicture, placeInGrid, strokeFrame } from "../shared/pictures.js";
import { extent, makeScale } from "../shared/scales.js";
import { visible } from "../shared/texts.js";
import { keyOf } from "./alignment.js";
import { score } from "./values.js";
import { markedKeys, point } from "./pointer.js";
import { choose, state } from "./state.js";

const PICTURE_HEIGHT = 260; // pixels, at most
const OPACITY = 0.7;

function makeFigure(side, image, number) {
  const label = `Patches of image ${number} of ${side.letter}`;
  const canvas = element("canvas", { role: "img", "aria-label": label });
  const placeUnder = (event) => {
    const [row, column] = placeInGrid(event, canvas, image.grid).map(Math.floor);
    return side.cells.find((cell) => cell[1] === number && cell[2] === row && cell[3] === column)?.[0] ?? -1;
  };
  canvas.addEventListener("mousemove", (event) => {
    point({ side, place: placeUnder(event), layer: -1 }, event.clientX, event.clientY);
  });
  canvas.addEventListener("mouseleave", () => point(null));
  canvas.addEventListener("click", (event) => { if (placeUnder(event) >= 0) choose(side, placeUnder(event)); });
  const caption = element("figcaption", { textContent: image.source ? visible(image.source) : `image ${number}` });
  return element("figure", {}, makePicture(image, canvas, PICTURE_HEIGHT, ""), caption);
}

export function makePictures(side) {
  const made = side.images.map((image, number) => makeFigure(side, image, number));
  return element("div", { className: "pictures", id: `pictures-${side.number}` }, ...made);
}

export function drawPictures(side) {
  if (!side.images.length) return;
  const scale = makeScale(state.scale, ...extent(side.cells.map(([place]) => score(side, place))));
  const canvases = $(`pictures-${side.number}`).querySelectorAll("canvas");
  [...canvases].forEach((canvas, number) => drawPatches(side, canvas, number, scale));
}

function drawPatches(side, canvas, number, scale) {
  const { preview, grid } = side.images[number];
  const { wide, high, ratio, context } = fitCanvas(canvas, grid);
  const keys = markedKeys();
  const marked = [];
  for (const [place, image, row, column] of side.cells) {
    if (image !== number) continue;
    const value = score(side, place);
    const level = Number.isNaN(value) ? 0 : scale.level(value);
    const rect = [column * wide, row * high, wide, high];
    context.globalAlpha = preview ? OPACITY * (0.2 + 0.8 * level) : 1; // what matters little covers little of a picture
    context.fillStyle = Number.isNaN(value) ? "#808080" : rgbText(rgbAt(level));
    context.fillRect(...rect);
    if (keys.includes(keyOf(side, place))) marked.push(rect);
  }
  context.globalAlpha = 1;
  canvas.dataset.marked = marked.length;
  const inset = Math.min(wide, high) > 16 * ratio ? 2 : -3; // around a small cell, not over it
  for (const rect of marked) strokeFrame(context, rect, inset, ratio, cssColour("--accent"));
}
