// The page's sections: each registers itself with the tables of a result that it needs, and is shown where these are;
// some only at times.

import { $ } from "../shared/elements.js";
import { prompt } from "./state.js";

const sections = [];

// id: of the element; needs: tables; draw: what is quick; chart: what is drawn behind it, in the element `into` (null:
// where nobody sees it); when: whether it is shown now.
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
  if (into === null) return Infinity;
  const { top, bottom, height } = $(into).getBoundingClientRect();
  return height ? Math.max(top - innerHeight, -bottom, 0) : Infinity;
}

export const shownCharts = () => new Set(shownNow().filter(({ chart }) => chart));

// Takes the charts that are in the window out of some.
export function takeInSight(charts) {
  const found = [...charts].filter((one) => distanceOf(one) === 0);
  for (const one of found) charts.delete(one);
  return found.map(({ chart }) => chart);
}

// Takes the chart that is nearest to the window out of some, undefined where there is none.
export function takeNearest(charts) {
  const away = new Map([...charts].map((one) => [one, distanceOf(one)]));
  const [nearest] = [...charts].sort((one, other) => away.get(one) - away.get(other) || 0);
  charts.delete(nearest);
  return nearest?.chart;
}
