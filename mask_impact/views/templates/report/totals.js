// How much each layer reads at all: the sum of its tokens' impact, over the norm of what they change.

import { $ } from "../shared/elements.js";
import { lineColour } from "../shared/colours.js";
import { shortText } from "../shared/numbers.js";
import { theme } from "../shared/theme.js";
import { changedOrMark, describe, drawChart, layerShapes, layoutOverLayers } from "./chart.js";
import { lacksNorms, localName } from "./local_impact.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";
import { everyLayer, view } from "./view.js";

async function drawTotals() {
  $("totals-card").hidden = lacksNorms();
  const { prompt: one, step, variant, metric, kept } = state;
  if (lacksNorms() || !await changedOrMark("totals", [one, step, variant, metric, kept, theme()], layerShapes)) return;
  const totals = view.weights;
  const y = everyLayer().map((layer) => (prompt().layers.includes(layer) ? totals[layer] : null));
  const bars = { type: "bar", x: everyLayer(), y, marker: { color: lineColour(0) }, hoverinfo: "none" };
  const layout = layoutOverLayers(260, {
    bargap: 0.12, margin: { l: 60, r: 12, t: 10, b: 46 }, shapes: layerShapes(),
    xaxis: { showgrid: false, automargin: false },
    yaxis: { rangemode: "tozero", automargin: false, tickformat: "~g" },
  });
  const what = `Of each layer the sum over tokens: ${localName()}.`;
  const why = "A layer with a low bar does much the same whichever token is hidden; its shares count as little.";
  $("totals-hint").textContent = `${what} ${why}`;
  const tip = ({ x }) => `layer ${x}\n${shortText(totals[x])}`;
  await drawChart("totals", [bars], layout, tip, ({ x }) => set({ layer: x, range: "layer" }));
  describe("totals", "How much each layer reads");
}

section("distances", ["distances"], { chart: drawTotals, into: "totals" });
