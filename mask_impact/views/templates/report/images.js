// The images with their patches shaded over them. Patches are chosen by the pointer, or by the keyboard's cursor of
// each image.

import { rgbText } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { clamp } from "../shared/numbers.js";
import { fitCanvas, makePicture, placeInGrid, strokeFrame } from "../shared/pictures.js";
import { visible } from "../shared/texts.js";
import { hideTip, showTip } from "../shared/tip.js";
import { chosenColour, chosenTokens, toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { drawLegend } from "./legend.js";
import { imageName } from "./names.js";
import { imageText, shading, shown } from "./quantity.js";
import { section } from "./sections.js";
import { prompt, state } from "./state.js";
import { scoreTip } from "./tips.js";
import { layersText, view } from "./view.js";

const PICTURE_HEIGHT = 420; // pixels, at most
const cursors = []; // of each image the [row, column] that the keyboard is at

function positionOf(image, row, column) {
  return prompt().cells.find((cell) => cell[1] === image && cell[2] === row && cell[3] === column)[0];
}

// ---- the images' elements ----

function makeFigure(image, number) {
  const label = `Patches of image ${number}: arrow keys move, Enter chooses`;
  const canvas = element("canvas", { tabIndex: 0, role: "application", "aria-label": label });
  const positionUnder = (event) => {
    const [row, column] = placeInGrid(event, canvas, image.grid);
    return positionOf(number, clamp(row, 0, image.grid[0] - 1), clamp(column, 0, image.grid[1] - 1));
  };
  canvas.addEventListener("click", (event) => toggleToken(positionUnder(event)));
  canvas.addEventListener("mousemove", (event) => {
    showTip(scoreTip(positionUnder(event)), event.clientX, event.clientY);
  });
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("keydown", (event) => onCanvasKey(event, number, canvas));
  canvas.addEventListener("focus", () => drawImages());
  canvas.addEventListener("blur", () => { hideTip(); drawImages(); });
  const picture = makePicture(image, canvas, PICTURE_HEIGHT, `Image ${number} of the prompt`);
  return element("figure", {}, picture, element("figcaption"));
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function onCanvasKey(event, number, canvas) {
  if (event.key === "Enter" || event.key === " ") toggleToken(positionOf(number, ...cursors[number]));
  else if (MOVES[event.key]) moveCursor(number, MOVES[event.key], canvas);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function moveCursor(number, move, canvas) {
  const { grid } = prompt().images[number];
  cursors[number] = cursors[number].map((place, axis) => clamp(place + move[axis], 0, grid[axis] - 1));
  const [row, column] = cursors[number];
  const box = canvas.getBoundingClientRect();
  const tip = scoreTip(positionOf(number, row, column));
  drawImages();
  const [x, y] = [((column + 0.5) / grid[1]) * box.width, ((row + 0.5) / grid[0]) * box.height];
  showTip(tip, box.left + x, box.top + y);
  $("live").textContent = tip;
}

// ---- what is drawn over them ----

function makeImages() {
  const { images } = prompt();
  $("images-card").hidden = !images.length;
  if (!changed("images", state.prompt)) return;
  $("images").replaceChildren(...images.map(makeFigure));
  images.forEach((_, image) => { cursors[image] = [0, 0]; });
}

export function drawImages() {
  const { images } = prompt();
  if (!images.length) return;
  images.forEach(({ source, grid: [rows, columns] }, number) => {
    const figure = $("images").children[number];
    drawOverlay(figure.querySelector("canvas"), number);
    const name = source ? `${imageName(number)}: ${visible(source)}` : imageName(number);
    const share = `${shown() === "effect" ? "" : "together "}${imageText(number)} of ${layersText()}`;
    figure.querySelector("figcaption").textContent = `${name} · ${rows} × ${columns} patches, ${share}`;
  });
  drawLegend("images-legend");
}

function drawOverlay(canvas, number) {
  const { preview, grid } = prompt().images[number];
  const { wide, high, ratio, context } = fitCanvas(canvas, grid);
  const focused = document.activeElement === canvas ? positionOf(number, ...cursors[number]) : -1;
  const marked = [];
  for (const [position, image, row, column] of prompt().cells) {
    if (image !== number) continue;
    const i = view.at.get(position);
    const level = i === undefined ? NaN : shading().levelOf(shading().scores[i]);
    const rect = [column * wide, row * high, wide, high];
    if (Number.isNaN(level)) drawCross(context, rect);
    else drawPatch(context, rect, level, preview);
    if (position === focused || chosenTokens().includes(position)) marked.push([rect, position]);
  }
  drawGrid(context, grid, wide, high);
  for (const [rect, position] of marked) {
    strokeFrame(context, rect, 2, ratio, position === focused ? "#000000" : chosenColour(position));
  }
}

// Over a picture, what matters little covers little of it, and what does not matter covers nothing.
function drawPatch(context, rect, level, preview) {
  context.globalAlpha = preview ? (state.opacity / 100) * Math.abs(level) : 1;
  context.fillStyle = rgbText(shading().rgbOf(level));
  context.fillRect(...rect);
  context.globalAlpha = 1;
}

// Where a patch has no value.
function drawCross(context, rect) {
  const [x, y, w, h] = rect;
  context.fillStyle = "rgb(128 128 128 / 55%)";
  context.fillRect(x, y, w, h);
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(x + w * 0.3, y + h * 0.3);
  context.lineTo(x + w * 0.7, y + h * 0.7);
  context.moveTo(x + w * 0.7, y + h * 0.3);
  context.lineTo(x + w * 0.3, y + h * 0.7);
  context.stroke();
}

// Lines between patches that are large enough.
function drawGrid(context, [rows, columns], wide, high) {
  const { width, height } = context.canvas;
  context.strokeStyle = "rgb(128 128 128 / 45%)";
  context.lineWidth = 1;
  context.beginPath();
  if (Math.min(wide, high) > 5) {
    for (let column = 1; column < columns; column++) {
      context.moveTo(column * wide, 0);
      context.lineTo(column * wide, height);
    }
    for (let row = 1; row < rows; row++) {
      context.moveTo(0, row * high);
      context.lineTo(width, row * high);
    }
  }
  context.stroke();
}

section("distances", ["distances"], { draw: makeImages, chart: drawImages, into: "images" });
