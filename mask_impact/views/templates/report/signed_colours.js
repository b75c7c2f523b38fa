// Colours of numbers with a sign, in the theme that is on.

import { rgbAt, spread } from "../shared/colours.js";
import { theme } from "../shared/theme.js";

// From none to most: orange for negative, blue for positive ones, which nearly all eyes tell apart.
const SIGNED = {
  light: {
    negative: ["#ffffff", "#fdd9b4", "#fba55c", "#e4701e", "#a8480c"],
    positive: ["#ffffff", "#cfe1f5", "#8fbfe8", "#4a8fce", "#1d5a9e"],
  },
  dark: {
    negative: ["#1b1822", "#5c2c0a", "#a8500f", "#ea8430", "#ffc98f"],
    positive: ["#1b1822", "#123d66", "#2468a8", "#5ba0e0", "#b9dcfb"],
  },
};

export const signedStops = () => SIGNED[theme()];

// The colour at -1..1 as [red, green, blue].
export const signedRgbAt = (level) => rgbAt(Math.abs(level), signedStops()[level < 0 ? "negative" : "positive"]);

// From the most negative to the most positive.
export function signedSpan() {
  const { negative, positive } = signedStops();
  return [...[...negative].reverse(), ...positive.slice(1)];
}

// For levels from -1 to 1, as plotly takes them.
export const signedColours = () => spread(signedSpan());
