// Which tokens of the results belong together: they have one key, the place in the first result, or a result's letter
// and place where it has no partner.

import { pairs, sides } from "./file.js";

const ownKey = (side, place) => (side.number ? `${side.letter}${place}` : String(place));
const keys = sides.map((side) => side.positions.map((_, place) => ownKey(side, place)));
for (const { second, aligned } of pairs) for (const [one, other] of aligned) keys[second][other] = String(one);
const places = keys.map((ofSide) => new Map(ofSide.map((key, place) => [key, place])));
const allKeys = new Set(keys.flat());

export const isKey = (key) => allKeys.has(key);
export const keyOf = (side, place) => keys[side.number][place];
// undefined where the result has no such token.
export const placeOf = (side, key) => places[side.number].get(key);
// Of a token its place in every result, -1 where it is not there.
export const partners = (key) => sides.map((side) => placeOf(side, key) ?? -1);
export const isAlone = (side, place) => partners(keyOf(side, place)).filter((one) => one >= 0).length < 2;
