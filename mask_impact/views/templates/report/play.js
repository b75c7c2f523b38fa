// Running through the layers, one after another.

import { $ } from "../shared/elements.js";
import { set } from "./state.js";
import { measuredLayers, nextLayer } from "./view.js";

const PLAY_MS = 450;

let timer = null;
export const isPlaying = () => timer !== null;

function play(wanted) {
  clearInterval(timer);
  const showNext = () => set({ layer: nextLayer(1) ?? measuredLayers()[0], range: "layer" });
  timer = wanted ? setInterval(showNext, PLAY_MS) : null;
  $("play").textContent = wanted ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", wanted);
  if (wanted) set({ range: "layer" });
}

export const togglePlay = () => play(!isPlaying());
