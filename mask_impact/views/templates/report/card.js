// The evidence card, which stands in the page as it is: which prompt's and which target's is shown, and what of it is
// chosen.

import { $ } from "../shared/elements.js";
import { changed } from "./drawn.js";
import { markOpened, whenFrame } from "./films.js";
import { connectLight } from "./light.js";
import { has, section } from "./sections.js";
import { prompt, set, state } from "./state.js";

const stepsOf = (card) => card.dataset.steps.split(" ").map(Number);
const cardsOf = (number) => [...$("card").querySelectorAll(`[data-prompt="${number}"] .mi-card`)];

const shownCard = () => cardsOf(state.prompt)[state.target];

// The target that has a produced token, the current one where none has.
function targetWith(step) {
  const found = cardsOf(state.prompt).findIndex((card) => stepsOf(card).includes(step));
  return found < 0 ? state.target : found;
}

// Produced tokens are buttons where they have cards or steps of their own.
function makeStepButtons() {
  const many = prompt().steps.length > 1 || cardsOf(state.prompt).length > 1;
  for (const made of cardsOf(state.prompt).flatMap((card) => [...card.querySelectorAll(".mi-step")])) {
    if (!many) continue;
    made.tabIndex = 0;
    made.setAttribute("role", "button");
  }
}

// A long question is scrolled to its strongest word.
function showStrongest(card) {
  const strengthOf = (word) => Number(word.style.getPropertyValue("--s"));
  const question = card.querySelector(".mi-question");
  const [strongest] = [...question.querySelectorAll(".mi-word")].sort((a, b) => strengthOf(b) - strengthOf(a));
  if (strongest) question.scrollTop = strongest.offsetTop - question.offsetTop - question.clientHeight / 2;
}

function drawCard() {
  for (const one of $("card").querySelectorAll("[data-prompt]")) {
    one.hidden = Number(one.dataset.prompt) !== state.prompt;
  }
  cardsOf(state.prompt).forEach((card, number) => { card.hidden = number !== state.target; });
  if (changed("card", state.prompt)) makeStepButtons();
  if (changed("question", state.prompt, state.target)) showStrongest(shownCard());
  for (const made of shownCard().querySelectorAll(".mi-step[role]")) {
    made.setAttribute("aria-pressed", String(Number(made.dataset.step) === state.step));
  }
  markChosen();
  drawCardFilms();
}

// Of each video the pair that is opened, as it is in the strip.
function drawCardFilms() {
  if (!has("answer")) return;
  const card = shownCard();
  for (const film of card.querySelectorAll(".mi-film")) {
    film.querySelector(".mi-play").hidden = false;
    markOpened(film);
    const stage = card.querySelector(`.mi-stage[data-film="${film.dataset.film}"]`);
    const frame = film.querySelector(".mi-open");
    if (stage.dataset.frame === frame.dataset.frame) continue;
    stage.dataset.frame = frame.dataset.frame;
    stage.replaceChildren(frame.querySelector("figure").cloneNode(true));
  }
}

const positionsOf = (made) => made.dataset.positions.split(" ").map(Number);

// A word, cell or row that is clicked is chosen in all parts that show single tokens, and let go by another click.
function choosePlace(event) {
  const made = event.target.closest("[data-positions]");
  if (!made || made.closest(".mi-frame") || !has("distances")) return;
  const positions = positionsOf(made);
  const isChosen = positions.every((position) => state.tokens.includes(position));
  set({ tokens: isChosen ? [] : positions, focus: -1 });
}

function markChosen() {
  if (!changed("chosen-in-card", state.prompt, state.target, state.tokens)) return;
  for (const made of shownCard().querySelectorAll("[data-positions]")) {
    const isChosen = positionsOf(made).some((position) => state.tokens.includes(position));
    made.classList.toggle("mi-chosen", isChosen);
  }
}

export function connectCard() {
  const card = $("card");
  const chooseStep = (event) => {
    const made = event.target.closest(".mi-step[role]");
    if (!made) return;
    const step = Number(made.dataset.step);
    set({ step, target: targetWith(step) });
  };
  card.addEventListener("click", (event) => { chooseStep(event); choosePlace(event); });
  card.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.closest(".mi-step[role], [data-positions]")) {
      event.preventDefault();
      chooseStep(event);
      choosePlace(event);
    }
  });
  connectLight(card);
  whenFrame(drawCardFilms);
}

section("card", ["answer"], { draw: drawCard });
