// What the comparison's charts have in common: how one is drawn, and listened to from its first time on.

import { CONFIG } from "../shared/charts.js";
import { $ } from "../shared/elements.js";

const drawn = new Set();

// connect(chart): done once.
export async function drawChart(id, data, layout, connect) {
  const isNew = !drawn.has(id);
  drawn.add(id);
  $(id).style.height = `${layout.height}px`;
  await Plotly.react(id, data, layout, CONFIG);
  if (isNew) connect?.($(id));
}
