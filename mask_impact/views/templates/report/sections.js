// The page's sections: each registers itself with the tables of a result that it needs, and is shown where these are;
// some only at times.

import { $ } from "../shared/elements.js";
import { prompt } from "./state.js";

const sections = [];

// id: of the element; needs: tables; draw: what is quick; chart: what is drawn behind it, in the element `into`; when:
// whether it is shown now.
export function section(id, needs, { draw = null, chart = null, into = id, when = () => true }) {
  sections.push({ id, needs, draw, chart, into, when });
}

export const has = (table) => prompt().tables.includes(table);
const isShown = ({ needs, when }) => needs.every(has) && when();
const shownNow = () => sections.filter(isShown);

export function drawSections() {
  for (const one of sections) $(one.id).hidden = !isShown(one);
  for (const { draw } of shownNow()) draw?.();
}

// How many pixels it is outside the window; what has no place is furthest.
function distanceOf({ into }) {
  const { top, bottom, height } = $(into).getBoundingClientRect();
  return height ? Math.max(top - innerHeight, -bottom, 0) : Infinity;
}

export const shownCharts = () => new Set(shownNow().filter(({ chart }) => chart));

// Takes the chart that is nearest to the window out of some, undefined where none is so near.
export function takeNearest(charts, mostPixels) {
  const away = new Map([...charts].map((one) => [one, distanceOf(one)]));
  const near = [...charts].filter((one) => away.get(one) <= mostPixels);
  const [nearest] = near.sort((one, other) => away.get(one) - away.get(other) || 0);
  charts.delete(nearest);
  return nearest?.chart;
}
