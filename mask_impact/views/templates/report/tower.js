// What the vision tower's layers read: maps over the images, of one layer or the mean of all, which stand in the page
// with their numbers. Whether it matters stands beside them as it is.

import { distancesOf } from "../shared/blocks.js";
import { rgbAt, rgbText, stops } from "../shared/colours.js";
import { checkRadio, $ } from "../shared/elements.js";
import { clamp, float32Text } from "../shared/numbers.js";
import { placeInGrid, strokeFrame } from "../shared/pictures.js";
import { extent, makeScale } from "../shared/scales.js";
import { hideTip, showTip } from "../shared/tip.js";
import { gradientBar } from "./legend.js";
import { drawTargets } from "./looked.js";
import { drawOwn } from "./routes.js";
import { has, section } from "./sections.js";
import { prompt, set, state } from "./state.js";

const READ_KINDS = ["attention", "full", "error"];
const MAP_SIDE = 1024; // pixels of a map
const MAP_VEIL = 0.8; // opacity of the strongest colour

const reading = () => prompt().looked.tower.reading;
const mapCanvases = () => [...$("tower-reads").querySelectorAll(`[data-prompt="${state.prompt}"] canvas`)];

// ---- the numbers ----

const mapsTaken = []; // by prompt its maps

// A map's numbers of each kind, [layer, row, column], and their means over the layers.
async function mapOf(canvas) {
  const [rows, columns] = [Number(canvas.dataset.rows), Number(canvas.dataset.columns)];
  const [values, n, nLayers] = [await distancesOf(canvas.dataset.values), rows * columns, reading().n_layers];
  const kinds = {};
  for (let nth = 0; nth * n * nLayers < values.length; nth++) {
    kinds[READ_KINDS[nth]] = values.subarray(nth * n * nLayers, (nth + 1) * n * nLayers);
  }
  return { canvas, image: Number(canvas.dataset.image), rows, columns, n, kinds };
}

// A promise that the maps of the current prompt are unpacked.
export async function takeReadings() {
  if (has("tower")) mapsTaken[state.prompt] ??= await Promise.all(mapCanvases().map(mapOf));
}

const readMaps = () => mapsTaken[state.prompt];

const kindShown = () => state.reads;
const isMeanOfTower = () => state.tower < 0;

function meanOf({ kinds, n }, kind) {
  const nLayers = reading().n_layers;
  return Float32Array.from({ length: n }, (_, i) => {
    let sum = 0;
    for (let layer = 0; layer < nLayers; layer++) sum += kinds[kind][layer * n + i];
    return sum / nLayers;
  });
}

// Of each unit what is shown.
function numbersOf(map) {
  if (isMeanOfTower()) return meanOf(map, kindShown());
  return map.kinds[kindShown()].subarray(state.tower * map.n, (state.tower + 1) * map.n);
}

// ---- texts ----

const towerLayerText = () => (isMeanOfTower() ? "mean of all layers" : `layer ${state.tower}`);
const READ_OF = { attention: "attention output", full: "whole update" };

function readError({ kinds, n }, unit) {
  if (kindShown() !== "full" || !kinds.error || isMeanOfTower()) return "";
  return ` ± ${kinds.error[state.tower * n + unit].toFixed(3)}`;
}

function readText(map, numbers, unit) {
  const [row, column] = [Math.floor(unit / map.columns), unit % map.columns];
  return `${reading().unit} [${row}, ${column}], ${numbers[unit].toFixed(3)}${readError(map, unit)}`;
}

const largestOf = (numbers) => numbers.reduce((best, value, unit) => (value > numbers[best] ? unit : best), 0);

function medianOf(numbers) {
  const sorted = [...numbers].sort((one, other) => one - other);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  return (low + high) / 2;
}

// ---- drawing ----

function drawMap(map, scale) {
  const { canvas, rows, columns } = map;
  const numbers = numbersOf(map);
  const side = Math.max(1, Math.floor(MAP_SIDE / Math.max(rows, columns)));
  Object.assign(canvas, { width: columns * side, height: rows * side });
  const context = canvas.getContext("2d");
  numbers.forEach((value, unit) => {
    const level = scale.level(value);
    context.globalAlpha = MAP_VEIL * level;
    context.fillStyle = rgbText(rgbAt(level));
    context.fillRect((unit % columns) * side, Math.floor(unit / columns) * side, side, side);
  });
  context.globalAlpha = 1;
  const most = largestOf(numbers);
  const rect = [(most % columns) * side, Math.floor(most / columns) * side, side, side];
  strokeFrame(context, rect, 2, canvas.width / (canvas.clientWidth || canvas.width), "#000000");
  const said = `${towerLayerText()}: read most ${readText(map, numbers, most)}; median ${medianOf(numbers).toFixed(3)}`;
  canvas.closest("figure").querySelector(".mi-most").textContent = said;
}

