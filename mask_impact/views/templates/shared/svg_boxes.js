// Boxes of the page as SVG: background, borders, outline, and the ring around what is chosen.

import { hundredths, isSeen, named, paintOf, tagOf } from "./svg.js";

const EDGES = ["Top", "Right", "Bottom", "Left"];

export const rectangle = ({ x, y, width, height }, look) => tagOf("rect", { x, y, width, height, ...look });

function grownBy({ x, y, width, height }, by) {
  return { x: x - by, y: y - by, width: width + 2 * by, height: height + 2 * by };
}

// What has a gradient: a strip along an edge (`0% 3px`) in one colour, or a scale of colours from left to right.
function gradientOf(style, place, rx) {
  const colours = style.backgroundImage.match(/rgba?\([^)]*\)|color\([^)]*\)/g) ?? [];
  const [wide, high] = style.backgroundSize.split(" ");
  if (high?.endsWith("px")) {
    const width = wide.endsWith("%") ? place.width * parseFloat(wide) / 100 : parseFloat(wide);
    const x = style.backgroundPosition.startsWith("100%") ? place.x + place.width - width : place.x;
    const height = parseFloat(high);
    return rectangle({ x, y: place.y + place.height - height, width, height }, paintOf("fill", colours[0]));
  }
  if (!style.backgroundImage.startsWith("linear-gradient(to right,")) return "";
  const id = `colours-${named.size}`;
  const stops = colours.map((colour, nth) => {
    const offset = `${hundredths(100 * nth / (colours.length - 1))}%`;
    return tagOf("stop", { offset, ...paintOf("stop", colour, 1, "-color") });
  });
  named.set(id, tagOf("linearGradient", { id }, stops.join("")));
  return rectangle(place, { rx, fill: `url(#${id})` });
}

function bordersOf(style, place, rx) {
  const sides = EDGES.map((side) => ({
    width: style[`border${side}Style`] === "none" ? 0 : parseFloat(style[`border${side}Width`]),
    colour: style[`border${side}Color`], dashed: style[`border${side}Style`] === "dashed",
  }));
  const [first] = sides;
  const look = ({ width, colour, dashed }) => ({
    ...paintOf("stroke", colour), "stroke-width": width,
    "stroke-dasharray": dashed ? `${2 * width} ${1.5 * width}` : "",
  });
  if (sides.every(({ width, colour }) => width === first.width && colour === first.colour)) {
    if (!first.width || !isSeen(first.colour)) return "";
    return rectangle(grownBy(place, -first.width / 2), { rx, fill: "none", ...look(first) });
  }
  const [left, top, right, bottom] = [place.x, place.y, place.x + place.width, place.y + place.height];
  return sides.map((side, which) => {
    if (!side.width || !isSeen(side.colour)) return "";
    const inset = side.width / 2;
    const y = which === 0 ? top + inset : bottom - inset;
    const x = which === 1 ? right - inset : left + inset;
    const ends = which % 2 ? { x1: x, x2: x, y1: top, y2: bottom } : { x1: left, x2: right, y1: y, y2: y };
    return tagOf("line", { ...ends, ...look(side) });
  }).join("");
}

// Background, borders, outline and the ring around what is chosen.
export function boxOf(style, place) {
  const rx = Math.min(parseFloat(style.borderTopLeftRadius) || 0, place.width / 2, place.height / 2) || undefined;
  const parts = [];
  if (isSeen(style.backgroundColor)) parts.push(rectangle(place, { rx, ...paintOf("fill", style.backgroundColor) }));
  if (style.backgroundImage !== "none") parts.push(gradientOf(style, place, rx));
  parts.push(bordersOf(style, place, rx));
  const ring = style.boxShadow.match(/^(.*\)) 0px 0px 0px ([\d.]+)px$/);
  const outline = style.outlineStyle === "none" ? null : ["", style.outlineColor, style.outlineWidth];
  for (const [, colour, wide] of [ring, outline].filter(Boolean)) {
    const width = parseFloat(wide);
    const look = { rx, fill: "none", "stroke-width": width, ...paintOf("stroke", colour) };
    parts.push(rectangle(grownBy(place, width / 2), look));
  }
  return parts.join("");
}
