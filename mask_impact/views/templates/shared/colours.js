// Colours: of levels, of lines and marks, and of the page itself, in the theme that is on.

import { element } from "./elements.js";
import { theme } from "./theme.js";

// The magma map, its ends moved to the colour of the page: lightness is even, so that it reads without hues as well.
const STOPS = {
  light: ["#ffffff", "#fee6cf", "#fec287", "#fb8761", "#e55964", "#b5367a", "#812581", "#4f127b", "#251052"],
  dark: ["#1b1822", "#2d1452", "#4f127b", "#812581", "#b5367a", "#e55964", "#fb8761", "#fec287", "#fcfdbf"],
};
// Colours for lines, told apart by people who see fewer of them (after Okabe and Ito); dashes and marks differ as well.
const LINES = {
  light: ["#0072b2", "#d55e00", "#007a5a", "#b0478f", "#8a6d00", "#3a9bd6", "#5e3c99", "#333333"],
  dark: ["#56b4e9", "#e69f00", "#2bd19e", "#e58fc0", "#f0e442", "#8ab4ff", "#c3adff", "#eeeeee"],
};
export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash"];
export const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down"];

export const stops = () => STOPS[theme()];
export const lineColour = (nth) => LINES[theme()][nth];

const known = {}; // by theme and name: to read a colour, the browser lays out the page

// The colour that a custom property has in the theme that is on, as rgb(): a property itself says light-dark(...).
export function cssColour(name) {
  return (known[theme()] ??= {})[name] ??= readColour(name);
}

function readColour(name) {
  const probe = element("span", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function rgbOf(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// The colour at 0..1 of some stops as [red, green, blue].
export function rgbAt(level, all = stops()) {
  const place = Math.min(Math.max(level, 0), 1) * (all.length - 1);
  const [low, high] = [rgbOf(all[Math.floor(place)]), rgbOf(all[Math.ceil(place)])];
  return low.map((one, i) => Math.round(one + (high[i] - one) * (place % 1)));
}

export const rgbText = (rgb) => `rgb(${rgb.join(",")})`;

// Black or white, whichever is easier to read on the colour (relative luminance of WCAG 2).
export function inkOn(rgb) {
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = rgb.map((part) => linear(part / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

// Colours evenly over levels, as plotly takes them.
export const spread = (colours) => colours.map((colour, i, all) => [i / (all.length - 1), colour]);

// For levels from 0 to 1.
export const colourScale = () => spread(stops());
