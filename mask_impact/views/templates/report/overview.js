// All prompts of a page that has several, a row each: which of them are found, and which one is open.

import { $ } from "../shared/elements.js";
import { clamp } from "../shared/numbers.js";
import { changed } from "./drawn.js";
import { prompts } from "./file.js";
import { section } from "./sections.js";
import { set, state } from "./state.js";

const rows = () => [...$("overview-rows").tBodies[0].rows];
const inSight = () => rows().filter((row) => !row.hidden);

function drawOverview() {
  if (!changed("overview", state.prompt)) return;
  $("prompt").value = state.prompt;
  rows().forEach((row, number) => {
    const isOpen = number === state.prompt;
    row.classList.toggle("current", isOpen);
    row.cells[0].firstChild.setAttribute("aria-current", isOpen);
  });
}

// Rows that are shown, of those that are found: a table of thousands takes a browser long to lay out.
const AT_ONCE = 400;
let most = AT_ONCE;
let found = []; // rows
let texts = null; // of all rows, in lower case

const counted = (number) => number.toLocaleString("en");

function showFound() {
  const shown = new Set(found.slice(0, most));
  for (const row of rows()) row.hidden = !shown.has(row);
  const all = found.length === prompts.length;
  const of = all ? counted(found.length) : `${counted(found.length)} of ${counted(prompts.length)}`;
  $("overview-count").textContent = `${of} prompts${found.length > most ? `, the first ${counted(most)} below` : ""}`;
  $("overview-more").hidden = found.length <= most;
}

// Finds the rows that have all of the words.
function find() {
  texts ??= rows().map((row) => row.textContent.toLowerCase());
  const words = $("overview-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = rows().filter((_, number) => words.every((word) => texts[number].includes(word)));
  most = AT_ONCE;
  showFound();
}

function showMore() {
  most += AT_ONCE;
  showFound();
}

// Arrows go from the box to the rows, and from row to row.
function onKey(event) {
  const shown = inSight();
  const at = shown.indexOf(event.target.closest("tr"));
  const isInBox = event.target === $("overview-filter");
  const moves = { ArrowDown: at + 1, ArrowUp: at - 1, ...(isInBox ? {} : { Home: 0, End: shown.length - 1 }) };
  const to = moves[event.key];
  if (to === undefined || !shown.length) return;
  event.preventDefault();
  event.stopPropagation();
  if (to < 0) $("overview-filter").focus();
  else shown[clamp(to, 0, shown.length - 1)].cells[0].firstChild.focus();
}

export function connectOverview() {
  if (prompts.length < 2) return;
  $("overview-filter").addEventListener("input", find);
  $("overview-more").addEventListener("click", showMore);
  find();
  $("overview").addEventListener("keydown", onKey);
  $("overview-rows").tBodies[0].addEventListener("click", ({ target }) => {
    const row = target.closest("tr");
    if (row) set({ prompt: Number(row.dataset.row) });
  });
}

const cellsOf = (row) => [...row.cells].map((cell) => cell.textContent);

// The rows that are found, for a CSV file: [header, rows].
export const OVERVIEW_FILE = { overview: () => [cellsOf($("overview-rows").tHead.rows[0]), found.map(cellsOf)] };

if (prompts.length > 1) section("overview", [], { draw: drawOverview });
