// The profile: one token's numbers over the depth, a line of each result that has it.

import { baseLayout, heightOn, LEGEND, valueAxis } from "../shared/charts.js";
import { cssColour, DASHES, SYMBOLS } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { extent } from "../shared/scales.js";
import { partners, placeOf } from "./alignment.js";
import { drawChart } from "./chart.js";
import { sides } from "./file.js";
import { point } from "./pointer.js";
import { set, shownKey, state } from "./state.js";
import { colourOf, depthOf, isShare, numberAt, sideTitle, tokenName, unitText } from "./values.js";

// The results that have the token, as { side, place }.
function havingIt() {
  const places = partners(shownKey());
  return sides.map((side) => ({ side, place: places[side.number] })).filter(({ place }) => place >= 0);
}

function profileLine({ side, place }) {
  const values = side.measured.map((layer) => numberAt(side, place, layer));
  return {
    type: "scatter", mode: "lines+markers", name: sideTitle(side),
    x: side.measured.map((layer) => depthOf(side, layer)),
    y: values.map((value) => heightOn(state.scale, value)), customdata: values, hoverinfo: "none",
    line: { color: colourOf(side), dash: DASHES[side.number], width: 2 },
    marker: { symbol: SYMBOLS[side.number], size: 6 },
  };
}

function depthLine() {
  const line = { color: cssColour("--accent"), width: 2, dash: "dot" };
  return { type: "line", yref: "paper", y0: 0, y1: 1, x0: state.depth, x1: state.depth, line };
}

function profileLayout(lines) {
  const [high] = extent(lines.flatMap(({ customdata }) => customdata));
  const title = { text: isShare() ? "share of the layer" : $("value-name").textContent, standoff: 8 };
  return baseLayout(300, {
    shapes: state.range === "depth" ? [depthLine()] : [], showlegend: true, legend: LEGEND,
    margin: { l: 56, r: 12, t: 36, b: 44 },
    xaxis: { range: [0, 100], ticksuffix: " %", title: { text: "depth", standoff: 6 } },
    yaxis: { title, ...valueAxis(state.scale, high, unitText) },
  });
}

function listenToProfile(chart) {
  chart.on("plotly_hover", ({ points: [{ curveNumber, pointNumber }], event }) => {
    const { side } = havingIt()[curveNumber];
    point({ side, place: placeOf(side, shownKey()), layer: side.measured[pointNumber] }, event.clientX, event.clientY);
  });
  chart.on("plotly_unhover", () => point(null));
  chart.on("plotly_click", ({ points: [{ x }] }) => set({ depth: Math.floor(x), range: "depth" }));
}

function profileHint(shown) {
  if (!shown.length) return "";
  const [first] = shown;
  const where = shown.map(({ side, place }) => `position ${side.positions[place]} of ${side.letter}`).join(", ");
  const isOut = shown.some(({ side, place }) => side.leftOut.has(place));
  const why = state.token ? "" : " (no token is chosen: this one differs most)";
  return `${tokenName(first.side, first.place)}, ${where}${isOut ? ", left out as an attention sink" : why}`;
}

export async function drawProfile() {
  const shown = havingIt();
  const lines = shown.map(profileLine);
  await drawChart("profile", lines, profileLayout(lines), listenToProfile);
  const hint = profileHint(shown);
  $("profile-hint").textContent = hint;
  $("profile").setAttribute("aria-label", `Profile over the depth of ${hint}`);
}