function drawTowerControls() {
  const { n_layers: nLayers, probes } = reading();
  $("tower-layer").max = nLayers - 1;
  $("tower-layer").value = Math.max(state.tower, 0);
  $("tower-layer").setAttribute("aria-valuetext", isMeanOfTower() ? "mean of all layers" : `layer ${state.tower}`);
  $("tower-layer-value").textContent = isMeanOfTower() ? "all" : `${state.tower} / ${nLayers - 1}`;
  $("tower-shown-part").hidden = !probes;
  checkRadio("tower-range", isMeanOfTower() ? "all" : "layer");
  checkRadio("tower-shown", kindShown());
}

// One scale for all layers and images, so that they can be compared.
function drawReads() {
  drawTowerControls();
  const [high, low] = extent(readMaps().flatMap(({ kinds }) => [...kinds[kindShown()]]));
  const scale = makeScale("sqrt", high, low);
  for (const map of readMaps()) drawMap(map, scale);
  const own = [...$("tower-reads").children].find((one) => !one.hidden);
  const said = `${high.toPrecision(3)} of the layer's ${READ_OF[kindShown()]} · square-root scale`;
  own.querySelector(".mi-read-legend").replaceChildren("0", gradientBar(stops()), said);
  for (const bar of own.querySelectorAll("[data-layer]")) {
    bar.classList.toggle("mi-now", Number(bar.dataset.layer) === state.tower);
  }
}

function drawTower() {
  drawTargets("tower");
  drawOwn("tower-reads", () => true);
  drawReads();
}

// ---- what is done to them ----

const lastTowerLayer = () => reading().n_layers - 1;
export const moveTower = (by) => set({ tower: clamp(state.tower + by, -1, lastTowerLayer()) });
export const arrowsAreOfTower = () => (
  has("tower") && (!has("distances") || $("tower-card").contains(document.activeElement))
);

function showUnit(event) {
  const map = readMaps()?.find(({ canvas }) => canvas === event.target);
  if (!map) return hideTip();
  const place = placeInGrid(event, map.canvas, [map.rows, map.columns]);
  const [row, column] = [clamp(place[0], 0, map.rows - 1), clamp(place[1], 0, map.columns - 1)];
  const text = readText(map, numbersOf(map), row * map.columns + column);
  return showTip(`${text} of the ${READ_OF[kindShown()]}, ${towerLayerText()}`, event.clientX, event.clientY);
}

export function connectTower() {
  const reads = $("tower-reads");
  reads.addEventListener("mousemove", showUnit);
  reads.addEventListener("mouseleave", hideTip);
  reads.addEventListener("click", ({ target }) => {
    const bar = target.closest("[data-layer]");
    if (bar) set({ tower: Number(bar.dataset.layer) });
  });
  $("tower-layer").addEventListener("input", ({ target }) => set({ tower: Number(target.value) }));
  $("tower-range").addEventListener("change", ({ target }) => {
    set({ tower: target.value === "all" ? -1 : Number($("tower-layer").value) });
  });
  $("tower-shown").addEventListener("change", ({ target }) => set({ reads: target.value }));
}

// ---- files ----

const numberIn = (values, at) => (values ? Number(float32Text(values[at])) : null);

function readingRows() {
  const { columns: names, unit, probes, n_layers: nLayers } = reading();
  const rows = readMaps().flatMap(({ image, columns, n, kinds }) => Array.from({ length: nLayers * n }, (_, at) => [
    image, Math.floor(at / n), unit, Math.floor((at % n) / columns), (at % n) % columns,
    ...READ_KINDS.map((kind) => numberIn(kinds[kind], at)), probes,
  ]));
  return [names, rows];
}

export const TOWER_FILES = { "tower-reads": readingRows };

section("tower-card", ["tower"], { draw: drawTower });
