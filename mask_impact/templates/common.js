"use strict";
// What any page of results needs, whatever it shows: blocks of distances, numbers, texts, colours, files to download.
// Texts of a prompt or a tokenizer reach the document through textContent only, and plotly through `plotlyText`.

// ---- blocks of distances ---------------------------------------------------------------------------------------------------

function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unzipped(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The float32 values of a block; mask_impact/report.py describes the layout.
async function distancesOf(base64) {
  const bytes = await unzipped(base64);
  const digits = bytes[0];
  const n = new DataView(bytes.buffer).getUint32(1, true);
  const nKept = digits === 23 ? 32 : 8 + digits;
  const turned = new Uint32Array(n);
  let at = 5;
  let place = 24;
  for (; place >= 32 - nKept; place -= 8, at += n) for (let i = 0; i < n; i++) turned[i] |= bytes[at + i] << place;
  for (place += 7; place >= 32 - nKept; place--, at += Math.ceil(n / 8)) {
    for (let i = 0; i < n; i++) turned[i] |= ((bytes[at + (i >> 3)] >> (7 - (i & 7))) & 1) << place;
  }
  for (let i = 0; i < n; i++) turned[i] = (turned[i] >>> 1) | (turned[i] << 31);
  return new Float32Array(turned.buffer);
}

// ---- numbers -----------------------------------------------------------------------------------------------------------------

// The shortest decimal number that gives back the same float32.
function float32Text(value) {
  for (let digits = 1; digits < 9; digits++) {
    const text = Number(value.toPrecision(digits));
    if (Math.fround(text) === value) return String(text);
  }
  return String(Number(value.toPrecision(9)));
}

function shortText(value) {
  return String(Number(value.toPrecision(3)));
}

function percentText(share) {
  return share > 0 && share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
}

// ---- texts -------------------------------------------------------------------------------------------------------------------

// Control, format and unassigned characters, and separators other than the space: what can't be seen, or moves others.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}|\\/gu;
const WRITTEN = { "\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\" };

// The text with everything written out that can't be seen (`\n`, `\x1b`, `\u202e`).
function visible(text) {
  return text.replace(UNSEEN, (char) => {
    if (WRITTEN[char]) return WRITTEN[char];
    const code = char.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

function quoted(text, width = Infinity) {
  const inner = [...visible(text).replaceAll('"', '\\"')];
  return `"${inner.length > width ? `${inner.slice(0, width - 1).join("")}…` : inner.join("")}"`;
}

// plotly takes some HTML in its texts, links among it.
function plotlyText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "scope" || name.startsWith("data-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// ---- colours -----------------------------------------------------------------------------------------------------------------

// The magma map, its ends moved to the colour of the page: lightness is even, so that it reads without hues as well.
const STOPS = {
  light: ["#ffffff", "#fee6cf", "#fec287", "#fb8761", "#e55964", "#b5367a", "#812581", "#4f127b", "#251052"],
  dark: ["#1b1822", "#2d1452", "#4f127b", "#812581", "#b5367a", "#e55964", "#fb8761", "#fec287", "#fcfdbf"],
};
// For numbers with a sign, from none to most: orange for negative, blue for positive ones, which nearly all eyes tell apart.
const SIGNED = {
  light: { negative: ["#ffffff", "#fdd9b4", "#fba55c", "#e4701e", "#a8480c"], positive: ["#ffffff", "#cfe1f5", "#8fbfe8", "#4a8fce", "#1d5a9e"] },
  dark: { negative: ["#1b1822", "#5c2c0a", "#a8500f", "#ea8430", "#ffc98f"], positive: ["#1b1822", "#123d66", "#2468a8", "#5ba0e0", "#b9dcfb"] },
};
// Colours for lines, told apart by people who see fewer of them (after Okabe and Ito); dashes and marks differ as well.
const LINES = {
  light: ["#0072b2", "#d55e00", "#007a5a", "#b0478f", "#8a6d00", "#3a9bd6", "#5e3c99", "#333333"],
  dark: ["#56b4e9", "#e69f00", "#2bd19e", "#e58fc0", "#f0e442", "#8ab4ff", "#c3adff", "#eeeeee"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down"];

const theme = () => document.documentElement.dataset.theme; // light or dark

// The colour that a custom property has in the theme that is on, as rgb(): a property itself says light-dark(...).
function cssColour(name) {
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

// The colour at 0..1 as [red, green, blue].
function rgbAt(level) {
  const stops = STOPS[theme()];
  const place = Math.min(Math.max(level, 0), 1) * (stops.length - 1);
  const [low, high] = [rgbOf(stops[Math.floor(place)]), rgbOf(stops[Math.ceil(place)])];
  return low.map((one, i) => Math.round(one + (high[i] - one) * (place % 1)));
}

const colourAt = (level) => `rgb(${rgbAt(level).join(",")})`;

// Black or white, whichever is easier to read on the colour (relative luminance of WCAG 2).
function inkOn(rgb) {
  const [r, g, b] = rgb.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

const colourScale = () => STOPS[theme()].map((colour, i, all) => [i / (all.length - 1), colour]);

// For levels from -1 to 1.
function signedColours() {
  const { negative, positive } = SIGNED[theme()];
  const all = [...[...negative].reverse(), ...positive.slice(1)];
  return all.map((colour, i) => [i / (all.length - 1), colour]);
}

// ---- scales ------------------------------------------------------------------------------------------------------------------

const DECADES = 6; // that a logarithmic scale has at most

// Values from 0 to `high` to levels 0..1, and back; `low` is the smallest positive value.
function makeScale(kind, high, low) {
  if (!(high > 0)) return { level: () => 0, value: () => 0, high: 0 };
  if (kind === "linear") return { level: (v) => Math.max(v, 0) / high, value: (t) => t * high, high };
  if (kind === "sqrt") return { level: (v) => Math.sqrt(Math.max(v, 0) / high), value: (t) => t * t * high, high };
  const bottom = Math.min(Math.max(low, high / 10 ** DECADES), high / 10);
  const span = Math.log(high / bottom);
  return { level: (v) => (v > bottom ? Math.log(v / bottom) / span : 0), value: (t) => bottom * Math.exp(t * span), high, bottom };
}

// The largest and the smallest positive number among the values.
function extent(values) {
  let [high, low] = [0, Infinity];
  for (const value of values) {
    if (value > high) high = value;
    if (value > 0 && value < low) low = value;
  }
  return [high, low];
}

const TICKS = [0, 0.25, 0.5, 0.75, 1];

// ---- files to download -------------------------------------------------------------------------------------------------------

function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// RFC 4180: texts in quotation marks, theirs doubled, CR LF between rows. Texts are not changed otherwise.
function csvText(header, rows) {
  const cell = (value) => (typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : value === null ? "" : String(value));
  return [header, ...rows.map((row) => row.map(cell))].map((row) => `${row.join(",")}\r\n`).join("");
}

function downloadCsv(name, header, rows) {
  download(`${name}.csv`, new Blob([csvText(header, rows)], { type: "text/csv;charset=utf-8" }));
}

function downloadCanvas(name, canvas) {
  canvas.toBlob((blob) => download(`${name}.png`, blob), "image/png");
}

async function downloadChart(name, chart) {
  const { width, height } = chart.getBoundingClientRect();
  const url = await Plotly.toImage(chart, { format: "png", scale: 2, width: Math.round(width), height: Math.round(height) });
  download(`${name}.png`, new Blob([bytesOf(url.split(",")[1])], { type: "image/png" }));
}
