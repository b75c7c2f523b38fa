// Files to download: CSV, and the buttons that save what a card shows.

import { $, element } from "./elements.js";
import { download, printSection, saveChart, saveNode } from "./saving.js";

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

export const safeName = (text) => text.replace(/[^\p{L}\p{N}._-]+/gu, "_");

export function saveButton(kind, label, save) {
  const made = element("button", { type: "button", textContent: kind, "aria-label": label });
  made.addEventListener("click", save);
  return made;
}

// The buttons of each card that has a place for them. csv: by card what gives [header, rows], or a promise of it, where
// it has numbers; fileName(card): without an ending; caption(): what is said below a picture.
export function makeExports(fileName, csv, caption) {
  for (const place of document.querySelectorAll(".exports[data-card]")) {
    const { card } = place.dataset;
    const section = place.closest("section");
    const title = place.dataset.title ?? section.querySelector("h2").textContent;
    const add = (kind, what, save) => place.append(saveButton(kind, `Save ${what}${title} as ${kind}`, save));
    const isChart = $(card).classList.contains("chart");
    const saveAs = (kind) => (isChart
      ? saveChart(fileName(card), $(card), kind, { title, caption: caption() })
      : saveNode(fileName(card), section, kind, caption()));
    add("PNG", "", () => saveAs("png"));
    if (csv[card]) {
      add("CSV", "the numbers of ", async () => downloadCsv(fileName(card), ...(await csv[card]())));
    }
    add("SVG", "", () => saveAs("svg"));
    add("PDF", "", () => printSection(section));
  }
}
