// The file's distances and effects, unpacked when they are first asked for. Knows how their blocks are called.

import { distancesOf } from "../shared/blocks.js";
import { $ } from "../shared/elements.js";
import { MEASURES, METRIC_NAMES } from "./file.js";
import { prompt, state, step } from "./state.js";

const MOST_BLOCKS = 600; // that are kept unpacked
const blocks = new Map();

function blockNamed(name) {
  if (!blocks.has(name)) {
    if (blocks.size > MOST_BLOCKS) blocks.clear();
    blocks.set(name, distancesOf($(name).textContent));
  }
  return blocks.get(name);
}

// A promise of the current step's distances, [layer, position].
export const block = (metric, variantIndex) => blockNamed(`b-${state.prompt}-${state.step}-${metric}-${variantIndex}`);

// A promise of the norms of the current step's unmasked quantities, [layer, variant].
export const norms = () => blockNamed(`n-${state.prompt}-${state.step}`);

// Unpacks what a key may ask for next, as long as it is wanted: of the steps before and behind and of the other metric
// what is shown, then the same of the other variants.
export async function unpackAhead(isWanted) {
  const { prompt: one, step: nth, variant } = state;
  const { steps, variants } = prompt();
  const near = [nth, nth + 1, nth - 1].filter((number) => steps[number]);
  const shownNow = variants.indexOf(variant);
  for (const index of [shownNow, ...variants.keys()]) {
    for (const number of near) {
      for (const metric of Object.keys(METRIC_NAMES)) {
        if (!isWanted()) return;
        await blockNamed(`b-${one}-${number}-${metric}-${index}`);
      }
    }
  }
}

// Estimates of the target that has the current step, the chosen one first, null where none has any: of each layer and
// position up to the target contribution and estimate, [layer, n].
export async function estimateBlocks() {
  const { targets } = prompt();
  const hasStep = (number) => targets[number]?.steps.includes(state.step);
  const target = [state.target, ...targets.keys()].find(hasStep);
  if (target === undefined) return null;
  const name = (kind) => `t-${state.prompt}-${target}-${kind}`;
  const [contribution, estimate] = await Promise.all([blockNamed(name("contribution")), blockNamed(name("estimate"))]);
  return { n: targets[target].n_positions, contribution, estimate };
}

// The step's effects, null where there are none: of each measure and the most probable token's id, [layer, group]; and
// where each position was hidden by itself rank correlations and the number of tokens that
// they are of, [measure, metric, variant, layer].
export async function effectBlocks() {
  if (!prompt().effect) return null;
  const names = [...Object.keys(MEASURES), "top1", ...(step().effect.groups ? [] : ["rho", "n"])];
  const values = await Promise.all(names.map((name) => blockNamed(`e-${state.prompt}-${state.step}-${name}`)));
  return Object.fromEntries(names.map((name, nth) => [name, values[nth]]));
}
