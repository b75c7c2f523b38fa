// The profile: the chosen tokens' distances or shares over the layers, a line each.

import { heightOn, valueAxis } from "../shared/charts.js";
import { DASHES, SYMBOLS } from "../shared/colours.js";
import { percentText, shortText } from "../shared/numbers.js";
import { extent } from "../shared/scales.js";
import { plotlyText } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { changedOrMark, chartHeight, describe, drawChart, layerShapes, layoutOverLayers } from "./chart.js";
import { METRIC_NAMES } from "./file.js";
import { tokenTitle } from "./names.js";
import { section } from "./sections.js";
import { set, state } from "./state.js";
import { cellTip } from "./tips.js";
import { chosenColour, chosenTokens, everyLayer, view } from "./view.js";

function profileValues(position) {
  const i = view.at.get(position);
  return everyLayer().map((layer) => {
    const place = layer * view.n + i;
    if (state.unit === "distance") return view.values[place];
    return view.leftOut.has(position) ? NaN : view.shares[place];
  });
}

function profileLine(position, nth) {
  const values = profileValues(position);
  return {
    type: "scatter", mode: "lines+markers", name: plotlyText(tokenTitle(position)), x: everyLayer(),
    y: values.map((value) => heightOn(state.scale, value)), customdata: values, hoverinfo: "none",
    line: { color: chosenColour(position), dash: DASHES[nth], width: 2 }, marker: { symbol: SYMBOLS[nth], size: 6 },
  };
}

function profileAxis(lines) {
  const isShare = state.unit === "share";
  const [high] = extent(lines.flatMap(({ customdata }) => customdata));
  const title = { text: isShare ? "share of the layer" : METRIC_NAMES[state.metric], standoff: 8 };
  const axis = valueAxis(state.scale, high, isShare ? percentText : shortText);
  if (state.scale === "log" && isShare) axis.tickformat = "~%";
  return { title, rangemode: "tozero", ...axis };
}

async function drawProfile() {
  const chosen = chosenTokens();
  const { prompt, step, variant, metric, kept, scale, unit } = state;
  const what = [prompt, step, variant, metric, kept, scale, unit, theme(), chosen];
  if (!(await changedOrMark("profile", what, layerShapes))) return;
  const lines = chosen.map(profileLine);
  const layout = layoutOverLayers(chartHeight(300), { shapes: layerShapes(), yaxis: profileAxis(lines) });
  const tip = ({ curveNumber, x }) => cellTip(chosenTokens()[curveNumber], x);
  await drawChart("profile", lines, layout, tip, ({ x }) => set({ layer: x, range: "layer" }));
  describe("profile", `Profile over layers of ${chosen.map(tokenTitle).join(", ") || "no token"}`);
}

section("distances", ["distances"], { chart: drawProfile });
