// SVG as text: its tags, its colours, and what a drawing uses by name.

import { element } from "./elements.js";

// By name, what stands at the top of the drawing that is being made: pictures, scales of colours, blurs.
export const named = new Map();

export const hundredths = (value) => Number(value.toFixed(2));
export const xmlText = (text) => String(text).replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);

export function tagOf(name, attributes, inner = "") {
  const written = Object.entries(attributes)
    .filter(([, value]) => value !== undefined && value !== "")
    .map(([key, value]) => ` ${key}="${xmlText(typeof value === "number" ? hundredths(value) : value)}"`);
  return `<${name}${written.join("")}>${inner}</${name}>`;
}

const onePixel = element("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
const coloursSeen = new Map();

// A colour, in whatever way a style says it, as six digits and its opacity.
function hexOf(said) {
  if (!coloursSeen.has(said)) {
    onePixel.clearRect(0, 0, 1, 1);
    onePixel.fillStyle = "transparent";
    onePixel.fillStyle = said;
    onePixel.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = onePixel.getImageData(0, 0, 1, 1).data;
    const hex = [red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("");
    coloursSeen.set(said, { hex: `#${hex}`, opacity: alpha / 255 });
  }
  return coloursSeen.get(said);
}

export function paintOf(what, said, opacity = 1, ending = "") {
  const colour = said === "none" ? { hex: "none", opacity: 1 } : hexOf(said);
  const seen = colour.opacity * opacity;
  return { [what + ending]: seen ? colour.hex : "none", [`${what}-opacity`]: seen && seen < 1 ? seen : undefined };
}

export const isSeen = (said) => hexOf(said).opacity > 0;

// How far a font reaches above the line and below it.
export function reachOf(font) {
  onePixel.font = font;
  const { fontBoundingBoxAscent: above, fontBoundingBoxDescent: below } = onePixel.measureText("x");
  return { above, below };
}
