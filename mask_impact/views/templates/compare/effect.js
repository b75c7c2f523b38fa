// Whether the results agree about effects on the answer, and whether importance tells them.

import { $, element } from "../shared/elements.js";
import { rhoText } from "./agreement.js";
import { about, pairs, sides } from "./file.js";

// [part of the depth, then of each result rho and the number of tokens].
export function effectRows() {
  const numbersOf = ([, found], row) => [found[row].rho, found[row].n];
  const rowOf = (name, row) => [name, ...about.effect.sides.flatMap((side) => numbersOf(side, row))];
  return ["all", ...about.bands].map(rowOf);
}

function pairText(one, nth) {
  if (!one) return "";
  const letters = `${sides[0].letter} and ${sides[pairs[nth].second].letter}`;
  const chance = one.p === null ? "" : `, p ${Number(one.p.toPrecision(2))}`;
  return `${letters} rank the effects of ${one.n} tokens with rho ${rhoText(one.rho)}${chance}.`;
}

function effectHint() {
  return `Change of the log-probability of the produced token ${about.effect.measured}; its size, mean over the `
    + "layers. Below, within each result: rho of importance with it, over the tokens that count and have an effect "
    + "above the noise floor there.";
}

function headRow() {
  const names = about.effect.sides.flatMap(([number]) => [`rho in ${sides[number].letter}`, "tokens"]);
  const makeCell = (textContent, i) => element("th", { scope: "col", textContent, className: i ? "number" : "" });
  return element("tr", {}, ...["depth", ...names].map(makeCell));
}

function bodyRow([name, ...cells]) {
  const makeCell = (cell, i) => element("td", { className: "number", textContent: i % 2 ? cell : rhoText(cell) });
  return element("tr", {}, element("td", { textContent: name }), ...cells.map(makeCell));
}

export function drawEffect() {
  $("effect-card").hidden = !about.effect;
  if (!about.effect) return;
  $("effect-pairs").textContent = about.effect.pairs.map(pairText).filter(Boolean).join(" ");
  $("effect-hint").textContent = effectHint();
  $("effect").tHead.replaceChildren(headRow());
  $("effect").tBodies[0].replaceChildren(...effectRows().map(bodyRow));
}
