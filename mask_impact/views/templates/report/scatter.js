// The scatter of local impact and effect, a point for each (layer, token) of the layers shown.

import { baseLayout, LEGEND } from "../shared/charts.js";
import { cssColour, SYMBOLS } from "../shared/colours.js";
import { $ } from "../shared/elements.js";
import { shortText } from "../shared/numbers.js";
import { extent } from "../shared/scales.js";
import { plotlyText } from "../shared/texts.js";
import { theme } from "../shared/theme.js";
import { drawChart } from "./chart.js";
import { chosenColour, chosenTokens, toggleToken } from "./chosen.js";
import { changed } from "./drawn.js";
import { effectFloor, effectOf, groups, isNone, isSink } from "./effect.js";
import { apartLists } from "./effect_text.js";
import { effectTip } from "./effect_tips.js";
import { MEASURES } from "./file.js";
import { lacksNorms, localImpact, localName } from "./local_impact.js";
import { tokenTitle } from "./names.js";
import { section } from "./sections.js";
import { adopt, rounded, state } from "./state.js";
import { layersShown, layersText, view } from "./view.js";

const MOST_POINTS = 4000;
const TICK_WIDTH = 70; // pixels for a tick of the logarithmic axis

// ---- the points ----

// Points { position, layer, x, y } of the layers shown, and how many can't stand on its scales.
function scatterPoints() {
  const points = [];
  let nLeft = 0;
  for (const layer of layersShown()) {
    for (const position of view.positions) {
      const [x, y] = [localImpact(position, layer), Math.abs(effectOf(position, layer))];
      if (x > 0 && y > 0 && Number.isFinite(x + y)) points.push({ position, layer, x, y });
      else nLeft++;
    }
  }
  return { points, nLeft };
}

// Those that are drawn: no more than so many, and all of the tokens that are named somewhere.
function thinned(points) {
  const inTables = Object.values(apartLists()).flat().map(([position]) => position);
  const named = new Set([...chosenTokens(), ...inTables]);
  const every = Math.ceil(points.length / MOST_POINTS);
  return points.filter(({ position }, nth) => nth % every === 0 || named.has(position) || isSink(position));
}

// ---- how they look ----

function kindsOfOthers(points) {
  const marker = (symbol, color, size, opacity) => ({ symbol, color: cssColour(color), size, opacity });
  const others = points.filter(({ position }) => !chosenTokens().includes(position));
  const sinks = others.filter(({ position }) => isSink(position));
  const tokens = others.filter(({ position }) => !isSink(position));
  const [none, some] = [tokens.filter(({ y }) => isNone(y)), tokens.filter(({ y }) => !isNone(y))];
  return [
    { name: "token", marker: marker("circle", "--accent", 6, 0.55), points: some },
    { name: "no more than the noise floor", marker: marker("circle", "--soft", 5, 0.4), points: none },
    { name: "attention sink", marker: marker("x", "--ink", 7, 0.8), points: sinks },
  ];
}

function kindOfChosen(points, position, nth) {
  const line = { width: 1, color: cssColour("--card") };
  const symbol = isSink(position) ? "x" : SYMBOLS[nth];
  const name = tokenTitle(position) + (isSink(position) ? ", attention sink" : "");
  const marker = { symbol, color: chosenColour(position), size: 9, line };
  return { name, marker, points: points.filter((point) => point.position === position) };
}

function traceOf({ name, marker, points }) {
  const places = points.map(({ layer, position }) => [layer, position]);
  const [x, y] = [points.map((point) => point.x), points.map((point) => point.y)];
  const look = { type: "scatter", mode: "markers", marker, hoverinfo: "none" };
  return { ...look, name: plotlyText(name), x, y, customdata: places };
}

function scatterLayout(points) {
  const log = { type: "log", exponentformat: "power", autorange: true, tickangle: 0 };
  const [high, low] = extent(points.map(({ x }) => x));
  const decades = Math.max(Math.ceil(Math.log10(high / low) / ($("scatter").clientWidth / TICK_WIDTH)), 1) || 1;
  const floor = effectFloor();
  const line = { color: cssColour("--soft"), width: 1, dash: "dot" };
  const shapes = floor > 0 ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: floor, y1: floor, line }] : [];
  const legend = { ...LEGEND, y: 1.01, font: { size: 11 }, itemclick: false, itemdoubleclick: false };
  return baseLayout(440, {
    shapes, legend, showlegend: true, margin: { l: 62, r: 12, t: 14, b: 48 },
    xaxis: { ...log, dtick: decades, title: { text: plotlyText(localName()), standoff: 6 } },
    yaxis: { ...log, dtick: 1, title: { text: `size of the ${MEASURES[state.measure]}, nats`, standoff: 8 } },
  });
}

// ---- what is said of them ----

function pointTip({ customdata: [layer, position] }) {
  const impact = `${rounded() ? "≈ " : ""}${shortText(localImpact(position, layer))}`;
  return `${effectTip(view.at.get(position), layer)}\n${localName()} ${impact}`;
}

function choosePoint({ customdata: [layer, position] }) {
  adopt({ layer });
  toggleToken(position);
}

function scatterHint(nAll, nDrawn, nLeft) {
  const [all, drawn, left] = [nAll, nDrawn, nLeft].map((number) => number.toLocaleString("en"));
  const norms = " The result has no norms, and L2 distances as they are can't be compared between layers.";
  const placeless = ` ${left} without an effect or an impact have no place on logarithmic scales.`;
  const some = ` ${drawn} of ${all} are drawn, all of chosen tokens, of sinks and of those in the tables below; `
    + "fewer layers or the CSV show all.";
  const parts = [[lacksNorms(), norms], [nLeft, placeless], [nDrawn < nAll, some]];
  return `Each token in ${layersText()}.${parts.map(([isSaid, text]) => (isSaid ? text : "")).join("")}`;
}

async function drawScatter() {
  if (groups()) return;
  const { prompt: one, step, variant, metric, measure } = state;
  if (!changed("scatter", one, step, variant, metric, measure, layersShown(), chosenTokens(), theme())) return;
  const { points, nLeft } = scatterPoints();
  const drawn = thinned(points);
  const chosen = chosenTokens().map((position, nth) => kindOfChosen(drawn, position, nth));
  const kinds = [...kindsOfOthers(drawn), ...chosen].filter((kind) => kind.points.length);
  await drawChart("scatter", kinds.map(traceOf), scatterLayout(drawn), pointTip, choosePoint);
  $("scatter-hint").textContent = scatterHint(points.length, drawn.length, nLeft);
  const axes = `${localName()} against the size of the ${MEASURES[measure]}, logarithmic scales`;
  const label = `Scatter of ${drawn.length} (layer, token): ${axes}. Its numbers can be saved as CSV.`;
  $("scatter").setAttribute("aria-label", label);
}

section("effect-part", ["effect"], { chart: drawScatter, into: "scatter" });
