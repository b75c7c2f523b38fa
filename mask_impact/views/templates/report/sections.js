// The page's sections: each registers itself with the tables of a result that it needs, and is shown where these are.

import { $ } from "../shared/elements.js";
import { prompt } from "./state.js";

const sections = [];

// id: of the element; needs: tables; draw: what is quick; chart: what is drawn behind it.
export function section(id, needs, { draw = null, chart = null }) {
  sections.push({ id, needs, draw, chart });
}

export const has = (table) => prompt().tables.includes(table);
const shown = () => sections.filter(({ needs }) => needs.every(has));

export function drawSections() {
  for (const { id, needs } of sections) $(id).hidden = !needs.every(has);
  for (const { draw } of shown()) draw?.();
}

export async function drawSectionCharts() {
  for (const { chart } of shown()) await chart?.();
}
