// Words and cells that are chosen by clicks, and what is sent when "Hide and ask again" is pressed.
// gradio calls this with `element` (the block), `trigger` (an event for Python) and `watch` (when a new question is shown).
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
let drag = null; // { svg, from: [row, column], to: [row, column], on: whether the box chooses or frees its cells }

const all = (selector) => [...element.querySelectorAll(selector)];
const isChosen = (one) => one.getAttribute("aria-pressed") === "true" || one.classList.contains("app-picked");

function choose(one, on) {
  if (one.matches(".app-word")) one.setAttribute("aria-pressed", String(on));
  else one.classList.toggle("app-picked", on);
}

function count(n, word) {
  return n ? [`${n} ${word}${n === 1 ? "" : "s"}`] : [];
}

function refresh() {
  const words = all(".app-word").filter(isChosen);
  const cells = all(".app-cell").filter(isChosen);
  const any = words.length + cells.length > 0;
  all(".app-hide, .app-clear").forEach((button) => { button.disabled = !any; });
  const said = [...count(words.length, "word"), ...count(cells.length, "cell")].join(" and ");
  all(".app-chosen").forEach((place) => { place.textContent = any ? `${said} chosen` : "nothing chosen"; });
}

function clear() {
  all(".app-word, .app-cell").forEach((one) => choose(one, false));
  all(".app-cursor").forEach((one) => one.classList.remove("app-cursor"));
  refresh();
}

// --- boxes on a picture ---

function cellAt(svg, row, column) {
  return svg.querySelector(`[data-row="${row}"][data-column="${column}"]`);
}

function placeOf(svg, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const { width, height } = svg.viewBox.baseVal;
  const { rows, columns } = svg.dataset;
  const within = (value, n) => Math.min(Math.max(Math.floor(value), 0), n - 1);
  return [within((at.y / height) * rows, rows), within((at.x / width) * columns, columns)];
}

function drawBox() {
  const { svg, from, to } = drag;
  const { width, height } = svg.viewBox.baseVal;
  const cell = [height / svg.dataset.rows, width / svg.dataset.columns];
  const [top, left] = [0, 1].map((axis) => Math.min(from[axis], to[axis]) * cell[axis]);
  const [tall, wide] = [0, 1].map((axis) => (Math.abs(from[axis] - to[axis]) + 1) * cell[axis]);
  const box = svg.querySelector(".app-box");
  const shape = { x: left, y: top, width: wide, height: tall, visibility: "visible" };
  Object.entries(shape).forEach(([name, value]) => box.setAttribute(name, value));
}

function finish(keep) {
  const { svg, from, to, on } = drag;
  drag = null;
  svg.querySelector(".app-box").setAttribute("visibility", "hidden");
  if (!keep) return;
  for (let row = Math.min(from[0], to[0]); row <= Math.max(from[0], to[0]); row += 1) {
    for (let column = Math.min(from[1], to[1]); column <= Math.max(from[1], to[1]); column += 1) {
      choose(cellAt(svg, row, column), on);
    }
  }
  refresh();
}

element.addEventListener("pointerdown", (event) => {
  const svg = event.target.closest(".app-picture");
  if (!svg || event.button !== 0) return;
  const from = placeOf(svg, event);
  drag = { svg, from, to: from, on: !isChosen(cellAt(svg, ...from)) };
  svg.setPointerCapture(event.pointerId);
  drawBox();
});

element.addEventListener("pointermove", (event) => {
  if (!drag) return;
  drag.to = placeOf(drag.svg, event);
  drawBox();
});

element.addEventListener("pointerup", () => drag && finish(true));
element.addEventListener("pointercancel", () => drag && finish(false));

element.addEventListener("keydown", (event) => {
  const svg = event.target.closest(".app-picture");
  if (!svg || !(event.key in MOVES || event.key === " ")) return;
  event.preventDefault();
  const old = svg.querySelector(".app-cursor") || cellAt(svg, 0, 0);
  const [down, right] = MOVES[event.key] || [0, 0];
  const now = cellAt(svg, Number(old.dataset.row) + down, Number(old.dataset.column) + right) || old;
  old.classList.remove("app-cursor");
  now.classList.add("app-cursor");
  if (event.key === " ") choose(now, !isChosen(now));
  refresh();
});

// --- words and buttons ---

element.addEventListener("click", (event) => {
  const word = event.target.closest(".app-word");
  if (word) {
    choose(word, !isChosen(word));
    refresh();
  }
  if (event.target.closest(".app-clear")) clear();
  if (event.target.closest(".app-hide")) {
    const chosen = all(".app-word, .app-cell").filter(isChosen);
    const { asked } = element.querySelector(".app-choose").dataset;
    trigger("submit", { asked, positions: chosen.flatMap((one) => one.dataset.positions.split(" ").map(Number)) });
  }
});

watch("value", () => requestAnimationFrame(clear));
