// The page's sections: each registers itself with the tables of a result that it needs, and is shown where these are;
// some only at times.

import { $ } from "../shared/elements.js";
import { prompt } from "./state.js";

const sections = [];

// id: of the element; needs: tables; draw: what is quick; chart: what is drawn behind it; when: whether it is shown
// now.
export function section(id, needs, { draw = null, chart = null, when = () => true }) {
  sections.push({ id, needs, draw, chart, when });
}

export const has = (table) => prompt().tables.includes(table);
const isShown = ({ needs, when }) => needs.every(has) && when();
const shownNow = () => sections.filter(isShown);

export function drawSections() {
  for (const one of sections) $(one.id).hidden = !isShown(one);
  for (const { draw } of shownNow()) draw?.();
}

export async function drawSectionCharts() {
  for (const { chart } of shownNow()) await chart?.();
}
