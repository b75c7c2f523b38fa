// Saving what is shown: which card gives which rows and which picture, and how its file is called.

import { makeExports, safeName } from "../shared/files.js";
import { whenSaving } from "../shared/saving.js";
import { visible } from "../shared/texts.js";
import { EFFECT_FILES } from "./effect_rows.js";
import { headsAreRounded, prompts, sourceName } from "./file.js";
import { LOOKED_FILES } from "./looked.js";
import { OVERVIEW_FILE } from "./overview.js";
import { DISTANCE_FILES } from "./rows.js";
import { prompt, rounded, set, state } from "./state.js";
import { TOWER_FILES } from "./tower.js";

const NEVER_ROUNDED = ["effect", "estimates", "agreement", "apart", "patches", "deepstack", "tower", "tower-reads"];
const MOST_CAPTION = 200; // characters

function isRounded(card) {
  return (rounded() && !NEVER_ROUNDED.includes(card)) || (card === "heads" && headsAreRounded);
}

function fileName(card) {
  if (card === "overview") return safeName(`${sourceName}-${card}`);
  const name = prompts.length > 1 ? prompt().name : "";
  const step = LOOKED_FILES[card] || TOWER_FILES[card] ? "" : `step${state.step}`;
  const parts = [sourceName, name, step, card, isRounded(card) ? "rounded" : ""];
  return safeName(parts.filter(Boolean).join("-"));
}

// Model and command, below a picture.
function captionText() {
  const about = Object.fromEntries(prompt().about);
  return ["mask-impact", about.model, about.command].filter(Boolean).map(visible).join(" · ").slice(0, MOST_CAPTION);
}

export function makeReportExports() {
  whenSaving(() => state.theme, (theme) => set({ theme }));
  const files = { ...DISTANCE_FILES, ...EFFECT_FILES, ...LOOKED_FILES, ...TOWER_FILES, ...OVERVIEW_FILE };
  makeExports(fileName, files, captionText);
}
