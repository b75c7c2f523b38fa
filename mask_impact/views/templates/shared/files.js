// Files to download: CSV, charts as PNG, and the buttons that save what a card shows.

import { bytesOf } from "./blocks.js";
import { $, element } from "./elements.js";

export function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csvCell(value) {
  if (typeof value === "string") return `"${value.replaceAll('"', '""')}"`;
  return value === null ? "" : String(value);
}

// RFC 4180: texts in quotation marks, theirs doubled, CR LF between rows. Texts are not changed otherwise.
function csvText(header, rows) {
  return [header, ...rows.map((row) => row.map(csvCell))].map((row) => `${row.join(",")}\r\n`).join("");
}

export function downloadCsv(name, header, rows) {
  download(`${name}.csv`, new Blob([csvText(header, rows)], { type: "text/csv;charset=utf-8" }));
}

export async function downloadChart(name, chart) {
  const { width, height } = chart.getBoundingClientRect();
  const size = { width: Math.round(width), height: Math.round(height) };
  const url = await Plotly.toImage(chart, { format: "png", scale: 2, ...size });
  download(`${name}.png`, new Blob([bytesOf(url.split(",")[1])], { type: "image/png" }));
}

export const safeName = (text) => text.replace(/[^\p{L}\p{N}._-]+/gu, "_");

export function saveButton(kind, label, save) {
  const made = element("button", { type: "button", textContent: kind, "aria-label": label });
  made.addEventListener("click", save);
  return made;
}

// The buttons of each card that has a place for them. csv: by card what gives [header, rows], or a promise of it; png:
// by card what saves a picture, of those that are no charts. fileName(card): without an ending.
export function makeExports(fileName, csv, png = {}) {
  for (const place of document.querySelectorAll(".exports[data-card]")) {
    const { card } = place.dataset;
    const title = place.closest("section").querySelector("h2").textContent;
    if (png[card] || $(card).classList.contains("chart")) {
      const save = () => (png[card] ? png[card]() : downloadChart(fileName(card), $(card)));
      place.append(saveButton("PNG", `Save ${title} as PNG`, save));
    }
    const save = async () => downloadCsv(fileName(card), ...(await csv[card]()));
    place.append(saveButton("CSV", `Save the numbers of ${title} as CSV`, save));
  }
}
