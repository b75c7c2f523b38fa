// What the file holds: the results side by side, with their tokens made ready to be looked up, and their distances.
// A place is the number of a token among those of a result that were masked.

import { distancesOf } from "../shared/blocks.js";
import { page } from "../shared/data.js";
import { $ } from "../shared/elements.js";

export const about = page; // what is compared, and how
export const sides = page.sides;
export const pairs = page.pairs;

sides.forEach((side, number) => {
  const looked = { cellAt: new Map(), leftOut: new Set(side.left_out), specialAt: new Set(side.special) };
  Object.assign(side, { number, n: side.positions.length, ...looked });
  for (const [place, image, row, column] of side.cells) side.cellAt.set(place, { image, row, column });
});

// Distances as measured, what is compared, and shares of that: [layer * n + place].
export async function readDistances() {
  const read = (side, what) => distancesOf($(`b-${side.number}-${what}`).textContent);
  await Promise.all(sides.map(async (side) => {
    for (const what of ["distance", "value"]) side[what] = await read(side, what);
    side.share = sharesOf(side);
  }));
}

// Of each layer's sum of what is compared, NaN where a token is left out or has no value.
function sharesOf(side) {
  const shares = new Float64Array(side.n * side.n_layers).fill(NaN);
  const places = side.positions.map((_, place) => place).filter((place) => !side.leftOut.has(place));
  for (let layer = 0; layer < side.n_layers; layer++) {
    const valueOf = (place) => Math.max(side.value[layer * side.n + place], 0);
    const total = places.reduce((sum, place) => sum + (valueOf(place) || 0), 0);
    if (!(total > 0)) continue;
    for (const place of places) shares[layer * side.n + place] = valueOf(place) / total;
  }
  return shares;
}
