// Pictures of what is shown, to be saved: of charts as PNG and SVG, of other parts as PNG, of any as PDF by the
// browser's own printing. Always light, with a title and a line that says where it comes from.

import { bytesOf } from "./blocks.js";
import { element } from "./elements.js";
import { plotlyText } from "./texts.js";

const DENSITY = 2; // pixels of a picture for one of the page
const [HEAD, FOOT, EDGE] = [36, 24, 16];
const INK = "#1d1a24";
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
  return { data: chart.data, layout };
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

// A picture of an element, drawn by the browser from a copy of it with the page's styles.
function pictureOf(node, { width, height }) {
  const copy = node.cloneNode(true);
  const drawn = [...node.querySelectorAll("canvas")];
  [...copy.querySelectorAll("canvas")].forEach((canvas, number) => {
    const { className, style } = canvas;
    canvas.replaceWith(element("img", { className, style: style.cssText, src: drawn[number].toDataURL() }));
  });
  for (const one of copy.querySelectorAll("[hidden], .exports, input[type='range']")) one.remove();
  const styles = [...document.querySelectorAll("style")].map((one) => one.textContent).join("\n");
  const text = new XMLSerializer().serializeToString(copy);
  const look = `color-scheme:light;background:#fff;color:${INK};font:15px/1.5 ${FACE};width:${width}px`;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" data-theme="light">`
    + `<foreignObject width="100%" height="100%"><div xmlns="http://www.w3.org/1999/xhtml" style="${look}">`
    + `<style><![CDATA[${styles}]]></style>${text}</div></foreignObject></svg>`;
}

export function saveNode(name, node, caption) {
  return inLight(async () => {
    const box = node.getBoundingClientRect();
    const [width, height] = [Math.ceil(box.width), Math.ceil(box.height)];
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(pictureOf(node, { width, height }))}`;
    await picture.decode();
    const canvas = element("canvas", { width: DENSITY * width, height: DENSITY * (height + FOOT) });
    const context = canvas.getContext("2d");
    context.scale(DENSITY, DENSITY);
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height + FOOT);
    context.drawImage(picture, 0, 0, width, height);
    context.fillStyle = SOFT;
    context.font = `11px ${FACE}`;
    context.fillText(caption, EDGE, height + FOOT - 9, width - 2 * EDGE);
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
