// What is said of effects beside the charts, and the two tables of tokens whose impact and effect come apart.

import { $, element } from "../shared/elements.js";
import { percentText } from "../shared/numbers.js";
import { SCALE_NAMES } from "../shared/scales.js";
import { visible } from "../shared/texts.js";
import { chosenTokens, toggleToken } from "./chosen.js";
import { FOLDED, isJoined } from "./columns.js";
import { replaceContent } from "./content.js";
import { changed } from "./drawn.js";
import { effectColumns, groups, hiddenIn, isOther, nGroups } from "./effect.js";
import { MEASURES, METRIC_NAMES } from "./file.js";
import { answerName, tokenTitle } from "./names.js";
import { natsText } from "./nats.js";
import { section } from "./sections.js";
import { prompt, state, step } from "./state.js";
import { view } from "./view.js";

// Of each list its rows [position, share, its rank, size, its rank].
export function apartLists() {
  const [local, effect] = step().effect.apart[state.measure][state.metric][state.variant];
  return { local, effect };
}

const englishText = (number) => number.toLocaleString("en");

function unitText() {
  if (state.measure !== "kl") return `Change of the log-probability of ${answerName()}`;
  return "Kullback-Leibler divergence of the next token's distribution, unmasked from masked";
}

function changedText() {
  const { top1 } = view.effect;
  const count = (test) => top1.reduce((sum, id) => sum + test(id), 0);
  const [nChanged, nMeasured] = [count(isOther), count((id) => id >= 0)];
  const part = nMeasured < top1.length ? " that were measured" : "";
  const all = `(layer, ${groups() ? "group" : "token"})${part}`;
  const [some, whole] = [nChanged, nMeasured].map(englishText);
  return `In ${some} of ${whole} ${all} another token than ${answerName()} becomes the most probable.`;
}

function sinksText() {
  const hidden = new Set(Array.from({ length: nGroups() }, (_, group) => hiddenIn(group)).flat());
  if (!prompt().sinks.some((sink) => hidden.has(sink.position))) return "";
  if (groups()) return " Columns marked × have an attention sink among their tokens.";
  return " Columns marked × are attention sinks: they are shown here, and not counted in what is said of agreement "
    + "below.";
}

function hintText() {
  const folded = !groups() && effectColumns().some(isJoined) ? ` ${FOLDED}` : "";
  const ofOne = " Local impact is of single tokens and does not add up, so there is none to put beside these.";
  const alone = groups() ? ofOne : "";
  const scale = `in nats, ${SCALE_NAMES[state.scale]}, one for all layers`;
  return `${unitText()}, ${scale}. ${changedText()}${folded}${sinksText()}${alone}`;
}

function apartText() {
  const distances = `${METRIC_NAMES[state.metric]} distances of ${state.variant}`;
  const size = `(${MEASURES[state.measure]}, nats; what is no more than the noise floor counts as 0)`;
  return `Tokens are ranked twice over all layers: by the mean of their shares of the layers' ${distances}, `
    + `and by the mean size of their effect ${size}. Here are the tokens of the stronger half of one ranking `
    + "that are furthest behind in the other, at most five. Attention sinks are not counted.";
}

function apartRow([position, share, shareRank, size, sizeRank]) {
  const name = { type: "button", className: "link", textContent: tokenTitle(position), title: "Choose it" };
  const button = element("button", name);
  button.addEventListener("click", () => toggleToken(position));
  const numbers = [percentText(share), shareRank, size ? natsText(size) : "none", sizeRank];
  const cells = numbers.map((textContent) => element("td", { className: "number", textContent }));
  const className = chosenTokens().includes(position) ? "current" : "";
  return element("tr", { className }, element("td", {}, button), ...cells);
}

const emptyRow = () => element("tr", {}, element("td", { colSpan: 5, textContent: "none" }));

function drawEffectText() {
  const { effect } = prompt();
  const { prompt: one, step: nth, unfolded, scale, metric, variant, measure } = state;
  if (!changed("effect-text", one, nth, unfolded, scale, metric, variant, measure, chosenTokens())) return;
  $("effect-about").textContent = visible(effect.about);
  $("effect-hint").textContent = hintText();
  $("effect-beside").hidden = $("apart-card").hidden = groups() !== null;
  if (groups()) return;
  $("apart-hint").textContent = apartText();
  for (const [name, rows] of Object.entries(apartLists())) {
    replaceContent($(`apart-${name}`).tBodies[0], rows.length ? rows.map(apartRow) : [emptyRow()]);
  }
}

section("effect-part", ["effect"], { draw: drawEffectText });
