// Videos over time: strips of pairs of frames, in the card and among the images. The pair that is opened stands large
// beside its strip; a strip plays from pair to pair.

import { showInAddress } from "../shared/address.js";
import { $ } from "../shared/elements.js";
import { clamp } from "../shared/numbers.js";
import { adopt, state, stateInAddress } from "./state.js";

const FRAME_MS = 600;

const draws = []; // what is drawn when another pair is opened
export const whenFrame = (draw) => { draws.push(draw); };

// Of a strip the numbers of its pairs.
const pairsOf = (film) => [...film.querySelectorAll(".mi-frame")].map(({ dataset }) => Number(dataset.frame));

// Of some pairs the one that is opened: `otherwise` until the reader opens another.
export const openedOf = (pairs, otherwise) => (pairs.includes(state.frame) ? state.frame : otherwise);

const openedIn = (film) => openedOf(pairsOf(film), Number(film.dataset.opened));

function openFrame(frame) {
  adopt({ frame });
  for (const draw of draws) draw();
  showInAddress(stateInAddress());
}

// Marks the pair that is opened in its strip, and brings it into sight there.
export function markOpened(film) {
  const opened = openedIn(film);
  for (const frame of film.querySelectorAll(".mi-frame")) {
    frame.classList.toggle("mi-open", Number(frame.dataset.frame) === opened);
  }
  const [strip, frame] = [film.querySelector(".mi-frames"), film.querySelector(".mi-open")];
  const [outer, inner] = [strip.getBoundingClientRect(), frame.getBoundingClientRect()];
  if (inner.left < outer.left) strip.scrollLeft -= outer.left - inner.left + 8;
  if (inner.right > outer.right) strip.scrollLeft += inner.right - outer.right + 8;
  const isOn = isPlayingFilm(film);
  film.querySelector(".mi-play").textContent = isOn ? "Pause" : "Play";
  film.querySelector(".mi-play").setAttribute("aria-pressed", isOn);
}

// ---- playing ----

let playing = null; // { timer, film }
const isPlayingFilm = (film) => playing?.film === film;

function stopFilm() {
  clearInterval(playing?.timer);
  playing = null;
}

function moveFrame(film, by, isRound) {
  const pairs = pairsOf(film);
  const to = pairs.indexOf(openedIn(film)) + by;
  openFrame(pairs[isRound ? (to + pairs.length) % pairs.length : clamp(to, 0, pairs.length - 1)]);
}

function toggleFilm(film) {
  const isOn = isPlayingFilm(film);
  stopFilm();
  if (isOn) return openFrame(openedIn(film));
  const timer = setInterval(() => (film.offsetParent ? moveFrame(film, 1, true) : stopFilm()), FRAME_MS);
  playing = { film, timer };
  return moveFrame(film, 1, true);
}

function isInSight(film) {
  const { top, bottom, height } = film.getBoundingClientRect();
  return height > 0 && bottom > 0 && top < innerHeight;
}

const filmInSight = () => [...document.querySelectorAll(".mi-film")].find(isInSight);

// The space key plays where nothing has the focus, and a strip is in sight.
export const spacePlays = () => document.activeElement === document.body && filmInSight() !== undefined;
export const playInSight = () => toggleFilm(filmInSight());

// ---- what is done to them ----

const FRAME_KEYS = { ArrowLeft: -1, ArrowRight: 1 };

function onStripKey(event) {
  const film = event.target.closest(".mi-frames")?.closest(".mi-film");
  if (!film || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === " ") toggleFilm(film);
  else if (FRAME_KEYS[event.key]) moveFrame(film, FRAME_KEYS[event.key], false);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function onFilmClick({ target }) {
  const film = target.closest(".mi-film");
  const frame = target.closest(".mi-frame");
  if (frame) {
    stopFilm();
    openFrame(Number(frame.dataset.frame));
  } else if (target.closest(".mi-play")) toggleFilm(film);
}

export function connectFilms() {
  for (const part of [$("card"), $("images")]) {
    part.addEventListener("click", onFilmClick);
    part.addEventListener("keydown", onStripKey);
  }
}
