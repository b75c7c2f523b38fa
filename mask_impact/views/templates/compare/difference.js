// The difference map: of each token that two results share, and each part of the depth, by how much its share differs.

import { baseLayout, colourBar } from "../shared/charts.js";
import { cssColour, lineColour, spread } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { extent, makeScale, SCALE_NAMES, TICKS } from "../shared/scales.js";
import { plotlyText } from "../shared/texts.js";
import { hideTip, showTip } from "../shared/tip.js";
import { keyOf } from "./alignment.js";
import { drawChart } from "./chart.js";
import { about, pairs, sides } from "./file.js";
import { adopt, choose, pair, second, state } from "./state.js";
import { tokenName } from "./values.js";

const ROW_HEIGHT = 20; // pixels of a part of the depth
const COLUMN_WIDTH = 13; // pixels of a token and its label
const FEWEST_COLUMNS = 30;

const orNaN = (value) => value ?? NaN;

// Of a pair, second minus first: [part of the depth][token].
function differencesOf({ map: { shares: [ofFirst, ofSecond] } }) {
  return ofFirst.map((row, band) => row.map((share, nth) => orNaN(ofSecond[band][nth]) - orNaN(share)));
}

// One scale for all pairs.
const differenceExtent = extent(pairs.flatMap((one) => differencesOf(one).flat(2).map(Math.abs)));

export function pointsOf(difference) {
  if (!Number.isFinite(difference)) return "";
  const digits = Math.abs(difference) < 0.0005 && difference !== 0 ? 2 : 1;
  return `${difference < 0 ? "−" : "+"}${Math.abs(100 * difference).toFixed(digits)}`;
}

// Numbers of the tokens that are shown, in their order: all, or as many as there is room for, those that differ most.
function shownColumns() {
  const found = differencesOf(pair());
  const room = Math.floor(($("difference").getBoundingClientRect().width - 150) / COLUMN_WIDTH);
  const sizeOf = (nth) => Math.max(...found.map((row) => Math.abs(row[nth]) || 0));
  const all = pair().map.tokens.map((_, nth) => [nth, sizeOf(nth)]).sort(([, one], [, other]) => other - one);
  return all.slice(0, Math.max(room, FEWEST_COLUMNS)).map(([nth]) => nth).sort((one, other) => one - other);
}

let shown = []; // the columns as they are drawn

function differenceCells() {
  const found = differencesOf(pair()).map((row) => shown.map((nth) => row[nth]));
  const scale = makeScale(state.scale, ...differenceExtent);
  const level = (value) => (Number.isFinite(value) ? Math.sign(value) * scale.level(Math.abs(value)) : null);
  const ticks = [...TICKS.slice(1).map((one) => -one).reverse(), ...TICKS];
  const ticktext = ticks.map((one) => (one === 0 ? "0" : pointsOf(Math.sign(one) * scale.value(Math.abs(one)))));
  return {
    type: "heatmap", x: shown.map((_, column) => column), y: about.bands.map((_, band) => band),
    z: found.map((row) => row.map(level)), customdata: found, zmin: -1, zmax: 1,
    colorscale: spread([lineColour(0), cssColour("--card"), lineColour(1)]),
    colorbar: colourBar({ tickvals: ticks, ticktext }), xgap: 1, ygap: 1, hoverinfo: "none",
  };
}

function differenceShapes() {
  const [first] = sides;
  const column = shown.findIndex((nth) => keyOf(first, pair().map.tokens[nth][0]) === state.token);
  const line = { color: cssColour("--accent"), width: 2 };
  if (column < 0) return [];
  return [{ type: "rect", yref: "paper", y0: 0, y1: 1, x0: column - 0.5, x1: column + 0.5, line, name: "token" }];
}

