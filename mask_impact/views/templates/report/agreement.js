// The rank correlation of local impact and effect in each layer.

import { cssColour, lineColour } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { visible } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { changedOrMark, drawChart, layerShapes, layoutOverLayers } from "./chart.js";
import { groups } from "./effect.js";
import { MEASURES, METRIC_NAMES } from "./file.js";
import { section } from "./sections.js";
import { prompt, set, state } from "./state.js";
import { everyLayer, view } from "./view.js";

const rhoText = (rho) => (Number.isNaN(rho) ? "none" : rho.toFixed(3).replace("-", "−"));

// Of each layer the rank correlation, NaN where there is none, and how many tokens it is of.
export function layerAgreement() {
  const [measures, metrics, { variants }] = [Object.keys(MEASURES), Object.keys(METRIC_NAMES), prompt()];
  const byMetric = measures.indexOf(state.measure) * metrics.length + metrics.indexOf(state.metric);
  const row = byMetric * variants.length + variants.indexOf(state.variant);
  const { rho, n } = view.effect;
  const placeOf = (layer) => row * view.nLayers + layer;
  return everyLayer().map((layer) => ({ rho: rho[placeOf(layer)], n: n[placeOf(layer)] }));
}

function agreementLine(found) {
  return {
    type: "scatter", mode: "lines+markers", x: everyLayer(),
    y: found.map(({ rho }) => (Number.isNaN(rho) ? null : rho)), customdata: found.map(({ n }) => n),
    line: { color: lineColour(0), width: 2 }, marker: { size: 6 }, hoverinfo: "none",
  };
}

function agreementHint(found) {
  const numbers = found.map(({ n }) => n);
  const [fewest, most] = [Math.min(...numbers), Math.max(...numbers)];
  const none = found.filter(({ rho }) => Number.isNaN(rho)).length;
  const missing = ` ${none} of ${view.nLayers} layers have none: fewer than 3 such tokens, or all alike.`;
  const distance = `${METRIC_NAMES[state.metric]} distance of ${visible(state.variant)}`;
  const tokens = `${fewest === most ? most : `${fewest} to ${most}`} tokens`;
  const effect = `the size of the ${MEASURES[state.measure]}`;
  return `Spearman's rank correlation in each layer of the ${distance} with ${effect}, over the tokens that are no `
    + `attention sinks and whose effect is above the noise floor: ${tokens}.${none ? missing : ""}`;
}

async function drawAgreement() {
  if (groups()) return;
  const { prompt: one, step, variant, metric, measure } = state;
  if (!(await changedOrMark("agreement", [one, step, variant, metric, measure, theme()], layerShapes))) return;
  const found = layerAgreement();
  const title = { text: "rank correlation", standoff: 8 };
  const yaxis = { range: [-1.05, 1.05], dtick: 0.5, zeroline: true, zerolinecolor: cssColour("--soft"), title };
  const layout = layoutOverLayers(440, { shapes: layerShapes(), yaxis });
  const tip = ({ x }) => `layer ${x}\nrank correlation ${rhoText(found[x].rho)}\nof ${found[x].n} tokens`;
  await drawChart("agreement", [agreementLine(found)], layout, tip, ({ x }) => set({ layer: x, range: "layer" }));
  $("agreement-hint").textContent = agreementHint(found);
  const label = `Rank correlation of local impact and effect over ${view.nLayers} layers`;
  $("agreement").setAttribute("aria-label", `${label}. Its numbers can be saved as CSV.`);
}

section("effect-part", ["effect"], { chart: drawAgreement, into: "agreement" });
