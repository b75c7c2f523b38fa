// The bar of colours beside a heat map. plotly takes as long for its own as for the cells, so it draws that only for a
// picture that is saved.

import { element } from "../shared/elements.js";

// For the trace of a heat map, whose `colorbar` says what the bar shows.
export const BY_PAGE = { showscale: false };

function tickOf(text, share) {
  const made = element("span", { textContent: text });
  made.style.bottom = `${100 * share}%`;
  return made;
}

const barIn = (chart) => chart.querySelector(":scope > .bar");

export function drawBar(chart, { colorbar, colorscale, zmin, zmax }, { r, t, b }) {
  const { tickvals, ticktext, title } = colorbar;
  const colours = element("i");
  colours.style.background = `linear-gradient(to top, ${colorscale.map(([, colour]) => colour).join(",")})`;
  const ticks = tickvals.map((value, nth) => tickOf(ticktext[nth], (value - zmin) / (zmax - zmin)));
  const about = element("em", { textContent: title.text });
  const bar = element("div", { className: "bar", "aria-hidden": true }, colours, ...ticks, about);
  Object.assign(bar.style, { width: `${r}px`, top: `${t}px`, bottom: `${b}px` });
  barIn(chart)?.remove();
  chart.append(bar);
}

// Where the room below the map has changed.
export function fitBar(chart, bottom) {
  const bar = barIn(chart);
  if (bar) bar.style.bottom = `${bottom}px`;
}
