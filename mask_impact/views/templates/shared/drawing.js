// A part of the page as an SVG of its own: boxes, texts and pictures where the browser has put them, as shapes that any
// program for drawings can read. Texts stay texts, as wide as they are here.

import { hundredths, named, paintOf, reachOf, tagOf, xmlText } from "./svg.js";
import { boxOf, rectangle } from "./svg_boxes.js";
import { svgOf } from "./svg_pictures.js";

const SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"';
const LEFT_OUT = [
  "[hidden]", ".exports", ".tools", ".control", ".folds", ".mi-smoothing", ".visually-hidden", "input", "select",
  "script", "style", "title",
].join(", ");

// ---- texts ----

const graphemes = new Intl.Segmenter();

// The lines of a text node: what stands in each, without spaces around it, and where.
function linesOf(node, isVertical) {
  const range = document.createRange();
  const lines = [];
  let spaces = "";
  for (const { segment, index } of graphemes.segment(node.data)) {
    if (!segment.trim()) {
      spaces += segment;
      continue;
    }
    range.setStart(node, index);
    range.setEnd(node, index + segment.length);
    const { left, right, top, bottom } = range.getBoundingClientRect();
    const at = isVertical ? left : top;
    const line = lines.at(-1);
    if (line && Math.abs(line.at - at) < 1) {
      line.text += spaces + segment;
      for (const [side, value] of Object.entries({ left, top })) line[side] = Math.min(line[side], value);
      for (const [side, value] of Object.entries({ right, bottom })) line[side] = Math.max(line[side], value);
    } else {
      lines.push({ text: segment, at, left, right, top, bottom });
    }
    spaces = "";
  }
  return lines;
}

// Each line is set around its middle, so that it may run either way.
function textOf(node, corner, decoration) {
  if (!node.data.trim()) return "";
  const style = getComputedStyle(node.parentElement);
  const isVertical = style.writingMode.startsWith("vertical");
  const { above, below } = reachOf(style.font);
  const look = {
    "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight,
    "font-style": style.fontStyle === "normal" ? "" : style.fontStyle, "text-decoration": decoration,
    "text-anchor": "middle", lengthAdjust: "spacingAndGlyphs", "xml:space": "preserve", ...paintOf("fill", style.color),
  };
  return linesOf(node, isVertical).map(({ text, left, right, top, bottom }) => {
    const [x, y] = [(left + right) / 2 - corner.x, (top + bottom) / 2 - corner.y];
    const rise = (above - below) / 2; // from a line's middle to what it stands on
    if (!isVertical) return tagOf("text", { x, y: y + rise, textLength: right - left, ...look }, xmlText(text));
    const turned = style.transform.startsWith("matrix(-1") ? -90 : 90;
    const place = { x: 0, y: rise, transform: `translate(${hundredths(x)} ${hundredths(y)}) rotate(${turned})` };
    return tagOf("text", { ...place, textLength: bottom - top, ...look }, xmlText(text));
  }).join("");
}

// ---- all of it ----

function clipOf(node, style, place, inner) {
  const isCut = node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1;
  if (!inner || !isCut || style.overflow === "visible" || !node.clientWidth) return inner;
  const { x, y, width, height } = place;
  return tagOf("svg", { x, y, width, height, viewBox: [x, y, width, height].map(hundredths).join(" ") }, inner);
}

function insideOf(node, corner, place, decoration) {
  if (node.localName === "svg") return place ? svgOf(node, corner) : "";
  if (node.localName === "canvas" || node.localName === "img") return place ? imageOf(node, place) : "";
  return [...node.childNodes].map((child) => shapeOf(child, corner, decoration)).join("");
}

const hasInk = ({ display, visibility, opacity }) => display !== "none" && visibility !== "hidden" && opacity !== "0";

function shapeOf(node, corner, decoration = "") {
  if (node.nodeType === Node.TEXT_NODE) return textOf(node, corner, decoration);
  if (node.nodeType !== Node.ELEMENT_NODE || node.matches(LEFT_OUT)) return "";
  const style = getComputedStyle(node);
  if (!hasInk(style)) return "";
  const places = [...node.getClientRects()]
    .map(({ x, y, width, height }) => ({ x: x - corner.x, y: y - corner.y, width, height }))
    .filter(({ width, height }) => width && height);
  const line = style.textDecorationLine === "none" ? decoration : style.textDecorationLine;
  const inner = insideOf(node, corner, places[0], line);
  const boxes = places.map((place) => boxOf(style, place)).join("");
  const all = boxes + (places.length === 1 ? clipOf(node, style, places[0], inner) : inner);
  return style.opacity === "1" || !all ? all : tagOf("g", { opacity: style.opacity }, all);
}

function imageOf(node, place) {
  const source = node.localName === "canvas" ? node.toDataURL() : node.src;
  return tagOf("image", { ...place, "xlink:href": source, preserveAspectRatio: "none" });
}

// An element as { text, width, height }, with lines of a caption below it. foot: the room of a line; look: attributes.
export function drawingOf(node, lines, foot, look) {
  const corner = node.getBoundingClientRect();
  const [width, high] = [Math.ceil(corner.width), Math.ceil(corner.height)];
  const height = high + foot * lines.length;
  named.clear();
  const inner = shapeOf(node, corner);
  const middle = (nth) => high + foot * (nth + 0.5);
  const below = lines.map((line, nth) => tagOf("text", { y: middle(nth) + 3, ...look }, xmlText(line)));
  const paper = rectangle({ x: 0, y: 0, width, height }, { fill: "#ffffff" });
  const text = `<svg ${SPACES} width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`
    + `${tagOf("defs", {}, [...named.values()].join(""))}${paper}${inner}${below.join("")}</svg>`;
  return { text, width, height };
}
