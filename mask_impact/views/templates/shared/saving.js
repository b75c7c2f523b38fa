// Pictures of what is shown, to be saved: as PNG and SVG, and as PDF by the browser's own printing. Always light, with
// a title and a line that says where it comes from.

import { bytesOf } from "./blocks.js";
import { drawingOf } from "./drawing.js";
import { element } from "./elements.js";
import { plotlyText } from "./texts.js";

const DENSITY = 2; // pixels of a picture for one of the page
const [HEAD, FOOT, EDGE] = [36, 24, 16];
const SOFT = "#5e5969";
const FACE = "system-ui, sans-serif";

export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

let inLight = (save) => save();
// How the page's theme is asked for and set, which is light while something is saved.
export function whenSaving(themeNow, setTheme) {
  inLight = async (save) => {
    const before = themeNow();
    await setTheme("light");
    try {
      await save();
    } finally {
      await setTheme(before);
    }
  };
}

// ---- charts ----

// The chart as plotly takes it, with room for what is said above and below.
function withCaption(chart, { title, caption }) {
  const { margin } = chart.layout;
  const below = {
    text: plotlyText(caption), xref: "paper", yref: "paper", x: 0, y: 0, xanchor: "left", yanchor: "top",
    yshift: -margin.b - 4, showarrow: false, font: { size: 10, color: SOFT }, align: "left",
  };
  const layout = {
    ...chart.layout, margin: { ...margin, t: margin.t + HEAD, b: margin.b + FOOT },
    title: { text: plotlyText(title), x: 0, xref: "paper", y: 1, yref: "container", yanchor: "top", pad: { t: 10 } },
    annotations: [...(chart.layout.annotations ?? []), below],
  };
  return { data: chart.data.map((trace) => (trace.colorbar ? { ...trace, showscale: true } : trace)), layout };
}

export function saveChart(name, chart, format, about) {
  return inLight(async () => {
    const { width, height } = chart.getBoundingClientRect();
    const size = { width: Math.round(width), height: Math.round(height) + HEAD + FOOT };
    const isVector = format === "svg";
    const wanted = { format, scale: isVector ? 1 : DENSITY, ...size };
    const url = await Plotly.toImage(withCaption(chart, about), wanted);
    const content = url.slice(url.indexOf(",") + 1);
    const type = isVector ? "image/svg+xml" : "image/png";
    download(`${name}.${format}`, new Blob([isVector ? decodeURIComponent(content) : bytesOf(content)], { type }));
  });
}

// ---- what stands in the page ----

const CAPTION = { x: EDGE, "font-family": FACE, "font-size": "11px", fill: SOFT };
const LINE = 16;

// A text in lines that are as wide as that at most.
function brokenAt(width, text) {
  const context = element("canvas").getContext("2d");
  context.font = `11px ${FACE}`;
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.filter(Boolean);
}

// As SVG, or as the PNG that the browser makes of it.
export function saveNode(name, node, format, caption) {
  return inLight(async () => {
    const { text, width, height } = drawingOf(node, brokenAt(node.clientWidth - 2 * EDGE, caption), LINE, CAPTION);
    if (format === "svg") {
      download(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));
      return;
    }
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await picture.decode();
    const canvas = element("canvas", { width: DENSITY * width, height: DENSITY * height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
    download(`${name}.png`, blob);
  });
}

// ---- printing ----

// Lets the browser print a section alone, as PDF where the reader says so.
export function printSection(section) {
  return inLight(async () => {
    document.body.classList.add("printing");
    section.classList.add("printed");
    print();
    document.body.classList.remove("printing");
    section.classList.remove("printed");
  });
}
