// The heat map of estimates, layers by tokens: what each token gives to the answer where a layer reads it, or what
// hiding it from the last position in one layer would do. They add up, so a folded image or a word shows the sum of
// its tokens.

import { $ } from "../shared/elements.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { theme } from "../shared/theme.js";
import { columnsOf, drawByColumns, drawOrMark, layOut } from "./column_chart.js";
import { isJoined, leftOutHint, leftOutLabel, makeColumns } from "./columns.js";
import { QUANTITIES } from "./file.js";
import { answerName, joinedName, tokenName } from "./names.js";
import { natsText, signedNats } from "./nats.js";
import { estimateAt, furthest, isEstimate, shown } from "./quantity.js";
import { section } from "./sections.js";
import { signedHeat, signs } from "./signed_chart.js";
import { state } from "./state.js";
import { everyLayer, view } from "./view.js";

function estimateSum({ positions }, layer) {
  const values = positions.map((position) => estimateAt(position, layer)).filter(Number.isFinite);
  return values.length ? values.reduce((sum, value) => sum + value, 0) : null;
}

export function estimateTip(column, layer) {
  const { positions } = column;
  const sum = estimateSum(column, layer);
  const amount = sum === null ? "no value" : `${QUANTITIES[shown()].toLowerCase()} ${signedNats(sum)}`;
  if (!isJoined(column)) return `layer ${layer} · position ${positions[0]} · ${tokenName(positions[0])}\n${amount}`;
  const lines = [`layer ${layer} · ${joinedName(column)}`, `together: ${amount}`];
  if (sum === null) return lines.join("\n");
  const most = furthest(positions.map((position) => estimateAt(position, layer)));
  const strongest = positions.find((position) => estimateAt(position, layer) === most);
  return [...lines, `strongest: ${tokenName(strongest)}, ${signedNats(most)}`].join("\n");
}

const MEANINGS_OF_ESTIMATES = {
  contribution: (name) => `What each token gives to ${name} in each layer, wherever that layer reads it. `
    + "The layers of a token add up to its contribution.",
  estimate: (name) => `What hiding each token from the last position, in one layer alone, would do to ${name}.`,
};

function writeHintOfEstimates() {
  const isAnyJoined = columnsOf("estimates").some(isJoined);
  const folded = isAnyJoined ? " A folded image, or a word of several tokens, shows their sum." : "";
  const scale = `Nats, ${SCALE_NAMES[state.scale]}, one for all layers; estimated, not measured.`;
  $("estimates-hint").textContent = `${MEANINGS_OF_ESTIMATES[shown()](answerName())} ${scale}${folded}${leftOutHint()}`;
}

async function drawEstimateCells() {
  const columns = makeColumns();
  layOut("estimates", columns, leftOutLabel);
  const matrix = everyLayer().map((layer) => columns.map((column) => estimateSum(column, layer)));
  const { heat, scale } = signedHeat(matrix, (value) => value === null);
  await drawByColumns("estimates", heat, estimateTip);
  const size = `${view.nLayers} layers by ${columns.length} tokens`;
  const label = `Heat map of the ${QUANTITIES[shown()].toLowerCase()}, at most ${natsText(scale.high)} nats, ${size}. `
    + "Its numbers can be saved as CSV.";
  $("estimates").setAttribute("aria-label", label);
  $("estimates-title").textContent = `Layers and tokens: ${QUANTITIES[shown()].toLowerCase()}`;
  $("estimates-legend").replaceChildren(...signs("for the answer", "against it"));
  writeHintOfEstimates();
}

async function drawEstimates() {
  const { prompt, target, step, kept, unfolded, scale } = state;
  await drawOrMark("estimates", [prompt, target, step, kept, unfolded, scale, shown(), theme()], drawEstimateCells);
}

section("estimates-card", ["distances"], { chart: drawEstimates, into: "estimates", when: isEstimate });
