// The cards of images and of text drawn on canvases, to be saved as PNG: twice the page's pixels.

import { cssColour } from "../shared/colours.js";
import { $, element } from "../shared/elements.js";
import { METRIC_NAMES } from "./file.js";
import { state } from "./state.js";
import { layersText } from "./view.js";

const MARGIN = 12;
const LINE = 30; // pixels from one line of text to the next
const FONT = { text: "15px sans-serif", caption: "12px sans-serif" };

function contextOf(canvas, width, height) {
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = cssColour("--card");
  context.fillRect(0, 0, width, height);
  return context;
}

// ---- images ----

export function imagesCanvas() {
  const figures = [...$("images").children];
  const boxes = figures.map((figure) => figure.querySelector(".picture").getBoundingClientRect());
  const width = 2 * boxes.reduce((sum, box) => sum + box.width + MARGIN, MARGIN);
  const canvas = element("canvas", { width, height: 2 * (Math.max(...boxes.map((box) => box.height)) + 48) });
  const context = contextOf(canvas, canvas.width, canvas.height);
  let x = MARGIN;
  figures.forEach((figure, number) => {
    drawFigure(context, figure, x, boxes[number]);
    x += boxes[number].width + MARGIN;
  });
  return canvas;
}

function drawFigure(context, figure, x, { width, height }) {
  context.fillStyle = cssColour("--none");
  context.fillRect(x, MARGIN, width, height);
  for (const layer of figure.querySelectorAll("img, canvas")) context.drawImage(layer, x, MARGIN, width, height);
  context.fillStyle = cssColour("--ink");
  context.font = FONT.caption;
  context.fillText(figure.querySelector("figcaption").textContent, x, height + 32, width);
}

// ---- text ----

// Of each token's element { node, x, y, wide } in lines of the width, and where the last line is.
function placeTokens(context, width) {
  const placed = [];
  let [x, y] = [MARGIN, MARGIN];
  const newLine = () => { x = MARGIN; y += LINE; };
  context.font = FONT.text;
  for (const node of $("text").childNodes) {
    if (node.nodeType === Node.TEXT_NODE || node.nodeName === "BR") {
      newLine();
      continue;
    }
    const wide = context.measureText(node.textContent).width + 4;
    if (x > MARGIN && x + wide > width - MARGIN) newLine();
    placed.push({ node, x, y, wide });
    x += wide + 2;
  }
  return { placed, last: y };
}

export function textCanvas() {
  const width = Math.max(Math.round($("text").getBoundingClientRect().width), 300);
  const canvas = element("canvas");
  const { placed, last } = placeTokens(canvas.getContext("2d"), width);
  Object.assign(canvas, { width: 2 * width, height: 2 * (last + 64) });
  const context = contextOf(canvas, width, last + 64);
  context.textBaseline = "middle";
  context.font = FONT.text;
  for (const { node, x, y, wide } of placed) {
    const style = getComputedStyle(node);
    context.fillStyle = style.backgroundColor;
    context.fillRect(x, y, wide, 24);
    context.fillStyle = style.color;
    context.fillText(node.textContent, x + 2, y + 12.5, width - 28);
  }
  context.font = FONT.caption;
  context.fillStyle = cssColour("--soft");
  const what = `Share of the impact in ${layersText()}, ${METRIC_NAMES[state.metric]} of ${state.variant}`;
  const caption = `${what}; strongest ${$("text-legend").textContent}`;
  context.fillText(caption, MARGIN, last + 48, width - 2 * MARGIN);
  return canvas;
}
