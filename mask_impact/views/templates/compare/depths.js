// Where the impact lies: part of each result's whole impact in each part of the depth, as bars.

import { baseLayout, LEGEND } from "../shared/charts.js";
import { $ } from "../shared/elements.js";
import { drawChart } from "./chart.js";
import { about, sides } from "./file.js";
import { colourOf, sideTitle } from "./values.js";

function bars(side) {
  const y = side.depth_shares.map((share) => (share === null ? null : 100 * share));
  const hovertemplate = `${side.letter}: %{y:.1f} %<extra></extra>`;
  return { type: "bar", name: sideTitle(side), x: about.bands, y, marker: { color: colourOf(side) }, hovertemplate };
}

export async function drawDepths() {
  $("depths-card").hidden = about.scale === "share";
  if (about.scale === "share") return;
  const layout = baseLayout(260, {
    barmode: "group", showlegend: true, legend: LEGEND, margin: { l: 52, r: 12, t: 36, b: 44 },
    xaxis: { type: "category" }, yaxis: { ticksuffix: " %", rangemode: "tozero" },
  });
  await drawChart("depths", sides.map(bars), layout);
  const label = "Part of each result's impact in each part of the depth. Its numbers can be saved as CSV.";
  $("depths").setAttribute("aria-label", label);
}
