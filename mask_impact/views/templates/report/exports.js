// Saving what is shown: which card gives which rows and which picture, and how its file is called.

import { download, makeExports, safeName } from "../shared/files.js";
import { imagesCanvas, textCanvas } from "./canvases.js";
import { EFFECT_FILES } from "./effect_rows.js";
import { headsAreRounded, prompts, sourceName } from "./file.js";
import { DISTANCE_FILES } from "./rows.js";
import { prompt, rounded, state } from "./state.js";

const NEVER_ROUNDED = ["effect", "agreement", "apart"];

function isRounded(card) {
  return (rounded() && !NEVER_ROUNDED.includes(card)) || (card === "heads" && headsAreRounded);
}

function fileName(card) {
  const title = sourceName;
  const name = prompts.length > 1 ? prompt().name : "";
  const parts = [title, name, `step${state.step}`, card, isRounded(card) ? "rounded" : ""];
  return safeName(parts.filter(Boolean).join("-"));
}

function downloadCanvas(card, canvas) {
  canvas.toBlob((blob) => download(`${fileName(card)}.png`, blob), "image/png");
}

const PNG = {
  images: () => downloadCanvas("images", imagesCanvas()),
  text: () => downloadCanvas("text", textCanvas()),
};

export function makeReportExports() {
  makeExports(fileName, { ...DISTANCE_FILES, ...EFFECT_FILES }, PNG);
}