function differenceLayout() {
  const { tokens } = pair().map;
  const room = Math.max(Math.floor(($("difference").getBoundingClientRect().width - 150) / COLUMN_WIDTH), 4);
  const ticks = shown.map((_, column) => column).filter((column) => column % Math.ceil(shown.length / room) === 0);
  const ticktext = ticks.map((column) => plotlyText(tokenName(sides[0], tokens[shown[column]][0], 12)));
  return baseLayout(ROW_HEIGHT * about.bands.length + 150, {
    margin: { l: 84, r: 10, t: 10, b: 120 }, shapes: differenceShapes(), plot_bgcolor: cssColour("--none"),
    xaxis: {
      range: [-0.5, shown.length - 0.5], showgrid: false, tickangle: -90, tickfont: { size: 11 },
      tickvals: ticks, ticktext, automargin: false,
    },
    yaxis: {
      range: [-0.5, about.bands.length - 0.5], showgrid: false, fixedrange: true, title: { text: "depth", standoff: 4 },
      tickvals: about.bands.map((_, band) => band), ticktext: about.bands.map((name) => name.replace(" to ", "-")),
    },
  });
}

function differenceTip(nth, band) {
  const { tokens, shares: [ofFirst, ofSecond] } = pair().map;
  const [one, other] = [ofFirst[band][nth], ofSecond[band][nth]];
  const shareText = (share) => (share === null ? "no share" : percentText(share));
  const lines = [`${tokenName(sides[0], tokens[nth][0])} · depth ${about.bands[band]}`];
  lines.push(`${sides[0].letter} ${shareText(one)} · ${second().letter} ${shareText(other)}`);
  const points = pointsOf(orNaN(other) - orNaN(one));
  return [...lines, points ? `${points} points` : ""].filter(Boolean).join("\n");
}

function listenToDifference(chart) {
  chart.on("plotly_hover", ({ points: [{ x, y }], event }) => {
    showTip(differenceTip(shown[x], y), event.clientX, event.clientY);
  });
  chart.on("plotly_unhover", hideTip);
  chart.on("plotly_click", ({ points: [{ x, y }] }) => {
    adopt({ depth: Math.floor((100 * (y + 0.5)) / about.bands.length) });
    choose(sides[0], pair().map.tokens[shown[x]][0]);
  });
}

// The rows of the map as a file has them.
export function differenceRows() {
  const [first, other] = [sides[0], second()];
  const { tokens, shares: [ofFirst, ofSecond] } = pair().map;
  const rowOf = ([one, two], nth, band) => {
    const [here, there] = [ofFirst[band][nth], ofSecond[band][nth]];
    const difference = here === null || there === null ? null : there - here;
    return [about.bands[band], first.texts[one], first.positions[one], other.positions[two], here, there, difference];
  };
  return about.bands.flatMap((_, band) => tokens.map((token, nth) => rowOf(token, nth, band)));
}

function differenceHint() {
  const [one, other] = [sides[0].letter, second().letter];
  if (!pair().map.tokens.length) return `${one} and ${other} have no token in common that counts.`;
  const scale = pairs.length > 1 ? ", one scale for all pairs" : "";
  const n = pair().map.tokens.length;
  const some = ` The ${shown.length} of ${n} tokens that differ most are shown; the CSV has all.`;
  return `Share of the local impact in each part of the depth, ${other} minus ${one}, in percentage points: blue where `
    + `the token has more of it in ${one}, orange where it has more in ${other}; ${SCALE_NAMES[state.scale]}${scale}.`
    + (shown.length < n ? some : "");
}

export async function drawDifference() {
  const { tokens } = pair().map;
  $("difference").hidden = !tokens.length;
  shown = shownColumns();
  $("difference-hint").textContent = differenceHint();
  if (!tokens.length) return;
  await drawChart("difference", [differenceCells()], differenceLayout(), listenToDifference);
  const size = `${about.bands.length} parts of the depth by ${shown.length} tokens`;
  $("difference").setAttribute("aria-label", `Difference map, ${size}. Its numbers can be saved as CSV.`);
}
