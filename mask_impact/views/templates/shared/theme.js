// The theme, light or dark: which one is on, and what the button changes it to.

import { $ } from "./elements.js";

const isDarkOutside = () => matchMedia("(prefers-color-scheme: dark)").matches;

export const theme = () => document.documentElement.dataset.theme; // light or dark

// wanted: auto, light or dark.
export function applyTheme(wanted) {
  document.documentElement.dataset.theme = wanted === "auto" ? (isDarkOutside() ? "dark" : "light") : wanted;
  $("theme-name").textContent = { auto: "automatic", light: "light", dark: "dark" }[wanted];
}

export function nextTheme(wanted) {
  return { auto: theme() === "dark" ? "light" : "dark", light: "dark", dark: "light" }[wanted];
}
