// Saving what is shown: the rows of each card and of each heat map, and how their files are called.

import { downloadCsv, makeExports, safeName, saveButton } from "../shared/files.js";
import { saveChart, whenSaving } from "../shared/saving.js";
import { agreementRows } from "./agreement.js";
import { keyOf, partners, placeOf } from "./alignment.js";
import { differenceRows } from "./difference.js";
import { differingRows } from "./differing.js";
import { effectRows } from "./effect.js";
import { about, sides } from "./file.js";
import { second, set, shownKey, state } from "./state.js";
import { depthOf, placesOf } from "./values.js";
import { usedRows } from "./verdict.js";

const MOST_IN_NAME = 120; // characters

const CELLS = ["layer", "token_masked", "token_position", "aligned_with", "distance", "compared", "share"];
const CORRELATIONS = ["depth", "layers_first", "layers_second", "tokens", "rho", "p"];
const DIFFERING = [
  "token", "position_first", "position_second", "share_first", "share_second", "difference", "depth",
];
const USED = [
  "hidden", "logprob_change_first", "how_first", "becomes_first",
  "logprob_change_second", "how_second", "becomes_second",
];
const DIFFERENCE = [
  "depth", "token", "position_first", "position_second", "share_first", "share_second", "difference",
];
const PROFILE = ["result", "layer", "depth", "position", "compared", "share"];

function fileName(card) {
  const name = `compare-${sides.map((side) => side.name).join("-")}-${card}`;
  return safeName(name).slice(0, MOST_IN_NAME);
}

const captionText = () => `mask-impact compare · ${sides.map((side) => `${side.letter} ${side.name}`).join(" · ")}`;

const orNothing = (value) => (Number.isFinite(value) ? value : null);

// ---- of a heat map ----

function alignedWith(side, place) {
  const isOther = (one, number) => one >= 0 && number !== side.number;
  const titleOf = (one, number) => `${sides[number].letter} ${sides[number].positions[one]}`;
  const titles = partners(keyOf(side, place)).map((one, number) => (isOther(one, number) ? titleOf(one, number) : ""));
  return titles.filter(Boolean).join(" ");
}

function cellRow(side, layer, place) {
  const at = layer * side.n + place;
  const token = [side.texts[place], side.positions[place], alignedWith(side, place)];
  return [layer, ...token, ...[side.distance[at], side.value[at], side.share[at]].map(orNothing)];
}

function cellRows(side) {
  return side.measured.flatMap((layer) => placesOf(side).map((place) => cellRow(side, layer, place)));
}

// The buttons of a result's heat map.
export function heatButtons(side, heat) {
  const name = fileName(`heat-${side.letter}`);
  const about = { title: `${side.letter}: ${side.name}`, caption: captionText() };
  const savePng = () => saveChart(name, heat, "png", about);
  const saveCsv = () => downloadCsv(name, CELLS, cellRows(side));
  return [
    saveButton("PNG", `Save the heat map of ${side.letter} as PNG`, savePng),
    saveButton("CSV", `Save the numbers of ${side.letter} as CSV`, saveCsv),
  ];
}

// ---- of the cards ----

const agreementCells = ([name, one, other, { n, rho, p }]) => [name, one, other, n, rho, p];

function differingCells([one, other, shareOne, shareOther, difference, band]) {
  const [first] = sides;
  const token = [first.texts[one], first.positions[one], second().positions[other]];
  return [...token, orNothing(shareOne), orNothing(shareOther), difference, band === null ? "" : about.bands[band]];
}

function profileRows(side) {
  const place = placeOf(side, shownKey());
  if (place === undefined) return [];
  return side.measured.map((layer) => {
    const at = layer * side.n + place;
    const numbers = [orNothing(side.value[at]), orNothing(side.share[at])];
    return [side.letter, layer, depthOf(side, layer) / 100, side.positions[place], ...numbers];
  });
}

const lettersOfEffects = () => about.effect.sides.map(([number]) => sides[number].letter);
const effectHeader = () => ["depth", ...lettersOfEffects().flatMap((letter) => [`rho_${letter}`, `tokens_${letter}`])];

// By card its [header, rows].
const CSV = {
  used: () => [USED, usedRows()],
  difference: () => [DIFFERENCE, differenceRows()],
  agreement: () => [CORRELATIONS, agreementRows().map(agreementCells)],
  differing: () => [DIFFERING, differingRows().map(differingCells)],
  profile: () => [PROFILE, sides.flatMap(profileRows)],
  effect: () => [effectHeader(), effectRows()],
  depths: () => [
    ["depth", ...sides.map((side) => side.letter)],
    about.bands.map((name, band) => [name, ...sides.map((side) => side.depth_shares[band])]),
  ],
};

export function makeComparisonExports() {
  whenSaving(() => state.theme, (theme) => set({ theme }));
  makeExports(fileName, CSV, captionText);
}
