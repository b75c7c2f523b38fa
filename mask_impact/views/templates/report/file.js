// What the file holds: its prompts with their tokens and steps, made ready to be looked up; and what it measured.

import { page } from "../shared/data.js";
import { $ } from "../shared/elements.js";

const EXACT = 23; // binary digits of float32
export const METRIC_NAMES = { l2: "L2", cosine: "Cosine" };
// Of the effect, in the order of the file's blocks.
export const MEASURES = { logprob: "change of the log-probability", kl: "KL divergence" };

// What the map, the prompt and the images can show, in the order in which the first that is there is shown.
export const QUANTITIES = {
  effect: "Measured effect", contribution: "Contribution", estimate: "Estimated effect", impact: "Local impact",
};

export const prompts = page.prompts;
export const notes = page.notes;
export const sourceName = page.source;
export const headsAreRounded = page.digits < EXACT;
export const isHead = (variant) => variant.startsWith("Head_");

// Once a prompt's card is in the page: previews stand there.
export function takePreviews({ images }) {
  for (const image of images) image.preview ||= $(image.key)?.getAttribute("href").split(",")[1] ?? "";
}

for (const prompt of prompts) {
  prompt.cellAt = new Map(prompt.cells.map(([position, image, row, column]) => [position, { image, row, column }]));
  prompt.wordAt = new Map(prompt.words.flatMap((word) => word.map((position) => [position, word])));
  prompt.specialAt = new Set(prompt.special);
  prompt.heads = prompt.variants.map((name, index) => ({ name, index })).filter(({ name }) => isHead(name));
  for (const step of prompt.steps) {
    step.positions ??= Array.from({ length: step.n_positions }, (_, position) => position);
  }
}
