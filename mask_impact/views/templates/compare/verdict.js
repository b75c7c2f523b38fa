// What comes first: the verdict, what the answers of two results used, and the evidence of each.

import { $, element } from "../shared/elements.js";
import { quoted, visible } from "../shared/texts.js";
import { about, pairs, sides } from "./file.js";
import { choose, pair, second, set, state } from "./state.js";
import { colourOf } from "./values.js";

const BECOMES_WIDTH = 16;
const MOST_USED = 10; // rows

const linkButton = (textContent, title) => element("button", { type: "button", className: "link", textContent, title });
// A number and its sign stay in one line.
const kept = (text) => text.replace(/(\d) %/g, "$1\u00a0%");
const pairName = (one) => `${sides[0].letter} and ${sides[one.second].letter}`;

// ---- the verdict ----

function saidItem(one, nth) {
  if (pairs.length === 1) return element("li", {}, kept(one.said));
  const isCurrent = nth === state.pair;
  const button = linkButton(pairName(one), "Show this pair");
  button.addEventListener("click", () => set({ pair: nth }));
  return element("li", { "aria-current": isCurrent }, button, kept(one.said));
}

function drawSaid() {
  $("answers").textContent = about.answers;
  $("said").replaceChildren(...pairs.map(saidItem));
}

// ---- what was used ----

function sideHead(side, title) {
  const letter = element("span", { className: "letter", textContent: side.letter });
  letter.style.setProperty("--side", colourOf(side));
  return element(title, {}, letter, visible(side.name));
}

function usedHead() {
  const cells = [sides[0], second()].map((side) => {
    const head = sideHead(side, "th");
    head.scope = "col";
    return head;
  });
  return element("tr", {}, element("th", { scope: "col", textContent: "hidden" }), ...cells);
}

function changeCell(row, which, most) {
  const written = row.written[which];
  const change = row.changes[which];
  if (change === null) return element("td", { className: "change none", textContent: written });
  const becomes = row.becomes[which];
  const then = becomes === null ? "" : ` → ${quoted(becomes, BECOMES_WIDTH)}`;
  const bar = element("i", { className: row.measured[which] ? "" : "estimate", "aria-hidden": "true" });
  bar.style.width = `${Math.max(1, (100 * Math.abs(change)) / most)}%`;
  const cell = element("td", { className: "change" }, `${written}${then}`, bar);
  cell.style.setProperty("--side", colourOf([sides[0], second()][which]));
  return cell;
}

function usedRow(row, most) {
  const cells = [0, 1].map((which) => changeCell(row, which, most));
  const name = element("td", {}, row.name);
  if (row.token) {
    const [which, place] = row.token;
    const button = linkButton(row.name, "Mark it in all results");
    button.addEventListener("click", () => choose([sides[0], second()][which], place));
    name.replaceChildren(button);
  }
  return element("tr", {}, name, ...cells);
}

function usedHint(rows) {
  const isEstimated = rows.some((row) => row.written.some((one) => one.startsWith("~")));
  return "Change of the answer's log-probability (nats) where it is hidden, and the most probable token then (→)."
    + (isEstimated ? " A hollow bar and ~ are an estimate." : "")
    + (rows.length > MOST_USED ? ` The strongest ${MOST_USED} of ${rows.length}; the CSV has all.` : "");
}

// The rows of the table as a file has them.
export function usedRows() {
  const kind = (row, which) => (row.changes[which] === null ? "" : row.measured[which] ? "measured" : "estimated");
  const of = (row, which) => [row.changes[which], kind(row, which), row.becomes[which] ?? ""];
  return pair().used.map((row) => [row.name, ...of(row, 0), ...of(row, 1)]);
}

function drawUsed() {
  const rows = pair().used;
  const most = Math.max(...rows.flatMap((row) => row.changes.map((one) => Math.abs(one ?? 0))), 1e-9);
  $("used-title").closest("section").hidden = !rows.length;
  $("used-hint").textContent = usedHint(rows);
  $("used").tHead.replaceChildren(usedHead());
  $("used").tBodies[0].replaceChildren(...rows.slice(0, MOST_USED).map((row) => usedRow(row, most)));
}

// ---- the evidence ----

// By side the pictures with its evidence outlined, which stand in the page as they are.
const pictured = new Map([...document.querySelectorAll(".pictured")].map((one) => [Number(one.dataset.side), one]));

function evidenceOf(side, sentences, isExplained) {
  const none = isExplained ? "None was found, or none was looked for." : "What the answer used was not measured.";
  const texts = sentences.length ? sentences : [none];
  const list = element("ul", {}, ...texts.map((textContent) => element("li", { textContent })));
  const made = element("div", {}, sideHead(side, "h3"), list);
  const picture = pictured.get(sides.indexOf(side));
  if (!picture) return made;
  picture.hidden = false;
  made.append(picture);
  return made;
}

function drawEvidence() {
  const { evidence, explained } = pair();
  const both = [sides[0], second()];
  $("evidence-card").hidden = !evidence.flat().length;
  const made = both.map((side, which) => evidenceOf(side, evidence[which], explained[which]));
  $("evidence").replaceChildren(...made);
}

export function drawVerdict() {
  drawSaid();
  drawUsed();
  drawEvidence();
}
