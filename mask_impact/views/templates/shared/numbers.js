// Numbers: as texts, and kept within bounds.

// The shortest decimal number that gives back the same float32.
export function float32Text(value) {
  for (let digits = 1; digits < 9; digits++) {
    const text = Number(value.toPrecision(digits));
    if (Math.fround(text) === value) return String(text);
  }
  return String(Number(value.toPrecision(9)));
}

export function shortText(value) {
  return String(Number(value.toPrecision(3)));
}

export function percentText(share) {
  return share > 0 && share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`;
}

// A whole number within the bounds, 0 for what is none.
export const clamp = (number, low, high) => Math.min(Math.max(Math.trunc(number) || 0, low), high);

// The one of some numbers that is nearest to another, the first of two that are.
export function nearest(numbers, number) {
  return numbers.reduce((best, one) => (Math.abs(one - number) < Math.abs(best - number) ? one : best));
}

export const oneOf = (value, accepted, otherwise) => (accepted.includes(value) ? value : otherwise);
