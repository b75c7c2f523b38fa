// The images with their patches shaded over them. Patches are chosen by the pointer, or by the keyboard's cursor of
// each image. Of a video a strip shows every pair of frames, and the one that is opened stands large below it.

import { rgbText } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { clamp } from "../shared/numbers.js";
import { fitCanvas, makePicture, placeInGrid, strokeFrame } from "../shared/pictures.js";
import { visible } from "../shared/texts.js";
import { hideTip, showTip } from "../shared/tip.js";
import { chosenColour, chosenTokens, toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { markOpened, openedOf, whenFrame } from "./films.js";
import { drawCross, drawGrid } from "./grid.js";
import { drawLegend } from "./legend.js";
import { imageName } from "./names.js";
import { imageScore, imageText, isSigned, shading, shown } from "./quantity.js";
import { section } from "./sections.js";
import { prompt, state } from "./state.js";
import { scoreTip } from "./tips.js";
import { layersText, view } from "./view.js";

const [PICTURE_HEIGHT, FRAME_HEIGHT] = [420, 128]; // pixels, at most
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
  return element("figure", { "data-image": number }, picture, element("figcaption"));
}

// A pair of frames in its strip.
function makeFrame(number) {
  const image = prompt().images[number];
  const canvas = element("canvas", { role: "img", "aria-label": imageName(number) });
  const picture = makePicture(image, canvas, FRAME_HEIGHT, imageName(number));
  const bar = element("span", { className: "mi-bar" }, element("i"));
  const when = element("span", { className: "mi-when" }, element("b"), ` ${image.time}`);
  when.append(element("small", { textContent: imageName(number) }));
  const parts = [element("div", { "data-image": number }, picture), bar, when];
  return element("div", { className: "mi-frame", "data-frame": number }, ...parts);
}

function makeFilm(pairs) {
  const label = `${imageName(pairs[0])} to ${imageName(pairs.at(-1))}: arrow keys open a pair of frames`;
  const strip = { className: "mi-frames", tabIndex: 0, role: "group", "aria-label": label };
  const play = element("button", { type: "button", className: "mi-play", textContent: "Play", "aria-pressed": false });
  const heading = element("h3", { textContent: "The video over time" });
  const head = element("div", { className: "mi-film-head" }, heading, element("span", { className: "control" }, play));
  const frames = element("div", strip, ...pairs.map(makeFrame));
  const stage = element("div", { className: "stage" });
  return element("div", { className: "mi-film", "data-opened": pairs[0] }, head, frames, stage);
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
  const inFilms = prompt().films.flat();
  const stills = images.map((image, number) => (inFilms.includes(number) ? null : makeFigure(image, number)));
  $("images").replaceChildren(...prompt().films.map(makeFilm), ...stills.filter(Boolean));
  images.forEach((_, image) => { cursors[image] = [0, 0]; });
}

// Of each video: its bars, and the pair that is opened, the strongest until the reader opens another.
function drawFilms() {
  [...$("images").querySelectorAll(".mi-film")].forEach((film, nth) => {
    const pairs = prompt().films[nth];
    const scores = pairs.map(imageScore);
    const largest = Math.max(...scores.map(Math.abs)) || 1;
    film.dataset.opened = pairs[scores.findIndex((score) => Math.abs(score) === largest)] ?? pairs[0];
    film.querySelectorAll(".mi-frame").forEach((frame, place) => {
      const bar = frame.querySelector(".mi-bar i");
      bar.className = toneOf(scores[place]);
      bar.style.width = `${(100 * Math.abs(scores[place])) / largest}%`;
      frame.querySelector(".mi-when b").textContent = imageText(pairs[place]);
    });
    const opened = openedOf(pairs, Number(film.dataset.opened));
    const stage = film.querySelector(".stage");
    if (Number(stage.dataset.frame ?? -1) !== opened) {
      stage.replaceChildren(makeFigure(prompt().images[opened], opened));
      stage.dataset.frame = opened;
    }
    markOpened(film);
  });
}

function toneOf(score) {
  if (!isSigned()) return "read";
  return score <= 0 ? "mi-for" : "mi-against";
}

export function drawImages() {
  const { images } = prompt();
  if (!images.length) return;
  drawFilms();
  for (const figure of $("images").querySelectorAll("[data-image]")) {
    const number = Number(figure.dataset.image);
    const { source, grid: [rows, columns] } = images[number];
    drawOverlay(figure.querySelector("canvas"), number);
    if (figure.localName !== "figure") continue;
    const name = source ? `${imageName(number)}: ${visible(source)}` : imageName(number);
    const share = `${shown() === "effect" ? "" : "together "}${imageText(number)} of ${layersText()}`;
    figure.querySelector("figcaption").textContent = `${name} · ${rows} × ${columns} patches, ${share}`;
  }
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

whenFrame(() => { if (view) drawImages(); });

section("distances", ["distances"], { draw: makeImages, chart: drawImages, into: "images" });
