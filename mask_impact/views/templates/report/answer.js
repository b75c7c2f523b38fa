// The produced tokens, and the candidates of the current one.

import { $, element } from "../shared/elements.js";
import { quoted } from "../shared/texts.js";
import { changed } from "./drawn.js";
import { stepName } from "./names.js";
import { section } from "./sections.js";
import { prompt, set, state, step } from "./state.js";
import { tokenElement } from "./tokens.js";

function makeSteps(file) {
  const makeStep = (_, index) => {
    const name = stepName(index);
    return tokenElement(name, `produced token ${index}: ${quoted(name)}`, () => set({ step: index }));
  };
  $("steps").replaceChildren(...file.steps.map(makeStep));
}

function candidateRow(one) {
  const isProduced = one.id === step().id;
  const bar = element("td", { className: "number", textContent: `${(100 * one.probability).toFixed(3)} %` });
  bar.style.setProperty("--bar", `${100 * one.probability}%`);
  const name = element("td", { textContent: quoted(one.text) + (isProduced ? " (produced)" : "") });
  const id = element("td", { className: "number", textContent: one.id });
  return element("tr", { className: isProduced ? "produced" : "" }, name, id, bar);
}

function drawCandidates() {
  const { candidates, text } = step();
  const name = stepName(state.step);
  $("candidates-title").textContent = `Candidates for ${name === text ? quoted(text, 30) : name}`;
  $("candidates").hidden = !candidates.length;
  $("no-candidates").hidden = candidates.length > 0;
  $("candidates").tBodies[0].replaceChildren(...candidates.map(candidateRow));
}

function drawAnswer() {
  if (changed("steps", state.prompt)) makeSteps(prompt());
  [...$("steps").querySelectorAll(".token")].forEach((button, index) => {
    button.setAttribute("aria-pressed", index === state.step);
    button.tabIndex = index === state.step ? 0 : -1;
  });
  if (changed("candidates", state.prompt, state.step)) drawCandidates();
}

section("distances", ["distances"], { draw: drawAnswer });
