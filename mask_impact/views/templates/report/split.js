// How each layer's impact is split between image tokens and text.

import { LEGEND } from "../shared/charts.js";
import { cssColour, lineColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { theme } from "../shared/theme.js";
import { describe, drawChart, layoutOverLayers } from "./chart.js";
import { changed } from "./drawn.js";
import { METRIC_NAMES } from "./file.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";
import { everyLayer, view } from "./view.js";

// Share of image tokens in each layer, NaN where nothing had an impact.
export function imageShares() {
  return everyLayer().map((layer) => {
    let [share, any] = [0, false];
    view.positions.forEach((position, i) => {
      const one = view.shares[layer * view.n + i];
      if (Number.isNaN(one)) return;
      any = true;
      if (prompt().cellAt.has(position)) share += one;
    });
    return any ? share : NaN;
  });
}

function bars(name, values, color) {
  const y = values.map((value) => (Number.isNaN(value) ? null : 100 * value));
  return { type: "bar", name, x: everyLayer(), y, marker: { color }, hoverinfo: "none" };
}

async function drawSplit() {
  const isPatch = (position) => prompt().cellAt.has(position);
  const hasBoth = view.positions.some(isPatch) && !view.positions.every(isPatch);
  $("split-card").hidden = !hasBoth;
  const { prompt: one, step, variant, metric, kept } = state;
  if (!hasBoth || !changed("split", one, step, variant, metric, kept, theme())) return;
  const shares = imageShares();
  const layout = layoutOverLayers(260, {
    barmode: "stack", bargap: 0.12, showlegend: true, legend: { ...LEGEND, traceorder: "normal" },
    margin: { l: 56, r: 12, t: 46, b: 46 }, xaxis: { showgrid: false },
    yaxis: { range: [0, 100], ticksuffix: " %", automargin: false },
  });
  const distances = `${METRIC_NAMES[metric]} distances of ${variant}`;
  $("split-hint").textContent = `Of each layer's ${distances}, how much falls on image tokens and how much on text.`;
  const image = bars("image", shares, lineColour(0));
  const text = bars("text", shares.map((share) => 1 - share), cssColour("--none"));
  const tip = ({ x }) => {
    const share = imageShares()[x];
    return `layer ${x}\nimage ${percentText(share)}\ntext ${percentText(1 - share)}`;
  };
  await drawChart("split", [image, text], layout, tip, ({ x }) => set({ layer: x, range: "layer" }));
  describe("split", "Share of image and text in each layer");
}

section("distances", ["distances"], { chart: drawSplit, into: "split" });
