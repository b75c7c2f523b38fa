// The profile: the chosen tokens over the layers, a line each, by what is shown: their effects or estimates, or their
// distances or shares.

import { heightOn, valueAxis } from "../shared/charts.js";
import { DASHES, SYMBOLS } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { percentText, shortText } from "../shared/numbers.js";
import { extent } from "../shared/scales.js";
import { plotlyText } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { changedOrMark, chartHeight, describe, drawChart, layerShapes, layoutOverLayers } from "./chart.js";
import { chosenColour, chosenTokens } from "./chosen.js";
import { effectLayers, effectOf, groups } from "./effect.js";
import { effectTip } from "./effect_tips.js";
import { estimateTip } from "./estimate_chart.js";
import { METRIC_NAMES, QUANTITIES } from "./file.js";
import { tokenTitle } from "./names.js";
import { estimateAt, isEstimate, shown } from "./quantity.js";
import { section } from "./sections.js";
import { set, state } from "./state.js";
import { cellTip } from "./tips.js";
import { measuredLayers, view } from "./view.js";

// Whether local impact is what there is of single tokens and layers.
function isLocal() {
  if (shown() === "effect") return groups() !== null || effectLayers().length < 2;
  return shown() === "impact";
}

function profileValues(position) {
  if (!isLocal()) return measuredLayers().map((layer) => (isEstimate() ? estimateAt : effectOf)(position, layer));
  const i = view.at.get(position);
  return measuredLayers().map((layer) => {
    const place = layer * view.n + i;
    if (state.unit === "distance") return view.values[place];
    return view.leftOut.has(position) ? NaN : view.shares[place];
  });
}

function profileLine(position, nth) {
  const values = profileValues(position);
  const scale = isLocal() ? state.scale : "linear";
  return {
    type: "scatter", mode: "lines+markers", name: plotlyText(tokenTitle(position)), x: measuredLayers(),
    y: values.map((value) => heightOn(scale, value)), customdata: values, hoverinfo: "none",
    line: { color: chosenColour(position), dash: DASHES[nth], width: 2 }, marker: { symbol: SYMBOLS[nth], size: 6 },
  };
}

function profileAxis(lines) {
  if (!isLocal()) return { title: { text: "nats", standoff: 8 }, zeroline: true, exponentformat: "power" };
  const isShare = state.unit === "share";
  const [high] = extent(lines.flatMap(({ customdata }) => customdata));
  const title = { text: isShare ? "share of the layer" : METRIC_NAMES[state.metric], standoff: 8 };
  const axis = valueAxis(state.scale, high, isShare ? percentText : shortText);
  if (state.scale === "log" && isShare) axis.tickformat = "~%";
  return { title, rangemode: "tozero", ...axis };
}

function profileTip(position, layer) {
  if (isLocal()) return cellTip(position, layer);
  return isEstimate() ? estimateTip({ positions: [position] }, layer) : effectTip(view.at.get(position), layer);
}

async function drawProfile() {
  const chosen = chosenTokens();
  const { prompt, target, step, variant, metric, kept, scale, unit, measure } = state;
  const what = [prompt, target, step, variant, metric, kept, scale, unit, shown(), measure, theme(), chosen];
  $("profile-unit").hidden = !isLocal();
  $("profile-title").textContent = `Profile over layers: ${QUANTITIES[isLocal() ? "impact" : shown()].toLowerCase()}`;
  if (!(await changedOrMark("profile", what, layerShapes))) return;
  const lines = chosen.map(profileLine);
  const layout = layoutOverLayers(chartHeight(300), {
    shapes: layerShapes(), yaxis: profileAxis(lines), margin: { l: 76, r: 12, t: 14, b: 46 },
  });
  const tip = ({ curveNumber, x }) => profileTip(chosenTokens()[curveNumber], x);
  await drawChart("profile", lines, layout, tip, ({ x }) => set({ layer: x, range: "layer" }));
  describe("profile", `Profile over layers of ${chosen.map(tokenTitle).join(", ") || "no token"}`);
}

section("distances", ["distances"], { chart: drawProfile, into: "profile" });
